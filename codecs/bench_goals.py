"""Figures of a bench's outcome: what was to be reached and what was, and comparisons without a goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from splitedge.codecs.bench import Outcome
from splitedge.codecs.bjontegaard import Curve, Delta, bd_accuracy, bd_rate
from splitedge.codecs.rate_distortion import Point, accuracy_difference, hypervolume

#: Payload bytes, points of accuracy lost at most.
TARGETS = ((64, 1.0), (32, 2.5))
MOST_MACS = 0.05
LEAST_GAIN = 0.20
MOST_TAX = 0.5
DEFAULT = "bottleneck"
SLIMMABLE = "slimmable"
REFERENCE = "webp"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number, as `benchmarks/common.py` writes it.

    Attributes:
        name: unique.
        value: in `unit`; None where it could not be measured.
        unit: `points` are percentage points of accuracy, `ratio` is 0.2 for 20%.
        goal: at most this; None where no goal was set.
        met: None where no goal was set; what was not measured meets none.
        note: in a few words where the value comes from, or why there is none.
    """

    name: str
    value: float | None
    unit: str
    goal: float | None = None
    met: bool | None = None
    note: str = ""

    def to_json(self) -> dict[str, object]:
        """Without the note."""
        return {name: value for name, value in asdict(self).items() if name != "note"}


def goal(name: str, value: float | None, unit: str, at_most: float, note: str = "") -> Figure:
    """A figure that is to be `at_most` so large."""
    return Figure(name, value, unit, at_most, value is not None and value <= at_most, note)


def figures(outcome: Outcome) -> list[Figure]:
    """All figures, goals first."""
    return [
        *(_target(outcome, most, loss) for most, loss in TARGETS),
        *_gains(outcome),
        *_taxes(outcome),
        *_switches(outcome),
        *(_target_framed(outcome, most) for most, _ in TARGETS),
        *_against_webp(outcome),
        *_volumes(outcome),
    ]


def curve(points: list[Point], *, framed: bool = False) -> Curve:
    """The front of some points by mean payload, or by mean frame."""
    return Curve.of([(p.framed_mean if framed else p.bytes_mean, p.accuracy) for p in points])


def _target(outcome: Outcome, most: int, loss: float) -> Figure:
    name = f"points lost at a payload of at most {most} B, encoder at most {MOST_MACS:.0%} of MACs"
    best = _best(outcome, lambda p: p.bytes_mean <= most)
    if best is None:
        return goal(name, None, "points", loss, "none of ours is so small")
    return goal(name, _loss(outcome, best), "points", loss, _about(outcome, best))


def _target_framed(outcome: Outcome, most: int) -> Figure:
    name = f"points lost at a frame of at most {most} B"
    best = _best(outcome, lambda p: p.framed_mean <= most)
    if best is None:
        return Figure(name, None, "points", note="none of ours is so small")
    return Figure(name, _loss(outcome, best), "points", note=_about(outcome, best))


def _best(outcome: Outcome, fits: Callable[[Point], bool]) -> Point | None:
    """Ours that did best on the validation rows, of those that fit."""
    ours = [p for p in outcome.points if p.kind == "ours" and p.macs_share <= MOST_MACS and fits(p)]
    chosen = [p for p in ours if not math.isnan(p.val_accuracy)]
    return max(chosen, key=lambda p: p.val_accuracy, default=None)


def _loss(outcome: Outcome, point: Point) -> float:
    return 100 * (float(outcome.whole.mean()) - point.accuracy)


def _about(outcome: Outcome, point: Point) -> str:
    lost = accuracy_difference(outcome.whole, point.correct)
    return (
        f"{point.label}: {point.accuracy:.2%} at {point.bytes_mean:.0f} B ({point.framed_mean:.0f} framed), "
        f"{point.macs_share:.1%} of MACs; {100 * lost.low:.2f} to {100 * lost.high:.2f} points lost (95%)"
    )


