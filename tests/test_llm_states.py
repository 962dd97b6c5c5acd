"""Hidden states as rows: what each codec costs and loses, and that damaged rows are no states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.errors import CodecError, ConfigError
from splitedge.llm.state_codecs import STATE_CODECS, state_codec

ERRORS = {"fp32": 0.0, "fp16": 1e-3, "int8": 0.5 / 127, "int4": 0.52 / 7}


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(list(STATE_CODECS)), st.integers(1, 6), st.integers(1, 70), st.integers(0, 99))
def test_states_come_back_within_what_a_codec_promises(name, tokens, hidden, seed):
    states = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed)) * 3.0
    codec = state_codec(name, hidden)
    rows = codec.encode(states)
    assert len(rows) == tokens * codec.width
    back = codec.decode(rows)
    assert back.shape == states.shape and back.dtype == torch.float32
    most = states.abs().amax(1, keepdim=True)
    assert bool(((back - states).abs() <= ERRORS[name] * most + 1e-6).all())
    # A row says the same alone: contexts grow and are cropped by tokens.
    assert codec.encode(states[:1]) == rows[: codec.width]


def test_rows_get_smaller():
    assert [state_codec(name, 64).width for name in ("fp32", "fp16", "int8", "int4")] == [256, 128, 68, 40]


@settings(deadline=None)
@given(st.sampled_from(list(STATE_CODECS)), st.binary(max_size=400))
def test_any_bytes_are_finite_states_or_an_error(name, data):
    try:
        states = state_codec(name, 16).decode(data)
    except CodecError:
        return
    assert bool(torch.isfinite(states).all()) and states.shape[1] == 16


def test_what_can_not_be_sent_is_refused():
    for name in STATE_CODECS:
        with pytest.raises(CodecError, match="finite"):
            state_codec(name, 2).encode(torch.tensor([[np.nan, 1.0]]))
        with pytest.raises(CodecError, match="takes"):
            state_codec(name, 2).encode(torch.zeros(1, 3))
    with pytest.raises(CodecError, match="too large"):
        state_codec("fp16", 1).encode(torch.tensor([[1e6]]))
    with pytest.raises(ConfigError, match="there are fp32"):
        state_codec("int5", 2)
