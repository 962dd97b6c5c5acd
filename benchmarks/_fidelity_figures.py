"""What real and simulated requests differ by: figures with goals, a table, a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from _fidelity_runs import Table, route_of
from common import Report, console
from rich.table import Table as Shown

GOALS = {"p50": 0.05, "p95": 0.10, "joules": 0.05}
SAME_ROUTE = 0.95
BEGIN, END = "<!-- results -->", "<!-- end of results -->"


@dataclass(frozen=True, eq=False)
class Pair:
    """Records of the same requests twice, request by request, in order of arrival: a real run's, and those
    of the simulation or of a second real run.
    """

    real: Table
    other: Table

    def __post_init__(self) -> None:
        if len(self.real["t_s"]) != len(self.other["t_s"]):
            raise ValueError(f"{len(self.real['t_s'])} real requests, {len(self.other['t_s'])} others")

    def quantile(self, q: float) -> tuple[float, float]:
        """Of the latency of both, seconds."""
        return float(np.quantile(self.real["latency_s"], q)), float(np.quantile(self.other["latency_s"], q))

    @property
    def joules(self) -> tuple[float, float]:
        """Mean a request, of both."""
        return float(np.mean(self.real["energy_j"])), float(np.mean(self.other["energy_j"]))

    @property
    def same_decision(self) -> float:
        """Share of requests for which both planned the same route."""
        return float(np.mean(_routes(self.real["planned"]) == _routes(self.other["planned"])))

    @property
    def same_answer(self) -> float:
        """Share of requests that the same route answered in the end."""
        return float(np.mean(self.real["route"] == self.other["route"]))

    @property
    def errors(self) -> dict[str, float]:
        """The other over the real one, less one: of p50, p95 and joules."""
        pairs = {"p50": self.quantile(0.5), "p95": self.quantile(0.95), "joules": self.joules}
        return {name: other / real - 1.0 for name, (real, other) in pairs.items()}

    @property
    def distance_s(self) -> float:
        """First Wasserstein distance of the latencies: by how much one has to move them, on the average."""
        return float(np.mean(np.abs(np.sort(self.real["latency_s"]) - np.sort(self.other["latency_s"]))))

    @property
    def most_apart(self) -> float:
        """Kolmogorov-Smirnov distance: the most by which the shares below any latency differ."""
        both = [np.sort(side["latency_s"]) for side in (self.real, self.other)]
        every = np.concatenate(both)
        shares = [np.searchsorted(one, every, side="right") / len(one) for one in both]
        return float(np.max(np.abs(shares[0] - shares[1])))

    def first_apart(self) -> str:
        """The first request for which another route was planned, with what both believed of the link."""
        apart = _routes(self.real["planned"]) != _routes(self.other["planned"])
        if not apart.any():
            return "the same route for every request"
        i = int(np.argmax(apart))
        told = [
            f"{side['planned'][i]} (uplink {side['goodput_bps'][i] / 1e6:.3f} Mbit/s, RTT "
            f"{1e3 * side['rtt_s'][i]:.1f} ms)"
            for side in (self.real, self.other)
        ]
        return f"first at request {i}, {self.real['t_s'][i]:.2f} s: {told[0]} / {told[1]}"


@dataclass(frozen=True, eq=False)
class Residuals:
    """One uplink: the real run beside its simulation, and beside the real run made again."""

    HEAD: ClassVar = (
        "uplink", "t_s", "planned", "planned_simulated", "route", "route_simulated",
        "latency_s", "latency_s_simulated", "energy_j", "energy_j_simulated",
        "goodput_bps", "goodput_bps_simulated", "rtt_s", "rtt_s_simulated",
        "planned_again", "route_again", "latency_s_again", "goodput_bps_again",
    )  # fmt: skip

    name: str
    simulated: Pair
    again: tuple[Pair, ...]

    @classmethod
    def of(cls, name: str, runs: Sequence[Table], simulated: Table) -> Self:
        """Of real runs, the first of which was simulated."""
        return cls(name, Pair(runs[0], simulated), tuple(Pair(runs[0], run) for run in runs[1:]))

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """One a request, as `HEAD` names them; nothing of a second run where there was none."""
        real, simulated = self.simulated.real, self.simulated.other
        names = ("planned", "route", "latency_s", "energy_j", "goodput_bps", "rtt_s")
        columns = [side[name] for name in names for side in (real, simulated)]
        if self.again:
            columns += [self.again[0].other[n] for n in ("planned", "route", "latency_s", "goodput_bps")]
        missing = len(self.HEAD) - 2 - len(columns)
        for i, t_s in enumerate(real["t_s"]):
            yield (self.name, t_s, *(column[i] for column in columns), *[""] * missing)


def _routes(planned: Any) -> Any:
    return np.array([route_of(str(name)) for name in planned])


def report_of(found: Sequence[Residuals]) -> Report:
    """Figures with goals, by uplink."""
    report = Report("fidelity")
    for one in found:
        pair = one.simulated
        for name, error in pair.errors.items():
            report.add(f"{one.name}: {name}, simulated over real", error, "relative")
            report.add(f"{one.name}: {name}, off by", abs(error), "relative", at_most=GOALS[name])
        same = pair.same_decision
        report.add(f"{one.name}: same route decided", same, "of requests", at_least=SAME_ROUTE)
        for label, other in [("simulated", pair), *(("real again", again) for again in one.again[:1])]:
            if label != "simulated":
                for name, error in other.errors.items():
                    report.add(f"{one.name}: {name}, {label}", error, "relative")
                report.add(f"{one.name}: same route decided, {label}", other.same_decision, "of requests")
            report.add(f"{one.name}: same route answered, {label}", other.same_answer, "of requests")
            report.add(f"{one.name}: latencies apart, {label}", other.distance_s, "s")
            report.add(f"{one.name}: shares apart at most, {label}", other.most_apart, "of requests")
    return report


def rows_of(found: Sequence[Residuals]) -> tuple[list[str], list[list[str]]]:
    """The table: heads and rows; what the real run differs from itself by stands in brackets."""
    head = ["uplink", "p50 ms", "off", "p95 ms", "off", "mJ", "off"]
    head += ["same decision", "same answer", "W1 ms", "KS"]
    rows = []
    for one in found:
        pair, cells = one.simulated, [one.name]
        sides = (("p50", pair.quantile(0.5)), ("p95", pair.quantile(0.95)), ("joules", pair.joules))
        for name, (real, simulated) in sides:
            cells += [
                f"{real * 1e3:.1f} / {simulated * 1e3:.1f}",
                _beside([f"{p.errors[name]:+.1%}" for p in (pair, *one.again)]),
            ]
        cells += [
            _beside([f"{p.same_decision:.1%}" for p in (pair, *one.again)]),
            _beside([f"{p.same_answer:.1%}" for p in (pair, *one.again)]),
            _beside([f"{1e3 * p.distance_s:.1f}" for p in (pair, *one.again)]),
            _beside([f"{p.most_apart:.2f}" for p in (pair, *one.again)]),
        ]
        rows.append(cells)
    return head, rows


def _beside(values: Sequence[str]) -> str:
    """The simulation's value, and in brackets those of the real run made again."""
    return values[0] + (f" ({', '.join(values[1:])})" if len(values) > 1 else "")


def show(found: Sequence[Residuals]) -> None:
    """Print the table."""
    head, rows = rows_of(found)
    table = Shown(title="real / simulated (real again)", title_justify="left")
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
        t_s = one.simulated.real["t_s"]
        left.plot(t_s, 1e3 * one.simulated.real["latency_s"], ".", markersize=3, label="real")
        left.plot(t_s, 1e3 * one.simulated.other["latency_s"], ".", markersize=3, label="simulated")
        left.set(title=one.name, ylabel="latency, ms", xlabel="s")
        left.title.set_fontsize(8)
        left.legend(fontsize=6)
        pairs = [("simulated less real", one.simulated), *(("real again less real", p) for p in one.again)]
        for label, pair in pairs:
            differences = 1e3 * (pair.other["latency_s"] - pair.real["latency_s"])
            right.plot(np.sort(differences), np.linspace(0, 1, len(differences)), label=label)
        right.axvline(0.0, color="black", linewidth=0.8)
        right.set(xlabel="difference, ms", ylabel="share of requests")
        right.legend(fontsize=6)
        right.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
