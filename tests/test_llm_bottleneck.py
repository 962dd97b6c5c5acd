"""A learned codec of hidden states: rows like the others', kept only where it beats plain integers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_models import stories, tiny

from splitedge.errors import CodecError, ConfigError
from splitedge.llm.bottleneck_training import BottleneckSchedule, train_bottleneck
from splitedge.llm.codec_quality import grouped, plain_of
from splitedge.llm.deployment import deploy_language
from splitedge.llm.exits import ExitSchedule
from splitedge.llm.halves import split_language_model
from splitedge.llm.state_bottleneck import Bottleneck, bytes_wanted, fitted_bottleneck, water_filled
from splitedge.llm.state_codecs import Int4States

SHORT = BottleneckSchedule(texts=48, length=64, epochs=1, progress=False)


def made(hidden=24, width=20, tokens=200):
    states = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(0)) * 3.0
    return fitted_bottleneck(states, torch.eye(hidden), width).eval(), states


def test_rows_are_each_tokens_own_and_come_back_near():
    codec, states = made()
    rows = codec.encode(states)
    assert codec.width == 20 and len(rows) == len(states) * 20
    back = codec.decode(rows)
    assert float((back - states).square().mean() / states.square().mean()) < 0.02
    assert codec.encode(states[:1]) == rows[:20]
    torch.testing.assert_close(
        codec(states), back, atol=1e-4, rtol=1e-4
    )  # what training sees is what is sent
    again = Bottleneck.from_tensors(codec.tensors())
    assert again.encode(states) == rows and torch.equal(again.decode(rows), back)


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=120))
def test_any_bytes_are_finite_states_or_an_error(data):
    codec, _ = made()
    try:
        states = codec.decode(data)
    except CodecError:
        return
    assert bool(torch.isfinite(states).all()) and states.shape[1] == 24


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=40), st.integers(0, 400))
def test_bits_go_where_most_is_lost(variance, total):
    bits = water_filled(np.array(variance), total)
    assert bits.sum() == min(total, 8 * len(variance)) and bits.min() >= 0 and bits.max() <= 8
    order = np.argsort(variance)
    assert (np.diff(bits[order]) >= 0).all() or len(set(variance)) < len(variance)


def test_plain_integers_to_compare_with_are_int4s_own():
    states = torch.randn(30, 40)
    name, width, change = plain_of(Int4States(40).width, 40)
    codec = Int4States(40)
    assert (name, width) == ("int4-g16", codec.width)
    torch.testing.assert_close(change(states), codec.decode(codec.encode(states)))
    assert grouped(8)(states).shape == states.shape
    with pytest.raises(ConfigError, match="nothing of as many bytes"):
        plain_of(7, 40)


def test_it_beats_int4_on_a_trained_model_at_equal_bytes():
    head, tail, anatomy = split_language_model(stories(), 2)
    codec, report = train_bottleneck(head, tail, anatomy, 40, schedule=replace(SHORT, texts=96))
    assert codec.width == 40 == report.plain.width and report.kept and "beats int4-g16" in report.note
    assert report.learned.kl < 0.7 * report.plain.kl
    assert all(w.grad is None for w in tail.parameters())


class Letters:
    def encode(self, text):
        return [ord(c) % 97 for c in text]

    def decode(self, ids):
        return "".join(chr(33 + i) for i in ids)


def test_fit_trains_it_and_states_cross_by_what_was_kept():
    exits = ExitSchedule(texts=48, length=48, epochs=1, width=16, progress=False)
    with deploy_language(tiny("llama"), Letters(), cut=2, codec="bottleneck") as deployment:
        with pytest.raises(ConfigError, match="call fit"):
            _ = deployment.modes
        deployment.fit(schedule=exits)
        report = deployment.codec_report
        assert report is not None and report.learned.tokens > 0
        assert deployment.plan.codec == ("bottleneck" if report.kept else "int4")
        text = deployment.generate([5, 6, 7], max_tokens=6, mode="split", stops=frozenset())
        assert len(text.ids) == 6 and not text.degraded


def test_what_is_no_bottleneck_is_refused():
    assert bytes_wanted("bottleneck", 64) == 40 and bytes_wanted("bottleneck:bytes=24", 64) == 24
    for wrong in ("bottleneck:bits=2", "bottleneck:bytes=2", "bottleneck:bytes=900"):
        with pytest.raises(ConfigError, match="bottleneck"):
            bytes_wanted(wrong, 64)
    codec, states = made()
    with pytest.raises(ConfigError, match="not the tensors"):
        Bottleneck.from_tensors({"bits": torch.ones(3)})
    with pytest.raises(CodecError, match="takes"):
        codec.encode(states[:, :3])
    with pytest.raises(CodecError, match="finite"):
        codec.encode(states * float("nan"))
