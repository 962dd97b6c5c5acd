"""Exits of language models: cloud tokens saved against agreement, and time beside `cloud_stream`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _llm_models import Bytes
from common import Report, console
from rich.table import Table

from splitedge.llm.deployment import deploy_language
from splitedge.llm.evaluation import LanguageEvaluation
from splitedge.llm.exits import ExitSchedule
from splitedge.llm.gate_fit import GateSchedule
from splitedge.llm.modes import Mode
from splitedge.llm.plan import Costs, forecast
from splitedge.sim.language import simulate_texts
from splitedge.sim.language_scenario import LanguageScenario

NONE: frozenset[int] = frozenset()
WANTED = (0.80, 0.85, 0.90, 0.95, 0.97, 0.99)
#: A device that takes 10 ms up to its last exit, a cloud that takes 60 ms for a token.
HEAD_S, DECODE_S = 0.010, 0.060


@dataclass(frozen=True)
class Judged:
    """Exits at thresholds that were chosen on other texts.

    Attributes:
        evaluation: of the texts that judge.
        wanted: agreement that was wanted of the texts that chose.
        thresholds: first exit first.
    """

    evaluation: LanguageEvaluation
    wanted: float
    thresholds: tuple[float, float]


def exit_curve(
    report: Report, name: str, model: torch.nn.Module, depths: tuple[int, int], prompts: list[list[int]],
    length: int, schedule: ExitSchedule,
) -> Judged:  # fmt: skip
    """Train two exits, choose thresholds on one half of the prompts, judge them on the other.

    Returns:
        What was chosen where 95% was wanted.
    """
    with deploy_language(model, Bytes(), exits=depths) as deployment:
        deployment.fit(schedule=schedule)
        half = len(prompts) // 2
        tune, judge = (
            deployment.evaluate(part, max_tokens=length, stops=NONE, progress=False)
            for part in (prompts[:half], prompts[half:])
        )
    grid = np.concatenate([np.linspace(0.0, 0.98, 50), [2.0]])
    found = [(*tune.exit_curve({0: a, 1: b})[:2], a, b) for a in grid for b in grid]
    table = Table(title=f"{name}, exits behind {depths}: cloud tokens saved", title_justify="left")
    for column in ("agreement wanted", "thresholds", "agreement", "saved"):
        table.add_column(column, justify="right")
    kept = None
    for least in WANTED:
        calls, _, a, b = min(row for row in found if row[1] >= least)
        calls, agreement, _ = judge.exit_curve({0: a, 1: b})
        table.add_row(f"{least:.0%}", f"{a:.2f}, {b:.2f}", f"{agreement:.1%}", f"{1 - calls:.1%}")
        goal = {"at_least": 0.845} if least == 0.95 else {}
        report.add(f"{name}: saved where {least:.0%} was wanted", 1 - calls, "share", **goal)
        report.add(f"{name}: agreement where {least:.0%} was wanted", agreement, "share")
        if least == 0.95:
            kept = Judged(judge, least, (float(a), float(b)))
    console.print(table)
    assert kept is not None
    return kept


def pair_curve(
    report: Report, name: str, target: torch.nn.Module, draft: torch.nn.Module, prompts: list[list[int]],
    length: int, schedule: GateSchedule,
) -> None:  # fmt: skip
    """`assist`: train the gate of a small model, choose its threshold on one half, judge on the other."""
    with deploy_language(target, Bytes(), local=draft) as deployment:
        deployment.fit(gate=schedule)
        half = len(prompts) // 2
        tune, judge = (
            deployment.evaluate(part, max_tokens=length, stops=NONE, progress=False)
            for part in (prompts[:half], prompts[half:])
        )
    table = Table(title=f"{name}, a small model with a gate: cloud tokens saved", title_justify="left")
    for column in ("agreement wanted", "threshold", "agreement", "saved"):
        table.add_column(column, justify="right")
    grid = np.unique(np.concatenate([[0.0], tune.confidence[tune.line("local")], [2.0]]))
    found = [(*_gated(tune, threshold), threshold) for threshold in grid]
    for least in WANTED:
        _, _, threshold = min(row for row in found if row[1] >= least)
        calls, agreement = _gated(judge, threshold)
        table.add_row(f"{least:.0%}", f"{threshold:.3f}", f"{agreement:.1%}", f"{1 - calls:.1%}")
        goal = {"at_least": 0.845} if least == 0.95 else {}
        report.add(f"{name}, pair: saved where {least:.0%} was wanted", 1 - calls, "share", **goal)
        report.add(f"{name}, pair: agreement where {least:.0%} was wanted", agreement, "share")
    console.print(table)


def _gated(known: LanguageEvaluation, threshold: float) -> tuple[float, float]:
    """Share of tokens that the cloud is asked for, and agreement, where the device is trusted from
    `threshold` on.
    """
    trusted = known.confidence[known.line("local")] >= threshold
    return float((~trusted).mean()), float((~trusted | known.agrees("local")).mean())


def beside_stream(
    report: Report, name: str, judged: Judged, rtts_ms: tuple[float, ...], mbps: tuple[float, ...], texts: int
) -> None:
    """Time of a text by `exit` over that of `cloud_stream`: by the formulae of `plan`, and simulated."""
    known = judged.evaluation
    calls, agreement, _ = known.exit_curve(dict(enumerate(judged.thresholds)))
    last = known.exits[-1]
    slower = HEAD_S / float(np.median(known.seconds[last]))
    # Tokens that left at the first exit took less of the device.
    lines = _lines(known, judged.thresholds)
    head_s = slower * float(known.seconds[lines, np.arange(len(lines))].mean())
    prompt, tokens = int(known.prompt_lengths.mean()), int(known.lengths.mean())
    alone = known.pass_s(1, 1)
    table = Table(
        title=f"{name}: exit over cloud_stream, seconds a text, {calls:.0%} of tokens asked for, "
        f"{agreement:.1%} agree",
        title_justify="left",
    )
    for column in ("RTT ms", "Mbit/s", "stream s", "exit s", "ratio", "predicted"):
        table.add_column(column, justify="right")
    below = both = 0
    with tempfile.TemporaryDirectory() as scratch:
        for rtt in rtts_ms:
            for rate in mbps:
                costs = Costs(
                    rtt / 1e3, 1e6 * rate, 1e6 * rate, DECODE_S,
                    DECODE_S / alone * (known.pass_s(1, 65) - alone) / 64,
                    head_s=head_s, local_prefill_s=slower * known.head_prefill_s, calls=calls,
                    verify_slope=(known.pass_s(1, 9) - alone) / (8 * alone),
                )  # fmt: skip
                said = [forecast(costs, mode, prompt, tokens).total_s for mode in (Mode.EXIT, Mode.STREAM)]
                ways = (
                    {"mode": "exit", "thresholds": judged.thresholds, "eager": True},
                    {"mode": "cloud_stream"},
                )
                took = [_simulated(known, Path(scratch), rtt, rate, texts, slower, way) for way in ways]
                predicted, ratio = said[0] / said[1], took[0] / took[1]
                below += predicted < 1
                both += predicted < 1 and ratio < 1
                table.add_row(
                    f"{rtt:g}", f"{rate:g}", f"{took[1]:.2f}", f"{took[0]:.2f}", f"{ratio:.2f}",
                    f"{predicted:.2f}",
                )  # fmt: skip
    console.print(table)
    report.add(f"{name}: cells where exit is predicted below cloud_stream", below, "cells")
    report.add(f"{name}: of these, simulated below it", both, "cells", at_least=below)


def _lines(known: LanguageEvaluation, thresholds: tuple[float, ...]) -> np.ndarray:
    """Line of the decider that each position ends at on the device, int (positions,)."""
    lines = np.full(len(known.tokens), known.exits[-1])
    for number in reversed(range(len(known.exits))):
        here = known.confidence[known.exits[number]] >= thresholds[number]
        lines[here] = known.exits[number]
    return lines


def _simulated(
    known: LanguageEvaluation, folder: Path, rtt_ms: float, mbps: float, texts: int, slower: float, way: dict
) -> float:
    """Mean seconds a text."""
    file = folder / f"{mbps}.csv"
    file.write_text(f"t_s,mbps\n0,{mbps}\n60,{mbps}\n")
    scenario = LanguageScenario.parse({
        "evaluation": "none.npz", "channel": {"up": str(file), "rtt_ms": rtt_ms}, "way": way,
        "user": {"texts": texts, "think_s": 1.0},
        "device": {"slower": slower}, "cloud": {"slower": DECODE_S / known.pass_s(1, 1)},
    }, folder / "scenario.toml")  # fmt: skip
    return simulate_texts(scenario, evaluation=known).score().total_s
