"""Generators have the statistics they are asked for, fits find them again, and the better model is chosen."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import wasserstein_distance
from typer.testing import CliRunner

from splitedge.errors import ConfigError, TraceError
from splitedge.sim import trace_commands
from splitedge.sim.curves import Opportunities, Rates
from splitedge.sim.fit_error import autocorrelation, errors, kolmogorov_smirnov, runs_of, wasserstein
from splitedge.sim.fit_trace import FITS, Steps, fit
from splitedge.sim.formats import read_trace
from splitedge.sim.generators import GaussMarkov, GilbertElliott, Handover, Markov, TwoScale
from splitedge.sim.trace_commands import trace

DATA = Path(os.environ.get("SPLITEDGE_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
STEP = 0.1

MODELS = (
    GaussMarkov(5.0, 0.7, 2.0, 10.0, 0.5),
    Markov.of_levels((0.0, 1.0, 4.0, 9.0), 3.0, STEP),
    GilbertElliott(5.0, 0.3, 0.0, 8.0, 1.0),
    Handover(5.0, 10.0, 0.8, 0.3, 0.4, 1.0, 0.4),
    TwoScale((0.0, 0.0, 1.0, 3.0, 5.0, 8.0, 12.0), 10.0, 0.7, 0.5),
)


def named(models=MODELS):
    return pytest.mark.parametrize("model", models, ids=lambda model: model.name)


def rates(bps, step=STEP):
    return Rates(np.arange(len(bps)) * step, bps, len(bps) * step)


def steps(bps):
    return Steps.of(rates(bps), "made")


# Generators -----------------------------------------------------------------------------------------


@named()
def test_the_same_seed_gives_the_same_series(model):
    one = model.generate(500, STEP, 3)
    assert np.array_equal(one, model.generate(500, STEP, 3))
    assert not np.array_equal(one, model.generate(500, STEP, 4))
    assert one.shape == (500,) and np.isfinite(one).all() and (one >= 0).all()
    assert model.generate(1, STEP, 0).shape == (1,)


def test_parameters_that_make_no_process_are_refused():
    for wrong in ({"sigma": -1.0}, {"tau_s": float("nan")}, {"median_mbps": float("inf")}):
        with pytest.raises(TraceError, match=next(iter(wrong))):
            replace(MODELS[0], **wrong)
    with pytest.raises(TraceError, match="sum to 1"):
        Markov((1.0, 2.0), (1.0, 2.0), ((0.5, 0.4), (0.5, 0.5))).generate(10, STEP, 0)


def test_outages_of_two_scale_come_where_the_rate_was_low():
    bps = MODELS[4].generate(50_000, STEP, 1)
    before = bps[:-1][(bps[:-1] > 0) & (bps[1:] == 0)]
    assert before.mean() < 0.7 * bps[bps > 0].mean()
    assert (bps == 0).mean() == pytest.approx(1 / 6, abs=0.03)  # of six equal shares, one is 0


# Fits -----------------------------------------------------------------------------------------------


def test_a_gauss_markov_process_is_found_again():
    found = FITS["gauss-markov"](steps(MODELS[0].generate(60_000, STEP, 1)))
    assert found.median_mbps == pytest.approx(5.0, rel=0.1) and found.sigma == pytest.approx(0.7, rel=0.1)
    assert found.tau_s == pytest.approx(2.0, rel=0.15)
    assert found.outage_every_s == pytest.approx(10.0, rel=0.15)
    assert found.outage_s == pytest.approx(0.5, rel=0.15)


def test_a_markov_chain_is_found_again():
    model = Markov((0.0, 1.0, 3.0), (0.0, 2.0, 6.0), ((0.8, 0.2, 0.0), (0.05, 0.85, 0.1), (0.0, 0.1, 0.9)))
    found = FITS["markov"](steps(model.generate(60_000, STEP, 1)))
    again = np.array(found.moves)
    assert again[0, 0] == pytest.approx(0.8, abs=0.03) and again.sum(axis=1) == pytest.approx(1.0)
    # The states are quantiles of the rate, finer than the model's; outages only follow its lower level.
    assert again[np.array(found.low_mbps) >= 3.0, 0].max() < 0.01
    assert (found.low_mbps[1], found.high_mbps[-1]) == pytest.approx((1.0, 6.0), rel=0.01)


def test_gilbert_elliott_stays_are_found_again():
    found = FITS["gilbert-elliott"](steps(MODELS[2].generate(60_000, STEP, 1)))
    assert (found.good_s, found.bad_s) == pytest.approx((8.0, 1.0), rel=0.15)
    assert (found.median_mbps, found.sigma) == pytest.approx((5.0, 0.3), rel=0.05)


@pytest.mark.parametrize("name", ["handover", "two-scale"])
def test_two_time_scales_are_found_again(name):
    made = next(model for model in MODELS if model.name == name)
    found = FITS[name](steps(made.generate(120_000, STEP, 1)))
    assert found.cell_s == pytest.approx(10.0, rel=0.4) and found.tau_s == pytest.approx(made.tau_s, rel=0.4)
    if name == "two-scale":
        assert found.cell_share == pytest.approx(0.7, abs=0.1)
    else:
        assert found.cell_sigma / found.sigma == pytest.approx(0.8 / 0.3, rel=0.5)
        assert found.interruption_s == pytest.approx(0.4, rel=0.2) and found.interrupted > 0.7


@named()
def test_what_a_model_made_is_fitted_well(model):
    found = fit(rates(model.generate(20_000, STEP, 1)), "made")
    scores = {candidate.model.name: candidate.errors.score for candidate in found.candidates}
    assert len(scores) == len(FITS) and list(scores.values()) == sorted(scores.values())
    assert found.best.name == next(iter(scores))
    assert scores[model.name] <= min(scores.values()) + 0.15
    assert found.whole.ks < 0.1 and found.whole.acf < 0.15
    assert found.whole.made_outages.share == pytest.approx(found.whole.real_outages.share, abs=0.05)


def test_a_slow_channel_is_not_mistaken_for_a_memoryless_one():
    found = fit(rates(MODELS[3].generate(8_000, STEP, 2)), "made")
    scores = {candidate.model.name: candidate.errors for candidate in found.candidates}
    assert scores["gilbert-elliott"].acf > 2 * found.candidates[0].errors.acf
    assert scores["gilbert-elliott"].delivery > found.candidates[0].errors.delivery


def test_packets_are_fitted_in_bins_and_even_a_constant_has_a_fit():
    packets = Opportunities(np.sort(np.random.default_rng(0).uniform(0, 60, 6000)), 60.0)
    assert fit(packets, "packets", only="markov").steps.step_s == 0.1
    assert fit(rates(np.full(300, 5e6)), "flat").best.generate(50, STEP, 0) == pytest.approx(5e6, rel=1e-6)


def test_what_can_not_be_fitted_says_why():
    for bps, why in ((np.ones(20), "20 steps"), (np.zeros(500), "capacity in 0 steps")):
        with pytest.raises(TraceError, match=f"bad.csv: {why}"):
            fit(rates(bps), "bad.csv")
    half = np.concatenate([np.ones(400), np.zeros(400)]) * 1e6
    with pytest.raises(TraceError, match="the last part"):
        fit(rates(half), "bad.csv")
    with pytest.raises(TraceError, match="no model 'x'"):
        fit(rates(np.ones(300)), "t", only="x")


@pytest.mark.skipif(not (DATA / "traces").is_dir(), reason="no recorded traces beside the checkout")
def test_a_recording_is_fitted_about_as_well_as_by_its_own_first_part():
    with (DATA / "traces" / "MANIFEST.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    path = DATA / rows["mahimahi/ATT-LTE-driving-2016.up"]["path"]
    found = fit(read_trace(path).capacity("up"), str(path))
    assert found.candidates[0].errors.score < found.itself.score + 0.1
    assert found.whole.ks < 0.15 and found.whole.delivery < 0.2


# Distances ------------------------------------------------------------------------------------------

samples = st.lists(st.floats(-100, 100), min_size=1, max_size=30).map(np.array)


@settings(max_examples=80, deadline=None)
@given(samples, samples)
def test_distances_are_those_of_their_definitions(ours, theirs):
    expected = max(abs(np.mean(ours <= at) - np.mean(theirs <= at)) for at in (*ours, *theirs))
    assert kolmogorov_smirnov(ours, theirs) == pytest.approx(expected, abs=1e-9)
    assert wasserstein(ours, theirs) == pytest.approx(wasserstein_distance(ours, theirs), abs=1e-9)


def test_a_series_has_no_distance_from_itself_and_another_has():
    bps = MODELS[0].generate(3000, STEP, 1)
    same = errors(bps, [bps, bps], STEP, 1e4)
    assert same.score == pytest.approx(0.0, abs=1e-9)
    assert same.made_outages.per_minute == pytest.approx(same.real_outages.per_minute)
    faster = errors(bps, [2 * bps], STEP, 1e4)
    assert faster.wasserstein == pytest.approx(1.0) and faster.acf == pytest.approx(0.0, abs=0.05)
    shuffled = errors(bps, [np.random.default_rng(0).permutation(bps)], STEP, 1e4)
    assert shuffled.ks == 0.0 and shuffled.acf > 0.2 and shuffled.delivery > 0.05


def test_runs_and_correlations_by_hand():
    assert runs_of(np.array([1, 1, 0, 1, 0, 0, 1], dtype=bool)).tolist() == [2, 1, 1]
    alternating = np.array([1.0, -1.0] * 50)
    assert autocorrelation(alternating, np.array([1, 2])).tolist() == pytest.approx([-1.0, 1.0])
    valid = np.arange(100) % 2 == 0
    assert np.isnan(autocorrelation(alternating + np.arange(100), np.array([1]), valid)[0])


# The verb -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Tables that are not folded."""
    monkeypatch.setattr(trace_commands, "out", Console(width=200))


