"""Exits of a language model: trained without data, calibrated to a risk, and never with holes behind them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llm_models import stories, tiny

from splitedge.errors import ConfigError
from splitedge.llm.cache import KVCache
from splitedge.llm.exit_model import ExitModel
from splitedge.llm.exits import SIGNALS, ExitSchedule, Trust, signal_of, train_exits, written_texts
from splitedge.llm.fill_error import fill_error
from splitedge.llm.halves import split_language_model

SHORT = ExitSchedule(texts=48, length=48, epochs=2, width=32, progress=False)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = tiny("llama")
    head, tail, anatomy = split_language_model(model, 3)
    return model, head, tail, anatomy, train_exits(head, tail, anatomy, [1, 2], schedule=SHORT)


def test_exits_leave_the_model_as_it_was(trained):
    model, _head, _tail, _anatomy, exits = trained
    again = tiny("llama").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert exits.depths == (1, 2) and set(exits.thresholds) == {0, 1}


def test_training_is_repeatable_and_helps():
    head, tail, anatomy = split_language_model(stories(), 3)
    plan = ExitSchedule(texts=96, length=96, epochs=3, progress=False)
    exits = train_exits(head, tail, anatomy, [1, 3], schedule=plan)
    first, second = exits.reports
    assert 0.1 < first.agreement < second.agreement
    assert second.agreement > 0.4 and second.calibration_error < 0.1
    again = train_exits(head, tail, anatomy, [1, 3], schedule=plan)
    assert again.reports == exits.reports


def test_states_at_the_cut_are_exact_whichever_exits_were_taken(trained):
    model, head, _tail, anatomy, exits = trained
    rng = np.random.default_rng(0)
    ids = [5, 6]
    device = ExitModel(head, anatomy, exits, thresholds={0: 0.0})  # leaves at the first at once
    whole = ExitModel(head, anatomy, exits, thresholds={})
    for _ in range(20):
        device.thresholds = {0: float(rng.choice([0.0, 2.0])), 1: float(rng.choice([0.0, 2.0]))}
        early, late = device.step(ids), whole.step(ids)
        if early.exit == late.exit:
            np.testing.assert_allclose(early.logits, late.logits, atol=1e-4)
        ids.append(int(rng.integers(97)))
        if rng.random() < 0.2:
            ids = [*ids[: len(ids) // 2 + 1], 1]
    device.follow(ids)
    whole.follow(ids)
    torch.testing.assert_close(device.states(0, len(ids)), whole.states(0, len(ids)), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        seen = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0]
    torch.testing.assert_close(device.states(0, len(ids)), seen, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="known"):
        device.states(0, len(ids) + 1)


def test_tokens_that_leave_early_cost_only_the_first_blocks(trained):
    _, head, _, anatomy, exits = trained
    device = ExitModel(head, anatomy, exits, thresholds={0: 0.0})
    for n in range(1, 9):
        device.step(list(range(n)))
    assert device.depth_run == [8, 0, 0]
    device.thresholds = {}
    device.step(list(range(9)))
    assert device.depth_run == [9, 9, 0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_propagated_keys_and_values_are_no_holes_and_cost_less(family):
    head, tail, anatomy = split_language_model(tiny(family), 3)
    exits = train_exits(head, tail, anatomy, [1, 3], schedule=SHORT)
    exact, copied = (ExitModel(head, anatomy, exits, {0: 0.0}, fill) for fill in ("exact", "propagate"))
    ids = [5, 6, 7, 8]
    for model in (exact, copied):
        for n in range(4, 10):  # six tokens leave at once
            model.step([*ids, *range(10, 10 + n - 4)])
        model.thresholds = {}
    grown = [*ids, *range(10, 16)]
    one, other = exact.step(grown), copied.step(grown)
    assert exact.depth_run == [10, 10] and copied.depth_run[1] < 10
    assert one.exit == other.exit == 1 and not np.array_equal(one.logits, other.logits)
    # The prompt was never left early: right up to it both are the same.
    torch.testing.assert_close(exact.states(0, 3), copied.states(0, 3), atol=1e-5, rtol=1e-5)


def test_the_error_of_propagated_keys_and_values_is_measured(trained):
    _, head, tail, anatomy, _ = trained
    exits = train_exits(head, tail, anatomy, [1, 3], schedule=SHORT)
    texts = written_texts(head, tail, anatomy, 3, 24, 77, 0)
    found = fill_error(
        head,
        tail,
        anatomy,
        exits,
        texts,
        {0: 0.5 * sum(exits.trust[0].values[:: len(exits.trust[0].values) - 1])},
    )
    assert 0.0 < found.early < 1.0 and found.tokens > 0 and 0.0 < found.spared <= 1.0
    assert 0.0 <= found.agreement <= 1.0 and found.kl > 0.0
    one = train_exits(head, tail, anatomy, [2], schedule=SHORT)
    with pytest.raises(ConfigError, match="train two"):
        fill_error(head, tail, anatomy, one, texts)
    with pytest.raises(ConfigError, match="nothing to compare"):
        fill_error(head, tail, anatomy, exits, texts, {0: 0.0})


@pytest.mark.parametrize("signal", SIGNALS)
def test_wrong_answers_among_exits_stay_within_the_risk_on_other_text(signal):
    risk, wrong, taken = 0.3, 0, 0
    head, tail, anatomy = split_language_model(stories(), 4)
    plan = ExitSchedule(texts=96, length=64, epochs=2, width=64, progress=False)
    exits = train_exits(head, tail, anatomy, [4], risk=risk, signal=signal, schedule=plan)
    assert exits.trust[0].signal == signal and exits.reports[0].threshold.ever
    for seed in (901, 902, 903):
        texts = written_texts(head, tail, anatomy, 24, 64, seed, 1)
        for text in texts.split(1):
            device = ExitModel(head, anatomy, exits)
            device.follow(text[0].tolist())
            states = device.states(0, 64)
            with torch.no_grad():
                said = exits.heads[0](states.unsqueeze(0))[0]
                positions, mask = torch.arange(64).unsqueeze(0), None
                whole = tail(states.unsqueeze(0), positions, KVCache(), mask)[0]
            sure = exits.trust[0].of(exits.heads[0].sureness(states, said, signal))
            out = torch.from_numpy(sure >= exits.thresholds[0])
            wrong += int((said.argmax(-1) != whole.argmax(-1))[out].sum())
            taken += int(out.sum())
    assert taken > 0.05 * 3 * 24 * 64 and wrong <= risk * taken


def test_an_exit_is_as_sure_alone_as_among_others():
    head, tail, anatomy = split_language_model(tiny("llama"), 3)
    exits = train_exits(head, tail, anatomy, [3], signal="reward", schedule=SHORT)
    device = ExitModel(head, anatomy, exits)
    step = device.step([5, 6, 7])
    state = device.states(2, 3)
    with torch.no_grad():
        logits = exits.heads[0](state.unsqueeze(0))[0]
    sure = exits.trust[0].of(exits.heads[0].sureness(state, logits, "reward"))
    assert step.confidence == pytest.approx(float(sure[0]), abs=1e-4)
    with pytest.raises(ConfigError, match="no signal 'luck'"):
        train_exits(head, tail, anatomy, [3], signal="luck", schedule=SHORT)
    with pytest.raises(ConfigError, match="no signal of logits"):
        signal_of(step.logits, "reward")


def test_signals_are_surer_where_the_model_is():
    logits = np.array([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [20.0, 0.0, 0.0]])
    for signal in ("probability", "margin", "entropy"):
        values = signal_of(logits, signal)
        assert np.all(np.diff(values) > 0) and values[0] >= 0.0 and values[-1] <= 1.0
    with pytest.raises(ConfigError, match="too few"):
        Trust.fit("margin", np.zeros(3), np.zeros(3, bool))


def test_what_can_not_be_is_refused(trained):
    _, head, tail, anatomy, exits = trained
    with pytest.raises(ConfigError, match="1 to 3 blocks"):
        train_exits(head, tail, anatomy, [4], schedule=SHORT)
    with pytest.raises(ConfigError, match="risk"):
        train_exits(head, tail, anatomy, [1], risk=0.0, schedule=SHORT)
    with pytest.raises(ConfigError, match="the device runs 1"):
        ExitModel(split_language_model(tiny("llama"), 1)[0], anatomy, exits)
