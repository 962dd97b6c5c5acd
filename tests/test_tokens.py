"""`tokens`: trained in a few steps on a small vision transformer, through `deploy` and alone."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import splitedge
from splitedge.choice import choose
from splitedge.codec import HEADER, TensorSpec, load_codec
from splitedge.codecs.subsets import Subsets
from splitedge.codecs.tokens import Tokens
from splitedge.errors import CodecError, ConfigError

WIDTH, PLACES = 16, 16
KEEP = (3, 8, 16)


class ViT(nn.Module):
    """float32 (N, 1, 8, 8) to logits (N, 4): 16 patches, with or without a class token."""

    def __init__(self, class_token=True):
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(1, WIDTH, 2, 2)
        self.first = nn.Parameter(torch.randn(1, int(class_token), WIDTH))
        self.places = nn.Parameter(torch.randn(1, PLACES + int(class_token), WIDTH) * 0.1)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
                for _ in range(3)
            )
        )
        self.out = nn.Linear(WIDTH, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(x.shape[0], -1, -1), tokens], 1) + self.places
        tokens = self.blocks(tokens)
        return self.out(tokens[:, 0] if self.first.numel() else tokens.mean(1))


def rows(count=96):
    """Four classes, told apart by which quarter of the image is bright."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 8, 8, generator=generator) * 0.3
    for i, k in enumerate(labels.tolist()):
        images[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.7
    return images, labels


def fitted(class_token=True, epochs=8, **options):
    images, labels = rows()
    deployment = splitedge.deploy(
        ViT(class_token).eval(),
        images[:4],
        codec=("tokens", {"keep": KEEP, "channels": 4, "class_token": class_token} | options),
        cut="blocks.0",
        policy="static:split",
    )
    report = deployment.fit(
        (images[:64], labels[:64]), (images[64:], labels[64:]), progress=False, epochs=epochs
    )
    return deployment, report


@pytest.fixture(scope="module")
def trained():
    deployment, report = fitted()
    with deployment:
        yield deployment, report


@pytest.fixture(scope="module")
def codec(trained):
    return the_codec(trained[0])


def the_codec(deployment):
    return next(c for c in deployment._plan.codecs.values() if isinstance(c, Tokens))


def some(count, seed=0):
    return torch.randn(count, PLACES + 1, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_levels_are_numbers_of_tokens_and_bytes_ascend(trained, codec):
    deployment, report = trained
    assert codec.levels == ("3 tokens", "8 tokens", "16 tokens")
    (how,) = report.codecs
    assert how.val_bytes[0] < how.val_bytes[1] < how.val_bytes[2] <= codec.max_bytes(2)
    for level, nbytes in enumerate(how.val_bytes):
        k, left_out = KEEP[level], KEEP[level] < PLACES
        packed = 2 * (1 + left_out + k)  # class token, merged token, those kept: 4 codes of 4 bits each
        assert codec.max_bytes(level) == HEADER.size + packed + 2 * left_out  # 2 bytes say which tokens
        assert HEADER.size < nbytes <= codec.max_bytes(level)
    assert deployment(rows()[0][:1]).output.shape == (1, 4)


def test_what_is_kept_comes_back_at_its_place_and_the_rest_is_merged(codec):
    x = some(5)
    whole, everywhere = codec.unpack(codec.encode([x], 2))
    assert torch.all(everywhere == 1)
    for level, k in enumerate(KEEP[:2]):
        z, kept = codec.unpack(codec.encode([x], level))
        assert z.shape == (5, 4, PLACES + 1) and torch.all(kept[:, 0] == 1)
        assert kept[:, 1:].sum(1).tolist() == [k] * 5
        mask = kept.bool()[:, None].expand_as(z)
        assert torch.equal(z[mask], whole[mask])
        for row, own in zip(z, kept.bool(), strict=True):
            assert torch.all(row[:, ~own] == row[:, ~own][:, :1])


def test_a_higher_level_keeps_what_a_lower_one_keeps(codec):
    low, high = (codec.unpack(codec.encode([some(5)], level))[1] for level in (0, 1))
    assert torch.all(high[low == 1] == 1)


def test_rows_of_mixed_levels_are_answered_as_alone(codec):
    payloads = [codec.encode([some(n, seed)], level) for n, seed, level in ((1, 1, 0), (2, 2, 2), (1, 3, 1))]
    alone = torch.cat([codec.decode(payload)[0] for payload in payloads])
    together = [torch.cat(parts) for parts in zip(*map(codec.unpack, payloads), strict=True)]
    with torch.inference_mode():
        (answers,) = codec.expand(tuple(together))
    assert torch.allclose(answers, alone, atol=1e-5)


def test_learns():
    images, labels = rows(256)
    model = ViT().train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    deployment = splitedge.deploy(
        model.eval(), images[:4], codec="tokens:bits=2,channels=4,keep=4", cut="blocks.0"
    )
    report = deployment.fit(
        (images[:192], labels[:192]), (images[192:], labels[192:]), epochs=15, progress=False
    )
    deployment.close()
    assert report.codecs[0].teacher_accuracy > 0.9
    assert report.codecs[0].val_accuracy[0] > 0.9


def test_without_a_class_token():
    deployment, _ = fitted(class_token=False, epochs=2, keep=[0.25, 15])
    with deployment:
        codec = the_codec(deployment)
        assert codec.levels == ("4 tokens", "15 tokens")
        assert codec.unpacked_specs[0].shape == (1, 4, PLACES)
        assert deployment(rows()[0][:2]).output.shape == (2, 4)


def test_saved_halves_answer_alike(trained, tmp_path):
    deployment, _ = trained
    images, _ = rows()
    deployment.save(tmp_path / "bundle")
    with splitedge.load(tmp_path / "bundle", policy="static:split") as again:
        assert torch.equal(deployment(images[:3]).output, again(images[:3]).output)
    files = {path.name for path in (tmp_path / "bundle" / "edge").iterdir()}
    assert not any(name.startswith("decoder") for name in files)


def test_what_is_damaged_is_refused(codec):
    data = codec.encode([some(2)], 0).data
    for i in range(len(data)):
        for bit in range(8):
            with pytest.raises(CodecError):
                codec.decode(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])
    for n in range(len(data)):
        with pytest.raises(CodecError):
            codec.decode(data[:n])
    with pytest.raises(CodecError, match="NaN"):
        codec.encode([torch.full((1, PLACES + 1, WIDTH), torch.nan)])


@pytest.mark.parametrize("body", [b"", b"\0", b"\xff\xff" + bytes(8), b"\xff\xff\xff\xff"])
def test_a_body_whose_index_names_no_tokens_is_refused_behind_a_good_checksum(codec, body):
    prefix = HEADER.pack(1, 0, 1, 0)[:4]
    with pytest.raises(CodecError):
        codec.decode(HEADER.pack(1, 0, 1, zlib.crc32(body, zlib.crc32(prefix))) + body)


@pytest.mark.parametrize(
    "change",
    [
        {"keep": [8, 3, 16]},
        {"keep": [3, 8, 17]},
        {"gains": [1.0]},
        {"class_token": 1},
        {"gains": [1.0, 0.0, 1.0]},
    ],
)
def test_a_damaged_state_is_refused(codec, change):
    state = codec.state()
    assert load_codec("tokens", state, codec.read_specs, codec.give_specs).id == codec.id
    state.config.update(change)
    with pytest.raises(CodecError, match="levels"):
        load_codec("tokens", state, codec.read_specs, codec.give_specs)


@st.composite
def subsets(draw):
    n = draw(st.integers(1, 200))
    k = draw(st.integers(0, n))
    taken = np.zeros(n, np.bool_)
    taken[np.random.default_rng(draw(st.integers(0, 2**32))).permutation(n)[:k]] = True
    return taken


@settings(deadline=None)
@given(subsets())
def test_a_subset_comes_back_in_at_most_a_bitmap(taken):
    coding = Subsets(taken.size, int(taken.sum()))
    data = coding.encode(taken)
    assert len(data) == coding.nbytes <= -(-taken.size // 8)
    assert np.array_equal(coding.decode(data), taken)


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_bytes_name_a_subset_and_no_other_bytes_name_the_same(n, data):
    coding = Subsets(n, data.draw(st.integers(0, n)))
    raw = data.draw(st.binary(min_size=coding.nbytes, max_size=coding.nbytes))
    try:
        taken = coding.decode(raw)
    except CodecError:
        return
    assert taken.sum() == coding.k and coding.encode(taken) == raw


def test_a_subset_of_other_length_or_number_is_refused():
    with pytest.raises(CodecError, match="2 bytes"):
        Subsets(16, 3).decode(bytes(3))
    with pytest.raises(CodecError, match="subset is 3 of 16"):
        Subsets(16, 3).encode(np.ones(16, np.bool_))


TOKENS = TensorSpec((1, 17, 16), "float32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": []}, "keep"),
        ({"keep": [0.0, 0.5]}, "keep"),
        ({"keep": [17]}, "17 tokens of 16"),
        ({"bits": 5}, "bits"),
        ({"channels": 0}, "channels"),
        ({"kept": 3}, "Did you mean 'keep'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(CodecError, match=message):
        Tokens.check([TOKENS], [TOKENS], **options)


def test_a_list_of_levels_can_be_written_behind_the_name():
    choice = choose("tokens:keep=[3,0.5],channels=4")
    assert choice.options == {"keep": [3, 0.5], "channels": 4}
    choice.check([TOKENS], [TOKENS])


def test_what_holds_no_tokens_is_refused():
    images = TensorSpec((1, 3, 32, 32), "float32")
    for cut in ([images], [TOKENS, TOKENS]):
        with pytest.raises(CodecError, match="between two blocks"):
            Tokens.check(cut, cut)
    with pytest.raises(ConfigError, match="no option 'heads'"):
        splitedge.deploy(ViT().eval(), rows()[0][:4], codec="tokens:heads=2", cut="blocks.0")
