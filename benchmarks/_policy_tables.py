"""What the runs of `policies.py` come to: scores, goals, tables, a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from common import Report, console
from rich.table import Table

#: Uplinks that the constants of `deadline`, the estimator and the engine's guard were looked at on; all is
#: reported on the others too.
SEEN = (
    "mahimahi/ATT-LTE-driving.up",
    "mahimahi/Verizon-LTE-short.up",
    "mahimahi/TMobile-UMTS-driving.up",
    "nuwins_mmwave_uplink/driving_5g_run1.up",
    "nuwins_mmwave_uplink/driving_lte_run2.up",
    "satcell_starlink/starlink_mobility_3.up",
    "solis_wifi/office_231114-151821.up",
)
CANDIDATES = ("deadline", "mpc")
RIVALS = (
    "static:local",
    "static:exit",
    "static:split",
    "static:cloud",
    "latency",
    "latency:0.05",
    "dads",
    "spinn",
)
MOST_BEHIND, MOST_REGRET = 0.02, 0.05
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy on one uplink at one deadline. Shares of requests; joules and bytes a request."""

    uplink: str
    source: str
    technology: str
    policy: str
    deadline_ms: float
    right: float
    accuracy: float
    met: float
    joules: float
    nbytes: float


@dataclass
class Results:
    """All runs."""

    cells: list[Cell]
    failed: list[str]

    @property
    def policies(self) -> list[str]:
        """In the order they were run."""
        return list(dict.fromkeys(cell.policy for cell in self.cells))

    @property
    def sources(self) -> list[str]:
        """Who recorded the uplinks."""
        return list(dict.fromkeys(cell.source for cell in self.cells))

    def mean(self, policy: str, what: str = "right", **only: object) -> float:
        """Mean over uplinks and deadlines; NaN where there is none."""
        found = [
            getattr(c, what)
            for c in self.cells
            if c.policy == policy and all(getattr(c, name) == value for name, value in only.items())
        ]
        return float(np.mean(found)) if found else float("nan")

    def part(self, seen: bool) -> Results:
        """The uplinks that constants were looked at on, or the others."""
        return Results([c for c in self.cells if (c.uplink in SEEN) is seen], [])

    def behind(self, policy: str, rivals: Iterable[str]) -> dict[str, float]:
        """By uplink, mean over deadlines: the best rival's share less this policy's."""
        found = {}
        for uplink in dict.fromkeys(c.uplink for c in self.cells):
            others = [self.mean(rival, uplink=uplink) for rival in rivals]
            found[uplink] = max(others) - self.mean(policy, uplink=uplink)
        return found

    def regret(self, policy: str, oracle: str = "oracle") -> float:
        """Mean share of requests that the oracle answers right in time and this policy does not."""
        return self.mean(oracle) - self.mean(policy)

    def write(self, path: Path) -> None:
        """All runs as CSV."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Cell)])
            writer.writeheader()
            writer.writerows(asdict(cell) for cell in self.cells)


def rivals_in(results: Results) -> list[str]:
    """The routes and published policies that were run."""
    return [name for name in RIVALS if name in results.policies]


def rows_of(results: Results) -> tuple[list[str], list[list[str]]]:
    """The table of policies: heads and rows."""
    deadlines = sorted({cell.deadline_ms for cell in results.cells})
    head = [
        "policy",
        "right in time",
        *(f"{d:g} ms" for d in deadlines),
        "mJ",
        "bytes",
        "regret",
        "known channel",
    ]
    rows = []
    for policy in sorted(results.policies, key=lambda p: -results.mean(p)):
        shares = [f"{results.mean(policy, deadline_ms=d):.1%}" for d in deadlines]
        rows.append(
            [
                policy,
                f"{results.mean(policy):.2%}",
                *shares,
                f"{results.mean(policy, 'joules') * 1e3:.1f}",
                f"{results.mean(policy, 'nbytes'):.0f}",
                f"{100 * results.regret(policy):.2f}",
                f"{100 * results.regret(policy, 'oracle:channel'):.2f}",
            ]
        )
    return head, rows


def source_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """By source: every candidate beside the best rival there."""
    candidates = [name for name in CANDIDATES if name in results.policies]
    rivals = rivals_in(results)
    rows = []
    for source in results.sources:
        best = max(rivals, key=lambda rival: results.mean(rival, source=source), default="")
        uplinks = len({c.uplink for c in results.cells if c.source == source})
        row = [source, str(uplinks), *(f"{results.mean(c, source=source):.2%}" for c in candidates)]
        rows.append([*row, f"{best} {results.mean(best, source=source):.2%}"])
    return ["source", "uplinks", *candidates, "best of routes, latency, dads, spinn"], rows


def report_of(results: Results) -> Report:
    """Figures with goals."""
    report = Report("policies")
    rivals = rivals_in(results)
    for policy in results.policies:
        report.add(f"{policy}: right in time", 100 * results.mean(policy), "%")
        report.add(f"{policy}: joules a request", results.mean(policy, "joules"), "J")
        report.add(f"{policy}: bytes a request", results.mean(policy, "nbytes"), "B")
    for candidate in CANDIDATES:
        if candidate not in results.policies or not rivals:
            continue
        for label, part in (("", results), (", uplinks never looked at", results.part(seen=False))):
            if not part.cells:
                continue
            best = max(rivals, key=part.mean)
            lead = 100 * (part.mean(candidate) - part.mean(best))
            report.add(f"{candidate} ahead of {best}, the best rival{label}", lead, "points", at_least=0.0)
            behind = part.behind(candidate, rivals)
            worst = max(behind, key=lambda uplink: behind[uplink])
            report.add(
                f"{candidate} behind the best on {worst}, its worst uplink{label}",
                100 * behind[worst],
                "points",
                at_most=100 * MOST_BEHIND,
            )
            if "oracle" in part.policies:
                report.add(
                    f"{candidate}: regret to the oracle{label}",
                    100 * part.regret(candidate),
                    "points",
                    at_most=100 * MOST_REGRET,
                )
                report.add(
                    f"{candidate}: regret to one that knows the channel only{label}",
                    100 * part.regret(candidate, "oracle:channel"),
                    "points",
                )
    return report


def show(results: Results) -> None:
    """Print the tables."""
    for title, (head, rows) in (
        ("means over uplinks", rows_of(results)),
        ("by source", source_rows(results)),
    ):
        table = Table(title=title, title_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def page(results: Results, path: Path) -> None:
    """Put the tables between the marks of a Markdown page."""
    parts = []
    for head, rows in (rows_of(results), source_rows(results)):
        lines = [head, ["---"] * len(head), *rows]
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    goals = [["figure", "value", "goal", "met"], ["---"] * 4]
    for f in report_of(results).figures:
        if f.goal is not None and f.value is not None:
            met = "yes" if f.met else "**no**"
            goals.append([f.name, f"{f.value:.2f} {f.unit}", f"{f.goal:.2f}", met])
    parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in goals))
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}{after}", encoding="utf-8")


def draw(results: Results, path: Path) -> None:
    """Right in time against the deadline; each uplink's lead over the best rival there."""
    import matplotlib.pyplot as plt

    deadlines = sorted({cell.deadline_ms for cell in results.cells})
    rivals = rivals_in(results)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for policy in results.policies:
        strong = policy in (*CANDIDATES, "oracle", "oracle:channel")
        style = "--" if policy.startswith("oracle") else "-"
        shares = [100 * results.mean(policy, deadline_ms=d) for d in deadlines]
        left.plot(deadlines, shares, style, marker=".", linewidth=2 if strong else 1, label=policy)
    left.set(xlabel="deadline, ms", ylabel="right in time, % of requests")
    left.legend(fontsize=7, ncols=2)
    left.grid(alpha=0.3)
    for candidate in CANDIDATES:
        if candidate in results.policies and rivals:
            leads = sorted(-100 * value for value in results.behind(candidate, rivals).values())
            right.plot(range(1, len(leads) + 1), leads, marker="o", markersize=3, label=candidate)
    right.axhline(0.0, color="black", linewidth=0.8)
    right.axhline(-100 * MOST_BEHIND, color="black", linewidth=0.8, linestyle=":")
    right.set(xlabel="uplinks, worst first", ylabel="points ahead of the best rival on each")
    right.legend(fontsize=7)
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