def run(*arguments):
    result = CliRunner().invoke(trace, [str(part) for part in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_verb_makes_a_trace_like_another_and_shows_how_well(tmp_path):
    real, made, drawn = (tmp_path / name for name in ("real.csv", "made.csv", "fit.png"))
    run("synth", real, "--model", "two-scale", "--seconds", 120, "--rtt-ms", 30)
    shown = run("synth", made, "--like", real, "--seconds", 60, "--plot", drawn, "--apart")
    assert "first part itself" in shown and "correlation of the log rate" in shown
    assert drawn.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    again = read_trace(made)
    assert again.duration_s == pytest.approx(60) and again.up is not again.down and again.rtt.at(5) == 0.03
    result = json.loads(run("synth", made, "--like", real, "--model", "markov", "--json"))
    assert result["model"] == "markov" and list(result["held_out"]) == ["markov"]
    assert 0 <= result["whole"]["ks"] < 0.2


def test_the_verb_makes_traces_by_hand(tmp_path):
    to = tmp_path / "t.csv"
    run("synth", to, "--model", "markov", "--with", "levels_mbps=0,4", "--with", "stay_s=2", "--step-s", 0.5)
    assert set(np.unique(read_trace(to).up.bps)) == {0.0, 4e6} and read_trace(to).duration_s == 300
    for name in ("gauss-markov", "gilbert-elliott", "handover", "two-scale"):
        run("synth", to, "--model", name, "--seconds", 20)
        assert len(read_trace(to).up.bps) == 200
    for arguments, why in (
        (("--model", "handover", "--with", "x=1"), "has no parameter 'x'; it has median_mbps"),
        (("--model", "handover", "--with", "cell_s=a"), "give a number"),
        (("--model", "handover", "--with", "cell_s=1,2"), "is one number"),
        (("--model", "handover", "--up-mbps", 3), "--with median_mbps"),
        (("--with", "sigma=1"), "not for --model lte"),
        (("--plot", tmp_path / "p.png"), "needs --like"),
        (("--like", to, "--with", "sigma=1"), "fits the parameters itself"),
        (("--model", "handover", "--seconds", 1e9), "--seconds"),
    ):
        with pytest.raises(ConfigError, match=why):
            run("synth", to, *arguments)


def test_the_verb_shows_many_traces_in_one_table_and_converts_all_formats(tmp_path):
    first = tmp_path / "a.csv"
    run("synth", first, "--seconds", 20, "--seed", 1)
    run("convert", first, tmp_path / "a.txt", "--format", "pensieve", "--direction", "down")
    run("convert", tmp_path / "a.txt", tmp_path / "a.down")
    run("convert", tmp_path / "a.down", tmp_path / "b.csv")
    paths = [tmp_path / name for name in ("a.csv", "a.txt", "a.down", "b.csv")]
    shown = json.loads(run("info", *paths, "--json"))
    assert [part["kind"] for part in shown] == ["csv", "pensieve", "mahimahi", "csv"]
    for part in shown[1:]:
        assert part["both_ways"]["mean"] == pytest.approx(shown[0]["down"]["mean"], rel=0.02)
    table = run("info", *paths)
    assert table.count("both ways") == 3 and "rtt" in table
