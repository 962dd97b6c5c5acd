"""From what an edge has measured to the costs that `plan` weighs, in a deployment and in the simulator."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from splitedge.estimate import LinkEstimator
from splitedge.llm.evaluation import LanguageEvaluation
from splitedge.llm.plan import Costs
from splitedge.power import PowerModel

#: Assumed until something was measured.
_ASSUMED = Costs(0.05, 10e6, 20e6, 0.02, 0.001)
_DEVICE_S = 0.01


#: Weights of a new step in what is recent and what is usual; seconds after which half of the difference
#: between them is forgotten.
_RECENT, _USUAL, _HALF_S = 0.1, 0.02, 20.0
#: A step counts as at most so many times what was expected: a single slow one says little.
_MOST = 2.0


class StepSeconds:
    """Seconds of a step that is done over and over, smoothed.

    While the step is not done (no draft is made while the cloud streams), what was seen last is forgotten
    in favour of what is usual: a device that was slow for a moment is given another chance.
    """

    __slots__ = ("_count", "_last", "_recent", "_usual")

    def __init__(self) -> None:
        self._recent = self._usual = self._last = math.nan
        self._count = 0

    def observe(self, now: float, seconds: float) -> None:
        """A step took so many seconds."""
        self._count += 1
        if self._count == 1:
            self._recent = self._usual = seconds
        else:
            first = 1.0 / self._count  # a mean as long as there are few
            recent = self.at(now)
            self._recent = recent + max(_RECENT, first) * (min(seconds, _MOST * recent) - recent)
            self._usual += max(_USUAL, first) * (min(seconds, _MOST * self._usual) - self._usual)
        self._last = now

    def at(self, now: float) -> float:
        """Expected seconds of one; NaN before the first."""
        if not self._count:
            return math.nan
        stays = 0.5 ** (max(0.0, now - self._last) / _HALF_S)
        found: float = self._usual + stays * (self._recent - self._usual)
        return found


@dataclass(frozen=True, slots=True)
class Measured:
    """What an edge knows of itself and its cloud; NaN where nothing was measured yet.

    Attributes:
        draft_s, head_s: a token by the device's small model, and by its head; inf where there is none.
        decode_s: a pass of the cloud.
        acceptance: of a draft behind right ones.
    """

    draft_s: float
    head_s: float
    decode_s: float = math.nan
    acceptance: float = 0.7


def costs_of(
    known: Measured,
    power: PowerModel,
    link: LinkEstimator | None,
    now: float,
    evaluation: LanguageEvaluation | None = None,
) -> Costs:
    """What a text is expected to cost.

    Args:
        known: of device and cloud.
        power: what joules are modelled with.
        link: estimates of the way to the cloud; None where there is none.
        now: second of the clock that they are of.
        evaluation: of the deployment on real prompts; what it knows takes the place of assumptions.
    """
    base = replace(
        _ASSUMED,
        draft_s=_or(known.draft_s, _DEVICE_S),
        head_s=_or(known.head_s, _DEVICE_S),
        survival=(known.acceptance,),
        compute_w=power.compute_w,
        j_per_bit_up=power.j_per_bit_up,
        j_per_bit_down=power.j_per_bit_down,
    )
    if link is not None:
        decode = _or(known.decode_s, base.decode_s)
        base = replace(
            base,
            rtt_s=link.rtt(now).mean,
            up_bps=link.goodput(now).mean,
            down_bps=link.downlink(now).mean,
            queue_s=link.queue(now).mean,
            decode_s=decode,
            prefill_s=decode / 16,
        )
    return base if evaluation is None else evaluation.into(base)


def _or(value: float, assumed: float) -> float:
    return assumed if math.isnan(value) else value
