"""`splitedge.deploy(model, tokenizer=...)`: a language model between this device and a cloud."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import queue
import secrets
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from splitedge.edge.asking import Said
from splitedge.edge.black_box import BlackBoxRemote
from splitedge.edge.language import EdgeLanguage, LanguageRuntime, Stream
from splitedge.edge.link import Link as Wire
from splitedge.edge.link import ZmqLink
from splitedge.edge.openai_settings import BlackBoxSettings, black_box_patience
from splitedge.edge.settings import EdgeSettings
from splitedge.errors import ConfigError
from splitedge.keys import load_keys, trusted_key
from splitedge.llm.aids import Aids
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.black_box import BlackBox
from splitedge.llm.bottleneck_training import BottleneckSchedule, CodecReport, train_bottleneck
from splitedge.llm.bundle import load_language, save_language
from splitedge.llm.evaluating import evaluate_language
from splitedge.llm.evaluation import LanguageEvaluation
from splitedge.llm.exit_model import Fill
from splitedge.llm.exits import ExitSchedule, Signal, TrainedExits, train_exits
from splitedge.llm.gate_fit import GateSchedule, fit_gate
from splitedge.llm.generation import Patience, Wish
from splitedge.llm.halves import split_language_model
from splitedge.llm.happenings import Emit, Fail, Finish
from splitedge.llm.language_plan import IDS, CloudHalf, LanguagePlan
from splitedge.llm.loops import Here, Looped, Running, forward
from splitedge.llm.measured import Measured, costs_of
from splitedge.llm.modes import Mode, OnLoss, Rule, Way, mode_named
from splitedge.llm.per_query import CASCADE, ROUTE, accepted, cascade, judge_of, routed
from splitedge.llm.plan import Choice, Costs, Objective, choose_mode
from splitedge.llm.router import QueryRouter, Routed
from splitedge.llm.sampling import Sampling
from splitedge.llm.state_bottleneck import bytes_wanted, is_bottleneck
from splitedge.llm.state_codecs import state_codec
from splitedge.llm.text import Text
from splitedge.llm.token_model import TokenModel, WholeModel
from splitedge.llm.tokenizers import Tokenizer
from splitedge.loopback import Loopback
from splitedge.power import PowerModel, power_profile
from splitedge.sealed import Side
from splitedge.wire import Lane

AUTO = "auto"
_open: weakref.WeakSet[LanguageDeployment] = weakref.WeakSet()


def deploy_language(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    local: nn.Module | None = None,
    cut: int | None = None,
    exits: Sequence[int] = (),
    codec: str = IDS,
    context: int | None = None,
    cloud: str | None = None,
    keys: Path | str | None = None,
    power: str = "none",
    patience: Patience | None = None,
    kv_fill: Fill = "exact",
    black_box: BlackBoxSettings | None = None,
) -> LanguageDeployment:
    """Divide a causal language model between this device and a cloud.

    Args:
        model: decoder-only, as `transformers` makes it; see `splitedge.llm.anatomy.anatomy_of`.
        tokenizer: its own.
        local: a complete small model of the same vocabulary that drafts, or writes alone.
        cut: blocks of `model` that the device runs, for exits and hidden states; None for those before the
            deepest exit, else half of them where hidden states are sent, else none.
        exits: blocks before each exit; trained by `fit`.
        codec: what crosses: `ids` (4 bytes a token; the cloud runs the whole model), or hidden states at
            the cut as `fp32` (exact), `fp16`, `int8`, `int4`, or as `fit` learns to write them
            (`bottleneck`, of as many bytes a token as int4 has; `bottleneck:bytes=24`).
        context: most tokens of prompt and answer; None for all that the model was made for.
        cloud: None computes the cloud's half in this process; `tcp://host:port` is a server.
        keys: key directory for a cloud on another machine.
        power: name of the profile that joules are modelled with.
        patience: when a cloud counts as silent.
        kv_fill: keys and values of tokens that left at an exit, once a later token goes deeper: computed
            (`exact`), or made from the state with which they left (`propagate`: cheaper, and wrong by what
            docs/language-splitting.md measures). Hidden states that cross are of the same kind.
        black_box: an OpenAI-compatible endpoint in place of our own cloud (`cloud_stream`, `assist`).

    Raises:
        PartitionError: the model can not be cut.
        ConfigError: arguments that do not go together.
    """
    if kv_fill not in ("exact", "propagate"):
        raise ConfigError(f"kv_fill is 'exact' or 'propagate', got {kv_fill!r}")
    depths = tuple(sorted(set(exits)))
    total = len(split_language_model(model, 0, context)[2].blocks)
    if cut is None:
        cut = depths[-1] if depths else (total // 2 if codec != IDS else 0)
    if depths and depths[-1] > cut:
        raise ConfigError(f"an exit behind block {depths[-1]} does not stand on the device, which runs {cut}")
    head, tail, anatomy = split_language_model(model, cut, context)
    if codec != IDS:
        if is_bottleneck(codec):
            bytes_wanted(codec, anatomy.hidden)
        else:
            state_codec(codec, anatomy.hidden)
        if not depths:
            depths = (max(1, cut),) if cut < total else ()
    small = None if local is None else WholeModel(local, None)
    if small is not None and small.vocabulary != anatomy.vocabulary:
        raise ConfigError(
            f"the local model has a vocabulary of {small.vocabulary}, the cloud's {anatomy.vocabulary}: they "
            "must share a tokenizer"
        )
    plan = LanguagePlan(
        head, tail, anatomy, cut, codec, small, None, depths, _stops(anatomy), kv_fill=kv_fill
    )
    return LanguageDeployment(
        plan, tokenizer, cloud=cloud, keys=keys, power=power, patience=patience, black_box=black_box
    )


def load_deployment(
    directory: Path | str,
    side: Side = "both",
    *,
    cloud: str | None = None,
    keys: Path | str | None = None,
    power: str = "none",
    digest: str | None = None,
    device: str = "cpu",
    patience: Patience | None = None,
    black_box: BlackBoxSettings | None = None,
) -> LanguageDeployment:
    """Load a language bundle, or one half of it; the arguments are those of `splitedge.load`.

    Raises:
        BundleError: a file is missing, changed or foreign; the message names it.
    """
    found = load_language(directory, side, digest=digest, device=device)
    return LanguageDeployment(
        found.plan, found.tokenizer, cloud=cloud, keys=keys, power=power, patience=patience,
        black_box=black_box, side=side, digest=found.digest,
    )  # fmt: skip


def _stops(anatomy: Anatomy) -> frozenset[int]:
    ends = getattr(anatomy.config, "eos_token_id", None)
    found = ends if isinstance(ends, list | tuple) else [ends]
    return frozenset(i for i in found if isinstance(i, int) and 0 <= i < anatomy.vocabulary)


class LanguageDeployment:
    """A language model that is ready to write. Methods may be called from any thread.

    Args:
        plan: what it is made of.
        tokenizer: of the model.
        cloud, keys, power, patience, black_box: see `deploy_language`.
        side: which halves of the plan are here.
        digest: of the bundle that it came from.

    Attributes:
        codec_report: what `fit` measured of a bottleneck; None where there is none.
        evaluation: the last one, from which `auto` takes what it knows of the models; None before one.
    """

    def __init__(
        self,
        plan: LanguagePlan,
        tokenizer: Tokenizer,
        *,
        cloud: str | None = None,
        keys: Path | str | None = None,
        power: str = "none",
        patience: Patience | None = None,
        black_box: BlackBoxSettings | None = None,
        side: Side = "both",
        digest: str | None = None,
    ) -> None:
        self.plan, self.tokenizer = plan, tokenizer
        self._black_box, self._side, self._digest = black_box, side, digest
        self._cloud, self._keys = cloud, None if keys is None else Path(keys)
        self._power, self._patience = power_profile(power), patience
        self._running: Running | None = None
        self.link: Wire | None = None
        self._codec = plan.codec  # that was asked for; `fit` may keep another
        self.codec_report: CodecReport | None = None
        self.evaluation: LanguageEvaluation | None = None
        _open.add(self)

    # Writing --------------------------------------------------------------------------------------

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Modes that it can write in."""
        return self._edge("0" * 64).modes

    def __call__(self, prompt: str | Sequence[int], **how: Any) -> Text:
        """Write a text; see `generate`."""
        return self.generate(prompt, **how)

    def generate(self, prompt: str | Sequence[int], **how: Any) -> Text:
        """Write a text and wait for it.

        Args:
            prompt: text, or ids.
            how: as in `stream`.

        Raises:
            Rejected: the prompt does not fit, or the mode can not be had.
            RequestError: it ended without being complete.
        """
        if how.get("mode") == CASCADE and how.get("way") is None:
            return cascade(self, prompt, how)
        stream = self.stream(prompt, **how)
        for _ in stream:
            pass
        return stream.result()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = 64,
        mode: Mode | str = AUTO,
        drafts: int | None = None,
        sampling: Sampling | None = None,
        deadline_s: float = math.inf,
        on_loss: OnLoss = "wait",
        objective: Objective | None = None,
        way: Way | None = None,
        stops: frozenset[int] | None = None,
        router: QueryRouter | None = None,
        rule: Rule = "coupling",
    ) -> Writing:
        """Begin a text; iterate over the result for pieces of it as they become final.

        Args:
            prompt: text, or ids.
            max_tokens: at most so many.
            mode: how to write; `auto` predicts which is best from what was measured; `route` asks the query
                router whether the device answers or the cloud. `generate` also takes `cascade`: the device
                answers, and the cloud anew where a judge finds that this will not do.
            drafts: most drafts a round; None for what is predicted best, else 4.
            sampling: how tokens are drawn; greedy where not given.
            deadline_s: seconds for all of it.
            on_loss: while the cloud is out of reach `wait`, or go on by the device (`local`).
            objective: what `auto` makes small; total time where not given.
            way: all of the mode's numbers at once, in place of `mode`, `drafts`, `on_loss` and `rule`.
            stops: ids that end the text; None for the model's own.
            router: in place of the deployment's own; with `auto` it means `route`.
            rule: how drafts of a sampled text are verified (`spec`): `coupling` gives the text that the
                cloud's model writes with this seed, `rejection` one of the same law; see `modes.Rule`.

        Raises:
            Rejected, ConfigError: see `generate`.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        said = Said(prompt) if isinstance(prompt, str) else None
        runtime = self._started().runtime
        why = "asked for"
        if way is None:
            if mode == ROUTE or (mode == AUTO and router is not None):
                way, why = self.decide_query(prompt, drafts, on_loss, router)
            else:
                way, why = self.decide(len(ids), max_tokens, mode, drafts, on_loss, objective, rule)
        wish = Wish(tuple(ids), max_tokens, self.plan.stops if stops is None else stops, deadline_s)
        pieces: queue.SimpleQueue[Emit | Finish | Fail] = queue.SimpleQueue()
        chosen = way

        async def begin() -> Stream:
            stream = runtime.write(wish, chosen, sampling, said=said)
            asyncio.ensure_future(forward(stream, pieces))  # noqa: RUF006 - ends with the stream, which the runtime holds
            return stream

        return Writing(self, self._started().call(begin()), pieces, way, why, len(ids))

    def decide(
        self,
        prompt: int,
        max_tokens: int,
        mode: Mode | str = AUTO,
        drafts: int | None = None,
        on_loss: OnLoss = "wait",
        objective: Objective | None = None,
        rule: Rule = "coupling",
    ) -> tuple[Way, str]:
        """How a text of so many tokens would be written now, and why; the arguments are those of `stream`.

        Raises:
            ConfigError: there is no such mode.
        """
        if mode != AUTO:
            return self._way(mode_named(mode), drafts, on_loss, rule), "asked for"
        choice = self.choose(prompt, max_tokens, objective)
        return self._way(choice.best.mode, choice.best.drafts or drafts, on_loss, rule), choice.why

    def decide_query(
        self,
        prompt: str | Sequence[int],
        drafts: int | None = None,
        on_loss: OnLoss = "wait",
        router: QueryRouter | None = None,
    ) -> tuple[Way, str]:
        """How the query router has a prompt answered, and why; the arguments are those of `stream`.

        Raises:
            ConfigError: there is no router.
        """
        found = self.route(prompt, router)
        return self._way(Mode.LOCAL if found.local else Mode.STREAM, drafts, on_loss), found.why

    def check_cascade(self) -> None:
        """Whether `mode="cascade"` can be had.

        Raises:
            ConfigError: there is no judge or no local model.
        """
        judge_of(self.plan)

    def accepts(self, prompt: Sequence[int], answer: Sequence[int], ended: bool) -> tuple[bool, str]:
        """Whether the device's answer will do, by the judge, and why; the arguments are those of
        `per_query.accepted`.

        Raises:
            ConfigError: there is no judge or no local model.
        """
        judge, local = judge_of(self.plan)
        return accepted(judge, local, prompt, answer, ended)

    def _way(self, mode: Mode, drafts: int | None, on_loss: OnLoss, rule: Rule = "coupling") -> Way:
        exits = self.plan.exits
        thresholds = {} if exits is None or mode is not Mode.EXIT else dict(exits.thresholds)
        if mode is Mode.ASSIST:
            gate = self.plan.aids.gate
            thresholds = {-1: 0.5 if gate is None else gate.threshold}
        keeps = self.plan.codec == IDS or self._black_box is not None
        return Way(
            mode, drafts=drafts or 4, thresholds=thresholds, keeps_told=keeps, on_loss=on_loss, rule=rule
        )

    def route(self, prompt: str | Sequence[int], router: QueryRouter | None = None) -> Routed:
        """Where the query router sends a prompt, and why; nothing is sent. See `per_query.routed`."""
        chosen = router if router is not None else self.plan.aids.router
        return routed(chosen, self.plan.local, self.tokenizer, prompt)

    @property
    def up(self) -> bool:
        """Whether the cloud is in reach."""
        return self._started().runtime.up

    def attach(self, aids: Aids) -> None:
        """Give it trained aids: those that are not None take the place of what it has."""
        given = {name: aid for name, aid in vars(aids).items() if aid is not None}
        self.close()
        self.plan = replace(self.plan, aids=replace(self.plan.aids, **given))

    def costs(self) -> Costs:
        """What was measured of link, device and cloud so far; assumed values where nothing was."""
        runtime = self._started().runtime
        remote = runtime.remote
        known = Measured(
            math.inf if self.plan.local is None else runtime.draft_s,
            math.inf if self.plan.exits is None else runtime.head_s,
            math.nan if remote is None else remote.decode_s,
            runtime.acceptance,
        )
        link = None if remote is None else remote.estimator
        costs = costs_of(known, self._power, link, runtime.now, self.evaluation)
        gate = self.plan.aids.gate
        report = None if gate is None else gate.report
        if report is None or self.evaluation is not None:
            return costs
        calls = costs.calls if self.plan.exits is not None else report.calls
        lost = ((Mode.ASSIST, report.disagreement),)
        return replace(costs, survival=report.survival, disagreement=lost, calls=calls)

    def choose(self, prompt: int, tokens: int, objective: Objective | None = None) -> Choice:
        """What `auto` would do now for a prompt and an answer of so many tokens, and why."""
        up = self._started().runtime.up
        return choose_mode(self.costs(), self.modes, prompt, tokens, objective=objective, up=up)

    # Training -------------------------------------------------------------------------------------

    def fit(
        self,
        *,
        risk: float = 0.05,
        signal: Signal = "probability",
        schedule: ExitSchedule | None = None,
        texts: torch.Tensor | None = None,
        gate: GateSchedule | None = None,
    ) -> TrainedExits | None:
        """Train and calibrate the exits and the codec where it is a bottleneck, and the token gate
        (`splitedge.llm.gate_fit.fit_gate`) where there is a local model.

        Args:
            risk, signal, schedule, texts: see `splitedge.llm.exits.train_exits`. Texts are what a
                bottleneck and the gate learn from too.
            gate: how the gate is trained.

        A bottleneck is kept where it beats plain integers of as many bytes on text it did not learn from;
        else the codec becomes `int4`. `codec_report` tells what was measured and which it is.

        Raises:
            ConfigError: there is neither, or too little text.
        """
        plan = self.plan
        if not plan.depths and plan.local is None:
            raise ConfigError("there is no exit to train; name some: deploy(..., exits=[2, 4])")
        aids = plan.aids
        if plan.local is not None:
            trained = fit_gate(plan.local, plan.head, plan.tail, plan.anatomy, schedule=gate, texts=texts)
            aids = replace(aids, gate=trained)
        found = plan.exits
        if plan.depths:
            found = train_exits(
                plan.head, plan.tail, plan.anatomy, plan.depths, risk=risk, signal=signal, schedule=schedule,
                texts=texts,
            )  # fmt: skip
        plan = replace(plan, exits=found, aids=aids)
        if is_bottleneck(self._codec):
            plan, self.codec_report = self._bottleneck(plan, schedule, texts)
        self.close()
        self.plan, self.evaluation = plan, None
        self._digest = None  # no bundle holds these exits yet
        return found

    def _bottleneck(
        self, plan: LanguagePlan, schedule: ExitSchedule | None, texts: torch.Tensor | None
    ) -> tuple[LanguagePlan, CodecReport]:
        how = BottleneckSchedule()
        if schedule is not None:
            how = replace(how, texts=schedule.texts, length=schedule.length, seed=schedule.seed)
            how = replace(how, first=schedule.first, progress=schedule.progress)
        width = bytes_wanted(self._codec, plan.anatomy.hidden)
        codec, report = train_bottleneck(plan.head, plan.tail, plan.anatomy, width, schedule=how, texts=texts)
        if report.kept:
            return replace(plan, codec=self._codec, bottleneck=codec), report
        return replace(plan, codec="int4", bottleneck=None), report

    def evaluate(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        max_tokens: int = 64,
        sampling: Sampling | None = None,
        stops: frozenset[int] | None = None,
        progress: bool = True,
    ) -> LanguageEvaluation:
        """Answer prompts by the whole model, and record what all else would have said at each position, and
        what it took. `auto` goes by it from then on; saved, it is what the simulator replays.

        Args:
            prompts: texts, or ids.
            max_tokens: of an answer at most.
            sampling: how tokens are drawn; greedy where not given.
            stops: ids that end an answer; None for the model's own.
            progress: whether a bar is shown.

        Raises:
            ConfigError: there is no prompt, or one has no room for an answer.
        """
        self.evaluation = evaluate_language(
            self.plan,
            [self.tokenizer.encode(p) if isinstance(p, str) else list(p) for p in prompts],
            max_tokens=max_tokens,
            stops=self.plan.stops if stops is None else stops,
            sampling=sampling if sampling is not None else Sampling(),
            progress=progress,
        )
        return self.evaluation

    # Life -----------------------------------------------------------------------------------------

    def outage(self, reason: str | None) -> None:
        """Play an outage of the in-process cloud for `reason`; end it by None.

        Raises:
            ConfigError: the cloud does not run in this process.
        """
        running, link = self._started(), self.link
        if not isinstance(link, Loopback):
            raise ConfigError("an outage can be played for a cloud in this process only")

        async def plug() -> None:
            if reason is None:
                link.connect()
            else:
                link.disconnect(reason)

        running.call(plug())

    def close(self) -> None:
        """Stop both halves. May be called twice; the next text starts them again."""
        running, self._running = self._running, None
        if running is not None:
            running.close(self.link)
        self.link = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Bundles --------------------------------------------------------------------------------------

    def save(self, directory: Path | str) -> str:
        """Write a bundle that `splitedge.load`, `splitedge serve` and `splitedge edge` take; its digest.

        Raises:
            BundleError: a part can not be saved, or the directory holds something else.
            ConfigError: only one half is loaded here.
        """
        if self._side != "both":
            raise ConfigError(f"this is the {self._side}'s half of a bundle; save needs both")
        self._digest = save_language(self.plan, self.tokenizer, directory)
        return self._digest

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle that it was loaded from or saved as; empty for none."""
        return self._digest or ""

    @property
    def power(self) -> PowerModel:
        """That joules are modelled with."""
        return self._power

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end a text."""
        return self.plan.stops

    @property
    def cloud_half(self) -> CloudHalf:
        """The cloud's half, as a server takes it.

        Raises:
            ConfigError: only the edge's half is loaded, or it was never saved.
        """
        if self._side == "edge":
            raise ConfigError("this is the edge's half of a bundle; load the cloud's with side='cloud'")
        return self.plan.cloud(self._named())

    def _named(self) -> str:
        if self._digest is None:
            raise ConfigError(
                "a server knows a deployment by its bundle: save() it here, then serve and load that bundle"
            )
        return self._digest

    # Running --------------------------------------------------------------------------------------

    def _edge(self, digest: str) -> EdgeLanguage:
        """The edge's half, without the ways to a cloud where there is none."""
        found = self.plan.edge(digest)
        if self._black_box is not None:
            return replace(
                found, ids_lane=Lane(digest, "", "text"), states_lane=None, codec=None, text_only=True
            )
        if self._cloud is None and self._side == "edge":
            return replace(found, ids_lane=None, states_lane=None, codec=None)
        return found

    def runtime(self, link: Wire | None, settings: EdgeSettings | None = None) -> LanguageRuntime:
        """A runtime of the edge's half for the caller's own event loop, not yet started. From then on
        `decide` and `choose` speak of that one; `generate` and `stream` can not be used with it.

        Args:
            link: to the cloud, not yet started; None for none, or where a black box is configured.
            settings: caps of the link.

        Raises:
            ConfigError: this is the cloud's half, or texts are already written in a thread of its own.
        """
        if self._running is not None:
            raise ConfigError("this deployment runs already; close() it first")
        made = self._runtime(link, self._digest or secrets.token_hex(32), settings)
        self._running = Here(made)
        return made

    def _runtime(
        self, link: Wire | None, digest: str, settings: EdgeSettings | None = None
    ) -> LanguageRuntime:
        if self._side == "cloud":
            raise ConfigError("this is the cloud's half of a bundle; texts are written by the edge's")
        remote, patience = None, self._patience
        if self._black_box is not None:
            patience = patience or black_box_patience(self._black_box.idle_s)
            remote = partial(BlackBoxRemote, BlackBox(self._black_box), self.tokenizer)
        return LanguageRuntime(self._edge(digest), link, settings=settings, patience=patience, remote=remote)

    def _started(self) -> Running:
        if self._running is None:
            digest = self._digest or secrets.token_hex(32)
            if self._black_box is not None:
                self.link = None
            elif self._cloud is not None:
                digest = self._named()
                settings = EdgeSettings(cloud=self._cloud)
                keys = None if self._keys is None else load_keys(self._keys)
                server = None if self._keys is None else trusted_key(self._keys)
                self.link = ZmqLink(self._cloud, keys, server, settings)
            elif self._side == "both":
                self.link = Loopback(None, language=self.plan.cloud(digest))
            self._running = Looped(self._runtime(self.link, digest))
        return self._running


