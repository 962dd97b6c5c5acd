"""`splitedge.deploy(model, tokenizer=...)`: a language model between this device and a cloud."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import queue
import secrets
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import nn

from splitedge.edge.language import EdgeLanguage, LanguageRuntime, Stream
from splitedge.edge.link import Link as Wire
from splitedge.edge.link import ZmqLink
from splitedge.edge.settings import EdgeSettings
from splitedge.errors import ConfigError, Rejected
from splitedge.keys import load_keys, trusted_key
from splitedge.llm.aids import Aids
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.bottleneck_training import BottleneckSchedule, CodecReport, train_bottleneck
from splitedge.llm.cloud_model import CloudLanguageModel, StateCodec
from splitedge.llm.evaluating import evaluate_language
from splitedge.llm.evaluation import LanguageEvaluation
from splitedge.llm.exit_model import ExitModel, Fill
from splitedge.llm.exits import ExitSchedule, Signal, TrainedExits, train_exits
from splitedge.llm.gate import GatedModel
from splitedge.llm.gate_fit import GateSchedule, fit_gate
from splitedge.llm.generation import Patience, Wish
from splitedge.llm.halves import LanguageHead, LanguageTail, split_language_model
from splitedge.llm.happenings import Emit, Fail, Finish
from splitedge.llm.measured import Measured, costs_of
from splitedge.llm.modes import Mode, OnLoss, Way
from splitedge.llm.per_query import CASCADE, ROUTE, cascade, routed
from splitedge.llm.plan import Choice, Costs, Objective, choose_mode
from splitedge.llm.router import QueryRouter, Routed
from splitedge.llm.sampling import Sampling
from splitedge.llm.state_bottleneck import Bottleneck, bytes_wanted, is_bottleneck
from splitedge.llm.state_codecs import state_codec
from splitedge.llm.token_model import TokenModel, WholeModel
from splitedge.loopback import Loopback
from splitedge.power import power_profile
from splitedge.wire import Lane

T = TypeVar("T")
#: Name of the codec of a lane on which ids are sent.
IDS = "ids"
AUTO = "auto"
_open: weakref.WeakSet[LanguageDeployment] = weakref.WeakSet()


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of `transformers` have it."""

    def encode(self, text: str) -> list[int]:
        """Text to ids."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Ids to text."""
        ...


@dataclass(frozen=True)
class Text:
    """An answer, with what it took. Seconds, bytes as framed, joules as modelled; NaN where not known.

    Attributes:
        text: without the prompt.
        ids: of the text. sources: where each came from: `local`, `exit:0`, `draft` (the device's, found
            right by the cloud), `cloud`.
        finish: `stop` or `length`.
        mode: it was written in. why: how that was chosen, one readable sentence.
        degraded: whether it is not by the mode wanted, all of it. reason: why.
        asks: messages to the cloud that waited for an answer. cloud_tokens: chosen by the cloud.
        proposed, accepted: drafts.
        ttft_s: to the first token. tpot_s: for each further one, on average. total_s: all.
    """

    text: str
    ids: tuple[int, ...]
    sources: tuple[str, ...]
    finish: str
    mode: Mode
    why: str
    degraded: bool
    reason: str
    asks: int
    cloud_tokens: int
    proposed: int
    accepted: int
    bytes_up: int
    bytes_down: int
    energy_j: float
    ttft_s: float
    tpot_s: float
    total_s: float
    prompt_tokens: int


