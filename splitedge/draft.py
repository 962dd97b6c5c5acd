"""Draft a plan: which cuts are worth having, codecs on them, exits in their places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from splitedge.choice import Choice, fits
from splitedge.codec import Codec, Tensors, TensorSpec, make_codec
from splitedge.costs import Costs, Effort, measure
from splitedge.errors import CodecError, ConfigError, PartitionError
from splitedge.exit_segment import ExitSegment, export_exit
from splitedge.learning import Recipe
from splitedge.mincut import LatencyModel
from splitedge.partition import Cut, Graph
from splitedge.pieces import Pieces, divide
from splitedge.plan import Plan
from splitedge.planner import ASSUMED_CLOUD_SPEED, GOODPUTS, Candidate, narrowest, pick_cuts, shortlist
from splitedge.program import Program
from splitedge.segments import Answers, ExitHead, Segment

#: Module path and boundary of every exit, in the model's order.
Places = Sequence[tuple[str, int]]
LOOK = Effort(rows=4, repeats=5, warm_up=1)
#: A minimum cut must be predicted to take less than this share of the best listed cut's latency.
CLEARLY = 0.98
#: The codec that stands where a learned one is not trained yet, or can not work.
PLAIN = "int8"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asked of a plan; see `deploy`. `own` are codecs of single cuts, by the cut's name."""

    codec: Choice
    input_codec: Choice | None
    edge_speed: float
    cloud_speed: float | None
    own: Mapping[str, Choice] = field(default_factory=dict)


def search(graph: Graph, flat: Tensors, wanted: Wanted) -> list[Cut]:
    """The few cuts that are best over a range of uplinks, by seconds and bytes measured on the example.

    For a learned codec that replaces the head there is one: its payload and its encoder are the same
    wherever its decoder leads to.

    Raises:
        PartitionError: the codec can work on none of the model's cuts.
    """
    inputs = graph.input_structure.specs
    answers = Answers(graph.output_structure)
    trainable = wanted.codec.learned is None or not _obstacle(wanted.codec, answers, graph.dynamic_batch)
    cuts = [cut for cut in graph.cuts() if trainable and _fits(wanted.codec, inputs, cut.specs)]
    if not cuts and wanted.codec.default and wanted.codec.name != PLAIN:
        return search(graph, flat, replace(wanted, codec=Choice(PLAIN, default=True)))
    if not cuts:
        raise PartitionError(f"the model has no cut that codec '{wanted.codec}' can work on; name another")
    shares = [cut.tail_flops / max(cut.head_flops + cut.tail_flops, 1) for cut in cuts]
    if _replaces_head(wanted.codec):
        return [cuts[narrowest([cut.bytes for cut in cuts], shares)]]
    short = [cuts[i] for i in shortlist([cut.bytes for cut in cuts], shares)]
    pieces, found, rival = _looked_at(graph, short, flat, wanted)
    wider = _with_min_cuts(graph, short, found, wanted)
    if wider != short:
        pieces, found, rival = _looked_at(graph, wider, flat, wanted)
    picked = pick_cuts(found, rival, cloud_speed=wanted.cloud_speed or ASSUMED_CLOUD_SPEED)
    return [pieces.found[i] for i in picked]


def _looked_at(
    graph: Graph, cuts: Sequence[Cut], flat: Tensors, wanted: Wanted
) -> tuple[Pieces, list[Candidate], Candidate | None]:
    """What each cut costs by a short measurement, and what sending the coded input costs."""
    pieces = divide(graph, cuts)
    plan = draft(pieces, set(range(1, len(pieces.boundaries))), (), wanted)
    costs = measure(plan, flat, LOOK)
    found = {i: _candidate(costs, i, len(codec.levels) - 1, wanted) for i, codec in plan.codecs.items()}
    rival = found.pop(0, None)
    return pieces, [found[i] for i in sorted(found)], rival


def _with_min_cuts(graph: Graph, short: list[Cut], found: Sequence[Candidate], wanted: Wanted) -> list[Cut]:
    """The shortlist, and the divisions that no order of the calls shows but a minimum cut finds (DADS).

    Their seconds are predicted from operation counts at the speed the shortlist ran at, their bytes from
    the codec's mean ratio there. One that is faster than the whole shortlist at some uplink takes the
    place of the cuts it can not stand beside.
    """
    deep = short[-1]
    flops_per_s = max(deep.head_flops, 1) * wanted.edge_speed / max(found[-1].edge_s, 1e-9)
    ratio = float(np.median([one.nbytes / max(cut.bytes, 1) for one, cut in zip(found, short, strict=True)]))
    for goodput in GOODPUTS:
        model = LatencyModel.from_flops(
            graph.flops,
            edge_flops_per_s=flops_per_s,
            cloud_flops_per_s=flops_per_s * (wanted.cloud_speed or ASSUMED_CLOUD_SPEED),
            goodput_bps=goodput / ratio,
        )
        try:
            best = graph.best_cut(model)
        except PartitionError:  # it would send a tensor of which no batch can be made
            continue
        least = min(graph.latency(cut, model) for cut in short)
        better = best.place == "SPLIT" and graph.latency(best, model) < CLEARLY * least
        inputs = graph.input_structure.specs
        if better and best not in short and _fits(wanted.codec, inputs, best.specs):
            beside = [cut for cut in short if graph.nested(sorted((cut, best), key=_position))]
            short = sorted([*beside, best], key=_position)
    return short


def _position(cut: Cut) -> int:
    return cut.position


