"""Routing queries between two models, on real labels: which of them answered right.

    python benchmarks/llm_routing.py --quick
    python benchmarks/llm_routing.py --json routing.json --plot docs/language-routing.png

Needs routing/ of ../shared/data or of SPLITEDGE_DATA. Every figure is of questions that neither the ranking
nor its threshold has seen; docs/language-routing.md says what they mean.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from _routing_curves import GRID, LEVELS, Curve, curve_of, difference, ranks
from _routing_data import FOLDS, Questions, leaks, load
from _routing_rivals import Factors, Similar, by_topic
from common import Report, console, show_machine
from rich.table import Table

from splitedge.llm.cascade import fit_judge
from splitedge.llm.queries import DENSE, Hashing, dense
from splitedge.llm.route_thresholds import for_drop, for_recovery
from splitedge.llm.router_fit import learn_router, parts_of

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
DATA = Path(os.environ.get("SPLITEDGE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
HASHING = Hashing()
OURS, CASCADE, ORACLE = "router (pair)", "cascade", "oracle"
#: RouteLLM's two, in kind.
SIMILAR, FACTORS = "similarity-weighted", "matrix factors"


@dataclass
class Tested:
    """Scores of test rows by each ranking, and what calibrated thresholds did; rows are in one order."""

    rows: list[Rows]
    want: dict[str, list[Floats]]
    kept: dict[str, list[npt.NDArray[np.bool_]]]

    def of(self, name: str) -> Floats:
        """A ranking of all test rows: ranks within each fold."""
        parts = np.concatenate([np.full(len(rows), i) for i, rows in enumerate(self.rows)])
        return ranks(np.concatenate(self.want[name]), parts)


def test(q: Questions, folds: int, quick: bool) -> Tested:
    """Train on three parts, calibrate on one, test on one, in turn."""
    done = Tested([], {}, {})
    for fold in range(folds):
        rows = np.flatnonzero(q.part == fold)
        held = np.flatnonzero(q.part == (fold + 1) % FOLDS)
        train = np.flatnonzero((q.part != fold) & (q.part != (fold + 1) % FOLDS))
        done.rows.append(rows)
        for name, want in _rankings(q, train, rows, quick).items():
            done.want.setdefault(name, []).append(want)
        router = learn_router(_texts(q, train), q.edge[train], q.cloud[train], taught="pair", hashing=HASHING)
        mine, theirs = (router.scores(_texts(q, part)) for part in (rows, held))
        _note(done, OURS, q, held, mine, theirs)
        if q.answer is not None:
            mine, theirs = _cascade(q, train, held, rows, mine, theirs)
            _note(done, CASCADE, q, held, mine, theirs)
    return done


def _note(done: Tested, name: str, q: Questions, held: Rows, mine: Floats, theirs: Floats) -> None:
    """Keep a ranking, and what thresholds chosen on held-out rows keep on the device."""
    done.want.setdefault(name, []).append(-mine)
    for aim, find, to in (("recover 80%", for_recovery, 0.8), ("recover 95%", for_recovery, 0.95),
                          ("lose at most 5%", for_drop, 0.05)):  # fmt: skip
        found = find(theirs, q.edge[held], q.cloud[held], to)
        done.kept.setdefault(f"{name}, {aim}", []).append(mine >= found.value)


def _rankings(q: Questions, train: Rows, rows: Rows, quick: bool) -> dict[str, Floats]:
    """How much the cloud is wanted for each test row, by all but our own."""
    texts, asked, edge, cloud = _texts(q, train), _texts(q, rows), q.edge[train], q.cloud[train]
    found = {
        "length of the prompt": np.array([float(len(text)) for text in asked]),
        SIMILAR: Similar(texts, edge, cloud, HASHING)(asked),
        FACTORS: Factors(texts, edge, cloud, HASHING)(asked),
        ORACLE: q.cloud[rows] - q.edge[rows],
    }
    if not quick:
        for taught in ("det", "gain"):
            router = learn_router(texts, edge, cloud, taught=taught, hashing=HASHING)
            found[f"router ({taught})"] = -router.scores(asked)
    if len(set(q.topic)) > 1:
        found["topic known"] = by_topic(q.topic, train, rows, q.cloud - q.edge)
    return found


def _cascade(
    q: Questions, train: Rows, held: Rows, rows: Rows, mine: Floats, theirs: Floats
) -> tuple[Floats, Floats]:
    """Scores of a judge that knows how long the device's answer was, on test and held-out rows.

    It reads the router's score too: on its own training rows that of routers which had not seen them.
    """
    inner = np.empty(len(train))
    for part in np.unique(q.part[train]):
        out = q.part[train] == part
        known = train[~out]
        router = learn_router(_texts(q, known), q.edge[known], q.cloud[known], taught="pair", hashing=HASHING)
        inner[out] = router.scores(_texts(q, train[out]))
    names = (*DENSE, "log answer", "answer to question", "router")
    numbers = [_numbers(q, part, s) for part, s in ((train, inner), (held, theirs), (rows, mine))]
    # Held-out rows make the judge's curve and threshold, of which nothing is used here: `_note` ranks by the
    # score before the curve, which has seen training rows only, and chooses thresholds of its own.
    parts = np.r_[np.zeros(len(train), int), 1 + parts_of(_texts(q, held), 2, seed=9)]
    taught = np.r_[train, held]
    judge = fit_judge(np.concatenate(numbers[:2]), q.edge[taught], q.cloud[taught], names=names, parts=parts)
    return judge.scorer.raw(numbers[2]), judge.scorer.raw(numbers[1])


def _numbers(q: Questions, rows: Rows, router: Floats) -> Floats:
    assert q.answer is not None
    text = np.stack([dense(q.texts[i]) for i in rows])
    length = np.array([len(q.texts[i]) for i in rows], float)
    return np.column_stack([text, np.log1p(q.answer[rows]), q.answer[rows] / (1.0 + length), router])


def _texts(q: Questions, rows: Rows) -> list[str]:
    return [q.texts[i] for i in rows]


def show(q: Questions, done: Tested, report: Report, draws: int) -> dict[str, Curve]:
    """Print a set's tables, add its figures, give its curves."""
    rows = np.concatenate(done.rows)
    edge, cloud = q.edge[rows], q.cloud[rows]
    console.print(
        f"\n{q.name}: {len(q)} questions ({q.dropped} left out), {len(rows)} tested; "
        f"device {edge.mean():.1%}, cloud {cloud.mean():.1%}; {leaks(q)}"
    )
    table = Table()
    table.add_column("ranking", no_wrap=True)
    for head in ("APGR [95%]", *(f"{x:.0%}" for x in LEVELS)):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_row("random (expected)", "0.50", *(f"{x:.0%}" for x in LEVELS))
    curves = {name: curve_of(done.of(name), edge, cloud, draws) for name in done.want}
    for name, curve in sorted(curves.items(), key=lambda item: item[1].apgr[0]):
        a, low, high = curve.apgr
        cpt = [f"{curve.cpt[x][0]:.0%}" for x in LEVELS]
        table.add_row(name, f"{a:.2f} [{low:.2f}, {high:.2f}]", *cpt)
    console.print(table, "columns at the right: calls that recover so much of the gap (CPT)")
    best = CASCADE if CASCADE in curves else OURS
    for name in {OURS, best}:
        _figures(report, q.name, name, curves[name])
        for rival in (SIMILAR, FACTORS):
            low, high = difference(done.of(name), done.of(rival), edge, cloud, draws)
            console.print(f"  APGR of {name} less that of {rival}: [{low:+.3f}, {high:+.3f}]")
    for name, kept in done.kept.items():
        stays = np.concatenate(kept)
        got = float(np.where(stays, edge, cloud).mean())
        pgr = (got - edge.mean()) / (cloud.mean() - edge.mean())
        console.print(f"  {name}: calls {1 - stays.mean():.1%}, quality {got:.1%}, {pgr:.1%} of the gap")
        report.add(f"{q.name}: {name}: calls", float(1 - stays.mean()), "ratio")
        report.add(f"{q.name}: {name}: gap recovered", float(pgr), "ratio")
    return curves