class CloudHalf:
    """The cloud's half of a language deployment; see `cloud.desk.LanguageHalf`."""

    def __init__(self, digest: str, models: dict[Lane, CloudLanguageModel]) -> None:
        self._digest, self._models = digest, models

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle."""
        return self._digest

    @property
    def models(self) -> dict[Lane, CloudLanguageModel]:
        """What computes each lane."""
        return self._models


@dataclass(frozen=True)
class LanguagePlan:
    """What a language deployment is made of.

    Attributes:
        head, tail: of the model, at `cut`.
        anatomy: of the whole.
        cut: blocks that the device runs of it.
        codec: name of the codec of hidden states that cross there; `ids` for none.
        local: a complete small model of the same vocabulary for the device; None for none.
        exits: trained exits; None before `fit`, or where there are none.
        depths: blocks before each exit that is wanted.
        stops: ids that end a text.
        kv_fill: see `deploy_language`.
        bottleneck: the trained codec where `codec` is `bottleneck`; None before `fit`, and otherwise.
        aids: what was trained to choose between device and cloud.
    """

    head: LanguageHead
    tail: LanguageTail
    anatomy: Anatomy
    cut: int
    codec: str
    local: WholeModel | None
    exits: TrainedExits | None
    depths: tuple[int, ...]
    stops: frozenset[int]
    kv_fill: Fill = "exact"
    bottleneck: Bottleneck | None = None
    aids: Aids = field(default_factory=Aids)

    def lanes(self, digest: str) -> tuple[Lane | None, Lane | None]:
        """Lane of ids, and of hidden states."""
        if self.codec == IDS:
            return Lane(digest, "", IDS), None
        return None, Lane(digest, f"blocks.{self.cut}", f"{self.codec}:{self.anatomy.hidden}")

    def state_codec(self) -> StateCodec:
        """What writes and reads hidden states.

        Raises:
            ConfigError: it is a bottleneck that was not trained yet, or the codec is `ids`.
        """
        if is_bottleneck(self.codec):
            if self.bottleneck is None:
                raise ConfigError(f"the codec '{self.codec}' is learned and was not trained yet: call fit()")
            return self.bottleneck
        return state_codec(self.codec, self.anatomy.hidden)

    def cloud(self, digest: str) -> CloudHalf:
        """The cloud's half."""
        ids, states = self.lanes(digest)
        models = {}
        if ids is not None:
            models[ids] = CloudLanguageModel(self.head, self.tail, self.anatomy)
        if states is not None:
            codec = self.state_codec()
            models[states] = CloudLanguageModel(None, self.tail, self.anatomy, codec)
        return CloudHalf(digest, models)

    def edge(self, digest: str) -> EdgeLanguage:
        """The edge's half."""
        ids, states = self.lanes(digest)
        head = None
        if self.exits is not None:
            head = ExitModel(self.head, self.anatomy, self.exits, fill=self.kv_fill)
        return EdgeLanguage(
            vocabulary=self.anatomy.vocabulary,
            context=self.anatomy.context,
            draft=self._draft(),
            exits=None if head is None else head.fresh,
            ids_lane=ids,
            states_lane=states,
            codec=None if states is None else self.state_codec(),
        )

    def _draft(self) -> Callable[[], TokenModel] | None:
        if self.local is None:
            return None
        return self.local.fresh if self.aids.gate is None else GatedModel(self.local, self.aids.gate).fresh


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
    return LanguageDeployment(plan, tokenizer, cloud=cloud, keys=keys, power=power, patience=patience)


def _stops(anatomy: Anatomy) -> frozenset[int]:
    ends = getattr(anatomy.config, "eos_token_id", None)
    found = ends if isinstance(ends, list | tuple) else [ends]
    return frozenset(i for i in found if isinstance(i, int) and 0 <= i < anatomy.vocabulary)


