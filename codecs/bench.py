"""The rate-distortion bench: every contender on one subject, trained where it learns, measured alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from splitedge.codecs.bench_subject import Divided, Subject
from splitedge.codecs.contenders import CONTENDERS, Contender
from splitedge.codecs.keeping import folder, keep, keep_points, kept, kept_points
from splitedge.codecs.measuring import Placed, measure, teacher
from splitedge.codecs.rate_distortion import Bools, Point, Worst
from splitedge.errors import CodecError, ConfigError
from splitedge.learning import LearnedCodec, Schedule, learned

err = Console(stderr=True)

#: Seconds of training of one learned codec in `--quick`.
QUICK_BUDGET_S = 6.0


@dataclass(slots=True)
class Outcome:
    """What one run gave.

    Attributes:
        subject: its name.
        rows: of the test set.
        whole: which of them the whole model answers right.
        worst: the corner of hypervolume.
        model_macs: multiply-accumulates of the whole model.
        points: of every contender that ran.
        dedicated: level of `slimmable` by name of the contender that stands for it alone.
        left_out: contender and reason.
    """

    subject: str
    rows: int
    whole: Bools
    worst: Worst
    model_macs: int
    points: list[Point] = field(default_factory=list)
    dedicated: dict[str, int] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def family(self, name: str) -> list[Point]:
        """Points of one curve."""
        return [point for point in self.points if point.family == name]

    def families(self, *kinds: str) -> list[str]:
        """Names of curves of these kinds (all when none is given), in order."""
        return list(dict.fromkeys(p.family for p in self.points if not kinds or p.kind in kinds))


def chosen(only: Sequence[str] = (), *, quick: bool = False) -> list[Contender]:
    """Contenders by name or family; for a quick run without names, those meant for one.

    Raises:
        ConfigError: nobody has such a name.
    """
    if not only:
        return [c for c in CONTENDERS if c.quick or not quick]
    wanted = {name.lower() for name in only}
    found = [c for c in CONTENDERS if wanted & {c.name.lower(), c.family.lower()}]
    unknown = wanted - {name.lower() for c in found for name in (c.name, c.family)}
    if unknown:
        known = ", ".join(dict.fromkeys(c.family for c in CONTENDERS))
        raise ConfigError(f"no contender or family '{sorted(unknown)[0]}'; families: {known}")
    return found


def run(
    subject: Subject,
    contenders: Sequence[Contender],
    schedule: Schedule,
    *,
    keep_in: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Train, measure and collect.

    A contender that can not take part (not installed, tensors it can not work on, diverged training) is
    left out with its reason.

    Args:
        subject: model, data and cuts.
        contenders: who takes part.
        schedule: of every learned codec alike.
        keep_in: folder where trained codecs and points are kept and found again.
        say: is told a line for each contender.
    """
    divided = Divided(subject)
    whole = teacher(divided, subject.test)
    guess = 1.0 / divided.pieces.outputs.specs[divided.logits].shape[-1]
    worst = Worst(divided.model_kib, float(subject.raw_bytes), guess)
    outcome = Outcome(subject.name, len(subject.test), whole, worst, divided.model_macs)
    say(f"{subject.name}: whole model {whole.mean():.2%} on {len(whole)} test rows")
    digest = subject.digest()
    for contender in contenders:
        start = time.perf_counter()
        try:
            place = _place(keep_in, contender, digest, schedule)
            placed = _placed(contender, divided, schedule, place, say)
            points = _points(contender, placed, divided, place)
        except (CodecError, ConfigError) as error:
            outcome.left_out.append((contender.name, _short(error)))
            say(f"{contender.name}: left out: {_short(error)}")
            continue
        outcome.points += points
        if contender.dedicated is not None:
            outcome.dedicated[contender.name] = contender.dedicated
        levels = ", ".join(f"{p.accuracy:.1%} at {p.bytes_mean:.0f} B" for p in points)
        say(f"{contender.name}: {levels} ({time.perf_counter() - start:.0f} s)")
    return outcome


def _short(error: Exception) -> str:
    return str(error).partition(" Registered:")[0]


def _place(root: Path | None, contender: Contender, digest: str, schedule: Schedule) -> Path | None:
    """Where it is kept: bars and checkpoints change no result."""
    if root is None:
        return None
    told = replace(schedule, progress=False, checkpoint=None)
    return folder(root, contender, digest, repr(told))


def _placed(
    contender: Contender,
    divided: Divided,
    schedule: Schedule,
    place: Path | None,
    say: Callable[[str], None],
) -> Placed:
    """The contender's codec, trained or read where it was kept."""
    kind = learned(contender.codec)
    source, cut = divided.source(contender, kind), divided.boundary(contender.cut)
    if kind is None:
        return Placed(divided.plain(contender), source, cut)
    boundaries, outputs = divided.pieces.boundaries, divided.pieces.outputs.specs
    found = None
    if place is not None:
        found = kept(place, boundaries[source].specs, {"cut": boundaries[cut].specs, "output": outputs})
        schedule = replace(schedule, checkpoint=place / "checkpoint")
    if found is not None:
        return Placed(found.codec, source, cut, found.train_s, found.epochs, found.val_accuracy)
    _check(kind, contender, divided, source, cut)
    say(f"{contender.name}: training")
    start = time.perf_counter()
    codec, reached, _, epochs = kind.train(divided.task(source, cut), schedule, **contender.options)
    seconds = time.perf_counter() - start
    codec.to(torch.device("cpu"))
    if place is not None:
        keep(place, codec, seconds, epochs, reached)
    return Placed(codec, source, cut, seconds, epochs, reached)


def _check(kind: type[LearnedCodec], contender: Contender, divided: Divided, source: int, cut: int) -> None:
    reads, gives = (divided.pieces.boundaries[i].specs for i in (source, cut))
    try:
        kind.check(reads, gives, **contender.options)
    except TypeError as error:  # an option it does not know
        raise CodecError(f"contender '{contender.name}': {error}") from None


def _points(contender: Contender, placed: Placed, divided: Divided, place: Path | None) -> list[Point]:
    """Measured, or read where they were kept."""
    rows = divided.subject.test
    if place is not None:
        found = kept_points(place, placed.codec.id, len(rows))
        if found is not None:
            return found
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
        task = bar.add_task(f"measuring {contender.name}", total=len(rows) * len(placed.codec.levels))
        points = measure(contender, placed, divided, rows, lambda done: bar.advance(task, done))
    if place is not None:
        keep_points(place, points, placed.codec.id)
    return points