def _figures(report: Report, where: str, name: str, curve: Curve) -> None:
    report.add(f"{where}: {name}: APGR", curve.apgr[0], "ratio", at_least=0.5)
    for level, (calls, _, _) in curve.cpt.items():
        said = "always-cloud's quality" if level == 1.0 else f"{level:.0%} of the gap"
        report.add(
            f"{where}: {name}: fewer calls than random at {said}", 1.0 - calls / level, "ratio", at_least=0.4
        )


def transfer(train: Questions, others: list[Questions], report: Report, draws: int) -> None:
    """Train on one set, test on others of the same two models."""
    router = learn_router(train.texts, train.edge, train.cloud, taught="pair", hashing=HASHING)
    start = time.perf_counter()
    for text in train.texts[:200]:
        router(text)
    each = (time.perf_counter() - start) / 200
    report.add("seconds to route one prompt", each, "s", at_most=0.002)
    console.print(f"\nrouting one prompt takes {each * 1e3:.2f} ms; trained on {train.name}, tested on:")
    for q in others:
        curve = curve_of(-router.scores(q.texts), q.edge, q.cloud, draws)
        a, low, high = curve.apgr
        console.print(f"  {q.name}: APGR {a:.3f} [{low:.3f}, {high:.3f}], CPT 80% {curve.cpt[0.8][0]:.1%}")
        report.add(f"{q.name}: trained on {train.name}: APGR", a, "ratio")


def plot(path: Path, found: dict[str, tuple[Questions, dict[str, Curve]]]) -> None:
    """Quality against calls, a panel for each set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    for axis, (name, (_, curves)) in zip(axes.flat, found.items(), strict=False):
        for which, curve in curves.items():
            thick = 2.2 if which in (OURS, CASCADE) else 1.0
            axis.plot(100 * GRID, 100 * curve.quality, label=which, linewidth=thick)
        axis.set(title=name, xlabel="calls of the cloud, %", ylabel="right answers, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one fold, fewer rivals, fewer bootstrap draws")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves as PNG")
    args = parser.parse_args()
    if not (DATA / "routing").is_dir():
        sys.exit(f"no routing/ in {DATA}; set SPLITEDGE_DATA")
    show_machine("routing: quality against cloud calls")
    report, draws = Report("llm-routing"), 60 if args.quick else 300
    sets = load(DATA)
    found = {}
    for q in sets[:2] if args.quick else sets[:-1]:
        done = test(q, 1 if args.quick else FOLDS, args.quick)
        found[q.name] = (q, show(q, done, report, draws))
    transfer(sets[0], [sets[1], sets[-1]], report, draws)
    if args.plot is not None:
        plot(args.plot, found)
    report.finish(args.json)


if __name__ == "__main__":
    main()
