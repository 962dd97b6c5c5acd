"""Tables and the range coder: exact round trips, near the ideal length, one body for one message."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.codecs.packing import pack, packed_bytes, unpack
from splitedge.codecs.range_coder import RangeCoder
from splitedge.codecs.tables import PRECISION, Tables
from splitedge.errors import CodecError

many = settings(max_examples=150, deadline=None)


def message(
    sizes: list[int], rows: int, inner: int, seed: int, skew: float
) -> tuple[Tables, np.ndarray, RangeCoder]:
    """Tables, symbols that follow them (but for one channel that does not), and their coder."""
    rng = np.random.default_rng(seed)
    chances = [rng.dirichlet(np.full(size, skew)) for size in sizes]
    counts = np.zeros((len(sizes), max(sizes)), np.int64)
    for channel, p in enumerate(chances):
        counts[channel, : p.size] = np.nan_to_num(p) * 100_000
    tables = Tables.from_counts(counts, sizes)
    rows_of = [rng.choice(p.size, (rows, inner), p=tables.frequencies[c, : p.size] / PRECISION)
               for c, p in enumerate(chances)]  # fmt: skip
    rows_of[0] = rng.integers(0, sizes[0], (rows, inner))
    return tables, np.stack(rows_of, axis=1).astype(np.uint8), RangeCoder(tables, inner)


messages = {
    "sizes": st.lists(st.integers(1, 256), min_size=1, max_size=6),
    "rows": st.integers(1, 4),
    "inner": st.integers(1, 70),
    "seed": st.integers(0, 2**32 - 1),
    "skew": st.sampled_from([0.01, 0.2, 2.0]),
}


@many
@given(**messages)
def test_what_was_coded_comes_back_within_a_byte_of_its_information(sizes, rows, inner, seed, skew):
    tables, symbols, coder = message(sizes, rows, inner, seed, skew)
    body = coder.encode(symbols)
    assert np.array_equal(coder.decode(body, rows), symbols)
    ideal = tables.bits(symbols).sum() / 8
    # Models of 24 bits over tables of 12: a ten-thousandth of the length at most.
    assert len(body) <= min(coder.max_bytes(rows), ideal * 1.0001 + 1 + 1e-3 * len(sizes) * rows * inner)


@many
@given(first=st.integers(1, 6), **messages)
def test_the_first_channels_alone(first, sizes, rows, inner, seed, skew):
    _, symbols, coder = message(sizes, rows, inner, seed, skew)
    k = min(first, len(sizes))
    body = coder.encode(symbols, k)
    assert len(body) <= coder.max_bytes(rows, k)
    assert np.array_equal(coder.decode(memoryview(body), rows, k), symbols[:, :k])
    assert body == coder.encode(symbols[:, :k].copy(), k)


@many
@given(cut=st.integers(1, 8), more=st.binary(min_size=1, max_size=8), **messages)
def test_a_body_is_the_only_one_of_its_symbols(cut, more, sizes, rows, inner, seed, skew):
    _, symbols, coder = message(sizes, rows, inner, seed, skew)
    body = coder.encode(symbols)
    for other in (
        body[: max(len(body) - cut, 0)],
        body + more,
        body + bytes(4),
        more + body,
        bytes(4) + body,
    ):
        if other == body:
            continue
        try:
            found = coder.decode(other, rows)
        except CodecError:
            continue
        assert not np.array_equal(found, symbols)
        assert coder.encode(found) == other


@many
@given(body=st.binary(max_size=80), **messages)
def test_any_bytes_are_refused_or_the_body_of_what_they_give(body, sizes, rows, inner, seed, skew):
    _, _, coder = message(sizes, rows, inner, seed, skew)
    try:
        found = coder.decode(body, rows)
    except CodecError:
        return
    assert found.shape == (rows, len(sizes), inner) and found.dtype == np.uint8
    assert coder.encode(found) == body


def test_carries_run_through_the_words_before():
    """The rarest and the last symbols in turns: numbers just below a carry, all of them coded right."""
    table = np.array([[1, PRECISION - 2, 1]])
    coder = RangeCoder(Tables(table), 40)
    for seed in range(400):
        rng = np.random.default_rng(seed)
        symbols = rng.choice(3, (1, 1, 40), p=[0.1, 0.3, 0.6]).astype(np.uint8)
        symbols[..., : rng.integers(0, 40)] = 2
        assert np.array_equal(coder._decode(coder._coded(symbols), 1, 1), symbols)


def test_the_format_does_not_change():
    counts = (np.arange(1, 97) * 7919 % 101).reshape(6, 16)
    tables = Tables.from_counts(counts, None)
    digest = hashlib.sha256(tables.frequencies.astype("<i4").tobytes()).hexdigest()[:16]
    assert digest == GOLDEN["tables"]
    symbols = (np.cumsum(np.arange(2 * 6 * 20) ** 2) % 89 % 16).astype(np.uint8).reshape(2, 6, 20)
    narrow = np.minimum(symbols, 3)
    skewed = Tables([[4000, 90, 5, 1], [1, 5, 90, 4000]])
    assert RangeCoder(tables, 20).encode(symbols).hex() == GOLDEN["packed"]
    assert RangeCoder(Tables.of(symbols, 16), 20).encode(symbols).hex() == GOLDEN["coded"]
    mostly = np.where(narrow[:, :2] == 1, 1, [[0], [3]]).astype(np.uint8)
    assert RangeCoder(skewed, 20).encode(mostly).hex() == GOLDEN["skewed"]
    wide = (np.cumsum(np.arange(3 * 33) ** 2) % 101).astype(np.uint8).reshape(1, 3, 33)
    assert RangeCoder(Tables.of(wide, [101, 102, 200]), 33).encode(wide).hex() == GOLDEN["wide and odd"]


GOLDEN = {
    "tables": "5a1c7a301663a07e",
    "packed": (
        "10e57e322add2b34583e03458fea46aa06f35fb3264975dcbc3550f4a86e1f5a9446dedc420537b6a46a30ff35fba14569e41456"
        "e7ccf776b24b0810cd2d5470634b6175ce7ce57e322add2b34583e266f27bb840051ee27a3d24975dcbc3550f4a86ea4bd4283e5"
        "639254c7cd5b6a30ff35fba14569e4cd"
    ),
    "coded": (
        "019bc29ac8bf24e98315b8c2c9af53720b10d7a9eaf9e266a8c91618c7e28a44e971807cb575cdc341907e4ec3b849f0cc318378"
        "f3096f02f5644ac09ae1dd397dee918112193a66ac9d65c41aef0917e2e9e9dfad2c03e6bed83f823ad5834e1a2c0c5b485a0636"
        "8c7f88d301aa43d6028348"
    ),
    "skewed": "f5042f",
    "wide and odd": (
        "001018844643bdde0480c6d7dc25e468e20d5d1a5ef0b14773f83785b8e23eac55f2d380a6b934bf0ee98c9c738ff2b1e9fc139c"
        "9c24dd5e581c37ac8f4a23c14c8ad120245efbbd714acb97"
    ),
}


def test_symbols_that_the_tables_do_not_have_are_refused():
    coder = RangeCoder(Tables([[1024] * 4, [2048, 2048, 0, 0]]), 3)
    good = np.ones((1, 2, 3), np.uint8)
    assert np.array_equal(coder.decode(coder.encode(good), 1), good)
    for bad in (good * 2, good.astype(np.int32), good[:, :1], good[..., :2], good[0], good[:0]):
        with pytest.raises(CodecError):
            coder.encode(bad)
    for channels in (0, 3, -1):
        with pytest.raises(CodecError, match="channels"):
            coder.encode(good, channels)
    with pytest.raises(CodecError, match="row"):
        coder.decode(b"", 0)
    with pytest.raises(CodecError, match="at most"):
        coder.decode(bytes(100), 1)
    with pytest.raises(CodecError):
        RangeCoder(coder.tables, 0)


def test_channels_of_one_symbol_take_nothing():
    coder = RangeCoder(Tables(np.full((3, 1), PRECISION)), 5)
    symbols = np.zeros((2, 3, 5), np.uint8)
    assert coder.encode(symbols) == b"" and coder.max_bytes(2) == 0
    assert np.array_equal(coder.decode(b"", 2), symbols)
    with pytest.raises(CodecError):
        coder.decode(b"\0", 2)


@many
@given(
    counts=st.lists(st.integers(0, 2**40), min_size=1, max_size=256),
    unused=st.integers(0, 4),
)
def test_tables_sum_exactly_and_survive_saving(counts, unused):
    width = min(len(counts) + unused, 256)
    padded = np.array([counts + [0] * (width - len(counts))])
    tables = Tables.from_counts(padded, [len(counts)])
    table = tables.frequencies[0]
    assert table.sum() == PRECISION and (table[: len(counts)] >= 1).all() and not table[len(counts) :].any()
    again = Tables.from_tensors(tables.tensors())
    assert np.array_equal(again.frequencies, tables.frequencies) and again.sizes.tolist() == [len(counts)]
    shares = (padded[0, : len(counts)] + 1) / (sum(counts) + len(counts)) * PRECISION
    assert (np.abs(table[: len(counts)] - shares) <= len(counts) + 1).all()


@pytest.mark.parametrize(
    "bad",
    [
        torch.full((1, 4), 1024),  # int64
        torch.full((1, 4), 1023, dtype=torch.int32),
        torch.full((4,), 1024, dtype=torch.int32),
        torch.tensor([[-1, 4097]], dtype=torch.int32),
        torch.tensor([[0, 4096]], dtype=torch.int32),
        torch.tensor([[1, 0, 4095]], dtype=torch.int32),
        torch.full((16, 257), 4096 // 256, dtype=torch.int32),
        torch.zeros((0, 4), dtype=torch.int32),
        torch.tensor([[2**31 - 1, 2**31 - 1]], dtype=torch.int32),
        torch.full((1, 4), 1024.0),
    ],
)
def test_damaged_tables_are_refused(bad):
    with pytest.raises(CodecError):
        Tables.from_tensors({"frequencies": bad})
    with pytest.raises(CodecError, match="missing"):
        Tables.from_tensors({})


def test_counts_that_can_not_be_are_refused():
    for counts, sizes in (
        ([[1, -1]], None),
        ([[1.0, 2.0]], None),
        ([1, 2], None),
        ([[2**50, 0]], None),
        ([[1, 1]], [1]),
        ([[1, 1]], [3]),
        ([[1, 1]], [1, 1]),
    ):
        with pytest.raises(CodecError):
            Tables.from_counts(np.array(counts), sizes)
    with pytest.raises(CodecError, match="beyond"):
        Tables.of(np.full((1, 1, 3), 4, np.uint8), 4)
    tables = Tables.of(np.array([[[0, 1, 1, 1]]], np.uint8), 2)
    with pytest.raises(CodecError):
        tables.bits(np.full((1, 1, 1), 2, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        tables.frequencies[0, 0] = 3


@many
@given(
    sizes=st.lists(st.integers(1, 256), min_size=1, max_size=5),
    n=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_packing_returns_every_symbol(sizes, n, seed):
    rng = np.random.default_rng(seed)
    symbols = np.stack([rng.integers(0, size, n) for size in sizes]).astype(np.uint8)
    body = pack(symbols, sizes)
    assert len(body) == packed_bytes(sizes, n)
    assert np.array_equal(unpack(body, sizes, n), symbols)


def test_packing_refuses_padding_and_symbols_that_are_not_there():
    with pytest.raises(CodecError, match="padding"):
        unpack(b"\x08", [2], 3)
    with pytest.raises(CodecError, match="beyond"):
        unpack(b"\x03", [3], 1)