def _gains(outcome: Outcome) -> Iterator[Figure]:
    """BD-rate of each of our families against each published one; the default's have the goal."""
    for theirs in outcome.families("published"):
        for ours in outcome.families("ours"):
            if ours == "dedicated":
                continue
            name = f"BD-rate of {ours} against {theirs}"
            delta = bd_rate(curve(outcome.family(ours)), curve(outcome.family(theirs)))
            note = delta.why_not or f"encoder MACs {_macs(outcome, ours)} against {_macs(outcome, theirs)}"
            if ours == DEFAULT:
                yield goal(name, delta.value, "ratio", -LEAST_GAIN, note)
            else:
                yield Figure(name, delta.value, "ratio", note=note)


def _macs(outcome: Outcome, family: str) -> str:
    shares = [p.macs_share for p in outcome.family(family)]
    low, high = min(shares), max(shares)
    return f"{low:.1%}" if high - low < 0.0005 else f"{low:.1%} to {high:.1%}"


def _taxes(outcome: Outcome) -> Iterator[Figure]:
    """What one model for all levels loses against one made for a level alone."""
    levels = outcome.family(SLIMMABLE)
    for name, level in sorted(outcome.dedicated.items(), key=lambda item: item[1]):
        alone = max((p for p in outcome.points if p.name == name), key=lambda p: p.bytes_mean)
        if level >= len(levels):
            words = f"tax of {SLIMMABLE} at level {alone.level}"
            yield goal(words, None, "points", MOST_TAX, f"{SLIMMABLE} has not run with so many levels")
            continue
        slim = levels[level]
        gap = accuracy_difference(alone.correct, slim.correct)
        note = (
            f"{slim.accuracy:.2%} at {slim.bytes_mean:.0f} B, alone {alone.accuracy:.2%} at "
            f"{alone.bytes_mean:.0f} B; {100 * gap.low:.2f} to {100 * gap.high:.2f} points (95%)"
        )
        yield goal(f"tax of {SLIMMABLE} at level {slim.level}", 100 * gap.value, "points", MOST_TAX, note)


def _switches(outcome: Outcome) -> Iterator[Figure]:
    """What a change of level costs the request that makes it."""
    points = outcome.family(SLIMMABLE)
    if len(points) > 1:
        longer = 1e6 * sum(p.switch_s for p in points) / len(points)
        whole = 1e6 * sum(p.encode_s + p.decode_s for p in points) / len(points)
        note = f"mean over levels, of {whole:.0f} µs; nothing is loaded"
        yield Figure(f"switching the level of {SLIMMABLE}", longer, "µs", note=note)


def _against_webp(outcome: Outcome) -> Iterator[Figure]:
    reference = outcome.family(REFERENCE)
    if not reference:
        return
    for family in outcome.families():
        if family in (REFERENCE, "dedicated") or len(outcome.family(family)) < 2:
            continue
        for words, framed in (("payload", False), ("frame", True)):
            pair = [curve(points, framed=framed) for points in (outcome.family(family), reference)]
            yield _plain(f"BD-rate of {family} against webp, {words}", bd_rate(*pair), "ratio", 1)
        pair = [curve(points) for points in (outcome.family(family), reference)]
        yield _plain(f"BD-accuracy of {family} against webp", bd_accuracy(*pair), "points", 100)


def _plain(name: str, delta: Delta, unit: str, times: float) -> Figure:
    return Figure(name, None if delta.value is None else delta.value * times, unit, note=delta.why_not)


def _volumes(outcome: Outcome) -> Iterator[Figure]:
    for family in outcome.families():
        if family != "dedicated":
            yield Figure(
                f"hypervolume of {family}", hypervolume(outcome.family(family), outcome.worst), "ratio"
            )
    for kind in ("baseline", "published", "ours"):
        points = [p for p in outcome.points if p.kind == kind]
        if points:
            yield Figure(f"hypervolume of all {kind}", hypervolume(points, outcome.worst), "ratio")
