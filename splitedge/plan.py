"""A plan: how one model is divided between edge and cloud, with everything the two halves are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from splitedge.choice import Choice
from splitedge.codec import Codec, load_codec
from splitedge.learning import Recipe
from splitedge.policy import Gate, Option
from splitedge.profile import Profile
from splitedge.segments import (
    Answers,
    Boundary,
    CloudSegments,
    EdgeSegments,
    Evidence,
    ExitHead,
    Local,
    Segment,
)
from splitedge.structure import Structure


@dataclass(frozen=True, slots=True)
class CutRow:
    """What `explain` shows of one cut. Bytes and seconds of one row.

    Attributes:
        name: of the cut.
        tensors: what crosses, readable.
        raw_bytes: uncompressed.
        coded_bytes: mean framed bytes at the codec's highest level.
        head_flops, tail_flops: floating-point operations on both sides.
        head_s, tail_s: median compute seconds of both sides on the device that made the plan.
        head_params, tail_params: numbers of weights on both sides.
    """

    name: str
    tensors: tuple[str, ...]
    raw_bytes: int
    coded_bytes: float
    head_flops: float
    tail_flops: float
    head_s: float
    tail_s: float
    head_params: int
    tail_params: int


@dataclass(slots=True)
class Plan:
    """Everything a deployment consists of, not yet bound to a bundle's digest.

    A plan read from one half of a bundle lacks what the other half holds.

    Attributes:
        inputs: structure of the model's input.
        answers: how outputs are put together.
        boundaries: from the model's input on, in topological order.
        segments: by the boundary they start from.
        cuts: boundaries where requests may be sent to the cloud; 0 is the input (route CLOUD).
        codecs: by boundary, for every one of `cuts`.
        sources: boundary that the codec of a cut reads, for those that replace layers of the head.
        filters: by cut, small classifiers on what the codec sends, for the options that have a gate.
        recipes: learned codecs that `fit` trains, by boundary; before it, a plain codec stands in there.
        exits: by number.
        local: the local model.
        batchable: whether the programs take batches of any size.
        independent: whether a row's answer is the same whatever rows stand beside it.
        options: the option table.
        policy: name the engine's policy is made from.
        edge_speed, cloud_speed: how many times faster than the measuring machine the two sides compute.
        table: one row a cut, for people.
        profile: seconds at every place the model could be cut; None for halves made by hand.
        notes: what a user should know about the plan (a default that could not be used, say).
    """

    inputs: Structure
    answers: Answers
    boundaries: tuple[Boundary, ...]
    segments: Mapping[int, Segment]
    cuts: tuple[int, ...]
    codecs: Mapping[int, Codec]
    exits: tuple[ExitHead, ...] = ()
    local: Local | None = None
    batchable: bool = True
    independent: bool = True
    options: tuple[Option, ...] = ()
    policy: str = "deadline"
    edge_speed: float = 1.0
    cloud_speed: float = 1.0
    table: tuple[CutRow, ...] = ()
    profile: Profile | None = None
    notes: list[str] = field(default_factory=list)
    sources: Mapping[int, int] = field(default_factory=dict)
    recipes: Mapping[int, Recipe] = field(default_factory=dict)
    filters: Mapping[int, Segment] = field(default_factory=dict)

    def source(self, cut: int) -> int:
        """The boundary that the codec of a cut reads."""
        return self.sources.get(cut, cut)

    @property
    def evidence(self) -> dict[int, Evidence]:
        """What each exit said on validation rows, by its number; empty before `fit`."""
        return {number: head.evidence for number, head in enumerate(self.exits) if head.evidence is not None}

    def gate(self, cut: int, level: int) -> Gate | None:
        """The gate of the option at a cut and a level."""
        name = self.boundaries[cut].name
        return next((o.gate for o in self.options if o.cut == name and o.level == level), None)

    def edge(self, digest: str, device: torch.device | None = None) -> EdgeSegments:
        """The edge's half, with codec objects of its own: a codec serves one thread at a time."""
        last = self.edge_end
        return EdgeSegments(
            digest,
            self.options,
            self.inputs,
            self.boundaries[: last + 1],
            [self.segments[i] for i in range(last)],
            self.exits,
            self.local,
            {self.boundaries[i].name: twin(self.codecs[i]) for i in self.cuts},
            self.answers,
            self.batchable,
            {self.boundaries[i].name: self.source(i) for i in self.cuts},
            device,
            {self.boundaries[i].name: network for i, network in self.filters.items()},
        )

    def cloud(self, digest: str, device: torch.device | None = None) -> CloudSegments:
        """The cloud's half, likewise."""
        return CloudSegments(
            digest,
            self.boundaries,
            {i: self.segments[i] for i in range(self.cloud_start, len(self.boundaries))},
            {self.boundaries[i].name: twin(self.codecs[i]) for i in self.cuts},
            self.answers.specs,
            self.mergeable,
            device,
        )

    def boundaries_by_name(self) -> dict[str, int]:
        """Index of every boundary by its name."""
        return {boundary.name: i for i, boundary in enumerate(self.boundaries)}

    @property
    def remarks(self) -> list[str]:
        """The notes, what became of the learned codecs, and what filters keep from being sent."""
        found, waiting = list(self.notes), dict[tuple[str, str], list[str]]()
        for cut, recipe in sorted(self.recipes.items()):
            codec, name = self.codecs[cut].name, self.boundaries[cut].name
            wanted = Choice(recipe.name, recipe.options)
            if recipe.unused:
                found.append(f"codec '{codec}' stays on cut '{name}': {recipe.unused}")
            elif codec != recipe.name:
                waiting.setdefault((codec, str(wanted)), []).append(f"'{name}'")
            if codec == recipe.name and recipe.source != cut:
                reads = self.boundaries[recipe.source].name or "the model's input"
                found.append(
                    f"codec '{wanted}' on cut '{name}': its encoder stands in for the head from {reads}"
                )
        found += [
            f"{option.name} is not sent where its filter is {option.gate.threshold:.1%} sure that "
            f"{option.gate.claim}"
            for option in self.options
            if option.gate is not None
        ]
        for (codec, wanted_name), names in waiting.items():
            found.append(
                f"codec '{wanted_name}' is not trained yet, '{codec}' stands in on cut {', '.join(names)} "
                "until fit(train, val) has done it"
            )
        return found

    @property
    def complete(self) -> bool:
        """Whether the whole model is here: halves, and bundles with learned codecs, lack parts of it."""
        return all(i in self.segments for i in range(len(self.boundaries)))

    @property
    def edge_end(self) -> int:
        """The last boundary the edge reaches: the last that an encoder or an exit reads."""
        return max((*map(self.source, self.cuts), *(head.boundary for head in self.exits)))

    @property
    def cloud_start(self) -> int:
        """The first boundary the cloud runs segments from; the number of boundaries where it runs none."""
        return min(
            (cut for cut in self.cuts if self.codecs[cut].gives == "cut"), default=len(self.boundaries)
        )

    @property
    def mergeable(self) -> bool:
        """Whether rows of several requests may be one batch, its output taken apart again by rows."""
        return (
            self.batchable
            and self.independent
            and all(spec.batch_dim is not None for spec in self.answers.specs)
        )


def twin(codec: Codec) -> Codec:
    """Another codec object of the same state, and so of the same id."""
    return load_codec(codec.name, codec.state(), codec.read_specs, codec.give_specs)
