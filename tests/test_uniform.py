"""The quantiser of a latent: its bound, its refusals, and the same numbers in NumPy and in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.codecs.uniform import Uniform, fake_quantise
from splitedge.errors import CodecError


def latent(channels: int, inner: int, seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((3, channels, inner)) * scale).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    channels=st.integers(1, 6),
    inner=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    steps=st.sampled_from([1, 3, 7, 15, 255]),
    scale=st.sampled_from([1e-20, 1.0, 1e20]),
)
def test_within_half_a_step_and_what_torch_makes_of_it(channels, inner, seed, steps, scale):
    rng = np.random.default_rng(seed)
    lo = (-rng.uniform(0.5, 4, channels) * scale).astype(np.float32)
    step = (rng.uniform(0.01, 2, channels) * scale).astype(np.float32)
    z = latent(channels, inner, seed, 2 * scale)
    quantiser = Uniform(lo, step, steps)
    codes = quantiser.codes(z)
    values = quantiser.values(codes)
    assert codes.dtype == np.uint8 and codes.max() <= steps and values.dtype == np.float32
    ends = np.clip(z, lo[:, None], (lo + step * steps)[:, None])
    slack = 4e-6 * (np.abs(ends) + step[:, None] * steps + np.abs(lo[:, None]))
    assert (np.abs(values - ends) <= step[:, None] / 2 + slack).all()
    trained = fake_quantise(*map(torch.from_numpy, (z, lo, step)), steps)
    assert np.array_equal(trained.numpy(), values)
    first = z[:, : (channels + 1) // 2]
    assert np.array_equal(quantiser.codes(first), codes[:, : first.shape[1]])


def test_halves_go_to_the_even_code_and_values_beyond_to_the_ends():
    quantiser = Uniform(np.zeros(1, np.float32), np.ones(1, np.float32), 7)
    z = np.array([[[0.5, 1.5, 2.5, -9, 99, 3e38, -3e38, 6.5]]], np.float32)
    assert quantiser.codes(z).ravel().tolist() == [0, 2, 2, 0, 7, 7, 0, 6]


def test_a_number_of_steps_for_each_channel():
    quantiser = Uniform(np.zeros(3, np.float32), np.ones(3, np.float32), [0, 3, 255])
    assert quantiser.codes(np.full((1, 3, 2), 1e9, np.float32))[0, :, 0].tolist() == [0, 3, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    quantiser = Uniform(np.zeros(2, np.float32), np.ones(2, np.float32), 3)
    z = latent(2, 4, 0)
    z[1, 1, 2] = bad
    with pytest.raises(CodecError, match="NaN or infinity"):
        quantiser.codes(z)


@pytest.mark.parametrize(
    ("lo", "step", "steps"),
    [
        ([0.0], [0.0], 3),
        ([0.0], [-1.0], 3),
        ([0.0], [np.nan], 3),
        ([np.inf], [1.0], 3),
        ([0.0], [1e-40], 3),
        ([0.0, 1.0], [1.0], 3),
        ([], [], 3),
        ([0.0], [1.0], 256),
        ([0.0], [1.0], -1),
    ],
)
def test_no_quantiser_of_such_numbers(lo, step, steps):
    with pytest.raises(CodecError):
        Uniform(np.array(lo, np.float32), np.array(step, np.float32), steps)
    with pytest.raises(CodecError, match="float32"):
        Uniform(np.zeros(1), np.ones(1), 3)


def test_gradients_pass_through_the_rounding_as_in_lsq():
    z = torch.tensor([[[-5.0, 0.3, 1.6, 50.0]]], requires_grad=True)
    lo, step = torch.zeros(1, requires_grad=True), torch.ones(1, requires_grad=True)
    fake_quantise(z, lo, step, 7).sum().backward()
    assert z.grad.ravel().tolist() == [0.0, 1.0, 1.0, 0.0]
    assert lo.grad.item() == 2.0  # the two beyond the range
    assert step.grad.item() == pytest.approx((0 - 0.3) + (2 - 1.6) + 7)
