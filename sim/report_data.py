"""What the pictures and the text of a report have in common."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from splitedge.sim.digest import Digest
from splitedge.sim.grid import ORACLE, Run, is_oracle
from splitedge.sim.intervals import Means, means
from splitedge.sim.report_style import COLOURS, DASHES
from splitedge.sim.sweep import SweepResult

#: More lines than this in one picture can not be told apart; the table has all.
MOST_LINES = 8


@dataclass(frozen=True, eq=False)
class Data:
    """A sweep, seen by policy."""

    result: SweepResult

    @cached_property
    def means(self) -> Means:
        """Means and intervals of every policy."""
        return means(self.result)

    @cached_property
    def policies(self) -> list[str]:
        """All policies with a result, the best first, the oracles last."""
        done = {run.scenario.policy for run, _ in self.pairs()}
        named = [name for name in self.means.policies if name in done]
        share = {name: self.means.of("correct_in_time", name).mean for name in named}
        return sorted(named, key=lambda name: (is_oracle(name), name == ORACLE, -share[name]))

    @property
    def shown(self) -> list[str]:
        """Those that are drawn."""
        oracles = [name for name in self.policies if is_oracle(name)]
        return [*self.rest[: MOST_LINES - len(oracles)], *oracles]

    @property
    def rest(self) -> list[str]:
        """Policies that know no more than a deployment would."""
        return [name for name in self.policies if not is_oracle(name)]

    def pairs(self, policy: str | None = None) -> Iterator[tuple[Run, Digest]]:
        """Runs with a result."""
        for run, outcome in zip(self.result.runs, self.result.outcomes, strict=True):
            if outcome.digest is not None and policy in (None, run.scenario.policy):
                yield run, outcome.digest

    @cached_property
    def example(self) -> Run:
        """The run of the best policy that used the most different ways to answer."""
        best = next(iter(self.policies))
        return max(self.pairs(best), key=lambda pair: _mixture(pair[1]))[0]

    def line(self, policy: str) -> dict[str, Any]:
        """Colour and dashes of a policy, the same in every picture."""
        if is_oracle(policy):
            return {"color": "#888888", "linestyle": (0, (1, 1)) if policy == ORACLE else (0, (4, 1, 1, 1))}
        i = self.rest.index(policy)
        return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}

    @cached_property
    def traces(self) -> list[str]:
        """Trace files in order."""
        return list(dict.fromkeys(run.point["channel.up"] for run, _ in self.pairs()))

    @cached_property
    def trace_names(self) -> dict[str, str]:
        """Trace files by their shortest ending that is one's alone."""
        names = {}
        for trace in self.traces:
            parts = Path(trace).parts
            depth = 1
            while (
                depth < len(parts) and sum(Path(o).parts[-depth:] == parts[-depth:] for o in self.traces) > 1
            ):
                depth += 1
            names[trace] = "/".join(parts[-depth:])
        return names

    @cached_property
    def deadlines_s(self) -> list[float]:
        """Deadlines of the runs, seconds."""
        found = {digest.deadline_s for _, digest in self.pairs()}
        return sorted(deadline for deadline in found if not math.isnan(deadline))

    @cached_property
    def numeric_axes(self) -> dict[str, list[float]]:
        """Axes other than policy and trace whose values are two numbers or more."""
        found: dict[str, list[float]] = {}
        for key in self.result.runs[0].point:
            values = {run.point[key] for run in self.result.runs}
            if key not in ("policy", "channel.up") and len(values) > 1:
                try:
                    found[key] = sorted(float(value) for value in values)
                except ValueError:
                    continue
        return found


def _sharing(end: tuple[str, ...], paths: list[str]) -> int:
    """How many of the paths end like this."""
    return sum(Path(path).parts[-len(end) :] == end for path in paths)


def _mixture(one: Digest) -> float:
    """Entropy of the ends that a run's requests came to."""
    share = one.ends.sum(axis=0) / max(1.0, float(one.ends.sum()))
    used = share[share > 0.0]
    return float(-(used * np.log(used)).sum())
