"""Floating-point operations of one ATen node from its shapes; a multiply-add counts as two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Shape = tuple[int, ...]
#: Shapes at batch size 1: of each tensor argument (None for what is no tensor; a list of tensors gives a
#: list of shapes), and of each result.
Shapes = Sequence[Any]


_FREE = """
    view reshape flatten unflatten transpose permute t squeeze unsqueeze expand expand_as select slice
    narrow split split_with_sizes chunk unbind detach alias clone contiguous _unsafe_view cat stack
    zeros ones full empty arange zeros_like ones_like full_like empty_like new_zeros new_ones new_full
    pad constant_pad_nd embedding index index_select gather repeat roll flip pixel_shuffle
    _to_copy to lift_fresh_copy movedim swapaxes numpy_T unfold channel_shuffle tile
"""
#: Operators that move or rename data and compute nothing.
FREE = frozenset(_FREE.split())


def flops(op: str, args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    """Operations of one call.

    Args:
        op: base name of the ATen operator, "conv2d" say.
        args: the positional arguments as given.
        shapes: for each argument its shape, a list of shapes, or None.
        results: the shape of each tensor it gives.
    """
    if op in FREE:
        return 0
    rule = _RULES.get(op)
    if rule is not None:
        return rule(args, shapes, results)
    return _elements(shapes, results)


def _elements(shapes: Shapes, results: Sequence[Shape]) -> int:
    """One operation per element of the largest tensor taken or given (elementwise ops, reductions, pools)."""
    sizes = [math.prod(s) for s in results]
    for shape in shapes:
        if isinstance(shape, tuple):
            sizes.append(math.prod(shape))
        elif isinstance(shape, list):
            sizes.extend(math.prod(s) for s in shape)
    return max(sizes, default=0)


def _conv(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    weight: Shape = shapes[1]
    bias = math.prod(results[0]) if len(shapes) > 2 and shapes[2] is not None else 0
    return 2 * math.prod(results[0]) * math.prod(weight[1:]) + bias


def _conv_transpose(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    weight: Shape = shapes[1]
    bias = math.prod(results[0]) if len(shapes) > 2 and shapes[2] is not None else 0
    return 2 * math.prod(shapes[0]) * math.prod(weight[1:]) + bias


def _convolution(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    rule = _conv_transpose if args[6] else _conv
    return rule(args, shapes, results)


def _linear(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    bias = math.prod(results[0]) if len(shapes) > 2 and shapes[2] is not None else 0
    return 2 * math.prod(results[0]) * int(shapes[0][-1]) + bias


def _matmul(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    return 2 * math.prod(results[0]) * int(shapes[0][-1])


def _addmm(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    return 2 * math.prod(results[0]) * int(shapes[1][-1]) + math.prod(results[0])


def _einsum(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    letters = args[0].split("->")[0].replace(" ", "").split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(letters, shapes[1], strict=False):
        if "." not in term:
            sizes.update(zip(term, shape, strict=False))
    return 2 * max(math.prod(sizes.values()), math.prod(results[0]))


def _attention(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    query: Shape = shapes[0]
    key: Shape = shapes[1]
    value: Shape = shapes[2]
    scores = math.prod(query[:-1]) * int(key[-2])
    return 2 * scores * int(query[-1]) + 2 * scores * int(value[-1]) + 5 * scores


def _recurrent(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    x: Shape = shapes[0]
    weights: list[Shape] = next(s for s in shapes[2:] if isinstance(s, list))
    steps = math.prod(x[:-1])  # time steps times rows, in either layout
    return 2 * steps * sum(math.prod(w) for w in weights)


def _norm(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    return 5 * math.prod(results[0])


def _batch_norm(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    return 2 * math.prod(results[0])  # at inference: one scale, one shift


def _softmax(args: Sequence[Any], shapes: Shapes, results: Sequence[Shape]) -> int:
    return 5 * math.prod(results[0])


_Rule = Callable[[Sequence[Any], Shapes, Sequence[Shape]], int]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    "convolution": _convolution,
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("layer_norm", "group_norm", "native_layer_norm", "instance_norm", "rms_norm"), _norm),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), _softmax),
}
