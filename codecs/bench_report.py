"""An outcome of the bench as a table for people, Markdown for the docs, CSV and JSON for programs."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from splitedge.codecs.bench import Outcome
from splitedge.codecs.bench_goals import Figure
from splitedge.codecs.rate_distortion import Point, accuracy_interval
from splitedge.errors import ConfigError

BEGIN = "<!-- table: {} -->"
END = "<!-- end of table: {} -->"
COLUMNS = (
    "codec", "kind", "cut", "accuracy", "bytes", "p50/p95/p99", "framed", "encoder KiB", "MACs",
    "encode µs", "decode µs", "training s",
)  # fmt: skip


def cells(point: Point) -> tuple[str, ...]:
    """One line of the table. Times are `with (without)` the networks."""
    right = accuracy_interval(point.correct)
    return (
        point.label,
        point.kind,
        point.cut or "input",
        f"{right.value:.2%} ({100 * right.low:.1f}-{100 * right.high:.1f})",
        f"{point.bytes_mean:.1f}",
        "/".join(f"{size:.0f}" for size in point.bytes_at(0.5, 0.95, 0.99)),
        f"{point.framed_mean:.1f}",
        f"{point.encoder_kib:.1f}",
        f"{point.macs_share:.1%}",
        f"{point.encode_s * 1e6:.0f} ({point.pack_s * 1e6:.0f})",
        f"{point.decode_s * 1e6:.0f} ({point.unpack_s * 1e6:.0f})",
        f"{point.train_s:.0f}" if point.train_s else "-",
    )


def table(outcome: Outcome) -> Table:
    """For a terminal."""
    made = Table(title=title(outcome), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        made.add_column(name, justify="left" if name in ("codec", "kind", "cut") else "right", no_wrap=True)
    for point in outcome.points:
        made.add_row(*cells(point))
    return made


def goals(figures: Sequence[Figure]) -> Table:
    """The figures that have a goal."""
    made = Table(
        title="goals (each value at most)", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in ("figure", "value", "goal", "met"):
        made.add_column(name, justify="left" if name == "figure" else "right", vertical="top")
    for f in figures:
        if f.goal is not None:
            met = "[green]yes[/green]" if f.met else "[red]no[/red]"
            about = f"\n[dim]{f.note}[/dim]" if f.note else ""
            made.add_row(f.name + about, readable(f.value, f.unit), readable(f.goal, f.unit), met)
    return made


def readable(value: float | None, unit: str) -> str:
    """A number for people."""
    if value is None:
        return "not measured"
    return f"{value:+.1%}" if unit == "ratio" else f"{value:.2f} {unit}"


def title(outcome: Outcome) -> str:
    """What was measured on."""
    return (
        f"{outcome.subject}: whole model {outcome.whole.mean():.2%} on {outcome.rows} test rows, "
        f"{outcome.model_macs / 1e6:.1f} M multiply-accumulates, {outcome.worst.encoder_kib:.0f} KiB; "
        f"raw {outcome.worst.nbytes:.0f} B"
    )


def markdown(outcome: Outcome, figures: Sequence[Figure]) -> str:
    """The table, then figures with a goal and figures without."""
    lines = [title(outcome) + f". {_processor()}, torch {torch.__version__}.", ""]
    lines += _rows(COLUMNS, [cells(point) for point in outcome.points])
    with_goal = [f for f in figures if f.goal is not None]
    if with_goal:
        met = {True: "yes", False: "**no**"}
        lines += ["", *_rows(
            ("goal (at most)", "value", "to reach", "met", ""),
            [
                (f.name, readable(f.value, f.unit), readable(f.goal, f.unit), met[bool(f.met)], f.note)
                for f in with_goal
            ],
        )]  # fmt: skip
    others = [f for f in figures if f.goal is None]
    if others:
        found = [(f.name, readable(f.value, f.unit), f.note) for f in others]
        lines += ["", *_rows(("figure", "value", ""), found)]
    if outcome.left_out:
        lines += ["", "Left out: " + "; ".join(f"{name} ({why})" for name, why in outcome.left_out) + "."]
    return "\n".join(lines) + "\n"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]


def into_page(page: Path, outcome: Outcome, figures: Sequence[Figure]) -> None:
    """Put the Markdown between a page's two marks for this subject.

    Raises:
        ConfigError: the page is missing or has no such marks.
    """
    begin, end = BEGIN.format(outcome.subject), END.format(outcome.subject)
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ConfigError(f"{page}: has no lines '{begin}' and '{end}' to put the table between")
    made = f"{before}{begin}\n{markdown(outcome, figures)}{end}{after}"
    page.write_text(made, encoding="utf-8")


def write_csv(points: Sequence[Point], path: Path) -> None:
    """One line a point, in SI units."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [_record(point) for point in points]
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["name"])
        writer.writeheader()
        writer.writerows(rows)


def _record(point: Point) -> dict[str, object]:
    right = accuracy_interval(point.correct)
    p50, p95, p99 = point.bytes_at(0.5, 0.95, 0.99)
    return {
        "name": point.name, "family": point.family, "kind": point.kind, "cut": point.cut or "input",
        "level": point.level, "rows": len(point.correct),
        "accuracy": right.value, "accuracy_low": right.low, "accuracy_high": right.high,
        "payload_mean": point.bytes_mean, "payload_p50": p50, "payload_p95": p95, "payload_p99": p99,
        "payload_max": int(point.payload.max()), "framed_mean": point.framed_mean,
        "encoder_kib": point.encoder_kib, "encoder_macs": point.encoder_macs, "macs_share": point.macs_share,
        "encode_s": point.encode_s, "decode_s": point.decode_s, "pack_s": point.pack_s,
        "unpack_s": point.unpack_s, "train_s": point.train_s, "epochs": point.epochs,
    }  # fmt: skip


def write_json(outcome: Outcome, figures: Sequence[Figure], path: Path) -> None:
    """`{"machine", "figures", "points"}`; figures as `benchmarks/common.py` writes them."""
    machine = {"cpu": _processor(), "system": platform.system(), "torch": torch.__version__}
    content = {
        "machine": machine,
        "figures": [figure.to_json() for figure in figures],
        "points": [_record(point) for point in outcome.points],
        "left_out": [{"name": name, "why": why} for name, why in outcome.left_out],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
