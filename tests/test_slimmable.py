"""The slimmable codec: payloads that begin with the lower levels', and one decoder for rows of all levels."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import splitedge
from splitedge.codec import HEADER, TensorSpec
from splitedge.codecs.channel_groups import ChannelGroups
from splitedge.codecs.slimmable import Slimmable
from splitedge.codecs.tables import Tables
from splitedge.errors import CodecError
from splitedge.policy import Decision, Policy


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).eval()


def rows(count=128):
    """Four classes, told apart by which quarter of the image is bright."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 8, 8, generator=generator) * 0.3
    for i, k in enumerate(labels.tolist()):
        images[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.7
    return images, labels


def fitted(options, model, images, labels, epochs=1, cut="1"):
    deployment = splitedge.deploy(
        model, images[:4], codec=f"slimmable:{options}", cut=cut, policy="static:split"
    )
    stop = len(images) * 3 // 4
    report = deployment.fit(
        (images[:stop], labels[:stop]), (images[stop:], labels[stop:]), epochs=epochs, progress=False
    )
    return deployment, report


def the_codec(deployment):
    return next(c for c in deployment._plan.codecs.values() if isinstance(c, Slimmable))


@pytest.fixture(scope="module")
def trained():
    images, labels = rows(256)
    model = classifier().train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    deployment, report = fitted("channels=4,levels=3", model.eval(), images, labels, epochs=15)
    with deployment:
        yield deployment, report


@pytest.fixture(scope="module")
def codec(trained):
    return the_codec(trained[0])


class Turns(Policy):
    """Takes the options that it is told, one after the other."""

    name = "turns"

    def __init__(self, options):
        self.options = iter(options)

    def decide(self, obs):
        return Decision([option.name for option in obs.options].index(next(self.options)))

    def explain(self, obs, decision):
        return "its turn"


def test_every_level_learns_and_a_higher_one_sends_more(trained):
    deployment, report = trained
    (how,) = report.codecs
    assert the_codec(deployment).levels == ("1x2bit", "2x2bit", "4x2bit")
    assert list(how.val_bytes) == sorted(set(how.val_bytes))
    assert how.teacher_accuracy > 0.9 and min(how.val_accuracy) > 0.6 and max(how.val_accuracy) > 0.9
    options = [option for option in deployment.options if option.codec == "slimmable"]
    assert [option.level for option in options] == [0, 1, 2]
    assert all(option.accuracy_measured for option in options)


def test_saved_halves_switch_levels_from_request_to_request(trained, tmp_path):
    deployment, _ = trained
    images, labels = rows(4)
    names = [option.name for option in deployment.options if option.codec == "slimmable"]
    wanted = [names[0], names[2], names[1], names[0]]
    table = deployment.evaluate((images, labels), "split")
    deployment.save(tmp_path / "bundle")
    with splitedge.load(tmp_path / "bundle", policy=Turns(wanted)) as again:
        assert the_codec(again).id == the_codec(deployment).id
        for i, name in enumerate(wanted):
            result = again(images[i : i + 1])
            assert result.option == name
            line = table.confidence[table.options.index(name)]
            assert result.confidence == pytest.approx(line[i], abs=1e-5)
    files = {path.name for path in (tmp_path / "bundle" / "edge").iterdir()}
    assert sum(name.startswith("encoder") and name.endswith(".safetensors") for name in files) == 1
    assert not any(name.startswith("decoder") for name in files)


@pytest.mark.parametrize("count", [1, 5])
def test_a_lower_level_is_cut_off_from_a_payload(codec, count):
    images, _ = rows(count)
    payloads = [codec.encode((images,), level) for level in range(3)]
    for level, payload in enumerate(payloads):
        assert payload.nbytes <= codec.max_bytes(level, count)
        for low in range(level + 1):
            assert codec.lower(payload, low) == payloads[low]
            assert payload.data[HEADER.size :].startswith(payloads[low].data[HEADER.size :])
    with pytest.raises(CodecError, match="holds no level 2"):
        codec.lower(payloads[1], 2)


def test_rows_of_several_levels_are_decoded_in_one_batch(codec):
    images, _ = rows(6)
    payloads = [codec.encode((images[i : i + 1],), i % 3) for i in range(6)]
    unpacked = [codec.unpack(payload) for payload in payloads]
    together = codec.expand(tuple(torch.cat(parts) for parts in zip(*unpacked, strict=True)))
    alone = torch.cat([codec.decode(payload)[0] for payload in payloads])
    torch.testing.assert_close(together[0], alone)
    outputs = [codec.decode(codec.encode((images[:1],), level))[0] for level in range(3)]
    assert not torch.allclose(outputs[0], outputs[2]) and not torch.allclose(outputs[1], outputs[2])


def test_an_input_that_inflates_its_payload_is_sent_at_a_lower_level(codec):
    noise = 5 * torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    images = torch.cat([rows(32)[0], noise])
    state = codec.state()
    top = len(codec.levels) - 1
    sizes = sorted(codec.encode((image[None],)).nbytes - HEADER.size for image in images)
    caps = [*state.config["caps"][:-1], sizes[len(sizes) // 4]]
    tight = Slimmable.from_state(
        replace(state, config=state.config | {"caps": caps}), codec.read_specs, codec.give_specs
    )
    sent = [tight.encode((image[None],)) for image in images]
    assert {payload.level for payload in sent} >= {top, top - 1}
    assert all(payload.nbytes <= tight.max_bytes(payload.level) for payload in sent)
    for image, payload in zip(images, sent, strict=True):
        tight.decode(payload)
        long = codec.encode((image[None],))
        if payload.level < long.level == top:
            with pytest.raises(CodecError, match="at most"):
                tight.decode(long.data)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_is_damaged_is_refused(codec, level):
    images, _ = rows(1)
    payload = codec.encode((images,), level)
    data = payload.data
    for i in range(len(data)):
        for bad in (data[:i], *(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :] for bit in range(8))):
            with pytest.raises(CodecError):
                codec.unpack(bad)
    with pytest.raises(CodecError, match="damaged"):
        codec.lower(replace(payload, data=data[:-1]), 0)


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=30), level=st.integers(0, 2), count=st.integers(1, 3))
def test_what_was_made_to_look_right_is_refused_or_read(codec, body, level, count):
    crc = zlib.crc32(body, zlib.crc32(HEADER.pack(1, level, count, 0)[:4]))
    try:
        latent, levels = codec.unpack(HEADER.pack(1, level, count, crc) + body)
    except CodecError:
        return
    assert latent.shape == (count, 4, 4, 4) and levels.tolist() == [level] * count


