"""Two rate-accuracy curves compared by one number: bytes at equal accuracy, accuracy at equal bytes.

Bjøntegaard's deltas (VCEG-M33, 2001) with accuracy in the place of PSNR and a monotone piecewise cubic
(PCHIP; Fritsch and Butland, SIAM J. Sci. Stat. Comput. 1984) in the place of one polynomial: measured
accuracies are not smooth enough for that. What is not on the Pareto front is left out first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitedge.codecs.rate_distortion import Floats

LEAST_POINTS = 3
LEAST_OVERLAP = 0.5


@dataclass(frozen=True, slots=True)
class Delta:
    """One comparison.

    Attributes:
        value: part of the bytes (BD-rate: -0.5 is half of them) or accuracy (BD-accuracy: 0.01 is one
            point); None where it would mean nothing.
        why_not: a sentence in that case, else empty.
    """

    value: float | None
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy by bytes, on the Pareto front alone: both rise strictly.

    Attributes:
        nbytes: mean bytes.
        accuracy: at those bytes, 0 to 1.
    """

    nbytes: Floats
    accuracy: Floats

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Curve:
        """The front of (bytes, accuracy) pairs: a pair that another beats in both is left out."""
        kept: list[tuple[float, float]] = []
        for nbytes, accuracy in sorted(pairs, key=lambda pair: (pair[0], -pair[1])):
            if not kept or accuracy > kept[-1][1]:
                kept.append((nbytes, accuracy))
        return cls(np.array([b for b, _ in kept]), np.array([a for _, a in kept]))

    def __len__(self) -> int:
        return len(self.nbytes)


def bd_rate(test: Curve, reference: Curve) -> Delta:
    """Mean difference of ln bytes at equal accuracy, as a part of the reference's bytes."""
    delta = _mean_gap(
        (test.accuracy, np.log(test.nbytes)), (reference.accuracy, np.log(reference.nbytes)), "accuracies"
    )
    return delta if delta.value is None else Delta(float(np.expm1(delta.value)))


def bd_accuracy(test: Curve, reference: Curve) -> Delta:
    """Mean difference of accuracy at equal ln bytes."""
    return _mean_gap(
        (np.log(test.nbytes), test.accuracy), (np.log(reference.nbytes), reference.accuracy), "bytes"
    )


def _mean_gap(test: tuple[Floats, Floats], reference: tuple[Floats, Floats], what: str) -> Delta:
    """Mean of test less reference over the part of the axis that both cover."""
    from scipy.interpolate import PchipInterpolator

    fewest = min(len(test[0]), len(reference[0]))
    if fewest < LEAST_POINTS:
        return Delta(None, f"{fewest} points on the front of one curve, {LEAST_POINTS} are needed")
    low = max(test[0][0], reference[0][0])
    high = min(test[0][-1], reference[0][-1])
    shorter = min(axis[-1] - axis[0] for axis, _ in (test, reference))
    covered = max(high - low, 0.0) / shorter
    if covered < LEAST_OVERLAP:
        return Delta(
            None, f"the {what} of the two curves overlap on {covered:.0%} of the shorter one's range"
        )
    means = [PchipInterpolator(*curve).integrate(low, high) / (high - low) for curve in (test, reference)]
    return Delta(float(means[0] - means[1]))
