"""Train a bandit from what requests came to: records of a deployment, or columns of a simulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from splitedge.errors import PolicyError
from splitedge.policies.bandit import CONTEXT, BanditFile, context, observed, priors, rewards
from splitedge.policies.linear_bandit import LinearArms
from splitedge.policy import Option
from splitedge.record import Record

Columns = Mapping[str, npt.NDArray[Any]]
_NEEDED = ("t_s", "deadline_s", "planned", "option", "confidence", "met", "energy_j", "goodput_bps", "rtt_s")


def fit_bandit(
    columns: Columns,
    options: tuple[Option, ...],
    *,
    joules: float = 0.01,
    ridge: float = 10.0,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> BanditFile:
    """Train one. The last fifth of the requests is the validation part: reported on, not trained on.

    Args:
        columns: of the names and units of `Record`, each of shape (requests,): a `RecordTable`'s, or those of
            a simulation. Where `goodput_low_bps` or `rtt_high_s` are missing, half the goodput and one and a
            half of the round trip stand for them.
        options: the deployment's option table (`Evaluation.table`, say).
        joules, ridge: as for `Bandit`.
        progress: told what is done and which share of it.

    Raises:
        PolicyError: columns are missing, or fewer than 50 requests were planned by the policy on these
            options.
    """
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise PolicyError(f"a bandit is trained on requests; their columns {', '.join(missing)} are missing")
    rows = _usable(columns, options)
    n = len(rows["t_s"])
    if n < 50:
        raise PolicyError(f"{n} requests were planned on these options by a policy; at least 50 are needed")
    index = {option.name: i for i, option in enumerate(options)}
    obs = observed(rows, options)
    x, prior = context(obs), priors(obs, joules)
    progress("reading", 1.0)
    arm = np.array([index[str(name)] for name in rows["planned"]])
    ended = Record(request=0, t_s=0.0)
    for name in ("option", "confidence", "met", "energy_j"):
        setattr(ended, name, rows[name])
    reward = rewards(ended, index, np.array([option.accuracy for option in options]), joules)
    off = reward - prior[np.arange(n), arm]
    at = int(0.8 * n)
    arms = LinearArms(len(options), len(CONTEXT), ridge)
    arms.learn(arm[:at], x[:at], off[:at])
    left = off[at:] - arms.mean(x[at:])[np.arange(n - at), arm[at:]]
    progress("training", 1.0)
    return BanditFile(
        options=tuple(option.name for option in options),
        context=CONTEXT,
        ridge=ridge,
        a=tuple(tuple(tuple(row) for row in m) for m in arms.a.tolist()),
        b=tuple(tuple(row) for row in arms.b.tolist()),
        joules=joules,
        rows=at,
        before=float((off[at:] ** 2).mean()),
        after=float((left**2).mean()),
    )


def _usable(columns: Columns, options: tuple[Option, ...]) -> dict[str, npt.NDArray[Any]]:
    """The requests that a policy planned on one of the options, in order of arrival, with all that is
    needed.
    """
    found = {name: np.asarray(columns[name]) for name in _NEEDED}
    rate, rtt = found["goodput_bps"].astype(float), found["rtt_s"].astype(float)
    found["goodput_low_bps"] = (
        np.asarray(columns["goodput_low_bps"]) if "goodput_low_bps" in columns else 0.5 * rate
    )
    found["rtt_high_s"] = np.asarray(columns["rtt_high_s"]) if "rtt_high_s" in columns else 1.5 * rtt
    charge = columns["battery"] if "battery" in columns else np.full(len(rate), np.nan)
    found["battery"] = np.asarray(charge, float)
    known = np.isin(found["planned"].astype(str), [option.name for option in options])
    seen = (rate > 0.0) & (found["goodput_low_bps"] > 0.0) & (rtt > 0.0) & (found["rtt_high_s"] > 0.0)
    chosen = known & np.isfinite(rate) & np.isfinite(rtt) & seen
    if "forced" in columns:
        chosen &= ~np.asarray(columns["forced"], bool)
    if "rows" in columns:
        chosen &= np.asarray(columns["rows"]) == 1
    order = np.flatnonzero(chosen)[np.argsort(found["t_s"][chosen], kind="stable")]
    return {name: values[order] for name, values in found.items()}
