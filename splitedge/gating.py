"""A filter at work: how sure it is that a payload need not be sent, and what is answered then.

A neural filter as in Matsubara and Levorato, "Neural Compression and Filtering for Edge-assisted
Real-time Object Detection in Challenged Networks" (ICPR 2020): pictures without an object are
not sent. Here it may judge an early exit too, and what it says is the engine's input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from splitedge.codec import Network, Tensors, TensorSpec
from splitedge.errors import CodecError
from splitedge.pooling import feature_among
from splitedge.thresholds import Floats, as_floats

#: What the two outputs of a filter stand for.
NEEDED, SPARED = 0, 1
_TINY = 1e-7


def spare(
    network: Network, specs: Sequence[TensorSpec], unpacked: Tensors, exit_logits: torch.Tensor | None
) -> Floats:
    """Calibrated probability that a payload need not be sent, of shape (rows,).

    Args:
        network: the filter.
        specs: of what the codec unpacks.
        unpacked: that, of some rows: what the cloud would see.
        exit_logits: (rows, classes) where the filter judges an exit.

    Raises:
        CodecError: no filter can stand on such tensors.
    """
    which = feature_among(specs)
    if which is None:
        raise CodecError(f"no filter can stand on what the codec sends: {', '.join(map(str, specs))}")
    seen = unpacked[which]
    (logits,) = network(seen) if exit_logits is None else network(seen, exit_logits)
    return as_floats(logits.double().softmax(1)[:, SPARED])


def nothing_logits(confidence: Floats, nothing: int, classes: int) -> torch.Tensor:
    """Logits (rows, classes), float32, whose softmax is `confidence` for the class `nothing` and even among
    the others.
    """
    sure = np.clip(confidence, _TINY, 1.0 - _TINY)
    logits = np.log((1.0 - sure) / max(classes - 1, 1))[:, None].repeat(classes, axis=1)
    logits[:, nothing] = np.log(sure)
    return torch.from_numpy(logits).float()
