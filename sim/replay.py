"""Recorded requests through another policy: what would have changed, how sure that is, and why.

docs/replay.md tells the method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from splitedge.errors import ConfigError
from splitedge.estimate import EstimatorSettings
from splitedge.evaluation import Evaluation
from splitedge.policy import Policy
from splitedge.records import RecordTable
from splitedge.settings import EngineSettings
from splitedge.sim.replay_channel import draw
from splitedge.sim.replay_conditions import Conditions, conditions
from splitedge.sim.replay_measure import Measurements, measure
from splitedge.sim.replay_moves import Difference, Move, differences, moves
from splitedge.sim.replay_outcome import columns_of, errors, outcome, recorded_columns, same
from splitedge.sim.replay_records import Decided, Floats, Recorded, recorded
from splitedge.sim.replay_rows import matched_rows
from splitedge.sim.replay_stats import METRICS, Change, Metric, Pair, changes, value
from splitedge.sim.replay_support import LEAST_SHARE, REACH_S, Support, Unsupported, support
from splitedge.sim.replay_world import AsRecorded, World

DRAWS = 6
NewPolicy = Callable[[], Policy]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy by its name, and how to make a fresh one."""

    name: str
    new: NewPolicy


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How to replay.

    Attributes:
        draws: channels drawn between the measurements.
        seed: of channels, rows of the evaluation and replicates.
        reach_s: how near in time a transfer must be to speak for a request, seconds.
        least_share: share of requests that must be supported.
        anyway: go on where fewer are.
        power: name of a power profile; None finds the records' own.
        engine, link: as the daemon had them.
    """

    draws: int = DRAWS
    seed: int = 0
    reach_s: float = REACH_S
    least_share: float = LEAST_SHARE
    anyway: bool = False
    power: str | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    link: EstimatorSettings = field(default_factory=EstimatorSettings)

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= 1000:
            raise ConfigError(f"draws is {self.draws}; give from 1 to 1000")
        if not self.reach_s > 0.0:
            raise ConfigError(f"reach_s is {self.reach_s}; give seconds above 0")
        if not 0.0 <= self.least_share <= 1.0:
            raise ConfigError(f"the share to be supported is {self.least_share}; give one from 0 to 1")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A metric as recorded, and as the simulator gives it under the very same decisions."""

    metric: Metric
    recorded: float
    simulated: float


@dataclass(frozen=True, eq=False)
class Replay:
    """What a candidate would have changed.

    Attributes:
        candidate: name of the policy.
        against: what it is compared with; None is the records themselves.
        requests, seconds: how many, over how long.
        left_out: requests that the edge had refused before anything was decided.
        changes: of every metric.
        calibration: what the simulator makes of the recorded decisions.
        moves: from which option to which, the most frequent first.
        differences: the decisions that differ the most.
        support: what the records can say.
        enough: whether the share asked for is supported; `settings.anyway` goes on without.
        met_bounds: the change of deadlines met if every unsupported request missed its deadline, and if every
            one met it.
        block: requests of a block of the bootstrap.
        draws: channels drawn.
        before, after: outcomes by request over the draws, (columns, n), see `replay_outcome.COLUMNS`.
        decided: the candidate's decisions over the first of the drawn channels.
        baseline: of the policy compared with.
        recorded: the requests.
        options: names, as the indices in `decided` count them.
    """

    candidate: str
    against: str | None
    requests: int
    seconds: float
    left_out: int
    changes: Sequence[Change]
    calibration: Sequence[Calibration]
    moves: Sequence[Move]
    differences: Sequence[Difference]
    support: Support
    enough: bool
    met_bounds: tuple[float, float]
    block: int
    draws: int
    before: Floats
    after: Floats
    decided: Decided
    baseline: Decided
    recorded: Recorded
    options: Sequence[str]

    def change(self, name: str) -> Change:
        """A metric's change by the metric's name."""
        return next(change for change in self.changes if change.metric.name == name)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """One drawn channel: every policy over it."""

    pair: Pair
    simulated: Floats
    baseline: Decided
    candidate: Decided


