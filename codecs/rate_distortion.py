"""What a codec costs and what is left of a model's accuracy: one measured point, and figures of points.

Bytes are those of really encoded rows at batch 1, never estimated bits: as a payload (its 8-byte header
included) and as a whole frame on the wire. Curves are compared in `bjontegaard`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

RESAMPLES = 2000


class Interval(NamedTuple):
    """A figure with the two ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Point:
    """One level of one codec on every row of a test set. Seconds are medians at batch 1 on one thread.

    Attributes:
        name: of the contender, unique with `level`.
        family: points of one family make a curve.
        kind: `ours`, `published` or `baseline`.
        cut: where the codec stands; empty for the model's input.
        level: of the codec.
        payload: bytes of each row's payload, header included, int64 (rows,).
        framed: bytes of each row's whole frame, int64 (rows,).
        correct: whether each row was answered right, bool (rows,).
        encoder_kib: weights, buffers and tables that the edge holds.
        encoder_macs: multiply-accumulates of the edge on one row.
        macs_share: the same, of the whole model's.
        encode_s, decode_s: from the model's input to the payload, and from the payload to what the tail
            takes, networks included.
        pack_s, unpack_s: the same without the networks: quantising, coding, headers.
        switch_s: by how much a request of this level takes longer, encoding and decoding, when the one
            before it was of another level; 0 for a codec of one.
        train_s: seconds of training; 0 for what needs none.
        epochs: of training, over all stages.
        val_accuracy: on the rows that chose when to stop; NaN for what is not trained. What is picked among
            contenders is picked by this, never by the test set.
    """

    name: str
    family: str
    kind: str
    cut: str
    level: str
    payload: Ints
    framed: Ints
    correct: Bools
    encoder_kib: float
    encoder_macs: int
    macs_share: float
    encode_s: float
    decode_s: float
    pack_s: float
    unpack_s: float
    switch_s: float = 0.0
    train_s: float = 0.0
    epochs: int = 0
    val_accuracy: float = float("nan")

    def __post_init__(self) -> None:
        if not len(self.payload) == len(self.framed) == len(self.correct) > 0:
            raise ConfigError(f"point '{self.label}': its columns are empty or not of one length")

    @property
    def label(self) -> str:
        """Unique in a run."""
        return f"{self.name}:{self.level}"

    @property
    def accuracy(self) -> float:
        """Part of the rows answered right."""
        return float(self.correct.mean())

    @property
    def bytes_mean(self) -> float:
        """Mean payload, header included."""
        return float(self.payload.mean())

    @property
    def framed_mean(self) -> float:
        """Mean frame."""
        return float(self.framed.mean())

    def bytes_at(self, *quantiles: float) -> tuple[float, ...]:
        """Quantiles of the payload's bytes, each a size that was seen."""
        found = np.quantile(self.payload, quantiles, method="inverted_cdf")
        return tuple(float(value) for value in found)


def accuracy_interval(correct: Bools, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Accuracy and its 95% bootstrap interval (percentiles over resampled rows).

    Rows are right or wrong, so that the number right in a resample is binomial: it is drawn as such.
    """
    rows, right = len(correct), int(correct.sum())
    drawn = np.random.default_rng(seed).binomial(rows, right / rows, resamples) / rows
    return _interval(right / rows, drawn)


def accuracy_difference(ours: Bools, theirs: Bools, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Accuracy of one answerer less that of another on the same rows, with its paired 95% interval.

    Pairing matters: two codecs err on much the same rows, so that a difference far smaller than either
    one's own interval can be told from nothing.

    Raises:
        ConfigError: not the same rows.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ConfigError(f"a paired difference needs the same rows, got {len(ours)} and {len(theirs)}")
    rows = len(ours)
    better, worse = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    shares = [better / rows, worse / rows, (rows - better - worse) / rows]
    drawn = np.random.default_rng(seed).multinomial(rows, shares, resamples)
    return _interval((better - worse) / rows, (drawn[:, 0] - drawn[:, 1]) / rows)


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(value, float(low), float(high))


@dataclass(frozen=True, slots=True)
class Worst:
    """The corner from which hypervolume is measured: what one has without a codec.

    Attributes:
        encoder_kib: the whole model's size.
        nbytes: the raw input's bytes.
        accuracy: of guessing.
    """

    encoder_kib: float
    nbytes: float
    accuracy: float


def hypervolume(points: Sequence[Point], worst: Worst) -> float:
    """Part of the box between `worst` and (0 KiB, 0 bytes, every row right) that the points dominate.

    Encoder size and mean payload count downwards, accuracy upwards; 0 to 1, more is better. Exact, by
    slices over accuracy. A point outside the box adds nothing.
    """
    boxes = [
        (1 - p.encoder_kib / worst.encoder_kib, 1 - p.bytes_mean / worst.nbytes, _gain(p, worst))
        for p in points
    ]
    inside = sorted((box for box in boxes if min(box) > 0), key=lambda box: -box[2])
    volume = 0.0
    for i, (_, _, height) in enumerate(inside):
        below = inside[i + 1][2] if i + 1 < len(inside) else 0.0
        volume += _area([(x, y) for x, y, _ in inside[: i + 1]]) * (height - below)
    return volume


def _gain(point: Point, worst: Worst) -> float:
    return (point.accuracy - worst.accuracy) / (1 - worst.accuracy)


def _area(corners: Sequence[tuple[float, float]]) -> float:
    """Of the union of rectangles from the origin to each corner."""
    area, reached = 0.0, 0.0
    for x, y in sorted(corners, reverse=True):
        if y > reached:
            area += x * (y - reached)
            reached = y
    return area
