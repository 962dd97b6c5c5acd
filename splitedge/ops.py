"""Which operators a stored program may call, and their names on disk.

A name is looked up, never evaluated. `aten.conv2d.default` passes because `conv2d` is on the list below
(what inference graphs are made of: no files, no random numbers, no uninitialised memory, no reading of a
tensor's storage past its shape), because torch has that overload, and because its schema writes to none
of its arguments. Arithmetic on the batch size uses the functions in `_ARITHMETIC`.
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

_ATEN = """
    abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d add addbmm addcdiv addcmul addmm addmv addr adjoint
    affine_grid_generator all amax amin aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2
    arctanh argmax argmin argsort asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d
    avg_pool2d avg_pool3d baddbmm bartlett_window batch_norm bilinear bitwise_and bitwise_left_shift
    bitwise_not bitwise_or bitwise_right_shift bitwise_xor blackman_window block_diag bmm broadcast_tensors
    broadcast_to bucketize cat cdist ceil celu channel_shuffle chunk clamp clamp_max clamp_min clip clone
    col2im column_stack complex concat concatenate conj conj_physical constant_pad_nd contiguous conv1d conv2d
    conv3d conv_depthwise3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution copy
    copysign cos cosh cosine_similarity count_nonzero cross cummax cummin cumprod cumsum deg2rad dequantize
    diag diag_embed diagonal diagonal_scatter diff digamma div divide dot dropout dsplit dstack einsum elu
    embedding embedding_bag eq equal erf erfc erfinv exp exp2 expand expand_as expm1 eye feature_dropout
    alpha_dropout fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2 fft_ifftn
    fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill
    fix flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod frac frobenius_norm full
    full_like gather ge gelu glu greater greater_equal grid_sampler grid_sampler_2d grid_sampler_3d group_norm
    gru gru_cell gt hamming_window hann_window hardshrink hardsigmoid hardswish hardtanh heaviside hsplit
    hstack hypot i0 im2col imag index index_add index_copy index_fill index_put index_reduce index_select
    inner instance_norm inverse isclose isfinite isin isinf isnan isneginf isposinf isreal istft kron kthvalue
    layer_norm ldexp le leaky_relu lerp less less_equal lgamma linalg_cross linalg_det linalg_diagonal
    linalg_inv linalg_matmul linalg_matrix_norm linalg_matrix_power linalg_norm linalg_vecdot
    linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logaddexp2
    logcumsumexp logical_and logical_not logical_or logical_xor logit logsumexp lstm lstm_cell lt
    masked_fill masked_scatter matmul max max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d maximum mean median
    meshgrid min minimum mish mm moveaxis movedim msort mul multiply mv nan_to_num nanmean nanmedian nansum
    narrow native_group_norm native_layer_norm ne neg negative new_full new_ones new_zeros norm not_equal
    numpy_T one_hot ones ones_like outer pad pairwise_distance pdist permute pixel_shuffle pixel_unshuffle
    polar positive pow prelu prod quantile rad2deg ravel real reciprocal reflection_pad1d reflection_pad2d
    reflection_pad3d relu relu6 remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape reshape_as resolve_conj resolve_neg rms_norm rnn_relu rnn_relu_cell rnn_tanh
    rnn_tanh_cell roll rot90 round row_stack rsqrt rsub scalar_tensor scaled_dot_product_attention scatter
    scatter_add scatter_reduce searchsorted select select_scatter selu sgn sigmoid sign signbit silu sin sinc
    sinh slice slice_scatter softmax softplus softshrink sort special_erf special_erfc special_expit
    special_expm1 special_log1p special_log_softmax special_logit special_logsumexp special_softmax split
    split_with_sizes sqrt square squeeze stack std std_mean stft sub subtract sum swapaxes swapdims sym_numel
    sym_size t take take_along_dim tan tanh tensor_split tensordot threshold tile to topk trace transpose
    trapezoid tril tril_indices triu triu_indices true_divide trunc type_as unbind unflatten unfold
    unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze upsample_bicubic2d upsample_bilinear2d
    upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d vander var
    var_mean vdot view_as view_as_complex view_as_real vsplit vstack where xlogy zeros zeros_like mH mT
    _to_copy _softmax _log_softmax _native_batch_norm_legit_no_training _adaptive_avg_pool2d
    _adaptive_avg_pool3d _weight_norm _upsample_bilinear2d_aa _upsample_bicubic2d_aa _safe_softmax
    __and__ __or__ __xor__ __lshift__ __rshift__
"""
_PRIMS = "convert_element_type view_of broadcast_in_dim transpose split_dim collapse_view iota"
_ALLOWED = {"aten": frozenset(_ATEN.split()), "prims": frozenset(_PRIMS.split())}

#: Tagged as drawing random numbers, but only when training; capture refuses them with dropout on.
_RANDOM_IN_TRAINING = """
    dropout feature_dropout alpha_dropout lstm gru rnn_tanh rnn_relu scaled_dot_product_attention
"""
RANDOM_IN_TRAINING = frozenset(_RANDOM_IN_TRAINING.split())
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
    name = _ARITHMETIC_NAMES.get(target) if callable(target) else None
    if name is None:
        name = str(target) if isinstance(target, OpOverload) else repr(target)
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
    namespace, base, variant = match.groups() if match else ("", "", "")
    if base not in _ALLOWED.get(namespace, ()):
        raise BundleError(f"operator {name!r:.120} is not one that a program may call")
    overload = _overload(namespace, base, variant)
    if overload is None:
        raise BundleError(f"operator {name!r} does not exist in torch {torch.__version__}")
    problem = _problem(overload, base)
    if problem:
        raise BundleError(f"operator {name!r} {problem}; a program may not call it")
    return overload


def _overload(namespace: str, base: str, variant: str) -> OpOverload | None:
    if namespace == "prims":
        import_module("torch._prims")  # registers the namespace; programs of aten alone need not wait for it
    packet = getattr(getattr(torch.ops, namespace), base, None)
    if not isinstance(packet, OpOverloadPacket) or variant not in packet.overloads():  # type: ignore[no-untyped-call]
        return None
    found = getattr(packet, variant)
    return found if isinstance(found, OpOverload) else None


def _problem(overload: OpOverload, base: str) -> str:
    """Why an overload may not be called though its name is on the list; empty when it may."""
    schema = overload._schema
    if schema.is_mutable:
        return "writes to its arguments"
    if torch.Tag.nondeterministic_seeded in overload.tags and base not in RANDOM_IN_TRAINING:
        return "draws random numbers"
    for argument in schema.arguments:
        if not _plain(str(argument.type)):
            return f"takes '{argument.name}' of type {argument.type}"
    return ""


def _plain(kind: str) -> bool:
    while (inner := _WRAPPED.fullmatch(kind)) is not None:
        kind = inner.group(1)
    return _TYPE.fullmatch(kind) is not None