class Writing:
    """A text under way: iterate for its pieces, then ask for the `result`."""

    def __init__(
        self,
        deployment: LanguageDeployment,
        stream: Stream,
        pieces: queue.SimpleQueue[Emit | Finish | Fail],
        way: Way,
        why: str,
        prompt: int,
    ) -> None:
        self._deployment, self._stream, self._pieces = deployment, stream, pieces
        self._way, self._why, self._prompt = way, why, prompt
        self._ids: list[int] = []
        self._said = ""
        self._end: Finish | Fail | None = None

    def __iter__(self) -> Iterator[str]:
        """Pieces of text, as they become final.

        Raises:
            RequestError: the text could not be completed; what came before stays right.
        """
        while self._end is None:
            item = self._pieces.get()
            if not isinstance(item, Emit):
                self._end = item
                break
            self._ids += item.tokens
            # Several tokens may make one character: what is not complete yet waits for the next piece.
            text = self._deployment.tokenizer.decode(self._ids)
            if not text.endswith("\N{REPLACEMENT CHARACTER}") and len(text) > len(self._said):
                piece, self._said = text[len(self._said) :], text
                yield piece
        if isinstance(self._end, Fail):
            raise self._end.error

    def result(self) -> Text:
        """The whole answer; waits for its end.

        Raises:
            RequestError: it was not completed.
        """
        for _ in self:
            pass
        end, tally = self._end, self._stream.tally
        assert isinstance(end, Finish)
        power = self._deployment._power
        count = len(self._ids)
        tpot = (tally.ended_s - tally.first_token_s) / (count - 1) if count > 1 else math.nan
        return Text(
            text=self._deployment.tokenizer.decode(self._ids),
            ids=tuple(self._ids),
            sources=tuple(tally.sources),
            finish=end.reason,
            mode=self._way.mode,
            why=self._why,
            degraded=tally.degraded,
            reason=tally.reason,
            asks=tally.asks,
            cloud_tokens=tally.cloud_tokens,
            proposed=tally.proposed,
            accepted=tally.accepted,
            bytes_up=tally.bytes_up,
            bytes_down=tally.bytes_down,
            energy_j=power.joules(tally.compute_s, tally.bytes_up, tally.bytes_down),
            ttft_s=tally.first_token_s,
            tpot_s=tpot,
            total_s=tally.ended_s,
            prompt_tokens=self._prompt,
        )


@atexit.register
def _close_all() -> None:
    for deployment in list(_open):
        with contextlib.suppress(Exception):  # the interpreter goes down; nobody could act on it
            deployment.close()


__all__ = [
    "IDS",
    "CloudHalf",
    "LanguageDeployment",
    "LanguagePlan",
    "Text",
    "TokenModel",
    "Tokenizer",
    "deploy_language",
]
