"""The entropy-constrained bottleneck: its prior, both recipes, and what is deployed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import splitedge
from splitedge.codec import TensorSpec
from splitedge.codecs.entropic import Entropic, PriorCoding
from splitedge.codecs.prior import Prior
from splitedge.errors import CodecError
from splitedge.learning import Schedule


def rows(count=96):
    """Four classes, told apart by which quarter of the image is bright."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 8, 8, generator=generator) * 0.3
    for i, k in enumerate(labels.tolist()):
        images[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.7
    return images, labels


def fitted(options="channels=2", **how):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    images, labels = rows()
    deployment = splitedge.deploy(
        model, images[:4], codec=f"entropic:{options}", cut="1", policy="static:split"
    )
    schedule = Schedule(**({"epochs": 10, "batch_size": 16, "progress": False} | how))
    report = deployment.fit((images[:64], labels[:64]), (images[64:], labels[64:]), schedule=schedule)
    return deployment, report.codecs[0], images


def the_codec(deployment):
    return next(c for c in deployment._plan.codecs.values() if isinstance(c, Entropic))


@pytest.fixture(scope="module")
def codec():
    deployment, _, _ = fitted()
    with deployment:
        yield the_codec(deployment)


@given(
    st.lists(st.tuples(*[st.floats(-3, 3)] * 9), min_size=1, max_size=4),
    st.floats(0.02, 20.0),
    st.floats(-0.5, 0.5),
)
@settings(max_examples=50, deadline=None)
def test_likelihoods_of_all_integers_sum_to_one(parameters, gain, shift):
    prior = Prior(len(parameters))
    told = torch.tensor(parameters).view(-1, 3, 3)
    with torch.no_grad():
        prior.weights.copy_(told[:, 0].T)
        prior.means.copy_(told[:, 1].T)
        prior.log_scales.copy_(told[:, 2].T - 2)
    reach = int(60 * gain) + 2
    y = (torch.arange(-reach, reach + 1) + shift).repeat(1, len(parameters), 1)
    p = prior.likelihood(y / gain, torch.full((len(parameters),), 1 / gain))
    assert torch.allclose(p.sum(2), torch.ones(1, len(parameters)), atol=1e-4)
    bits = prior.bits(y / gain, torch.full((len(parameters),), 1 / gain))
    assert bits.shape == (1,) and torch.isclose(bits, -p.log2().sum(), rtol=1e-4)


def test_noise_is_within_half_a_step_and_drawn_again_alike():
    z = torch.randn(8, 3, 4, 4)
    first, second = (PriorCoding(3, seed=5).train() for _ in range(2))
    for coding in (first, second):
        coding.quantised = False
    y, bits = first(z, 0)
    assert torch.equal(y, second(z, 0)[0]) and not torch.equal(y, second(z, 0)[0])
    gain = first.gain.view(1, -1, 1, 1)
    assert bits.shape == (8,) and 0.4 < (y - z * gain).abs().max() <= 0.5 + 1e-6
    assert torch.equal(first.eval()(z, 0)[0], (z * gain).round())


@pytest.mark.parametrize("options", ["channels=2,rate=2", "channels=2,recipe=student,beta=0.5"])
def test_trains_answers_and_is_loaded_again(options, tmp_path):
    deployment, trained, images = fitted(options)
    deployment.save(tmp_path / "bundle")
    with deployment, splitedge.load(tmp_path / "bundle", policy="static:split") as again:
        result = deployment(images[:3])
        assert result.route is splitedge.Route.SPLIT and result.output.shape == (3, 4)
        assert torch.equal(result.output, again(images[:3]).output)
        assert the_codec(again).id == the_codec(deployment).id
    assert trained.val_bytes[0] > 8 and 0 <= trained.val_accuracy[0] <= 1


def test_the_dearer_a_byte_the_fewer_are_sent():
    cheap, dear = (fitted(f"channels=4,rate={rate}", epochs=20)[1].val_bytes[0] for rate in (0.1, 1000))
    assert dear < 0.7 * cheap


def test_bytes_are_those_of_the_tables(codec):
    images, _ = rows()
    for batch in (images[:1], images[:7], images):
        ideal = codec._tables.bits(codec.codes((batch,))).sum() / 8
        body = codec.encode((batch,)).nbytes - 8
        assert body <= min(1.02 * ideal + 1, codec.max_body(0, len(batch)))


def test_no_input_takes_more_than_the_packed_size(codec):
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 1e3, 1e6):
        strange = torch.randn(4, 1, 8, 8, generator=generator) * scale
        payload = codec.encode((strange,))
        assert payload.nbytes <= codec.max_bytes(0, 4)
        assert torch.isfinite(codec.decode(payload)[0]).all()


def test_what_is_damaged_is_refused(codec):
    images, _ = rows(4)
    data = codec.encode((images[:1],)).data
    for i in range(len(data)):
        for bit in range(8):
            with pytest.raises(CodecError):
                codec.decode(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])
        with pytest.raises(CodecError):
            codec.decode(data[:i])
    with pytest.raises(CodecError, match="NaN"):
        codec.encode((torch.full_like(images[:1], torch.nan),))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.5}, "takes rate or nbytes, not beta"),
        ({"recipe": "student", "rate": 1}, "takes beta, not rate"),
        ({"recipe": "teacher"}, "recipe is"),
        ({"rate": 0}, "above 0"),
        ({"rate": "much"}, "number"),
        ({"nbytes": 8}, "above 8"),
        ({"nbytes": 40, "rate": 1}, "in place of rate"),
        ({"channels": 0}, "channels"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(CodecError, match=message):
        Entropic.check(
            [TensorSpec((1, 3, 32, 32), "float32")], [TensorSpec((1, 16, 16, 16), "float32")], **options
        )
