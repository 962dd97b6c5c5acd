"""`bandit[:explore]`: learns from its own outcomes how far each option is better or worse than predicted."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from splitedge.errors import PolicyError
from splitedge.policies.chance import link_of
from splitedge.policies.linear_bandit import LinearArms
from splitedge.policies.model_file import Model, read_model, write_model
from splitedge.policies.plan_ahead import weigh
from splitedge.policy import Decision, Estimate, Observation, Option, Policy
from splitedge.policy_argument import read_argument
from splitedge.record import Record

KIND = "bandit"
#: The context of a request, as far as records hold it too, so that one can be trained from them.
CONTEXT = ("one", "goodput", "spread", "rtt", "rtt_spread", "deadline", "tightness", "battery")
_KEPT = 256  # requests under way that are remembered
_LONGEST_S = 10.0
_GOODPUT_BPS, _RTT_S, _DEADLINE_S = 1e6, 0.05, 0.1  # what the logarithms are taken over

Floats = npt.NDArray[np.float64]


class BanditFile(Model):
    """What a file of a bandit holds.

    Attributes:
        options: names of the arms.
        context: names of the numbers in a context.
        ridge: weight of the prior.
        a, b: sums of every arm, (arms, size, size) and (arms, size); see `LinearArms`.
        joules: weight of a joule against a right answer, as it was trained.
        rows: outcomes it was trained on.
        before, after: mean squared error of the reward on the validation part, of the predictions alone and
            with what was learned.
    """

    options: tuple[str, ...] = Field(min_length=1, max_length=1024)
    context: tuple[str, ...]
    ridge: float = Field(gt=0.0)
    a: tuple[tuple[tuple[float, ...], ...], ...]
    b: tuple[tuple[float, ...], ...]
    joules: float
    rows: int
    before: float
    after: float

    @model_validator(mode="after")
    def _agree(self) -> Self:
        arms, size = len(self.options), len(CONTEXT)
        if self.context != CONTEXT:
            raise ValueError(
                f"contexts of {', '.join(self.context)}; this version takes {', '.join(CONTEXT)}"
            )
        if len(self.a) != arms or any(len(m) != size or any(len(r) != size for r in m) for m in self.a):
            raise ValueError(f"'a' is not of shape ({arms}, {size}, {size})")
        if len(self.b) != arms or any(len(row) != size for row in self.b):
            raise ValueError(f"'b' is not of shape ({arms}, {size})")
        a = np.array(self.a)
        if not np.allclose(a, a.swapaxes(1, 2)) or np.linalg.eigvalsh(a).min() <= 0.0:
            raise ValueError("'a' holds a matrix that is not symmetric and positive definite")
        return self


class _UnderWay(NamedTuple):
    t_s: Any
    ends_s: Any
    arms: Any  # index of the option, int or (N,)
    x: Floats
    prior: Any  # reward predicted of it


class Bandit(Policy):
    """A contextual bandit over the options: routes, cuts and levels.

    The reward of a request is 1 for a right answer in time (the calibrated confidence where it is known, else
    the accuracy of the option that answered; 0 if late), less `joules` times its joules. Of each option a
    linear model of the context (goodput, RTT, their spreads, deadline, battery) learns how far the reward is
    off from what is predicted of it: the probability to be right and in time, the device's answer behind a
    late one counted, as `mpc` predicts it for a single request. So it starts with the predictions, which is
    safe, and every option is as unsure as the others; with evidence it departs from them. `ucb` takes the
    highest upper confidence bound, `thompson` a draw.

    Outcomes come late and in any order (`learn`): each finds its decision by the request's arrival. A request
    decided twice, at arrival and at an exit, counts for both decisions. Of N devices all share one model.

    Sources: Li et al., "A Contextual-Bandit Approach to Personalized News Article Recommendation", WWW 2010
    (LinUCB, one model for each arm); Agrawal and Goyal, "Thompson Sampling for Contextual Bandits with Linear
    Payoffs", ICML 2013.

    Args:
        explore: width of the bound, or of the draws; 0 never explores.
        method: `ucb` or `thompson`.
        joules: how much of a right answer a joule is worth.
        ridge: weight of the predictions, in outcomes of the option.
        seed: of the draws of `thompson`.
        file: sums to start from, which `splitedge policy fit bandit` wrote; they bring their own ridge.

    Raises:
        PolicyError: a value out of range, or the file can not be read.
    """

    name: ClassVar[str] = "bandit"

    def __init__(
        self,
        explore: float = 0.1,
        method: str = "ucb",
        joules: float = 0.01,
        ridge: float = 10.0,
        seed: int = 0,
        file: str = "",
    ) -> None:
        for key, value, least in (("explore", explore, 0.0), ("joules", joules, 0.0), ("ridge", ridge, 1e-6)):
            if not least <= value < math.inf:
                raise PolicyError(f"policy 'bandit': '{key}' must be at least {least:g}, got {value}")
        if method not in ("ucb", "thompson"):
            raise PolicyError(f"policy 'bandit': the method is ucb or thompson, got '{method}'")
        self.explore, self.joules, self.ridge, self.seed = explore, joules, ridge, seed
        self.method: Literal["ucb", "thompson"] = "ucb" if method == "ucb" else "thompson"
        self._rng = np.random.default_rng(seed)
        self.file = read_model(file, KIND, BanditFile) if file else None
        self._options: tuple[Option, ...] = ()
        self._index: Mapping[str, int] = {}
        self._accuracy = np.zeros(0)
        self._arms: LinearArms | None = None
        self._under_way: deque[_UnderWay] = deque(maxlen=_KEPT)

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `bandit`, `bandit:0.2` or `bandit:method=thompson,seed=7,file=bandit.json`.

        Raises:
            PolicyError: an unknown key, or a value that is no number or out of range.
        """
        return cls(**read_argument(cls, argument, main="explore"))

    @property
    def arms(self) -> LinearArms:
        """What was learned so far.

        Raises:
            PolicyError: it has not met a deployment yet.
        """
        if self._arms is None:
            raise PolicyError("policy 'bandit' has not met a deployment: call check or decide first")
        return self._arms

    def check(self, options: Sequence[Option]) -> None:
        """Refuse a deployment with other options than the file's; else get ready for it.

        Raises:
            PolicyError: its file was trained on other options.
        """
        if self._arms is not None and tuple(options) == self._options:
            return
        names = tuple(option.name for option in options)
        arms = LinearArms(len(names), len(CONTEXT), self.ridge)
        if self.file is not None:
            if set(names) - set(self.file.options):
                raise PolicyError(
                    f"policy 'bandit': its file was trained on {', '.join(self.file.options)}; this "
                    f"deployment has {', '.join(names)}; train it again"
                )
            order = [self.file.options.index(name) for name in names]
            arms.put(np.array(self.file.a)[order], np.array(self.file.b)[order])
        self._options, self._arms = tuple(options), arms
        self._index = {name: i for i, name in enumerate(names)}
        self._accuracy = np.array([option.accuracy for option in options])
        self._under_way.clear()

    def decide(self, obs: Observation) -> Decision:
        """The option of the highest bound, or draw."""
        if obs.options is not self._options:
            self.check(obs.options)
            self._options = obs.options
        arms = self.arms
        x = context(obs)
        prior = priors(obs, self.joules)
        shape = np.broadcast_shapes(x.shape[:-1], prior.shape[:-1])
        x, prior = (
            np.broadcast_to(x, (*shape, x.shape[-1])),
            np.broadcast_to(prior, (*shape, prior.shape[-1])),
        )
        if self.method == "ucb":
            learned = arms.mean(x) + self.explore * arms.bonus(x)
        else:
            learned = arms.draw(x, self.explore, self._rng)
        # Rounded, so that sums in another order decide alike.
        total = np.round(np.where(np.isneginf(prior), prior, prior + learned), 9)
        best = total.argmax(-1)
        chosen = np.take_along_axis(prior, best[..., None], -1)[..., 0]
        under_way = _UnderWay(obs.t_s, obs.t_s + obs.deadline_s, best, x, chosen)
        if obs.exit >= 0:
            under_way = under_way._replace(t_s=self._arrival(under_way.ends_s, obs.t_s))
        self._under_way.append(under_way)
        return Decision(best if shape else int(best))

    def _arrival(self, ends_s: Any, t_s: Any) -> Any:
        """When the request arrived that is decided again at an exit."""
        for one in reversed(self._under_way):
            if np.shape(one.ends_s) == np.shape(ends_s) and np.allclose(
                one.ends_s, ends_s, rtol=0.0, atol=1e-6
            ):
                return one.t_s
        return t_s

    def learn(self, record: Record) -> None:
        """Take what came of a request."""
        if self._arms is None:
            return
        mine = [one for one in self._under_way if np.array_equal(one.t_s, record.t_s)]
        if not mine:
            return
        reward = np.atleast_1d(rewards(record, self._index, self._accuracy, self.joules))
        free = np.atleast_1d(np.logical_not(record.forced))
        for one in mine:
            x = one.x.reshape(len(reward), -1)
            arm = np.atleast_1d(one.arms)
            self._arms.learn(arm[free], x[free], (reward - np.atleast_1d(one.prior))[free])
        kept = [one for one in self._under_way if all(one is not other for other in mine)]
        self._under_way = deque(kept, maxlen=_KEPT)

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        i, option = decision.option, obs.options[decision.option]
        x = context(obs)
        prior, learned = float(priors(obs, self.joules)[i]), float(self.arms.mean(x)[i])
        unsure = self.explore * float(self.arms.bonus(x)[i])
        how = "upper bound" if self.method == "ucb" else "draw"
        out = "" if obs.link_up else "; the cloud is out of reach"
        return (
            f"{option.name} has the highest {how} of the reward: predicted {prior:.3f}, learned "
            f"{learned:+.3f}, unsure by {unsure:.3f}{out}"
        )


