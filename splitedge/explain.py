"""Why a deployment does what it does: its cuts, its options, and which wins at which uplink."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from splitedge.plan import CutRow, Plan
from splitedge.policy import Estimate, Observation, Option, Policy
from splitedge.profile import Profile
from splitedge.thresholds import Floats, Threshold

#: Uplinks asked about, bits/s.
GRID: Floats = np.geomspace(0.05e6, 200e6, 400)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What `explain` takes for granted: a deadline and a round trip in seconds, a link of known goodput."""

    deadline_s: float = 0.1
    rtt_s: float = 0.02

    def observe(self, options: tuple[Option, ...], goodput: Floats) -> Observation:
        """What the policy sees at these uplinks: (N,) in bits/s, the downlink as fast."""
        here = np.broadcast_to
        shape = goodput.shape
        rate = Estimate(goodput, goodput, goodput)
        rtt, none = here(self.rtt_s, shape), here(0.0, shape)
        return Observation(
            options,
            rate,
            rate,
            Estimate(rtt, rtt, rtt),
            Estimate(none, none, none),
            edge_wait_s=none,
            link_up=here(True, shape),
            deadline_s=here(self.deadline_s, shape),
            rows=here(1.0, shape),
        )


@dataclass(frozen=True, slots=True)
class Band:
    """The policy takes `option` at uplinks from `low_bps` to `high_bps`."""

    option: int
    low_bps: float
    high_bps: float


def winners(policy: Policy, options: tuple[Option, ...], at: Conditions, grid: Floats = GRID) -> list[Band]:
    """Ask a copy of the policy over a grid of uplinks, so that one with a history learns nothing from it;
    neighbours of one mind are one band.
    """
    policy = copy.deepcopy(policy)
    chosen = np.broadcast_to(policy.decide(at.observe(options, grid)).option, grid.shape)
    edges = np.flatnonzero(np.diff(chosen)) + 1
    bands = []
    for part in np.split(np.arange(len(grid)), edges):
        bands.append(Band(int(chosen[part[0]]), float(grid[part[0]]), float(grid[part[-1]])))
    return bands


def explain_text(
    plan: Plan, policy: Policy, policy_name: str, at: Conditions, thresholds: Mapping[int, Threshold]
) -> str:
    """Cuts, options, bands, thresholds and notes as plain text."""
    parts = [
        _cuts(plan.table, plan.profile),
        _options(plan.options),
        _bands(policy, policy_name, plan.options, at),
    ]
    if thresholds:
        lines = [f"  exit {number}: {found.reason}" for number, found in sorted(thresholds.items())]
        parts.append("Thresholds\n" + "\n".join(lines))
    if remarks := plan.remarks:
        parts.append("Notes\n" + "\n".join(f"  - {note}" for note in remarks))
    return "\n\n".join(part for part in parts if part)


def _cuts(table: Sequence[CutRow], profile: Profile | None) -> str:
    if not table:
        return ""
    among = f" of {len(profile.cuts)} places" if profile is not None else ""
    where = f" (timed on {profile.device}, {profile.threads} threads)" if profile is not None else ""
    rows = [
        ("cut", "raw B", "coded B", "head / tail MFLOP", "head / tail ms", "head / tail weights", "crosses")
    ]
    rows += [
        (
            row.name,
            f"{row.raw_bytes:,}",
            f"{row.coded_bytes:,.0f}",
            f"{row.head_flops / 1e6:.2f} / {row.tail_flops / 1e6:.2f}",
            f"{row.head_s * 1e3:.2f} / {row.tail_s * 1e3:.2f}",
            f"{row.head_params:,} / {row.tail_params:,}",
            ", ".join(row.tensors),
        )
        for row in table
    ]
    return f"Cuts: {len(table)}{among}{where}\n" + _grid(rows, left=(0, 6))


def _options(options: Sequence[Option]) -> str:
    rows = [("option", "accuracy", "edge ms", "cloud ms", "bytes up", "bytes down")]
    for o in options:
        remote = (f"{o.cloud_s * 1e3:.2f}", f"{o.bytes_up:,.0f}", f"{o.bytes_down:,.0f}")
        accuracy = f"{o.accuracy:.1%}" if o.accuracy_measured else "-"
        rows.append((o.name, accuracy, f"{o.edge_s * 1e3:.2f}", *(remote if o.remote else ("-", "-", "-"))))
    unknown = "" if all(o.accuracy_measured for o in options) else ACCURACY_UNKNOWN
    return "Options (medians and means of one row)\n" + _grid(rows, left=(0,)) + unknown


ACCURACY_UNKNOWN = (
    "\n  Accuracies are not measured yet: fit(train, val) does. Until then policies go by an assumed order."
)


def _bands(policy: Policy, name: str, options: tuple[Option, ...], at: Conditions) -> str:
    lines = [
        f"Which way policy '{name}' goes (deadline {at.deadline_s * 1e3:g} ms, round trip "
        f"{at.rtt_s * 1e3:g} ms, goodput known exactly)"
    ]
    for band in winners(policy, options, at):
        reach = f"{rate(band.low_bps)} to {rate(band.high_bps)}"
        lines.append(f"  {reach:<26} {options[band.option].name}")
    return "\n".join(lines)


def rate(bps: float) -> str:
    """`820 kbit/s`, `5.2 Mbit/s`."""
    return f"{bps / 1e6:.3g} Mbit/s" if bps >= 1e6 else f"{bps / 1e3:.3g} kbit/s"


def _grid(rows: Sequence[tuple[str, ...]], left: tuple[int, ...]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