def test_one_level_alone_has_its_channels_and_no_others():
    deployment, report = fitted("channels=4,levels=3,only=1", classifier(), *rows())
    with deployment:
        assert the_codec(deployment).levels == ("2x2bit",)
        assert len(report.codecs[0].val_bytes) == 1


def test_rows_of_features_are_coded_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    images, labels = rows()
    deployment, report = fitted("channels=4,levels=2", model, images.flatten(1), labels)
    with deployment:
        assert len(report.codecs[0].val_bytes) == 2
        assert deployment(images[:2].flatten(1)).output.shape == (2, 4)


@settings(max_examples=100, deadline=None)
@given(
    groups=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    symbols=st.sampled_from([1, 2, 4, 16, 256]),
    count=st.integers(1, 4),
    inner=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_body_begins_with_that_of_every_lower_level(groups, symbols, count, inner, seed):
    prefixes = np.cumsum(groups).tolist()
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(symbols, 0.5))
    codes = rng.choice(symbols, (count, prefixes[-1], inner), p=p).astype(np.uint8)
    coder = ChannelGroups(Tables.of(codes, symbols), inner, prefixes)
    bodies = [coder.encode(codes, level) for level in range(len(prefixes))]
    for level, body in enumerate(bodies):
        assert len(body) <= coder.max_bytes(level, count)
        assert np.array_equal(coder.decode(memoryview(body), level, count), codes[:, : prefixes[level]])
        for low in range(level + 1):
            assert coder.beginning(memoryview(body), level, count, low) == bodies[low]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits is one of"),
        ({"levels": 9}, "levels is a whole number"),
        ({"levels": 4, "channels": 4}, "do not make 4 levels"),
        ({"levels": 2, "only": 2}, "only is one of"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(CodecError, match=message):
        Slimmable.check(
            [TensorSpec((1, 3, 32, 32), "float32")], [TensorSpec((1, 16, 16, 16), "float32")], **options
        )
