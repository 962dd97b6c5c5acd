"""Which operators a stored program may call, and their names on disk.

A name is looked up, never evaluated: `aten.conv2d.default` must be an overload that exists, writes to
none of its arguments, draws no random numbers, touches no file, and is no internal operator except the
few listed here. Integer arithmetic on the batch size uses the functions in `_ARITHMETIC`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from splitedge.errors import BundleError

_NAME = re.compile(r"(aten|prims)\.([A-Za-z_][A-Za-z0-9_]{0,79})\.([A-Za-z_][A-Za-z0-9_]{0,79})")
_TYPE = re.compile(r"Tensor|number|int|SymInt|float|bool|str|Device|Generator|complex|ScalarType|Layout")
_WRAPPED = re.compile(r"(?:Optional|List)\[(.*)\]")

#: Operators whose names start with an underscore and that torch.export does leave in a graph.
_INTERNAL = frozenset(
    "_to_copy _softmax _log_softmax _native_batch_norm_legit_no_training _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d _weight_norm _upsample_bilinear2d_aa _upsample_bicubic2d_aa _unsafe_index".split()
)
#: Operators that pass the other tests and must not run from a file: they read or map files, hand out
#: memory that was never written, or read a tensor's storage past its shape.
_DENIED = frozenset(
    "from_file empty empty_like empty_strided empty_permuted new_empty new_empty_strided as_strided "
    "as_strided_copy as_strided_scatter resize item data values crow_indices col_indices".split()
)
#: Families that no captured inference graph needs: gradients, vendor kernels, quantised and sparse layouts.
_FAMILY = re.compile(
    r".*_backward.*|.*_jvp|(cudnn|miopen|mkldnn|mps|fbgemm|quantized|sparse|slow|thnn|lift|is|q)_.*|.*_sparse.*"
    r"|.*sparse_.*|quantize_.*|.*quantized.*|to_mkldnn|set|put|unflatten_dense_tensors|format|sspaddmm|s?mm_out"
)
#: Tagged as drawing random numbers, but only when training: capture refuses them with dropout on.
RANDOM_IN_TRAINING = frozenset("dropout lstm gru rnn_tanh rnn_relu scaled_dot_product_attention".split())
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{f"operator.{n}": getattr(operator, n) for n in ("add", "sub", "mul", "floordiv", "mod", "neg")},
    "operator.getitem": operator.getitem,
    "sym_max": torch.sym_max,
    "sym_min": torch.sym_min,
}
_ARITHMETIC_NAMES = {function: name for name, function in _ARITHMETIC.items()}


def name_of(target: Any) -> str:
    """The name of a call target on disk.

    Raises:
        BundleError: the target may not be stored.
    """
    name = _ARITHMETIC_NAMES.get(target) if isinstance(target, Callable) else None  # type: ignore[arg-type]
    if name is None:
        name = str(target) if isinstance(target, OpOverload) else f"{target!r}"
    resolve(name)
    return name


@cache
def resolve(name: str) -> Callable[..., Any]:
    """The function that `name` stands for.

    Raises:
        BundleError: no such operator, or one that a stored program may not call; the message names it.
    """
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    match = _NAME.fullmatch(name)
    if match is None:
        raise BundleError(f"operator {name!r:.120} is not one a program may call (aten, prims or arithmetic)")
    overload = _overload(*match.groups())
    if overload is None:
        raise BundleError(f"operator {name!r} does not exist in torch {torch.__version__}")
    problem = _problem(overload, match.group(2))
    if problem:
        raise BundleError(f"operator {name!r} {problem}; a program may not call it")
    return overload


def _overload(namespace: str, base: str, overload: str) -> OpOverload | None:
    if namespace == "prims":
        import_module("torch._prims")  # registers the namespace; programs of aten alone need not wait for it
    try:
        packet = getattr(getattr(torch.ops, namespace), base)
    except AttributeError:
        return None
    if not isinstance(packet, OpOverloadPacket) or overload not in packet.overloads():
        return None
    found = getattr(packet, overload)
    return found if isinstance(found, OpOverload) else None


def _problem(overload: OpOverload, base: str) -> str:
    """Why a program may not call it; empty when it may."""
    schema = overload._schema
    if base in _DENIED or _FAMILY.fullmatch(base) or (base.startswith("_") and base not in _INTERNAL):
        return "is internal to torch or unsafe on unchecked arguments"
    if schema.is_mutable:
        return "writes to its arguments"
    if torch.Tag.nondeterministic_seeded in overload.tags and base not in RANDOM_IN_TRAINING:
        return "draws random numbers"
    if not schema.returns:
        return "gives nothing"
    for argument in schema.arguments:
        if "filename" in argument.name or not _plain(str(argument.type)):
            return f"takes '{argument.name}' of type {argument.type}"
    return ""


def _plain(kind: str) -> bool:
    while (inner := _WRAPPED.fullmatch(kind)) is not None:
        kind = inner.group(1)
    return _TYPE.fullmatch(kind) is not None
