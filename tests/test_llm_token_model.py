"""A token model follows its caller's ids, whatever they were before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_models import tiny

from splitedge.errors import Rejected
from splitedge.llm.token_model import WholeModel

MODEL = tiny("llama")
ONE = WholeModel(MODEL)
lists = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(lists, min_size=1, max_size=6))
def test_it_keeps_up_with_ids_that_change(asked):
    for ids in asked:
        with torch.no_grad():
            wanted = MODEL(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
        np.testing.assert_allclose(ONE.step(ids).logits, wanted, atol=1e-4)


def test_single_steps_are_the_models_own_to_the_bit():
    ids, theirs, fresh = [3, 1, 4], None, WholeModel(MODEL)
    part = ids
    for _ in range(8):
        with torch.no_grad():
            told = MODEL(input_ids=torch.tensor([part]), past_key_values=theirs, logits_to_keep=1)
        theirs = told.past_key_values
        found = fresh.step(ids).logits
        assert np.array_equal(found, told.logits[0, -1].numpy())
        part = [int(found.argmax())]
        ids = ids + part


@pytest.mark.parametrize("ids", [[], [97], [-1], [0] * 129])
def test_ids_that_it_can_not_take_are_refused(ids):
    with pytest.raises(Rejected):
        ONE.step(ids)