def context(obs: Observation) -> Floats:
    """The context of a request, (..., len(CONTEXT)): logarithms, so that a factor is a step."""
    deadline = np.minimum(np.maximum(obs.deadline_s, 1e-3), _LONGEST_S)
    rate = np.maximum(obs.goodput.mean, 1.0)
    battery = np.where(np.isnan(obs.battery), 1.0, obs.battery)
    columns = (
        1.0,
        0.5 * np.log(rate / _GOODPUT_BPS),
        np.log(rate / np.maximum(obs.goodput.low, 1.0)),
        0.5 * np.log(np.maximum(obs.rtt.mean, 1e-4) / _RTT_S),
        np.log(np.maximum(obs.rtt.high, 1e-4) / np.maximum(obs.rtt.mean, 1e-4)),
        0.5 * np.log(deadline / _DEADLINE_S),
        np.minimum(obs.rtt.high / deadline, 2.0),
        battery,
    )
    return np.stack(np.broadcast_arrays(*columns), -1).astype(float)


def priors(obs: Observation, joule: float) -> Floats:
    """Reward predicted of each option, (..., O); -inf out of reach."""
    forecast = obs.goodput
    worth = weigh(obs, link_of(forecast, 0.0, 0.0))
    columns = [
        np.where(np.asarray(one.value) < 0.0, -math.inf, one.value - joule * one.joules) for one in worth
    ]
    return np.stack(np.broadcast_arrays(*columns), -1)