def _replaces_head(codec: Choice) -> bool:
    return codec.learned is not None and not codec.learned.reads_cut


def _fits(codec: Choice, inputs: Sequence[TensorSpec], cut: Sequence[TensorSpec]) -> bool:
    return fits(codec, inputs if _replaces_head(codec) else cut, cut)


def _candidate(costs: Costs, boundary: int, level: int, wanted: Wanted) -> Candidate:
    key = boundary, level
    return Candidate(
        edge_s=float(np.median(costs.head(boundary) + costs.encode[key])) / wanted.edge_speed,
        cloud_s=float(np.median(costs.decode[key] + costs.tail(boundary))),
        nbytes=float(costs.nbytes[key].mean()),
    )


def draft(pieces: Pieces, cuts: set[int], exits: Places, wanted: Wanted) -> Plan:
    """A plan without options: codecs on the cuts and on the input, exits in their places.

    Raises:
        CodecError: a codec that was asked for can not work on the tensors.
        ConfigError: exits on a model that is no classifier.
    """
    notes = list(pieces.notes)
    answers = Answers(pieces.outputs, main=pieces.main)
    codecs, recipes = dict[int, Codec](), dict[int, Recipe]()
    for choice, places in _shares(wanted, pieces, cuts):
        plain = choice if choice.learned is None else Choice(PLAIN, default=True)
        for i in places:
            codecs[i] = _plain(plain, pieces.boundaries[i].specs, _named([i], pieces), notes)
        if choice.learned is not None:
            recipes |= _recipes(choice, pieces, answers, set(places), notes)
    if wanted.input_codec is not None:
        codecs[0] = _plain(wanted.input_codec, pieces.inputs.specs, "the model's input", notes)
    return Plan(
        inputs=pieces.inputs,
        answers=answers,
        boundaries=pieces.boundaries,
        segments=pieces.segments,
        cuts=tuple(sorted(codecs)),
        codecs=codecs,
        exits=tuple(_exit(pieces, answers, path, boundary) for path, boundary in exits),
        batchable=pieces.batchable,
        independent=pieces.independent,
        notes=notes,
        recipes=recipes,
    )


def _shares(wanted: Wanted, pieces: Pieces, cuts: set[int]) -> list[tuple[Choice, list[int]]]:
    """Every codec asked for, with its cuts in order."""
    own = {i: wanted.own[name] for i in sorted(cuts) if (name := pieces.boundaries[i].name) in wanted.own}
    rest = [i for i in sorted(cuts) if i not in own]
    return [*((choice, [i]) for i, choice in own.items()), *([(wanted.codec, rest)] if rest else [])]


def _recipes(
    choice: Choice, pieces: Pieces, answers: Answers, cuts: set[int], notes: list[str]
) -> dict[int, Recipe]:
    """What `fit` is to train at the cuts; a default is left out where it can not stand, with a note."""
    recipes, refused = {}, dict[str, list[int]]()
    reads_cut = not _replaces_head(choice)
    for cut in sorted(cuts):
        source = cut if reads_cut else 0
        try:
            if why := _obstacle(choice, answers, pieces.batchable, pieces.segments.values()):
                raise CodecError(why)
            choice.check(pieces.boundaries[source].specs, pieces.boundaries[cut].specs)
        except CodecError as error:
            if not choice.default:
                where = _named([cut], pieces)
                raise CodecError(f"codec '{choice}' can not work on {where}: {error}") from None
            refused.setdefault(str(error), []).append(cut)
        else:
            recipes[cut] = Recipe(choice.name, source, choice.options, choice.default)
    for why, places in refused.items():
        notes.append(
            f"codec '{PLAIN}' on {_named(places, pieces)}: the default '{choice}' can not work there ({why})"
        )
    return recipes


def _obstacle(choice: Choice, answers: Answers, batchable: bool, segments: Iterable[Segment] = ()) -> str:
    """Why `fit` can not train a codec for this model, whatever the cut; empty where it can."""
    if not all(isinstance(segment, Program) for segment in segments):
        return "a part of the model could not be captured, so that nothing can be trained through it"
    if not batchable:
        return "the model takes batches of one size only, and training needs others"
    if choice.default and answers.logits is None:
        return "fit trains it on class numbers, and the model is no classifier"
    return ""


def _named(cuts: Sequence[int], pieces: Pieces) -> str:
    names = ", ".join(f"'{pieces.boundaries[cut].name}'" for cut in cuts)
    return f"cut {names}" if len(cuts) == 1 else f"cuts {names}"


def _plain(choice: Choice, specs: Sequence[TensorSpec], where: str, notes: list[str]) -> Codec:
    if choice.learned is not None:
        raise CodecError(f"codec '{choice}' is learned: it stands at a cut, not on {where}")
    try:
        return choice.make(specs)
    except CodecError as error:
        if not choice.default:
            raise CodecError(f"codec '{choice}' can not work on {where}: {error}") from None
        notes.append(f"codec 'raw' on {where}: the default '{choice}' can not work there ({error})")
        return make_codec("raw", specs)


def _exit(pieces: Pieces, answers: Answers, path: str, boundary: int) -> ExitHead:
    if answers.logits is None:
        raise ConfigError(
            "exits need a classifier: a model whose output is one tensor of logits (rows, classes), or a "
            "mapping with 'logits'"
        )
    classes = answers.specs[answers.logits].shape[1]
    segment = ExitSegment.build(pieces.boundaries[boundary].specs, classes, path)
    return ExitHead(path, boundary, export_exit(segment))
