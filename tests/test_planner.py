"""Which cuts are worth having, and what the option table says of them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitedge.planner import GOODPUTS, LEAST_TAIL, Candidate, pick_cuts, shortlist

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        edge_s=st.floats(1e-5, 1.0),
        cloud_s=st.floats(1e-5, 1.0),
        nbytes=st.floats(10, 1e7),
    ),
    min_size=1,
    max_size=12,
)


def seconds(candidate: Candidate, goodput: float, cloud_speed: float) -> float:
    return candidate.edge_s + 8 * candidate.nbytes / goodput + candidate.cloud_s / cloud_speed


@given(CANDIDATES, st.floats(0.5, 50))
def test_with_room_for_all_every_uplink_has_its_fastest_cut(candidates, cloud_speed):
    chosen = pick_cuts(candidates, cloud_speed=cloud_speed, most=len(GOODPUTS))
    for goodput in GOODPUTS:
        best = min(seconds(c, goodput, cloud_speed) for c in candidates)
        assert min(seconds(candidates[i], goodput, cloud_speed) for i in chosen) == pytest.approx(best)


@given(CANDIDATES, st.integers(1, 4))
def test_a_few_cuts_ascending_and_at_least_one(candidates, most):
    chosen = pick_cuts(candidates, most=most)
    assert 1 <= len(chosen) <= most
    assert chosen == sorted(set(chosen))


def test_slow_uplinks_get_the_late_small_cut_and_fast_ones_the_early_wide_cut():
    early = Candidate(edge_s=0.001, cloud_s=0.099, nbytes=30_000)
    late = Candidate(edge_s=0.080, cloud_s=0.020, nbytes=500)
    useless = Candidate(edge_s=0.090, cloud_s=0.010, nbytes=40_000)
    assert pick_cuts([early, late, useless], cloud_speed=10) == [0, 1]
    assert pick_cuts([early, late, useless], cloud_speed=10, goodputs=[50e6]) == [0]
    assert pick_cuts([early, late, useless], cloud_speed=10, goodputs=[0.5e6]) == [1]


def test_uplinks_at_which_the_coded_input_wins_ask_for_no_cut():
    early = Candidate(edge_s=0.001, cloud_s=0.099, nbytes=30_000)
    late = Candidate(edge_s=0.080, cloud_s=0.020, nbytes=500)
    slow_to_code = Candidate(edge_s=0.030, cloud_s=0.1, nbytes=2_000)
    assert pick_cuts([early, late], cloud_speed=10) == [0, 1]
    assert pick_cuts([early, late], slow_to_code, cloud_speed=10) == [0]
    always = Candidate(edge_s=0.0, cloud_s=0.0, nbytes=1)
    assert len(pick_cuts([early, late], always, cloud_speed=10)) == 1


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), min_size=1, max_size=60), st.integers(1, 12)
)
def test_a_shortlist_sends_less_the_later_the_cut(cuts, most):
    nbytes, share = [c[0] for c in cuts], [c[1] for c in cuts]
    front = shortlist(nbytes, share, most)
    assert 1 <= len(front) <= most
    assert all(nbytes[a] > nbytes[b] for a, b in itertools.pairwise(front))
    if max(share) >= LEAST_TAIL:
        assert all(share[i] >= LEAST_TAIL for i in front)


def test_a_shortlist_keeps_the_smallest_useful_cut():
    nbytes = np.random.default_rng(0).permutation(1000)[:100] + 1
    front = shortlist(nbytes.tolist(), np.linspace(1, 0, 100).tolist(), 3)
    useful = nbytes[: int(np.sum(np.linspace(1, 0, 100) >= LEAST_TAIL))]
    assert nbytes[front[-1]] == useful.min()
