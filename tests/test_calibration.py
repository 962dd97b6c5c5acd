"""Calibrated confidence and thresholds, on simulated exits whose truth is known and on digits."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from splitedge.calibration import (
    NEVER,
    Calibration,
    calibrate,
    clopper_pearson,
    ece,
    fit_temperature,
    threshold_for,
)
from splitedge.errors import ConfigError


def exit_rows(rows: int, seed: int, overconfidence: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a 5-class exit that states its log-odds `overconfidence` times too large, and classes."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, 5)) * 1.5
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    labels = (p.cumsum(1) > rng.random((rows, 1))).argmax(1)
    return z * overconfidence, labels


def digits_exit() -> tuple[np.ndarray, np.ndarray]:
    """Logits and classes of an exit on the digits' upper half, on rows it was not trained on."""
    data, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(data))
    x, y = data[order, :32] / 16.0, target[order]
    model = LogisticRegression(C=100.0, max_iter=2000).fit(x[:500], y[:500])
    return model.decision_function(x[500:]), y[500:]


def test_temperature_undoes_overconfidence() -> None:
    logits, labels = exit_rows(4000, 0)
    assert fit_temperature(logits, labels) == pytest.approx(3.0, rel=0.1)
    assert fit_temperature(logits / 3.0, labels) == pytest.approx(1.0, rel=0.1)


def test_on_digits_held_out_error_shrinks() -> None:
    logits, labels = digits_exit()
    calibration, report = calibrate(logits[:800], labels[:800])
    assert report.rows == 800
    assert report.ece_after <= report.ece_before
    # and on rows that neither the fits nor the report have seen
    fresh, right = logits[800:], logits[800:].argmax(1) == labels[800:]
    raw = torch.softmax(torch.tensor(fresh), 1).amax(1)
    assert ece(calibration.probability(fresh), right) < ece(raw, right)
    assert report.accuracy == pytest.approx(float((logits[:800].argmax(1) == labels[:800]).mean()))


def test_the_report_scores_rows_its_fits_have_not_seen() -> None:
    # Labels are noise: fitted and scored on the same rows isotonic regression would look perfect.
    rng = np.random.default_rng(1)
    logits, labels = rng.standard_normal((60, 2)), rng.integers(0, 2, 60)
    fitted, report = calibrate(logits, labels)
    same_rows = ece(fitted.probability(logits), logits.argmax(1) == labels)
    assert report.ece_after > 1.5 * same_rows


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 300), st.integers(0, 1000), st.sampled_from([0.3, 1.0, 5.0]))
def test_probability_is_monotone_within_0_and_1_and_survives_saving(
    rows: int, seed: int, over: float
) -> None:
    calibration = Calibration.fit(*exit_rows(rows, seed, over))
    gaps = np.linspace(0.0, 40.0, 400) * calibration.temperature
    logits = np.zeros((400, 5))
    logits[:, 2] = gaps
    probability = calibration.probability(logits)
    assert np.all(np.diff(probability) >= 0.0)
    assert probability.min() > 0.0
    assert probability.max() < 1.0
    again = Calibration.from_state(json.loads(json.dumps(calibration.state())))
    assert again == calibration
    assert np.array_equal(again.probability(torch.tensor(logits)), probability)


def test_order_survives_inside_a_flat_block() -> None:
    logits = np.zeros((200, 2))
    logits[:, 0] = np.linspace(0.5, 5.0, 200)
    calibration = Calibration.fit(logits, np.zeros(200, int))  # always right: one flat block
    probability = calibration.probability(logits)
    assert np.all(np.diff(probability) > 0.0)
    assert 0.98 < probability.min() < probability.max() < 1.0


