"""Plans to bundles and back: what lies in which half, as programs, calibrations and codec states.

    edge/segment-0 ...     head segments, up to the last cut      cloud/segment-1 ...   tail segments
    edge/exit-0 ...        exits                                  cloud/codecs          decoders' tensors
    edge/local             the local model
    edge/codecs            encoders' tensors
    edge/filter-1 ...      filters of what is sent, by cut
    edge/encoder-1 ...     networks of learned codecs, by cut        cloud/decoder-1 ...   likewise

Each program is a pair of files (`.json`, `.safetensors`); nothing in a bundle is code or a pickle.
`sealed.py` keeps the files, `manifest.py` the plan's fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from splitedge import sealed
from splitedge.calibration import Calibration
from splitedge.codec import Codec, CodecState, TensorSpec, load_codec
from splitedge.errors import BundleError, CodecError, ConfigError, PartitionError
from splitedge.manifest import (
    BoundaryEntry,
    CodecEntry,
    CutEntry,
    ExitEntry,
    LocalEntry,
    OptionEntry,
    PlanEntry,
    RecipeEntry,
    parse,
)
from splitedge.placing import device_named
from splitedge.plan import Plan
from splitedge.profile import Profile
from splitedge.program import Program
from splitedge.sealed import Sealed, Side
from splitedge.segments import Answers, Boundary, CloudSegments, EdgeSegments, ExitHead, Local, Segment
from splitedge.structure import Structure
from splitedge.version import VERSION

__all__ = ["Sealed", "Side", "load_cloud", "load_edge", "load_plan", "save_plan", "verify"]


def save_plan(plan: Plan, directory: Path | str) -> str:
    """Write a plan as a bundle and return its digest.

    Raises:
        BundleError: the directory is not ours to replace, or a part of the plan can not be written down
            (a half given by hand that could not be exported, say).
    """
    entry = _entry(plan)
    programs = {stem: _program(segment, stem) for stem, segment in _stems(plan)}

    def fill(root: Path) -> None:
        for stem, program in programs.items():
            program.save(root / stem)
        tensors = _codec_tensors(plan)
        for half in sealed.HALVES:
            save_file(tensors, root / half / "codecs.safetensors")

    return sealed.write(directory, entry.model_dump(mode="json"), VERSION, fill)


def load_plan(
    directory: Path | str, side: Side = "both", *, digest: str | None = None
) -> tuple[Plan, Sealed]:
    """Read a bundle. The plan lacks what only the other side needs.

    Raises:
        BundleError: a file is missing, changed or foreign; the message names it.
        UnknownName: a codec the bundle uses is not installed here.
    """
    found = sealed.read(directory, side, digest=digest)
    entry = parse(found.plan)
    boundaries = tuple(boundary.make() for boundary in entry.boundaries)
    half = "cloud" if side == "cloud" else "edge"
    edge = side != "cloud"
    plan = Plan(
        inputs=Structure.from_json(entry.inputs),
        answers=_answers(entry),
        boundaries=boundaries,
        segments=_segments(found.directory, entry, side),
        cuts=tuple(entry.cuts),
        codecs=_codecs(found.directory, half, side, entry, boundaries),
        exits=_exits(found.directory, entry) if edge else (),
        local=_local(found.directory, entry) if edge else None,
        batchable=entry.batchable,
        independent=entry.independent,
        options=tuple(option.make() for option in entry.options),
        policy=entry.policy,
        edge_speed=entry.edge_speed,
        cloud_speed=entry.cloud_speed,
        table=tuple(row.make() for row in entry.table),
        profile=None if entry.profile is None else Profile.from_json(entry.profile),
        notes=list(entry.notes),
        sources={codec.boundary: codec.source for codec in entry.codecs if codec.source != codec.boundary},
        recipes={recipe.boundary: recipe.make() for recipe in entry.recipes},
        filters=_filters(found.directory, entry) if edge else {},
    )
    if plan.inputs.specs != boundaries[0].specs:
        raise BundleError("'manifest.json': the first boundary is not the model's input")
    _check_options(plan)
    return plan, found


def load_edge(directory: Path | str, *, digest: str | None = None, device: str = "auto") -> EdgeSegments:
    """The edge's half of a bundle, as the edge runtime takes it. Opens no file of the other half.

    Args:
        directory: the bundle.
        digest: refuse any other bundle than this one.
        device: where head, exits and local model run; as for `load_cloud`.

    Raises:
        BundleError: a file is missing, changed or foreign; the message names it.
        ConfigError: there is no such device here.
    """
    where = device_named(device)
    plan, found = load_plan(directory, "edge", digest=digest)
    return plan.edge(found.digest, where)


def load_cloud(directory: Path | str, *, digest: str | None = None, device: str = "auto") -> CloudSegments:
    """The cloud's half of a bundle, as the server takes it. Opens no file of the other half.

    Args:
        directory: the bundle.
        digest: refuse any other bundle than this one.
        device: where the tail runs, as torch names it; `auto` is `cuda` where there is one, else `cpu`.

    Raises:
        BundleError: a file is missing, changed or foreign; the message names it.
        ConfigError: there is no such device here.
    """
    where = device_named(device)
    plan, found = load_plan(directory, "cloud", digest=digest)
    return plan.cloud(found.digest, where)


def verify(directory: Path | str, side: Side = "both") -> Sealed:
    """Check every file of a bundle (or of one half) and that its plan can be read.

    Raises:
        BundleError: something is not as it was saved.
    """
    found = sealed.read(directory, side)
    if found.plan.get("kind") == "language":
        from splitedge.llm.manifest import parse_language

        parse_language(found.plan)
    else:
        parse(found.plan)
    return found


# Writing ----------------------------------------------------------------------------------------------


def _stems(plan: Plan) -> Iterable[tuple[str, Segment]]:
    for i in range(plan.edge_end):
        yield f"edge/segment-{i}", plan.segments[i]
    for number, head in enumerate(plan.exits):
        yield f"edge/exit-{number}", head.segment
    if plan.local is not None:
        yield "edge/local", plan.local.segment
    for boundary, network in sorted(plan.filters.items()):
        yield f"edge/filter-{boundary}", network
    for i in range(plan.cloud_start, len(plan.boundaries)):
        yield f"cloud/segment-{i}", plan.segments[i]
    for boundary, codec in sorted(plan.codecs.items()):
        state = codec.state()
        if state.encoder is not None:
            yield f"edge/encoder-{boundary}", state.encoder
        if state.decoder is not None:
            yield f"cloud/decoder-{boundary}", state.decoder


def _program(segment: Segment, stem: str) -> Program:
    if not isinstance(segment, Program):
        raise BundleError(
            f"'{stem}' can not be saved: it is a {type(segment).__name__} that torch.export could not "
            "capture; a bundle holds no code. It runs in process only"
        )
    return segment


def _codec_tensors(plan: Plan) -> dict[str, torch.Tensor]:
    return {
        f"{boundary}/{name}": tensor.detach().cpu().clone().contiguous()
        for boundary, codec in plan.codecs.items()
        for name, tensor in codec.state().tensors.items()
    }


def _entry(plan: Plan) -> PlanEntry:
    local = plan.local
    return PlanEntry(
        inputs=plan.inputs.to_json(),
        outputs=plan.answers.structure.to_json(),
        scale=_state(plan.answers.scale),
        main=plan.answers.main,
        coded_scales={name: scale.state() for name, scale in plan.answers.coded.items()},
        boundaries=[BoundaryEntry.of(boundary) for boundary in plan.boundaries],
        cuts=list(plan.cuts),
        codecs=[_codec_entry(plan, boundary, codec) for boundary, codec in sorted(plan.codecs.items())],
        exits=[ExitEntry.of(head) for head in plan.exits],
        local=None if local is None else LocalEntry(scale=_state(local.scale)),
        batchable=plan.batchable,
        independent=plan.independent,
        options=[OptionEntry.of(option) for option in plan.options],
        policy=plan.policy,
        edge_speed=plan.edge_speed,
        cloud_speed=plan.cloud_speed,
        table=[CutEntry.of(row) for row in plan.table],
        profile=None if plan.profile is None else plan.profile.to_json(),
        notes=plan.notes,
        recipes=[RecipeEntry.of(boundary, recipe) for boundary, recipe in sorted(plan.recipes.items())],
    )


def _state(scale: Calibration | None) -> dict[str, Any] | None:
    return None if scale is None else scale.state()


def _codec_entry(plan: Plan, boundary: int, codec: Codec) -> CodecEntry:
    state = codec.state()
    return CodecEntry(
        boundary=boundary,
        source=plan.source(boundary),
        gives=codec.gives,
        name=codec.name,
        id=codec.id,
        config=state.config,
        tensors=sorted(state.tensors),
        encoder=state.encoder is not None,
        decoder=state.decoder is not None,
    )


# Reading ----------------------------------------------------------------------------------------------


def _segments(root: Path, entry: PlanEntry, side: Side) -> dict[int, Segment]:
    end = len(entry.boundaries)
    first = min((codec.boundary for codec in entry.codecs if codec.gives == "cut"), default=end)
    last = max((*(codec.source for codec in entry.codecs), *(exit_.boundary for exit_ in entry.exits)))
    edge = dict.fromkeys(range(last), "edge") if side != "cloud" else {}
    cloud = dict.fromkeys(range(first, end), "cloud") if side != "edge" else {}
    return {i: Program.load(root / half / f"segment-{i}") for i, half in {**cloud, **edge}.items()}


def _exits(root: Path, entry: PlanEntry) -> tuple[ExitHead, ...]:
    return tuple(
        ExitHead(e.path, e.boundary, Program.load(root / "edge" / f"exit-{n}"), _scale(e.scale), e.evidence())
        for n, e in enumerate(entry.exits)
    )


def _local(root: Path, entry: PlanEntry) -> Local | None:
    if entry.local is None:
        return None
    return Local(Program.load(root / "edge" / "local"), _scale(entry.local.scale))


def _filters(root: Path, entry: PlanEntry) -> dict[int, Segment]:
    names = [boundary.name for boundary in entry.boundaries]
    gated = {names.index(option.cut) for option in entry.options if option.gate and option.cut}
    return {boundary: Program.load(root / "edge" / f"filter-{boundary}") for boundary in sorted(gated)}


def _answers(entry: PlanEntry) -> Answers:
    structure = Structure.from_json(entry.outputs)
    if entry.main is not None and entry.main not in structure.tree.keys:
        raise BundleError(f"'manifest.json': the output has no task '{entry.main}'")
    scales = {name: _scale(state) for name, state in entry.coded_scales.items()}
    coded = {name: scale for name, scale in scales.items() if scale is not None}
    return Answers(structure, _scale(entry.scale), coded, entry.main)


def _scale(state: Mapping[str, Any] | None) -> Calibration | None:
    if state is None:
        return None
    try:
        return Calibration.from_state(dict(state))
    except ConfigError as error:
        raise BundleError(f"'manifest.json': {error}") from None


def _codecs(
    root: Path, half: str, side: Side, entry: PlanEntry, boundaries: tuple[Boundary, ...]
) -> dict[int, Codec]:
    try:
        tensors = load_file(root / half / "codecs.safetensors")
    except (SafetensorError, OSError) as error:
        raise BundleError(f"'{half}/codecs.safetensors' can not be read: {error}") from None
    outputs = Structure.from_json(entry.outputs).specs
    return {e.boundary: _codec(root, e, tensors, boundaries, outputs, side) for e in entry.codecs}


def _check_options(plan: Plan) -> None:
    index = plan.boundaries_by_name()
    at = plan.answers.logits
    classes = 0 if at is None else plan.answers.specs[at].shape[1]
    for option in plan.options:
        if option.gate is not None and (option.gate.nothing or 0) >= classes:
            raise BundleError(f"'manifest.json': the filter of '{option.name}' answers a class there is not")
        if option.remote and option.level >= len(levels := plan.codecs[index[option.cut or ""]].levels):
            raise BundleError(
                f"'manifest.json': option '{option.name}' names level {option.level} of {len(levels)}"
            )


def _codec(
    root: Path,
    entry: CodecEntry,
    tensors: Mapping[str, torch.Tensor],
    boundaries: tuple[Boundary, ...],
    outputs: tuple[TensorSpec, ...],
    side: Side,
) -> Codec:
    boundary = boundaries[entry.boundary]
    keys = {name: f"{entry.boundary}/{name}" for name in entry.tensors}
    missing = [key for key in keys.values() if key not in tensors]
    if missing:
        raise BundleError(f"'codecs.safetensors' lacks {', '.join(missing)}")
    state = CodecState(
        entry.config,
        {name: tensors[key] for name, key in keys.items()},
        Program.load(root / f"edge/encoder-{entry.boundary}") if entry.encoder and side != "cloud" else None,
        Program.load(root / f"cloud/decoder-{entry.boundary}") if entry.decoder and side != "edge" else None,
    )
    gives = boundary.specs if entry.gives == "cut" else outputs
    try:
        codec = load_codec(entry.name, state, boundaries[entry.source].specs, gives)
    except (CodecError, PartitionError) as error:
        raise BundleError(f"codec '{entry.name}' at cut '{boundary.name}': {error}") from None
    if codec.gives != entry.gives:
        raise BundleError(f"'manifest.json': codec '{entry.name}' gives {codec.gives}, not {entry.gives}")
    if codec.id != entry.id:
        raise BundleError(
            f"codec '{entry.name}' at cut '{boundary.name}' is {codec.id} here and {entry.id} in the bundle; "
            "is another version of the codec installed?"
        )
    return codec