class LanguageDeployment:
    """A language model that is ready to write. Methods may be called from any thread.

    Args:
        plan: what it is made of.
        tokenizer: of the model.
        cloud, keys, power, patience: see `deploy_language`.

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
    ) -> None:
        self.plan, self.tokenizer = plan, tokenizer
        self._cloud, self._keys = cloud, None if keys is None else Path(keys)
        self._power, self._patience = power_profile(power), patience
        self._running: _Thread | None = None
        self.link: Wire | None = None
        self._codec = plan.codec  # that was asked for; `fit` may keep another
        self.codec_report: CodecReport | None = None
        self.evaluation: LanguageEvaluation | None = None
        _open.add(self)

    # Writing --------------------------------------------------------------------------------------

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Modes that it can write in."""
        return self.plan.edge("0" * 64).modes

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
            way: all of the mode's numbers at once, in place of `mode`, `drafts` and `on_loss`.
            stops: ids that end the text; None for the model's own.
            router: in place of the deployment's own; with `auto` it means `route`.

        Raises:
            Rejected, ConfigError: see `generate`.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        runtime = self._started().runtime
        why = "asked for"
        if way is None:
            if mode == ROUTE or (mode == AUTO and router is not None):
                found = self.route(prompt, router)
                why = found.why
                way = self._way(Mode.LOCAL if found.local else Mode.STREAM, drafts, on_loss)
            elif mode == AUTO:
                choice = self.choose(len(ids), max_tokens, objective)
                way, why = self._way(choice.best.mode, choice.best.drafts or drafts, on_loss), choice.why
            else:
                way = self._way(Mode(mode), drafts, on_loss)
        wish = Wish(tuple(ids), max_tokens, self.plan.stops if stops is None else stops, deadline_s)
        pieces: queue.SimpleQueue[Emit | Finish | Fail] = queue.SimpleQueue()
        chosen = way

        async def begin() -> Stream:
            stream = runtime.write(wish, chosen, sampling)
            asyncio.ensure_future(_forward(stream, pieces))  # noqa: RUF006 - ends with the stream, which the runtime holds
            return stream

        return Writing(self, self._started().call(begin()), pieces, way, why, len(ids))

    def _way(self, mode: Mode, drafts: int | None, on_loss: OnLoss) -> Way:
        exits = self.plan.exits
        thresholds = {} if exits is None or mode is not Mode.EXIT else dict(exits.thresholds)
        if mode is Mode.ASSIST:
            gate = self.plan.aids.gate
            thresholds = {-1: 0.5 if gate is None else gate.threshold}
        keeps = self.plan.codec == IDS
        return Way(mode, drafts=drafts or 4, thresholds=thresholds, keeps_told=keeps, on_loss=on_loss)

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

    def _started(self) -> _Thread:
        if self._running is None:
            digest = secrets.token_hex(32)
            if self._cloud is None:
                self.link = Loopback(None, language=self.plan.cloud(digest))
            else:
                settings = EdgeSettings(cloud=self._cloud)
                keys = None if self._keys is None else load_keys(self._keys)
                server = None if self._keys is None else trusted_key(self._keys)
                self.link = ZmqLink(self._cloud, keys, server, settings)
            runtime = LanguageRuntime(self.plan.edge(digest), self.link, patience=self._patience)
            self._running = _Thread(runtime)
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


async def _forward(stream: Stream, pieces: queue.SimpleQueue[Emit | Finish | Fail]) -> None:
    """Hand a stream's items to a thread that waits for them."""
    while True:
        item = await stream.queue.get()
        pieces.put(item)
        if not isinstance(item, Emit):
            return


class _Thread:
    """An event loop on a thread of its own, with a runtime on it."""

    def __init__(self, runtime: LanguageRuntime) -> None:
        self.runtime = runtime
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="splitedge-language-loop", daemon=True)
        self._thread.start()
        self.call(runtime.start())
        if runtime.remote is not None:
            with contextlib.suppress(Exception):  # texts get by without the cloud, and say why
                self.call(runtime.connected(2.0))

    def call(self, job: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it."""
        if threading.current_thread() is self._thread:
            job.close()
            raise Rejected("called from its own event loop, which would wait for itself")
        return asyncio.run_coroutine_threadsafe(job, self._loop).result()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def close(self, link: Wire | None) -> None:
        """Stop the runtime, its link and the thread."""

        async def shut() -> None:
            await self.runtime.close()
            if isinstance(link, Loopback):
                await link.wait_closed()

        self.call(shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()


@atexit.register
def _close_all() -> None:
    for deployment in list(_open):
        with contextlib.suppress(Exception):  # the interpreter goes down; nobody could act on it
            deployment.close()


__all__ = ["IDS", "CloudHalf", "LanguageDeployment", "LanguagePlan", "Text", "TokenModel", "deploy_language"]
