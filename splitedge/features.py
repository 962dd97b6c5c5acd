"""Cheap numbers of an input, for policies that judge how hard it is before anything is computed.

Sixteen statistics of pixel values, edges and layout; all of them together take about 0.1 ms for an image of
32 x 32 on one core. The simulator and the daemon see the same: `Deployment.evaluate` stores what this module
gives (`Evaluation.features`), the edge's runtime calls it on what arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from splitedge.codec import Tensors

Floats = npt.NDArray[np.float32]

#: What each column holds. Values of uint8 are taken over 255, all others as they are.
NAMES = (
    "mean",
    "std",
    "low",  # least value
    "high",  # greatest value
    "skew",
    "tails",  # fourth standardised moment
    "across",  # mean absolute difference of neighbours along the last axis
    "down",  # the same along the axis before it; 0 where there is none
    "curve",  # mean absolute second difference along the last axis
    "edges",  # share of steps along the last axis over twice their mean
    "coarse",  # standard deviation of the means of 4 x 4 blocks
    "centre",  # mean of the middle half less the mean of all
    "colour",  # mean standard deviation across channels
    "entropy",  # bits, of the values in 16 bins between least and greatest
    "dark",  # share of values in the lowest eighth of that range
    "bright",  # share of values in the highest eighth
)
#: Longer sides are thinned out to at most this many samples.
MOST = 64
#: No value counts as larger than this, so that squares and sums of values stay finite.
LARGEST = np.float32(1e15)
_BINS = 16
_EPS = np.float32(1e-6)


def features_of(inputs: Tensors, dims: Sequence[int | None]) -> Floats:
    """Features of every row: of the first input tensor that has rows (one row, if none has).

    Args:
        inputs: flat tensors of the model's input.
        dims: batch dimension of each, None for one that all rows share.

    Returns:
        float32 (rows, 16), finite; columns as in `NAMES`.
    """
    at = next((i for i, dim in enumerate(dims) if dim is not None), 0)
    values, dim = inputs[at].detach().cpu(), dims[at]
    if values.dtype is not torch.uint8:
        values = values.float()
    return features_of_array((values[None] if dim is None else values.movedim(dim, 0)).numpy())


def features_of_array(values: npt.NDArray[Any]) -> Floats:
    """Features of every row of an array (rows, ...), float32 (rows, 16).

    The last two axes are taken as height and width, those before them as channels; rows of one axis are
    sequences, rows of single numbers are sequences of one.
    """
    x = _thin(values)
    rows = len(x)
    flat = x.reshape(rows, -1)
    mean, std = flat.mean(1), flat.std(1)
    low, high = flat.min(1), flat.max(1)
    z = (flat - mean[:, None]) / np.maximum(std, _EPS)[:, None]
    cubes = z * z * z
    step = np.abs(np.diff(x, axis=-1)).reshape(rows, -1)
    across = _mean(step)
    share = (flat - low[:, None]) / np.maximum(high - low, _EPS)[:, None]
    middle = x[:, :, _half(x.shape[2]), _half(x.shape[3])].reshape(rows, -1)
    columns = (
        mean,
        std,
        low,
        high,
        cubes.mean(1),
        (cubes * z).mean(1),
        across,
        _mean(np.abs(np.diff(x, axis=2)).reshape(rows, -1)),
        _mean(np.abs(np.diff(x, n=2, axis=-1)).reshape(rows, -1)),
        _mean((step > 2.0 * across[:, None]).astype(np.float32)),
        _coarse(x),
        _mean(middle) - mean,
        x.std(1).reshape(rows, -1).mean(1),
        _entropy(share),
        (share < 0.125).mean(1),
        (share > 0.875).mean(1),
    )
    return np.nan_to_num(np.stack(columns, 1).astype(np.float32), posinf=0.0, neginf=0.0)


def _thin(values: npt.NDArray[Any]) -> Floats:
    """float32 (rows, channels, height, width), sides at most `MOST`."""
    rows = len(values)
    sides = values.shape[1:] or (1,)
    height = sides[-2] if len(sides) > 1 else 1
    x = values.reshape(rows, -1, height, sides[-1])
    x = x[:, :, :: -(-height // MOST), :: -(-sides[-1] // MOST)]
    floats = x.astype(np.float32)
    if values.dtype == np.uint8:
        floats /= np.float32(255.0)
    return np.clip(np.nan_to_num(floats, posinf=0.0, neginf=0.0), -LARGEST, LARGEST)


def _half(side: int) -> slice:
    return slice(side // 4, max(side - side // 4, side // 4 + 1))


def _mean(values: Floats) -> Floats:
    """Mean of each row; 0 where a row has no values (a sequence of one has no steps)."""
    if values.shape[1] == 0:
        return np.zeros(len(values), np.float32)
    return np.asarray(values.mean(1), np.float32)


def _coarse(x: Floats) -> Floats:
    rows, _, height, width = x.shape
    high, wide = max(1, height // 4), max(1, width // 4)
    image = x.mean(1)[:, : min(4, height) * high, : min(4, width) * wide]
    blocks = image.reshape(rows, -1, high, image.shape[2] // wide, wide).mean((2, 4))
    return np.asarray(blocks.reshape(rows, -1).std(1), np.float32)


def _entropy(share: Floats) -> Floats:
    rows, count = share.shape
    bins = np.minimum((share * _BINS).astype(np.int64), _BINS - 1) + _BINS * np.arange(rows)[:, None]
    part = np.bincount(bins.reshape(-1), minlength=rows * _BINS).reshape(rows, _BINS) / count
    return np.asarray(-(part * np.log2(np.maximum(part, 1e-12))).sum(1), np.float32)