def rewards(record: Record, index: Mapping[str, int], accuracy: Floats, joule: float) -> Any:
    """Reward of a record, or of each in arrays: probability of a right answer in time less joules."""
    known = np.append(accuracy, 0.0)
    by = [index.get(str(name), len(accuracy)) for name in np.atleast_1d(record.option)]
    usual = known[by].reshape(np.shape(record.option))
    confidence = np.asarray(record.confidence, float)
    answered = np.asarray(record.option) != ""
    right = np.where(np.isnan(confidence), usual, confidence)
    return np.where(answered & np.asarray(record.met), right, 0.0) - joule * np.asarray(
        record.energy_j, float
    )


def observed(columns: Mapping[str, Any], options: tuple[Option, ...]) -> Observation:
    """What a policy saw of requests of which only records are left: columns of shape (N,). The high side of
    goodput is taken as far from the mean as the low side; the cloud's queue as 2 ms.
    """
    rate, low = columns["goodput_bps"], columns["goodput_low_bps"]
    rtt, high = columns["rtt_s"], columns["rtt_high_s"]
    queue = np.full(np.shape(rate), 0.002)
    return Observation(
        options,
        goodput=Estimate(rate, low, rate * rate / low),
        downlink=Estimate(2.0 * rate, 2.0 * low, 2.0 * rate * rate / low),
        rtt=Estimate(rtt, np.minimum(rtt, rtt * rtt / high), high),
        queue=Estimate(queue, 0.0 * queue, 2.0 * queue),
        deadline_s=columns["deadline_s"],
        battery=columns["battery"],
        t_s=columns["t_s"],
    )


def save(path: str, file: BanditFile) -> str:
    """Write a bandit's file; returns the digest."""
    return write_model(path, KIND, file)
