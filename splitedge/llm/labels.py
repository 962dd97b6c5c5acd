"""What a query router is taught: labels from the qualities of answers of a device and a cloud.

H = q(device) - q(cloud) of one query, over all pairs of sampled answers; a label says how far the device's
answer will do. Source: Ding et al., "Hybrid LLM: Cost-Efficient and Quality-Aware Query Routing", ICLR 2024,
for `det`, `prob` and `trans`; `gain` is ours.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError
from splitedge.llm.scorer import Floats

Labels = Literal["det", "prob", "trans", "gain"]
LABELS: tuple[Labels, ...] = ("det", "prob", "trans", "gain")
_STEPS = 64


def labels_of(kind: Labels, edge: npt.ArrayLike, cloud: npt.ArrayLike) -> Floats:
    """How far "the device's answer will do" holds of each query, in [0, 1], float64 (queries,).

    - `det`: 1[H >= 0] by the first answer of each.
    - `prob`: Pr[H >= 0] over all pairs of answers.
    - `trans`: Pr[H >= -t] for a device so much weaker that the others are 0 nearly everywhere; t is that
      which makes the labels differ most from each other (mean |y_i - y_j| over all pairs of queries).
    - `gain`: (1 + E[H] / r) / 2 with r the range of qualities: also counts how much is lost, and what the
      device answers better. Sending queries of the least label first is the best order there is.

    With one answer of each and qualities 0 or 1, `prob` is `det`.

    Args:
        edge, cloud: qualities, more is better, (queries,) or (queries, answers).

    Raises:
        ConfigError: an unknown kind, shapes that do not agree, or qualities that are not finite.
    """
    q, r = _table(edge), _table(cloud)
    if len(q) != len(r):
        raise ConfigError(f"{len(q)} queries answered by the device, {len(r)} by the cloud")
    if kind not in LABELS:
        raise ConfigError(f"no labels '{kind}'; there are {', '.join(LABELS)}")
    if kind == "det":
        return (q[:, 0] >= r[:, 0]).astype(np.float64)
    if kind == "gain":
        span = max(float(max(q.max(), r.max()) - min(q.min(), r.min())), 1e-12)
        out: Floats = 0.5 * (1.0 + (q.mean(1) - r.mean(1)) / span)
        return out
    return will_do(q, r, 0.0 if kind == "prob" else relaxation(q, r))


def will_do(edge: npt.ArrayLike, cloud: npt.ArrayLike, t: float) -> Floats:
    """Pr[H >= -t] of each query over all pairs of answers."""
    h = _table(edge)[:, :, None] - _table(cloud)[:, None, :]
    out: Floats = (h >= -t - 1e-12).mean(axis=(1, 2))
    return out


def relaxation(edge: npt.ArrayLike, cloud: npt.ArrayLike) -> float:
    """The t of `trans`: searched over all shortfalls that occur, so that it meets no bound of a grid."""
    short = (_table(cloud)[:, None, :] - _table(edge)[:, :, None]).ravel()
    tried = np.unique(np.quantile(np.maximum(short, 0.0), np.linspace(0.0, 1.0, _STEPS + 1)))
    spread = [spread_of(will_do(edge, cloud, float(t))) for t in tried]
    return float(tried[int(np.argmax(spread))])


def spread_of(labels: Floats) -> float:
    """Mean of |y_i - y_j| over all pairs."""
    n = len(labels)
    return float((np.sort(labels) * (2.0 * np.arange(n) - n + 1.0)).sum() * 2.0 / (n * n))


def _table(quality: npt.ArrayLike) -> Floats:
    q = np.asarray(quality, np.float64)
    q = q[:, None] if q.ndim == 1 else q
    if q.ndim != 2 or not q.size or not np.isfinite(q).all():
        raise ConfigError(f"qualities are finite numbers (queries, answers), got shape {q.shape}")
    return q
