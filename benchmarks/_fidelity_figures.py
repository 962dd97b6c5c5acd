"""What real and simulated requests differ by: figures with goals, a table, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from _fidelity_runs import Table, route_of
from common import Report, console
from rich.table import Table as Shown

GOALS = {"p50": 0.05, "p95": 0.10, "joules": 0.05}
SAME_ROUTE = 0.95
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


@dataclass(frozen=True, eq=False)
class Residuals:
    """The records of a real run and of a simulated one, request by request, in order of arrival."""

    HEAD: ClassVar = (
        "uplink", "t_s", "planned", "planned_simulated", "route", "route_simulated",
        "latency_s", "latency_s_simulated", "energy_j", "energy_j_simulated",
    )  # fmt: skip

    name: str
    real: Table
    simulated: Table

    def __post_init__(self) -> None:
        if len(self.real["t_s"]) != len(self.simulated["t_s"]):
            raise ValueError(
                f"{self.name}: {len(self.real['t_s'])} real requests, {len(self.simulated['t_s'])} simulated"
            )

    def quantile(self, q: float) -> tuple[float, float]:
        """Of the latency, real and simulated, seconds."""
        return float(np.quantile(self.real["latency_s"], q)), float(
            np.quantile(self.simulated["latency_s"], q)
        )

    @property
    def joules(self) -> tuple[float, float]:
        """Mean a request, real and simulated."""
        return float(np.mean(self.real["energy_j"])), float(np.mean(self.simulated["energy_j"]))

    @property
    def same_decision(self) -> float:
        """Share of requests for which both planned the same route."""
        return float(np.mean(_routes(self.real["planned"]) == _routes(self.simulated["planned"])))

    @property
    def same_answer(self) -> float:
        """Share of requests that the same route answered in the end."""
        return float(np.mean(self.real["route"] == self.simulated["route"]))

    @property
    def errors(self) -> dict[str, float]:
        """Simulated over real, less one: of p50, p95 and joules."""
        pairs = {"p50": self.quantile(0.5), "p95": self.quantile(0.95), "joules": self.joules}
        return {name: simulated / real - 1.0 for name, (real, simulated) in pairs.items()}

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """One a request, as `HEAD` names them."""
        names = ("planned", "route", "latency_s", "energy_j")
        columns = [side[name] for name in names for side in (self.real, self.simulated)]
        for i, t_s in enumerate(self.real["t_s"]):
            yield (self.name, t_s, *(column[i] for column in columns))


def _routes(planned: Any) -> Any:
    return np.array([route_of(str(name)) for name in planned])


def report_of(found: Sequence[Residuals]) -> Report:
    """Figures with goals, by uplink."""
    report = Report("fidelity")
    for one in found:
        for name, error in one.errors.items():
            report.add(f"{one.name}: {name}, simulated over real", error, "relative")
            report.add(f"{one.name}: {name}, off by", abs(error), "relative", at_most=GOALS[name])
        report.add(f"{one.name}: same route decided", one.same_decision, "of requests", at_least=SAME_ROUTE)
        report.add(f"{one.name}: same route answered", one.same_answer, "of requests")
    return report


def rows_of(found: Sequence[Residuals]) -> tuple[list[str], list[list[str]]]:
    """The table: heads and rows."""
    head = ["uplink", "p50 ms", "off", "p95 ms", "off", "mJ", "off", "same decision", "same answer"]
    rows = []
    for one in found:
        errors = one.errors
        cells = [one.name]
        for name, (real, simulated) in (
            ("p50", one.quantile(0.5)),
            ("p95", one.quantile(0.95)),
            ("joules", one.joules),
        ):
            cells += [f"{real * 1e3:.1f} / {simulated * 1e3:.1f}", f"{errors[name]:+.1%}"]
        rows.append([*cells, f"{one.same_decision:.1%}", f"{one.same_answer:.1%}"])
    return head, rows


def show(found: Sequence[Residuals]) -> None:
    """Print the table."""
    head, rows = rows_of(found)
    table = Shown(title="real / simulated", title_justify="left")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def page(found: Sequence[Residuals], path: Path) -> None:
    """Put the table between the marks of a Markdown page."""
    head, rows = rows_of(found)
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def draw(found: Sequence[Residuals], path: Path) -> None:
    """For each uplink: both latencies over time, and the distribution of what they differ by."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(found), 2, figsize=(11, 2.2 * len(found)), layout="constrained", squeeze=False
    )
    for one, (left, right) in zip(found, axes, strict=True):
        t_s = one.real["t_s"]
        left.plot(t_s, 1e3 * one.real["latency_s"], ".", markersize=3, label="real")
        left.plot(t_s, 1e3 * one.simulated["latency_s"], ".", markersize=3, label="simulated")
        left.set(title=one.name, ylabel="latency, ms", xlabel="s")
        left.title.set_fontsize(8)
        left.legend(fontsize=6)
        differences = 1e3 * (one.simulated["latency_s"] - one.real["latency_s"])
        right.plot(np.sort(differences), np.linspace(0, 1, len(differences)))
        right.axvline(0.0, color="black", linewidth=0.8)
        right.set(xlabel="simulated less real, ms", ylabel="share of requests")
        right.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
