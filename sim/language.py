"""Texts of a language model over replayed channels: the deployment's state machines under a virtual clock.

`splitedge.llm.generation.Generation` writes each text, `splitedge.cloud.language.LanguageBatcher` serves it,
`splitedge.llm.plan` chooses where the mode is `auto`; the simulator brings only what tokens agree, how sure
the device was and what a step takes, from a `LanguageEvaluation`, and when bytes arrive.

Lossless modes are replayed exactly. For `exit`, `assist` and `local` each position is judged behind the
cloud's own text, so that a text which would drift away after a wrong token is not followed there. Not
simulated: memory of the cloud's contexts, and the time in which an exit's missing keys and values are filled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from splitedge.errors import SimulationError
from splitedge.llm.evaluation import LanguageEvaluation
from splitedge.llm.happenings import Fail
from splitedge.sim.channel import links_of, read_traces
from splitedge.sim.exact import Clock
from splitedge.sim.language_cloud import RIGHT, LanguageCloud
from splitedge.sim.language_edge import LanguageEdge, Writing
from splitedge.sim.language_scenario import AUTO, LanguageScenario
from splitedge.sim.simulation import Column
from splitedge.sim.texts import TEXT_COLUMNS, TextSimulation
from splitedge.sim.traces import Trace

MAX_TEXTS = 1_000_000


def simulate_texts(
    scenario: LanguageScenario,
    *,
    evaluation: LanguageEvaluation | None = None,
    traces: tuple[Trace, Trace] | None = None,
    progress: Callable[[float], None] | None = None,
) -> TextSimulation:
    """Simulate every text of every device.

    Args:
        scenario: what is run.
        evaluation: in place of the file that the scenario names.
        traces: up and down, likewise.
        progress: called with the finished share of all texts.

    Raises:
        RecordError: the evaluation can not be read.
        TraceError: a trace can not be read, or lacks its direction.
        SimulationError: the deployment has no such mode, or there are too many texts.
    """
    known = LanguageEvaluation.load(scenario.evaluation) if evaluation is None else evaluation
    up, down = read_traces(scenario.channel) if traces is None else traces
    return _World(scenario, known, progress).run(up, down)


class _World:
    """All that one run holds."""

    def __init__(
        self,
        scenario: LanguageScenario,
        evaluation: LanguageEvaluation,
        progress: Callable[[float], None] | None,
    ) -> None:
        self._scenario, self._evaluation, self._progress = scenario, evaluation, progress
        self._clock = Clock()
        self._cloud = LanguageCloud(evaluation, scenario.cloud, self._clock.later)
        self._rows: list[tuple[object, ...]] = []
        self._total = scenario.user.texts * scenario.device.count
        if self._total > MAX_TEXTS:
            raise SimulationError(f"{self._total} texts; at most {MAX_TEXTS} are simulated in one run")

    def run(self, up: Trace, down: Trace) -> TextSimulation:
        """Simulate until every text has ended."""
        scenario = self._scenario
        for device in range(scenario.device.count):
            rng = np.random.default_rng([scenario.seed, device])
            rounds = -(-scenario.user.texts // len(self._evaluation))
            order = np.concatenate([rng.permutation(len(self._evaluation)) for _ in range(rounds)])
            links = links_of(scenario.channel, up, down, scenario.seed * scenario.device.count + device)
            edge = LanguageEdge(
                device, scenario, self._evaluation, order[: scenario.user.texts].tolist(), links, self._cloud,
                self._clock.later, self._ended,
            )  # fmt: skip
            mode = scenario.way.mode
            if mode != AUTO and mode not in edge.modes:
                have = ", ".join(edge.modes)
                raise SimulationError(
                    f"what was evaluated can not write in the mode '{mode}'; it can in {have}"
                )
            edge.start()
        self._clock.run()
        columns: dict[str, Column] = {
            name: np.array([row[i] for row in self._rows]) for i, name in enumerate(TEXT_COLUMNS)
        }
        return TextSimulation(
            scenario.way.mode, up.source, scenario.seed, self._clock.now, self._cloud.busy_s,
            self._cloud.passes, columns,
        )  # fmt: skip

    def _ended(self, edge: LanguageEdge, text: Writing, now: float) -> None:
        generation = text.generation
        tally, way = generation.tally, generation.way
        written = generation.ids[text.prompt :]
        count = len(written)
        tpot = (tally.ended_s - tally.first_token_s) / (count - 1) if count > 1 else np.nan
        joules = edge.power.joules(tally.compute_s + text.head_s, tally.bytes_up, tally.bytes_down)
        right = sum(token == RIGHT for token in written) / count if count else np.nan
        error = str(text.end.error) if isinstance(text.end, Fail) else ""
        drafts = way.drafts if way.mode == "spec" else 0
        self._rows.append((
            edge.index, text.row, text.began, str(way.mode), drafts, text.why, text.prompt, count,
            tally.first_token_s, tpot, tally.ended_s, tally.asks, tally.cloud_tokens, text.tells,
            tally.proposed, tally.accepted, tally.bytes_up, tally.bytes_down, joules, right, tally.degraded,
            error, text.rtt_s, text.goodput_bps,
        ))  # fmt: skip
        self._clock.stopped = len(self._rows) == self._total
        if self._progress is not None:
            self._progress(len(self._rows) / self._total)