def replay(
    table: RecordTable,
    evaluation: Evaluation,
    candidate: Candidate,
    against: Candidate | None = None,
    settings: ReplaySettings | None = None,
    *,
    source: str = "the records",
    progress: Callable[[float], None] = lambda share: None,
) -> Replay:
    """Put recorded requests through another policy.

    Args:
        table: the records.
        evaluation: of the deployment they were made with, with its option table.
        candidate: the policy to try.
        against: compare with this policy in place of the records themselves.
        settings: see `ReplaySettings`.
        source: of the records, for messages.
        progress: told the share done.

    Raises:
        RecordError: the records can not be replayed.
        Unsupported: too few of the requests can be judged from them.
        ConfigError: the evaluation has no option table or no rows.
        PolicyError: a policy does not fit the deployment, or fails.
    """
    settings = settings or ReplaySettings()
    if not evaluation.table:
        raise ConfigError("the evaluation has no option table; make it again with this version's `evaluate`")
    known = recorded(table, evaluation.table, source)
    around = conditions(known, evaluation, settings.power)
    measured = measure(known)
    runs = settings.draws * (2 if against is None else 3) * len(known)
    done = 0

    def count(requests: int) -> None:
        nonlocal done
        done += requests
        progress(done / runs)

    drawn: list[_Drawn] = []
    for number in range(settings.draws):
        world = _world(known, evaluation, around, measured, settings, number)
        drawn.append(_over(world, candidate, against, count))
        if number == 0:
            found = _support(known, evaluation, around, measured, drawn[0], against is not None, settings)
            _enough(found, settings)
    pairs = [one.pair for one in drawn]
    before, after = (np.mean([getattr(pair, name) for pair in pairs], axis=0) for name in ("before", "after"))
    changed, block = changes(pairs, settings.seed)
    first = drawn[0]
    names = [option.name for option in evaluation.table]
    return Replay(
        candidate=candidate.name,
        against=against.name if against else None,
        requests=len(known),
        seconds=known.seconds,
        left_out=known.left_out,
        changes=changed,
        calibration=_calibration(known, drawn),
        moves=moves(first.baseline, first.candidate, before, after, names),
        differences=differences(known, measured.up, first.baseline, first.candidate, before, after, names),
        support=found,
        enough=found.share >= settings.least_share,
        met_bounds=_bounds(before, after, found),
        block=block,
        draws=settings.draws,
        before=before,
        after=after,
        decided=first.candidate,
        baseline=first.baseline,
        recorded=known,
        options=names,
    )


def _world(
    known: Recorded,
    evaluation: Evaluation,
    around: Conditions,
    measured: Measurements,
    settings: ReplaySettings,
    number: int,
) -> World:
    rng = np.random.default_rng([settings.seed, number])
    rows = matched_rows(known, evaluation, rng)
    up, down = draw(known, measured, rng)
    engine = settings.engine.model_copy(update={"reasons": number == 0})  # only the first draw's are told
    return World(known, evaluation, rows, around, up, down, engine, settings.link)


def _over(
    world: World, candidate: Candidate, against: Candidate | None, count: Callable[[int], None]
) -> _Drawn:
    """Every policy over one channel, and the outcomes that follow."""
    real = world.recorded.decided
    as_recorded = world.run(AsRecorded(world.recorded), count)
    tried = world.run(candidate.new(), count)
    simulated = columns_of(as_recorded)
    actual = recorded_columns(real, as_recorded)
    count_options = len(world.evaluation.table)
    error = errors(actual, simulated, real.target, count_options, columns_of(tried), tried.target)
    alike = same(real, tried)
    after = outcome(actual, simulated, columns_of(tried), alike, tried.target, error)
    if against is None:
        never = np.zeros(len(real), bool)
        pair = Pair(actual, after, error, never, ~alike, real.target, tried.target)
        return _Drawn(pair, simulated, real, tried)
    other = world.run(against.new(), count)
    alike_other = same(real, other)
    before = outcome(actual, simulated, columns_of(other), alike_other, other.target, error)
    pair = Pair(before, after, error, ~alike_other, ~alike, other.target, tried.target)
    return _Drawn(pair, simulated, other, tried)


def _support(
    known: Recorded,
    evaluation: Evaluation,
    around: Conditions,
    measured: Measurements,
    drawn: _Drawn,
    compared: bool,
    settings: ReplaySettings,
) -> Support:
    options = evaluation.table
    alike = same(known.decided, drawn.candidate)
    found = support(known, drawn.candidate, alike, measured.up, around, options, settings.reach_s)
    if not compared:
        return found
    alike_other = same(known.decided, drawn.baseline)
    other = support(known, drawn.baseline, alike_other, measured.up, around, options, settings.reach_s)
    seen = {gap.text for gap in found.gaps}
    gaps = [*found.gaps, *(gap for gap in other.gaps if gap.text not in seen)]
    return Support(alike & alike_other, found.unsupported | other.unsupported, gaps, settings.reach_s)


def _enough(found: Support, settings: ReplaySettings) -> None:
    if found.share >= settings.least_share or settings.anyway:
        return
    why = "; ".join(gap.text for gap in found.gaps if gap.what in ("uplink_unknown", "payload_too_large"))
    raise Unsupported(
        f"only {found.share:.1%} of the requests can be judged from these records, "
        f"{settings.least_share:.0%} are asked for: {why}. Record with a policy that sends now and then "
        "('deadline' scouts), or see the figures --anyway"
    )


def _calibration(known: Recorded, drawn: Sequence[_Drawn]) -> list[Calibration]:
    found = []
    for metric in METRICS:
        # What was recorded is the same over every draw, but for confidences that were not recorded.
        real = [value(metric, recorded_columns(known.decided, one.candidate)) for one in drawn[:1]]
        simulated = [value(metric, one.simulated) for one in drawn]
        found.append(Calibration(metric, float(np.mean(real)), float(np.mean(simulated))))
    return found


def _bounds(before: Floats, after: Floats, found: Support) -> tuple[float, float]:
    """The change of deadlines met with every unsupported request missed, and with every one met."""
    least = np.where(found.unsupported, 0.0, after[0])
    most = np.where(found.unsupported, 1.0, after[0])
    return float((least - before[0]).mean()), float((most - before[0]).mean())
