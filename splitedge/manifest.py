"""The plan as a bundle's manifest holds it: plain data, every field checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitedge.codec import TensorSpec
from splitedge.errors import BundleError
from splitedge.learning import Recipe
from splitedge.plan import CutRow
from splitedge.policy import Gate, Option, Route
from splitedge.segments import Boundary, Evidence, ExitHead
from splitedge.structure import spec_from_json, spec_to_json

MOST_BOUNDARIES = 256
MOST_OPTIONS = 4096


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BoundaryEntry(_Entry):
    """A place between two segments."""

    name: str
    specs: list[dict[str, Any]]

    @classmethod
    def of(cls, boundary: Boundary) -> BoundaryEntry:
        """From the live object."""
        return cls(name=boundary.name, specs=[spec_to_json(spec) for spec in boundary.specs])

    def make(self) -> Boundary:
        """The live object."""
        return Boundary(self.name, self._specs())

    def _specs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec_from_json(spec) for spec in self.specs)


class CodecEntry(_Entry):
    """The codec of a boundary; its tensors lie in `codecs.safetensors` as `<boundary>/<name>`, its
    networks in `edge/encoder-<boundary>` and `cloud/decoder-<boundary>`.
    """

    boundary: int = Field(ge=0)
    source: int = Field(ge=0)
    gives: Literal["cut", "output"]
    name: str
    id: str
    config: dict[str, Any]
    tensors: list[str]
    encoder: bool
    decoder: bool


class RecipeEntry(_Entry):
    """A learned codec that `fit` trains; the fields of `learning.Recipe`."""

    boundary: int = Field(ge=1)
    name: str
    source: int = Field(ge=0)
    options: dict[str, Any]
    default: bool = False
    unused: str = ""

    @classmethod
    def of(cls, boundary: int, recipe: Recipe) -> RecipeEntry:
        """From the live object."""
        return cls(boundary=boundary, **{**asdict(recipe), "options": dict(recipe.options)})

    def make(self) -> Recipe:
        """The live object."""
        return Recipe(self.name, self.source, self.options, self.default, self.unused)


class ExitEntry(_Entry):
    """An exit; its program lies in `edge/exit-<number>`."""

    path: str
    boundary: int = Field(ge=1)
    scale: dict[str, Any] | None
    confidence: list[float] | None
    correct: list[bool] | None

    @classmethod
    def of(cls, head: ExitHead) -> ExitEntry:
        """From the live object."""
        seen = head.evidence
        return cls(
            path=head.path,
            boundary=head.boundary,
            scale=None if head.scale is None else head.scale.state(),
            confidence=None if seen is None else list(seen.confidence),
            correct=None if seen is None else list(seen.correct),
        )

    def evidence(self) -> Evidence | None:
        """The live object."""
        if self.confidence is None or self.correct is None:
            return None
        if len(self.confidence) != len(self.correct) or any(not 0 <= c <= 1 for c in self.confidence):
            raise BundleError(f"'manifest.json': the evidence of the exit at '{self.path}' is not consistent")
        return Evidence(tuple(self.confidence), tuple(self.correct))


class LocalEntry(_Entry):
    """The local model; its program lies in `edge/local`."""

    scale: dict[str, Any] | None


class GateEntry(_Entry):
    """When a filter keeps an option's payload from being sent; the fields of `policy.Gate`."""

    threshold: float = Field(ge=0, le=1)
    nothing: int | None = Field(ge=0)
    exit: int | None = Field(ge=0)


class OptionEntry(_Entry):
    """A row of the option table; the fields of `policy.Option`. The filter of a gate lies in
    `edge/filter-<boundary>`. Bundles written before there were filters have no gates.
    """

    route: str
    cut: str | None
    exit: int | None
    codec: str | None
    level: int = Field(ge=0, le=255)
    accuracy: float = Field(ge=0, le=1)
    accuracy_measured: bool
    edge_s: float = Field(ge=0)
    edge_s_q95: float = Field(ge=0)
    cloud_s: float = Field(ge=0)
    cloud_s_q95: float = Field(ge=0)
    bytes_up: float = Field(ge=0)
    bytes_up_q95: float = Field(ge=0)
    bytes_down: float = Field(ge=0)
    gate: GateEntry | None = None

    @classmethod
    def of(cls, option: Option) -> OptionEntry:
        """From the live object."""
        return cls(**{**asdict(option), "route": option.route.value})

    def make(self) -> Option:
        """The live object."""
        if self.route not in set(Route):
            raise BundleError(f"unknown route '{self.route}' in the option table")
        gate = None if self.gate is None else Gate(**self.gate.model_dump())
        return Option(**{**self.model_dump(), "route": Route(self.route), "gate": gate})


