"""A replay for people: what would have changed, which decisions differ and why, what can not be told."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from splitedge.sim.replay import Calibration, Replay
from splitedge.sim.replay_moves import Difference, Move, Told
from splitedge.sim.replay_stats import Change, Metric

NOTHING = "no difference that these records can show"
_SHOWN_MOVES = 8
_REACHED = ("uplink_unknown", "payload_too_large")


def show(found: Replay, out: Console) -> None:
    """Print a replay."""
    out.print(Text(title(found), style="bold"))
    if not found.enough:
        out.print(Text(warning(found), style="red"))
    out.print(changes_table(found))
    for line in headline(found):
        out.print(Text(line))
    if found.moves:
        out.print(moves_table(found))
    for difference in found.differences:
        out.print(Text(difference_text(found, difference)))
        out.print()
    for line in footnotes(found):
        out.print(Text(line))


def title(found: Replay) -> str:
    """One line: what was replayed."""
    against = f" against '{found.against}'" if found.against else ""
    return (
        f"{found.requests:,} recorded requests over {_duration(found.seconds)} through the policy "
        f"'{found.candidate}'{against}"
    )


def warning(found: Replay) -> str:
    """What is to be said of figures that were asked for in spite of too little support."""
    return (
        f"these records support only {found.support.share:.1%} of the requests: what follows is mostly the "
        "simulator's guess, and its intervals do not hold what is not known of the channel"
    )


def headline(found: Replay) -> Iterator[str]:
    """The changes that the records can show, in sentences; or that there are none."""
    differ = int(sum(move.requests for move in found.moves))
    if not differ:
        yield f"'{found.candidate}' decides every request as before: nothing changes."
        return
    share = f"{differ / found.requests:.1%}"
    yield f"{differ:,} of {found.requests:,} decisions ({share}) would have been other ones."
    shown = [change for change in found.changes if change.shown]
    better = [change.metric.label for change in shown if change.change * change.metric.better > 0.0]
    worse = [change.metric.label for change in shown if change.change * change.metric.better < 0.0]
    if better:
        yield f"better: {', '.join(better)}"
    if worse:
        yield f"worse: {', '.join(worse)}"
    if len(shown) < len(found.changes):
        yield f"=: {NOTHING}"
    yield ""


def changes_table(found: Replay) -> Table:
    """The metrics before and after, with intervals."""
    before = found.against or "as recorded"
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("")
    for name in (before, found.candidate, "change", "95% interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for change in found.changes:
        m = change.metric
        if m.name == "joules" and not _has_joules(found):
            table.add_row(m.label, "-", "-", "-", "-", "joules unknown, see below")
            continue
        table.add_row(
            m.label,
            number(m, change.before),
            number(m, change.after),
            number(m, change.change, sign=True),
            f"{number(m, change.low, sign=True)} .. {number(m, change.high, sign=True)}",
            _verdict(change),
        )
    return table


def _verdict(change: Change) -> str:
    if not change.shown:
        return "="
    return "better" if change.change * change.metric.better > 0.0 else "worse"


def moves_table(found: Replay) -> Table:
    """Which options the requests moved to, and what that did to them."""
    table = Table(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title="moves, mean effect on each request"
    )
    table.title_justify = "left"
    table.add_column("from", overflow="fold")
    table.add_column("to", overflow="fold")
    for name in ("requests", "met", "latency", "bytes", "expected right"):
        table.add_column(name, justify="right", no_wrap=True)
    for move in found.moves[:_SHOWN_MOVES]:
        table.add_row(move.before, move.after, f"{move.requests:,}", *_effects(move))
    rest = sum(move.requests for move in found.moves[_SHOWN_MOVES:])
    if rest:
        table.add_row(f"{len(found.moves) - _SHOWN_MOVES} others", "", f"{rest:,}")
    return table


def _effects(move: Move) -> tuple[str, ...]:
    return (
        f"{100 * move.met:+.1f} pp",
        f"{1e3 * move.latency_s:+.1f} ms",
        f"{move.nbytes:+,.0f}",
        f"{100 * move.confidence:+.1f} pp",
    )


def difference_text(found: Replay, d: Difference) -> str:
    """One decision that differs, with what both policies said."""
    deadline = "no deadline" if d.deadline_s == math.inf else f"deadline {1e3 * d.deadline_s:.0f} ms"
    seen = [deadline]
    if math.isfinite(d.goodput_bps):
        seen.append(f"uplink then taken for {d.goodput_bps / 1e6:.2f} Mbit/s, RTT {1e3 * d.rtt_s:.0f} ms")
    if math.isfinite(d.age_s):
        seen.append(
            f"nearest transfer measured {d.transfer_bps / 1e6:.2f} Mbit/s over {d.transfer_bytes:,.0f} "
            f"bytes, {d.age_s:.1f} s away"
        )
    else:
        seen.append("no transfer ever measured the uplink")
    head = f"request {d.request}, {d.t_s:.1f} s in ({'; '.join(seen)})"
    before = _told(found.against or "as recorded", d.before)
    return f"{head}\n{before}\n{_told(found.candidate, d.after)}"


def _told(name: str, told: Told) -> str:
    share = (
        "met" if told.met > 0.99 else "missed" if told.met < 0.01 else f"met in {told.met:.0%} of the draws"
    )
    return (
        f"  {name}: {told.option}, {1e3 * told.latency_s:.1f} ms, {share}, {told.nbytes:,.0f} bytes\n"
        f"    {told.reason}"
    )


def footnotes(found: Replay) -> Iterator[str]:
    """What is supported and what not, how good the simulator is here, and how it was counted."""
    support = found.support
    kept = float(support.recorded.mean())
    yield (
        f"supported: {support.share:.1%} of the requests ({kept:.1%} are decided as recorded, so their "
        "records stand; the others are simulated)"
    )
    for gap in support.gaps:
        label = "NOT supported" if gap.what in _REACHED else "to know"
        yield f"{label}, {gap.requests:,} requests: {gap.text}"
    if support.unsupported.any():
        low, high = found.met_bounds
        yield (
            f"if the unsupported requests all missed their deadlines the change of deadlines met would be "
            f"{100 * low:+.1f} pp, if all met them {100 * high:+.1f} pp"
        )
    yield f"simulator on the recorded decisions, against the records: {'; '.join(_calibration(found))}"
    yield (
        "answers are not in records: 'expected right' is their calibrated confidence, drawn from rows of the "
        "evaluation that are as hard where another option answers"
    )
    yield (
        f"intervals: {found.draws} channels drawn between the measurements, blocks of {found.block} "
        "requests, and the simulator's own error on each option"
    )
    if found.left_out:
        yield f"left out: {found.left_out:,} requests that the edge refused before anything was decided"


def _calibration(found: Replay) -> Iterator[str]:
    for one in found.calibration:
        if one.metric.name in ("met", "p50_s", "p95_s", "bytes") or (
            one.metric.name == "joules" and _has_joules(found)
        ):
            yield f"{one.metric.label} {_both(one)}"


def _both(one: Calibration) -> str:
    return f"{number(one.metric, one.simulated)} for {number(one.metric, one.recorded)}"


def _has_joules(found: Replay) -> bool:
    return all(gap.what != "no_joules" for gap in found.support.gaps)


def number(metric: Metric, value: float, sign: bool = False) -> str:
    """A value of a metric for people."""
    plus = "+" if sign else ""
    if metric.unit == "share":
        return f"{100 * value:{plus}.1f} {'pp' if sign else '%'}"
    if metric.unit == "s":
        return f"{1e3 * value:{plus}.1f} ms"
    if metric.unit == "B":
        return f"{value:{plus},.0f}"
    return f"{1e3 * value:{plus}.2f} mJ"


def _duration(seconds: float) -> str:
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200.0 else f"{seconds / 3600:.1f} h"