def test_probability_takes_tensors_of_any_float_and_single_rows() -> None:
    logits, labels = exit_rows(200, 3)
    calibration = Calibration.fit(torch.tensor(logits), torch.tensor(labels))
    expected = calibration.probability(logits[:1])
    assert expected.shape == (1,)
    assert expected.dtype == np.float64
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        found = calibration.probability(torch.tensor(logits[:1]).to(dtype).requires_grad_())
        assert found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((20, 3)), np.zeros(19), "expected"),
        (np.zeros(20), np.zeros(20), "expected"),
        (np.zeros((9, 3)), np.zeros(9), "too few"),
        (np.full((20, 3), np.nan), np.zeros(20), "NaN"),
        (np.zeros((20, 3)), np.full(20, 3), "labels"),
        (np.zeros((20, 3)), np.full(20, 0.5), "labels"),
    ],
)
def test_what_can_not_be_fitted_is_refused(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Calibration.fit(logits, labels)


def test_a_foreign_state_is_refused() -> None:
    good = Calibration.fit(*exit_rows(100, 0)).state()
    for bad in (
        {},
        good | {"temperature": 0.0},
        good | {"temperature": "hot"},
        good | {"knots": good["knots"][::-1]},
        good | {"values": [*good["values"][:-1], math.nan]},
        good | {"values": good["values"][:-1]},
        good | {"knots": None},
        good | {"rows": math.inf},
    ):
        with pytest.raises(ConfigError):
            Calibration.from_state(bad)


def test_ece_of_known_cases() -> None:
    assert ece([0.9] * 10, [True] * 9 + [False]) == pytest.approx(0.0)
    assert ece([1.0] * 4, [False] * 4) == pytest.approx(1.0)
    assert ece([0.1, 0.1, 0.8, 0.8], [0, 0, 1, 1]) == pytest.approx((2 * 0.1 + 2 * 0.2) / 4)
    assert ece(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == 0.0
    for p, c in (([], []), ([0.5], [1, 0])):
        with pytest.raises(ConfigError):
            ece(p, c)


def test_clopper_pearson_against_closed_forms() -> None:
    low, high = clopper_pearson(0, 10, 0.9)
    assert (low, high) == (0.0, pytest.approx(1 - 0.05 ** (1 / 10)))
    low, high = clopper_pearson(10, 10, 0.9)
    assert (low, high) == (pytest.approx(0.05 ** (1 / 10)), 1.0)
    low, high = clopper_pearson(90, 100, 0.95)  # scipy.stats.binomtest and R's binom.test give the same
    assert (low, high) == (pytest.approx(0.8238, abs=1e-4), pytest.approx(0.9510, abs=1e-4))
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    for k, n, confidence in ((-1, 3, 0.9), (4, 3, 0.9), (1, 3, 1.0)):
        with pytest.raises(ConfigError):
            clopper_pearson(k, n, confidence)


def rows_with(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and outcomes of an exit that is somewhat overconfident; its truth is c ** 1.2."""
    c = rng.beta(6.0, 1.2, n)
    return c, rng.random(n) < c**1.2


@pytest.mark.parametrize("target", [0.85, 0.9, 0.95])
def test_the_guarantee_holds_as_often_as_it_says(target: float) -> None:
    population = np.sort(rows_with(np.random.default_rng(99), 400_000)[0])[::-1]
    true_accuracy = np.cumsum(population**1.2) / np.arange(1, len(population) + 1)
    rng = np.random.default_rng(int(target * 100))
    missed, taken = 0, 0
    for _ in range(500):
        threshold = threshold_for(*rows_with(rng, 1500), target, alpha=0.1)
        at = np.searchsorted(-population, -threshold.value, side="right") - 1
        taken += threshold.ever
        missed += threshold.ever and true_accuracy[at] < target
    assert taken > 200  # and it is not kept by never exiting
    assert missed <= 500 * 0.1


def test_on_digits_the_guarantee_holds_on_a_fresh_split() -> None:
    logits, labels = digits_exit()
    calibration = Calibration.fit(logits[:400], labels[:400])
    right = logits.argmax(1) == labels
    probability = calibration.probability(logits)
    threshold = threshold_for(probability[400:850], right[400:850], 0.9)
    assert threshold.ever
    fresh = probability[850:] >= threshold.value
    assert right[850:][fresh].mean() >= 0.9 > right[850:].mean()
    assert 0.3 < fresh.mean() < 1.0
    assert threshold.lower >= 0.9
    assert threshold.rows == int((probability[400:850] >= threshold.value).sum())
    assert f"{threshold.rows} validation answers" in threshold.reason


def test_a_laxer_target_gives_no_stricter_threshold() -> None:
    c, right = rows_with(np.random.default_rng(0), 2000)
    values = [threshold_for(c, right, target).value for target in (0.6, 0.7, 0.8, 0.9, 0.95)]
    assert values == sorted(values)
    assert values[0] == c.min()  # all rows are right often enough


def test_one_unlucky_row_at_the_top_does_not_close_the_exit() -> None:
    c = np.linspace(0.5, 1.0, 1000)
    right = np.ones(1000, bool)
    right[-3:] = False
    assert threshold_for(c, right, 0.95).ever


def test_when_nothing_satisfies_the_exit_is_never_taken_and_says_why() -> None:
    few = threshold_for(np.full(30, 0.99), np.ones(30), 0.99)
    assert not few.ever
    assert few.value == NEVER
    assert "at least" in few.reason
    wrong = threshold_for(np.linspace(0, 1, 500), np.zeros(500), 0.5)
    assert not wrong.ever
    assert "all rows: 0.0% right" in wrong.reason
    assert math.isnan(wrong.accuracy)


def test_ties_are_taken_or_left_together() -> None:
    c = np.array([0.9] * 300 + [0.5] * 300)
    right = np.array([True] * 300 + [True, False] * 150)
    threshold = threshold_for(c, right, 0.95)
    assert (threshold.value, threshold.rows, threshold.accuracy) == (0.9, 300, 1.0)


@pytest.mark.parametrize(
    ("confidence", "correct", "target", "alpha"),
    [
        ([0.5], [1, 0], 0.9, 0.05),
        ([], [], 0.9, 0.05),
        ([1.5], [1], 0.9, 0.05),
        ([math.nan], [1], 0.9, 0.05),
        ([0.5], [0.5], 0.9, 0.05),
        ([0.5], [1], 1.0, 0.05),
        ([0.5], [1], 0.9, 0.0),
    ],
)
def test_thresholds_of_nonsense_are_refused(
    confidence: list[float], correct: list[float], target: float, alpha: float
) -> None:
    with pytest.raises(ConfigError):
        threshold_for(confidence, correct, target, alpha=alpha)
