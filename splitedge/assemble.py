"""`deploy`: capture a model, choose where to cut it, put codecs on the cuts and exits on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from torch import nn

from splitedge.choice import Choice, CodecLike, Default, choose
from splitedge.costs import Costs, Effort, measure
from splitedge.deployment import Deployment
from splitedge.draft import Places, Wanted, draft, search
from splitedge.errors import ConfigError, PartitionError
from splitedge.partition import Cut, Graph, capture
from splitedge.pieces import Pieces, divide, join, whole_program
from splitedge.plan import CutRow, Plan
from splitedge.planner import options_of
from splitedge.policy import Policy
from splitedge.profile import Profile, profile
from splitedge.rows import as_flat
from splitedge.segments import Local
from splitedge.settings import EngineSettings
from splitedge.tails import Tails, check_tails, with_tails

if TYPE_CHECKING:
    from splitedge.llm.deployment import LanguageDeployment, Tokenizer
    from splitedge.llm.exit_model import Fill

CODEC = Default("bottleneck")
WEBP = Default("webp")
BY_HAND = "by-hand"
PROFILE_S = 1.0


@overload
def deploy(
    model: nn.Module | None = None,
    example_inputs: Any = None,
    *,
    exits: Sequence[str] | str = (),
    local: nn.Module | None = None,
    codec: CodecLike | Mapping[str, CodecLike] = CODEC,
    input_codec: CodecLike | None = WEBP,
    policy: str | Policy = "deadline",
    cut: str | Sequence[str] = "auto",
    cloud: str | None = None,
    keys: Path | str | None = None,
    head: nn.Module | None = None,
    tail: nn.Module | None = None,
    tails: Mapping[str, nn.Module] | None = None,
    edge_speed: float = 1.0,
    cloud_speed: float | None = None,
    records: Path | str | None = None,
    settings: EngineSettings | None = None,
    power: str = "none",
    device: str = "cpu",
    effort: Effort | None = None,
) -> Deployment: ...


@overload
def deploy(
    model: nn.Module,
    *,
    tokenizer: Tokenizer,
    local: nn.Module | None = None,
    cut: int | None = None,
    exits: Sequence[int] = (),
    codec: str = "ids",
    context: int | None = None,
    kv_fill: Fill = "exact",
    cloud: str | None = None,
    keys: Path | str | None = None,
    power: str = "none",
) -> LanguageDeployment: ...


def deploy(
    model: nn.Module | None = None,
    example_inputs: Any = None,
    *,
    exits: Sequence[str] | Sequence[int] | str = (),
    local: nn.Module | None = None,
    codec: CodecLike | Mapping[str, CodecLike] = CODEC,
    input_codec: CodecLike | None = WEBP,
    policy: str | Policy = "deadline",
    cut: str | Sequence[str] | int | None = "auto",
    cloud: str | None = None,
    keys: Path | str | None = None,
    head: nn.Module | None = None,
    tail: nn.Module | None = None,
    tails: Mapping[str, nn.Module] | None = None,
    edge_speed: float = 1.0,
    cloud_speed: float | None = None,
    records: Path | str | None = None,
    settings: EngineSettings | None = None,
    power: str = "none",
    device: str = "cpu",
    effort: Effort | None = None,
    tokenizer: Tokenizer | None = None,
    context: int | None = None,
    kv_fill: Fill = "exact",
) -> Deployment | LanguageDeployment:
    """Divide a model between this device and a cloud, ready to answer.

    Every stage is run on the example to measure its seconds and real framed bytes: give a few typical
    rows, not zeros. Exits answer at random until `fit` has trained them.

    Args:
        model: any module that `torch.export` takes; or None, with `head` and `tail`.
        example_inputs: a batch as the model takes it: a tensor, a tuple of positional arguments, or a
            dict of keyword arguments.
        exits: module paths after which to attach early exits.
        local: a complete small model with the same inputs and outputs, for route LOCAL.
        codec: of the tensors at the cuts, by name, with options as `"bottleneck:bits=2"` or
            `("bottleneck", {"bits": 2})`. A learned codec is trained by `fit`; until then int8 stands in,
            with a note. The default, bottleneck, gives way to int8 for good (with a note) where it can not
            be trained, or answers clearly worse than the whole model when it is. A mapping of cuts to codecs
            gives each cut its own, and names the cuts.
        input_codec: of the model's input, for route CLOUD; None for no such route. The default, webp,
            gives way to raw (with a note) where the input is no image.
        policy: by name (`deadline`, `confidence:0.98`, `static:split`) or an object.
        cut: `auto`, a cut's name or module path, or several: the policy chooses among them a request.
        cloud: None computes the cloud's half in this process, behind frames that are really packed and
            unpacked; `tcp://host:port` is a server with the saved bundle.
        keys: key directory for a cloud on another machine.
        head, tail: the manual form, for what can not be captured: `tail(*head(x))` is the model.
        tails: extra tails by name, each taking the cut's tensors as its arguments: one payload is answered
            by all, and the output is a dict with the model's own answer as `main`. There is one cut then,
            and it is named. With `head=` and no `tail=` the first of them is the main task. Accuracy,
            confidence and exits are the main task's.
        edge_speed, cloud_speed: how many times faster than this machine the two sides compute. For the
            search for cuts alone, a cloud of unknown speed is taken to be 8 times faster.
        records: append one row a request to this file (`.jsonl`).
        settings: the engine's.
        power: name of the profile that joules are modelled with (`splitedge.power.PROFILES`).
        device: where the halves in this process answer: `cpu`, `cuda`, `cuda:1` or `auto`. Stages are
            measured, exits trained and bundles saved on the CPU.
        effort: how much to measure.
        tokenizer: makes it a language model's deployment (`splitedge.llm.deployment.deploy_language` tells
            the arguments): no example inputs then, `exits` and `cut` count blocks, `codec` is `ids` or one
            of hidden states.
        context: of a language model: most tokens of prompt and answer together.
        kv_fill: of a language model with exits: `exact` or `propagate`.

    Raises:
        PartitionError: the model can not be captured, or has no such cut or module.
        ConfigError: arguments that do not go together.
        CodecError: a codec that was asked for can not work on the tensors.
        PolicyError: the policy needs a route that this deployment lacks.
    """
    if tokenizer is not None:
        given = {"example_inputs": example_inputs, "head": head, "tail": tail, "tails": tails}
        wrong = [name for name, value in given.items() if value is not None]
        if wrong or model is None:
            raise ConfigError(f"a language model is deployed whole and without {', '.join(wrong) or 'None'}")
        return _language(model, tokenizer, local, cut, exits, codec, context, cloud, keys, power, kv_fill)
    if example_inputs is None:
        raise ConfigError(
            "deploy needs example_inputs: a typical batch, as the model takes it (or tokenizer=, for a "
            "language model)"
        )
    if isinstance(cut, int) or cut is None or any(isinstance(path, int) for path in exits):
        raise ConfigError(
            "cuts and exits are named by module path ('layer2'); numbers are a language model's"
        )
    paths = (exits,) if isinstance(exits, str) else tuple(str(path) for path in exits)
    coded_input = None if input_codec is None else choose(input_codec)
    by_cut: Mapping[str, CodecLike] = codec if isinstance(codec, Mapping) else {}
    if by_cut:
        cut = _cuts_of(by_cut, cut)
    one = CODEC if isinstance(codec, Mapping) else codec
    wanted = Wanted(choose(one), coded_input, edge_speed, cloud_speed)
    if model is None:
        pieces, cuts, places = _by_hand(head, _one_tail(tail, tails), example_inputs, paths, cut)
        if tail is None and tails:
            pieces = replace(pieces, main=next(iter(tails)))
    elif head is not None or tail is not None:
        raise ConfigError("deploy takes a model, or head= and tail=, not both")
    else:
        pieces, cuts, places = _captured(model, example_inputs, paths, cut, wanted)
    if tails is not None and pieces.main is None:
        if model is not None and not (isinstance(cut, str) and cut != "auto"):
            raise ConfigError("tails= take the tensors of one cut: name it (cut='layer2')")
        pieces = with_tails(pieces, max(cuts), tails, as_flat(example_inputs, pieces.inputs))
    if by_cut:
        wanted = replace(wanted, own=_own(by_cut, pieces))
    plan = draft(pieces, cuts, places, wanted)
    if local is not None:
        segment, batchable = whole_program(local, example_inputs, pieces, "local")
        plan = replace(plan, local=Local(segment), batchable=plan.batchable and batchable)
    flat = as_flat(example_inputs, plan.inputs)
    costs = measure(plan, flat, effort or Effort())
    options = options_of(plan, costs, edge_speed=edge_speed, cloud_speed=cloud_speed or 1.0)
    table = tuple(_row(found, i + 1, plan, costs) for i, found in enumerate(pieces.found) if i + 1 in cuts)
    name = policy if isinstance(policy, str) else policy.name
    plan = replace(
        plan,
        options=options,
        table=table,
        policy=name,
        edge_speed=edge_speed,
        cloud_speed=cloud_speed or 1.0,
        profile=_profile(pieces, example_inputs),
    )
    return Deployment(
        plan,
        policy=policy,
        cloud=cloud,
        keys=keys,
        records=records,
        settings=settings,
        power=power,
        device=device,
    )


def _profile(pieces: Pieces, example: Any) -> Profile | None:
    """A quick look at every place the model could be cut; it travels with the bundle."""
    if pieces.graph is None:
        return None
    return profile(pieces.graph, example, warmup=1, repeats=10, budget_s=PROFILE_S)


# Pieces -----------------------------------------------------------------------------------------------


def _one_tail(tail: nn.Module | None, tails: Mapping[str, nn.Module] | None) -> nn.Module | None:
    if tail is not None or tails is None:
        return tail
    check_tails(tails)
    return Tails(tails)


def _language(
    model: nn.Module,
    tokenizer: Tokenizer,
    local: nn.Module | None,
    cut: object,
    exits: Sequence[object],
    codec: CodecLike | Mapping[str, CodecLike],
    context: int | None,
    cloud: str | None,
    keys: Path | str | None,
    power: str,
    kv_fill: Fill,
) -> LanguageDeployment:
    from splitedge.llm.deployment import IDS, deploy_language

    at = None if cut == "auto" else cut
    depths = [depth for depth in exits if isinstance(depth, int)]
    if not (at is None or isinstance(at, int)) or len(depths) < len(exits):
        raise ConfigError(f"cut and exits of a language model count blocks, got {cut!r} and {list(exits)}")
    name = IDS if codec is CODEC else codec
    if not isinstance(name, str):
        raise ConfigError(
            "the codec of a language model is named: 'ids', 'fp32', 'fp16', 'int8', 'int4' or 'bottleneck'"
        )
    return deploy_language(
        model, tokenizer, local=local, cut=at, exits=depths, codec=name, context=context, cloud=cloud,
        keys=keys, power=power, kv_fill=kv_fill,
    )  # fmt: skip


def _by_hand(
    head: nn.Module | None,
    tail: nn.Module | None,
    example: Any,
    exits: Sequence[str],
    cut: str | Sequence[str],
) -> tuple[Pieces, set[int], Places]:
    """As `_captured`, from halves that the user made."""
    if head is None or tail is None:
        raise ConfigError("deploy needs a model, or head= and tail=")
    if cut != "auto" or any(path != BY_HAND for path in exits):
        raise ConfigError(f"with head= and tail= the one cut and place for an exit is '{BY_HAND}'")
    return join(head, tail, example, BY_HAND), {1}, [(path, 1) for path in exits]


def _captured(
    model: nn.Module, example: Any, exits: Sequence[str], cut: str | Sequence[str], wanted: Wanted
) -> tuple[Pieces, set[int], Places]:
    """The divided model, which boundaries are cuts (the others carry exits only), and where exits stand."""
    graph = capture(model, example, dynamic_batch="auto")
    if cut == "auto":
        chosen = search(graph, as_flat(example, graph.input_structure), wanted)
    else:
        chosen = [_cut_at(graph, name) for name in ([cut] if isinstance(cut, str) else cut)]
    if not chosen:
        raise ConfigError("cut=[] leaves nothing to split; name a cut or use 'auto'")
    at = [_cut_at(graph, path) for path in exits]
    pieces = divide(graph, [*chosen, *at])
    index = pieces.index
    places = sorted(((path, index[c.name]) for path, c in zip(exits, at, strict=True)), key=lambda p: p[1])
    return pieces, {index[found.name] for found in chosen}, places


def _cuts_of(codecs: Mapping[str, CodecLike], cut: str | Sequence[str]) -> list[str]:
    """The cuts that have a codec of their own are the cuts."""
    if cut != "auto" and {*([cut] if isinstance(cut, str) else cut)} != set(codecs):
        raise ConfigError("codec= as a mapping names the cuts: leave cut= out, or name the same ones")
    return list(codecs)


def _own(codecs: Mapping[str, CodecLike], pieces: Pieces) -> dict[str, Choice]:
    """Codecs by the names of the boundaries."""
    if pieces.graph is None:
        raise ConfigError("with head= and tail= there is one cut: give codec= a name, no mapping")
    return {_cut_at(pieces.graph, path).name: choose(codec) for path, codec in codecs.items()}


def _cut_at(graph: Graph, name: str) -> Cut:
    found = graph.cut(name)
    if found.place != "SPLIT":
        raise PartitionError(f"'{name}' is no place to cut or exit: nothing is computed before it")
    return found


def _row(found: Cut, boundary: int, plan: Plan, costs: Costs) -> CutRow:
    top = len(plan.codecs[boundary].levels) - 1
    return CutRow(
        name=found.name,
        tensors=tuple(str(crossing.spec) for crossing in found.tensors),
        raw_bytes=found.bytes,
        coded_bytes=float(costs.nbytes[boundary, top].mean()),
        head_flops=float(found.head_flops),
        tail_flops=float(found.tail_flops),
        head_s=float(np.median(costs.head(boundary))),
        tail_s=float(np.median(costs.tail(boundary))),
        head_params=found.head_params,
        tail_params=found.tail_params,
    )
