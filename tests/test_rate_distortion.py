"""Figures of the rate-distortion bench against known values."""

import numpy as np
import pytest

from splitedge.codecs.bjontegaard import Curve, bd_accuracy, bd_rate
from splitedge.codecs.rate_distortion import (
    Point,
    Worst,
    accuracy_difference,
    accuracy_interval,
    hypervolume,
)
from splitedge.errors import ConfigError

PAIRS = [(40.0, 0.70), (80.0, 0.82), (160.0, 0.88), (320.0, 0.92)]


def point(nbytes=100, right=90, rows=100, kib=10.0):
    sizes = np.full(rows, nbytes)
    return Point(
        "p",
        "f",
        "ours",
        "",
        "l",
        sizes,
        sizes + 51,
        np.arange(rows) < right,
        kib,
        10,
        0.1,
        1.0,
        1.0,
        0.1,
        0.1,
    )


def test_a_curve_against_itself_at_half_the_bytes_is_minus_50_percent():
    half = Curve.of([(b / 2, a) for b, a in PAIRS])
    assert bd_rate(half, Curve.of(PAIRS)).value == pytest.approx(-0.5)
    assert bd_rate(Curve.of(PAIRS), half).value == pytest.approx(1.0)
    assert bd_rate(half, half).value == pytest.approx(0.0)


def test_a_curve_two_points_higher_is_two_points_better():
    higher = Curve.of([(b, a + 0.02) for b, a in PAIRS])
    assert bd_accuracy(higher, Curve.of(PAIRS)).value == pytest.approx(0.02)


def test_what_another_point_beats_is_no_part_of_a_curve():
    curve = Curve.of([*PAIRS, (100.0, 0.80), (80.0, 0.60), (500.0, 0.92)])
    assert list(zip(curve.nbytes, curve.accuracy, strict=True)) == PAIRS
    assert bd_rate(curve, Curve.of(PAIRS)).value == pytest.approx(0.0)


def test_a_comparison_that_means_nothing_is_refused_with_its_reason():
    few = bd_rate(Curve.of(PAIRS[:2]), Curve.of(PAIRS))
    assert few.value is None and "2 points" in few.why_not
    assert bd_rate(Curve.of([]), Curve.of(PAIRS)).value is None
    apart = Curve.of([(b, a + 0.15) for b, a in PAIRS])  # 0.85 to 1.07 over 0.70 to 0.92
    found = bd_rate(apart, Curve.of(PAIRS))
    assert found.value is None and "overlap on 32%" in found.why_not
    assert bd_accuracy(Curve.of([(b * 1000, a) for b, a in PAIRS]), Curve.of(PAIRS)).value is None


def test_intervals_hold_the_accuracy_and_shrink_with_rows():
    few, many = accuracy_interval(point(right=90).correct), accuracy_interval(np.arange(10_000) < 9000)
    assert few.value == many.value == 0.9 and few.low < 0.9 < few.high
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.003, rel=0.1)  # the normal approximation


def test_a_paired_difference_is_sharper_than_two_intervals():
    rows = np.arange(1000)
    ours, theirs = rows < 900, rows < 890
    found = accuracy_difference(ours, theirs)
    assert found.value == pytest.approx(0.01) and found.low > 0
    assert accuracy_difference(ours, ours) == (0.0, 0.0, 0.0)
    with pytest.raises(ConfigError, match="same rows"):
        accuracy_difference(ours, theirs[:5])


def test_hypervolume_of_boxes():
    worst = Worst(encoder_kib=20.0, nbytes=200.0, accuracy=0.0)
    half = point(nbytes=100, right=50, kib=10.0)  # half of every side
    assert hypervolume([half], worst) == pytest.approx(0.125)
    assert hypervolume([half, half], worst) == pytest.approx(0.125)
    small = point(nbytes=150, right=100, kib=15.0)  # quarter by quarter, all of the height
    assert hypervolume([half, small], worst) == pytest.approx(0.125 + 0.25 * 0.25 * 0.5)
    assert hypervolume([point(nbytes=300)], worst) == 0.0 == hypervolume([], worst)


def test_bytes_are_sizes_that_were_seen():
    p = point()
    assert p.bytes_at(0.5, 0.99) == (100.0, 100.0) and p.framed_mean == 151.0
    with pytest.raises(ConfigError, match="one length"):
        Point("p", "f", "ours", "", "l", p.payload[:3], p.framed, p.correct, 1.0, 1, 0.1, 1, 1, 1, 1)
