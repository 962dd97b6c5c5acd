"""One text by a device and a cloud: what it says, whatever happens to the link."""

from __future__ import annotations

import dataclasses
import math

import pytest
from generation_bench import PROMPT, STOP, Bench, alone
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.errors import CloudUnavailable, ConfigError, DeadlineExceeded
from splitedge.llm.happenings import Fail, Finish
from splitedge.llm.modes import Mode, Pace, Way, goes_on

LOSSLESS = [
    Way(Mode.STREAM),
    *(Way(Mode.SPEC, drafts=k, adapt=False) for k in (1, 2, 4, 8)),
    Way(Mode.SPEC, drafts=8),
    Way(Mode.SPLIT),
    Way(Mode.SPLIT, keeps_told=False),
]
LOSSY = [
    Way(Mode.LOCAL),
    Way(Mode.EXIT, thresholds={1: 0.5}),
    Way(Mode.EXIT, thresholds={1: 0.5}, eager=True, keeps_told=False),
    Way(Mode.ASSIST, thresholds={1: 0.5}, burst=4, eager=True),
]
named = pytest.mark.parametrize(
    "way", LOSSLESS, ids=lambda w: f"{w.mode}-{w.drafts}{'a' * w.adapt}{'h' * (not w.keeps_told)}"
)
either = pytest.mark.parametrize("way", LOSSY, ids=lambda w: f"{w.mode}{'-eager' * w.eager}")
COUNT = 20
WANTED = alone(PROMPT, COUNT, {STOP})


@named
def test_a_lossless_mode_writes_what_the_cloud_writes(way):
    bench = Bench(way).run()
    assert bench.text == WANTED and bench.generation.ids == [*PROMPT, *WANTED]
    assert len(bench.ends) == 1 and isinstance(bench.ends[0], Finish)


@named
@pytest.mark.parametrize("lose", [True, False])
@pytest.mark.parametrize("forget", [True, False])
def test_a_link_cut_at_any_moment_changes_nothing_of_it(way, lose, forget):
    steps = Bench(way).run().steps
    for at in range(steps + 1):
        bench = Bench(way, cut={at: 3.0}, lose=lose, forget=forget).run()
        assert bench.text == WANTED, at


@named
def test_many_cuts(way):
    bench = Bench(way, cut=dict.fromkeys(range(3, 60, 4), 0.7), forget=True).run()
    assert bench.text == WANTED


@either
def test_a_cut_ends_no_text_of_the_others(way):
    calm = Bench(way, stops=frozenset()).run()
    assert len(calm.text) == COUNT and ("cloud" in calm.sources) is (way.mode is not Mode.LOCAL)
    for at in range(calm.steps + 1):
        bench = Bench(way, stops=frozenset(), cut={at: 3.0}, forget=True).run()
        assert isinstance(bench.ends[0], Finish) and bench.text == calm.text


@pytest.mark.parametrize("mode", list(Mode))
def test_without_the_cloud_the_device_goes_on_and_says_so(mode):
    way = Way(mode, on_loss="local", thresholds={1: 0.5})
    bench = Bench(way, up=False).run()
    assert isinstance(bench.ends[0], Finish)
    assert set(bench.sources) <= {"exit:1", "local"}
    assert bench.generation.tally.degraded is (mode is not Mode.LOCAL)
    steps = Bench(way).run().steps
    for at in range(steps + 1):
        cut = Bench(way, cut={at: 0.35}, forget=bool(at % 2)).run()
        assert isinstance(cut.ends[0], Finish)
        if mode.lossless and not cut.generation.tally.degraded:
            assert cut.text == WANTED


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([*LOSSLESS, *LOSSY]),
    st.sampled_from(["wait", "local"]),
    st.dictionaries(st.integers(0, 60), st.floats(0.0, 4.0), max_size=6),
    st.booleans(),
    st.booleans(),
    st.floats(0.0, 0.5),
    st.integers(1, 5),
)
def test_every_text_ends_once_and_is_whole(way, on_loss, cut, lose, forget, rtt, chunk):
    way = dataclasses.replace(way, on_loss=on_loss)
    bench = Bench(way, cut=cut, lose=lose, forget=forget, rtt=rtt, chunk=chunk).run()
    assert len(bench.ends) == 1 and isinstance(bench.ends[0], Finish)
    tally = bench.generation.tally
    assert bench.generation.ids == [*PROMPT, *bench.text]
    assert tally.sources == bench.sources and len(bench.sources) == len(bench.text) <= COUNT
    assert tally.accepted == bench.sources.count("draft") or bench.text[-1:] == [STOP]
    assert STOP not in bench.text[:-1]
    if way.mode.lossless and "local" not in bench.sources and "exit:1" not in bench.sources:
        assert bench.text == WANTED


def test_a_silent_cloud_ends_in_a_typed_error():
    bench = Bench(Way(Mode.STREAM), cut={1: 1000.0}).run()
    assert isinstance(bench.ends[0], Fail) and isinstance(bench.ends[0].error, CloudUnavailable)
    assert bench.now == pytest.approx(30.0, abs=1.0)
    bench = Bench(Way(Mode.SPEC), cut={4: 1000.0}, deadline_s=2.0).run()
    assert isinstance(bench.ends[0].error, DeadlineExceeded) and bench.now == pytest.approx(2.0)
    assert bench.text == WANTED[: len(bench.text)]


def test_drafts_are_worth_their_time_only_while_they_are_likely_right():
    assert goes_on(Pace(0.01, 0.3, 0.8), [0.9])
    assert not goes_on(Pace(0.01, 0.3, 0.8), [0.9, 0.05, 0.05])
    lengths = []
    for round_s in (0.01, 0.1, 1.0, 10.0):
        k = 0
        while goes_on(Pace(0.01, round_s, 0.7), [math.nan] * k):
            k += 1
        lengths.append(k)
    assert lengths == sorted(lengths) and lengths[-1] - lengths[1] < 16  # the logarithm of the round trip


def test_a_way_that_can_not_be_is_refused():
    for wrong in ({"drafts": 0}, {"burst": 0}, {"on_loss": "hope"}, {"burst": 2, "keeps_told": False}):
        with pytest.raises(ConfigError):
            Way(**wrong)
