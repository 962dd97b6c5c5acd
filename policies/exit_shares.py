"""How often an early exit would answer at a threshold, and what accuracy that costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from splitedge.errors import PolicyError

Floats = npt.NDArray[np.float64]

#: Pseudo-observations of the distribution that is assumed until confidences are known.
_ASSUMED = 2.0
_GRID = 400


class ExitShares:
    """The confidences an exit gives, as validation rows show them.

    Confidences are calibrated: the probability that the answer is right. Of rows that are answered here, one
    of confidence c would have been right further on with probability max(c, A), where A is the accuracy
    there: rows that an exit is sure of are easy for the whole model too. So answering it here costs
    max(0, A - c), and never gains.

    Args:
        confidence: shape (rows,), in [0, 1].

    Raises:
        PolicyError: no rows, or a confidence outside of [0, 1].
    """

    def __init__(self, confidence: Sequence[float] | Floats) -> None:
        found = np.sort(np.asarray(confidence, dtype=np.float64).reshape(-1))
        if not found.size or not (found[0] >= 0.0 and found[-1] <= 1.0):
            raise PolicyError("confidences of an exit must be numbers in [0, 1], one a row at least")
        self._sorted = found

    @classmethod
    def assumed(cls, accuracy: float) -> ExitShares:
        """A Beta distribution whose mean is the exit's accuracy, until confidences are known."""
        mean = min(max(accuracy, 0.05), 0.95)
        angle = (np.arange(_GRID) + 0.5) / _GRID * np.pi / 2  # x = sin^2: the density has poles at both ends
        x = np.sin(angle) ** 2
        a, b = _ASSUMED * mean, _ASSUMED * (1.0 - mean)
        total = np.cumsum(np.sin(angle) ** (2.0 * a - 1.0) * np.cos(angle) ** (2.0 * b - 1.0))
        levels = (np.arange(_GRID) + 0.5) / _GRID * total[-1]
        return cls(x[np.minimum(np.searchsorted(total, levels), _GRID - 1)])

    def share(self, threshold: float) -> float:
        """Part of the rows whose confidence reaches the threshold."""
        return 1.0 - float(np.searchsorted(self._sorted, threshold)) / len(self._sorted)

    def loss(self, threshold: float, accuracy: float) -> float:
        """Accuracy that is lost where those rows are answered here and not with `accuracy` further on."""
        above = self._sorted[np.searchsorted(self._sorted, threshold) :]
        return float(np.maximum(accuracy - above, 0.0).sum()) / len(self._sorted)