class CutEntry(_Entry):
    """A row of the table of cuts; the fields of `plan.CutRow`."""

    name: str
    tensors: list[str]
    raw_bytes: int
    coded_bytes: float
    head_flops: float
    tail_flops: float
    head_s: float
    tail_s: float
    head_params: int
    tail_params: int

    @classmethod
    def of(cls, row: CutRow) -> CutEntry:
        """From the live object."""
        return cls(**{**asdict(row), "tensors": list(row.tensors)})

    def make(self) -> CutRow:
        """The live object."""
        return CutRow(**{**self.model_dump(), "tensors": tuple(self.tensors)})


class PlanEntry(_Entry):
    """A whole plan. Boundaries run from the model's input on; segment i starts at boundary i."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    scale: dict[str, Any] | None
    main: str | None
    coded_scales: dict[str, dict[str, Any]] = Field(max_length=MOST_OPTIONS)
    boundaries: list[BoundaryEntry] = Field(min_length=1, max_length=MOST_BOUNDARIES)
    cuts: list[int] = Field(min_length=1)
    codecs: list[CodecEntry]
    exits: list[ExitEntry] = Field(max_length=MOST_BOUNDARIES)
    local: LocalEntry | None
    batchable: bool
    independent: bool
    options: list[OptionEntry] = Field(min_length=1, max_length=MOST_OPTIONS)
    policy: str
    edge_speed: float = Field(gt=0)
    cloud_speed: float = Field(gt=0)
    table: list[CutEntry]
    profile: str | None
    notes: list[str]
    recipes: list[RecipeEntry] = Field(max_length=MOST_BOUNDARIES)


def parse(plan: Mapping[str, Any]) -> PlanEntry:
    """Read the plan of a manifest and check that its parts refer to each other rightly.

    Raises:
        BundleError: a field is missing, unknown, of a wrong type or out of range; the message names it.
    """
    try:
        entry = PlanEntry.model_validate(plan)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"'manifest.json': plan.{where}: {first['msg']}") from None
    count = len(entry.boundaries)
    names = [boundary.name for boundary in entry.boundaries]
    problems = {
        "two boundaries have one name": len(set(names)) != count,
        "the first boundary is not the model's input": names[0] != "",
        "a cut is no boundary": any(not 0 <= cut < count for cut in entry.cuts),
        "an exit is at no boundary": any(e.boundary >= count for e in entry.exits),
        "the codecs are not one a cut": sorted(c.boundary for c in entry.codecs) != sorted(entry.cuts),
        "a codec reads behind its cut": any(c.source > c.boundary for c in entry.codecs)
        or any(r.source > r.boundary for r in entry.recipes),
        "a recipe is for no cut": any(r.boundary not in entry.cuts for r in entry.recipes),
        "an option names what is not there": any(_dangles(o, entry, names) for o in entry.options),
        "a gate stands at no split, or names no exit or class": any(
            _gate_dangles(o, entry) for o in entry.options
        ),
    }
    for problem, found in problems.items():
        if found:
            raise BundleError(f"'manifest.json': {problem}")
    return entry


def _dangles(option: OptionEntry, entry: PlanEntry, names: list[str]) -> bool:
    if option.route == Route.EXIT:
        here = option.exit is not None and 0 <= option.exit < len(entry.exits)
        return not here or option.cut is not None
    if option.exit is not None or (option.cut is not None) != (option.route == Route.SPLIT):
        return True
    if option.route == Route.LOCAL:
        return entry.local is None
    if option.route == Route.SPLIT:
        return option.cut not in names[1:] or names.index(option.cut) not in entry.cuts
    return 0 not in entry.cuts


def _gate_dangles(option: OptionEntry, entry: PlanEntry) -> bool:
    gate = option.gate
    if gate is None:
        return False
    if option.route != Route.SPLIT or (gate.exit is None) == (gate.nothing is None):
        return True
    return gate.exit is not None and gate.exit >= len(entry.exits)
