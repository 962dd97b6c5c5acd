"""`bounded`: no value further off than it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.codec import CodecState, TensorSpec, load_codec, make_codec
from splitedge.codecs.bounded import Bounded
from splitedge.errors import CodecError


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    batch_dim=st.sampled_from([0, 0, 1]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    rows=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-42, 1e-6, 1.0, 3e3, 1e30]),
    level=st.integers(0, 3),
    outlier=st.sampled_from([1.0, 1.0, 1e6]),
    smooth=st.booleans(),
)
def test_every_value_is_within_the_bound(shape, batch_dim, dtype, rows, seed, scale, level, outlier, smooth):
    batch_dim = min(batch_dim, len(shape) - 1)
    shape[batch_dim] = 1
    spec = TensorSpec(tuple(shape), dtype, batch_dim)
    generator = torch.Generator().manual_seed(seed)
    codec = Bounded([spec])
    x, seen = (torch.randn(spec.shape_at(n), generator=generator, dtype=torch.float64) for n in (rows, 8))
    if smooth:
        x = x.cumsum(-1)
    x[(0,) * x.dim()] *= outlier
    x, seen = ((t * scale).to(getattr(torch, dtype)) for t in (x, seen))
    if not bool(x.isfinite().all() and seen.isfinite().all()):
        return
    codec.calibrate([(seen,)])
    payload = codec.encode([x], level)
    (back,) = codec.decode(payload)
    assert back.dtype == x.dtype and back.shape == x.shape and back.is_contiguous()
    assert bool(((back.double() - x.double()).abs() <= codec.bound(level)).all())
    assert payload.nbytes <= codec.max_bytes(level, rows)


def test_channels_longer_than_what_is_worked_on_at_once():
    codec = make_codec("bounded", [TensorSpec((1, 3, 5000), "float32"), TensorSpec((1, 700, 5), "float32")])
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(2, *shape, generator=generator).cumsum(-1) for shape in ((3, 5000), (700, 5))]
    codec.calibrate([x])
    for level in range(len(codec.levels)):
        for k, back in enumerate(codec.decode(codec.encode(x, level))):
            assert (back - x[k]).abs().max() <= codec.bound(level, k)


def test_coarser_levels_take_fewer_bytes_and_smooth_channels_fewer_still():
    codec = make_codec("bounded", [TensorSpec((1, 4, 16, 16), "float32")])
    noise = torch.rand(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, 256).view(1, 1, 16, 16).expand(2, 4, 16, 16)
    sizes = [codec.encode([noise], level).nbytes for level in range(len(codec.levels))]
    assert sizes == sorted(sizes) and sizes[0] < noise.numel()
    assert codec.encode([ramp], 3).nbytes < sizes[3] / 4
    assert codec.bound(0) == 1 / 16  # not calibrated: the parts are absolute


def test_integers_pass_exactly_and_the_state_makes_it_again():
    specs = [TensorSpec((1, 3), "int64"), TensorSpec((1, 40), "float32"), TensorSpec((1, 2), "bool")]
    codec = make_codec("bounded", specs, bounds=(0.5, 0.001))
    x = [torch.tensor([[1, -(2**60), 5]]), torch.randn(1, 40), torch.tensor([[True, False]])]
    codec.calibrate([x])
    again = load_codec("bounded", codec.state(), specs)
    assert again.id == codec.id and again.levels == codec.levels == ("0.5", "0.001")
    out = again.decode(codec.encode(x, 1))
    assert torch.equal(out[0], x[0]) and torch.equal(out[2], x[2])
    assert (out[1] - x[1]).abs().max() <= codec.bound(1, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad):
    codec = make_codec("bounded", [TensorSpec((1, 4), "float32")])
    x = torch.tensor([[0.0, 1.0, bad, 2.0]])
    for refused in (lambda: codec.encode([x]), lambda: codec.calibrate([(x,)])):
        with pytest.raises(CodecError, match="NaN or infinity"):
            refused()


def test_bounds_and_states_that_can_not_be_are_refused():
    spec = [TensorSpec((1, 4), "float32")]
    for bounds in ((), (0.1, 0.1), (0.1, 0.2), (0.0,), (2.0,), (float("nan"),)):
        with pytest.raises(CodecError, match="bounds"):
            Bounded(spec, bounds=bounds)
    with pytest.raises(CodecError, match="differ"):
        Bounded(spec, [TensorSpec((1, 5), "float32")])
    codec = Bounded(spec)
    with pytest.raises(CodecError, match="no batches"):
        codec.calibrate([])
    codec.calibrate([(torch.randn(2, 4),)])
    state = codec.state()
    for tensors in (
        {},
        {"span0": torch.tensor([1.0])},
        {"span0": torch.tensor([float("inf")], dtype=torch.float64)},
        {"span0": torch.tensor([-1.0], dtype=torch.float64)},
        {**state.tensors, "more": torch.zeros(1)},
    ):
        with pytest.raises(CodecError):
            Bounded.from_state(CodecState(state.config, tensors), spec)
    with pytest.raises(CodecError, match="bounds"):
        Bounded.from_state(CodecState({**state.config, "bounds": ["x"]}, state.tensors), spec)
