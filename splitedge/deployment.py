"""A deployment: a plan that answers. Call it, fit it, ask it why, save it, load it."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from splitedge import sealed
from splitedge.bundle import load_plan, save_plan
from splitedge.choice import CodecLike, choose
from splitedge.edge.link import Link
from splitedge.errors import BundleError, ConfigError
from splitedge.evaluation import Evaluation, evaluate
from splitedge.explain import Conditions, explain_text
from splitedge.filtering import Filter
from splitedge.fitting import FitReport, fit_plan, measured_again
from splitedge.learning import Augment, Schedule
from splitedge.plan import Plan
from splitedge.policy import Option, Policy, Route
from splitedge.policy_setup import ready_policy
from splitedge.profile import Profile
from splitedge.record import Record
from splitedge.result import Result
from splitedge.rows import LabelledRows, gather
from splitedge.running import Around, Running
from splitedge.sealed import Side
from splitedge.segments import CloudSegments
from splitedge.settings import EngineSettings
from splitedge.thresholds import Threshold
from splitedge.trained import with_codec

if TYPE_CHECKING:
    from splitedge.edge.openai_settings import BlackBoxSettings
    from splitedge.llm.deployment import LanguageDeployment

RECENT = 10_000


class Deployment:
    """Answers requests by the best route. Make one with `deploy` or `load`; close it, or use `with`.

    Nothing runs until the first request. Calls may come from several threads at once.

    Args:
        plan: what there is to answer with.
        policy: by name or an object; None takes the plan's.
        cloud: None for the cloud's half in this process, `tcp://host:port` for a server.
        keys: key directory for a server on another machine.
        records: append one row a request to this file.
        settings: the engine's.
        power: name of the profile that joules are modelled with.
        device: where the model's halves in this process run: `cpu`, `cuda`, `cuda:1`, or `auto` for a GPU
            where there is one. A plan's seconds are those of the device it was measured on, the CPU.
        side: which halves the plan holds.
        digest: of the bundle the plan was read from.

    Raises:
        PolicyError: the policy can not work with these options.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        policy: str | Policy | None = None,
        cloud: str | None = None,
        keys: Path | str | None = None,
        records: Path | str | None = None,
        settings: EngineSettings | None = None,
        power: str = "none",
        device: str = "cpu",
        side: Side = "both",
        digest: str | None = None,
    ) -> None:
        self._plan = plan
        self._policy_spec = plan.policy if policy is None else policy
        self._around = Around(cloud, _path(keys), _path(records), settings, power, device)
        self._side: Side = side
        self._digest = digest
        self._lock = threading.Lock()
        self._recent: deque[Record] = deque(maxlen=RECENT)
        self._running: Running | None = None
        self._closed = False
        self._policy, self._thresholds = ready_policy(self._policy_spec, plan.options, plan.evidence)

    # Answering ------------------------------------------------------------------------------------

    def __call__(self, x: Any, deadline: float | None = None, route: Route | str | None = None) -> Result:
        """Answer one request.

        Args:
            x: a batch as the example inputs were; NumPy arrays are taken too.
            deadline: seconds from now within which the answer is of use.
            route: force a route instead of asking the policy.

        Raises:
            CodecError: the input does not fit the model.
            RequestError: the request ended without an answer; the subclass says why.
        """
        return self._started().threaded.infer(x, deadline, _route(route))

    async def infer(self, x: Any, deadline: float | None = None, route: Route | str | None = None) -> Result:
        """As calling it, for callers with an event loop."""
        running = self._running
        if running is None:
            running = await asyncio.to_thread(self._started)
        job = running.threaded.runtime.infer(x, deadline, _route(route))
        return await asyncio.wrap_future(running.threaded.submit(job))

    def connect(self, timeout_s: float = 5.0) -> None:
        """Wait until the cloud is there; requests do not need it, but say less about why it is not.

        Raises:
            AuthenticationError: a key was refused, on either side.
            LinkError: the cloud does not serve this bundle, or is not there in time.
        """
        self._started().threaded.connected(timeout_s)

    @property
    def options(self) -> tuple[Option, ...]:
        """The ways to answer a request, as every policy sees them."""
        return self._plan.options

    @property
    def profile(self) -> Profile | None:
        """Seconds at every place the model could be cut, on the machine that made the plan."""
        return self._plan.profile

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know about this deployment: defaults that could not be used, and the like."""
        return tuple(self._plan.remarks)

    @property
    def records(self) -> tuple[Record, ...]:
        """One row a request, the last 10,000; `records=` of `deploy` and `load` keeps all in a file."""
        return tuple(self._recent)

    @property
    def policy(self) -> Policy:
        """The policy that decides."""
        return self._policy

    @property
    def thresholds(self) -> dict[int, Threshold]:
        """Confidence each exit needs, and why, where the policy goes by one and `fit` has run."""
        return dict(self._thresholds)

    @property
    def link(self) -> Link | None:
        """The link to the cloud; None before the first request, and where there is none."""
        running = self._running
        return None if running is None else running.link

    def outage(self, reason: str | None) -> None:
        """Play an outage of the in-process cloud: unplugged for `reason`, plugged in again by None.

        Raises:
            ConfigError: the cloud does not run in this process.
        """
        self._started().plug(reason)

    # Fitting and looking --------------------------------------------------------------------------

    def fit(
        self,
        train: Any,
        val: Any = None,
        *,
        epochs: int | None = None,
        seed: int = 0,
        progress: bool = True,
        budget_s: float | None = None,
        device: str = "auto",
        augment: Literal["auto", "none", "flip", "flip-crop"] | Augment = "auto",
        checkpoint: Path | str | None = None,
        schedule: Schedule | None = None,
        codec: CodecLike | None = None,
        filter: Filter | None = None,
        tail_data: Mapping[str, Any] | None = None,
    ) -> FitReport:
        """Train learned codecs, tails behind them, exits and filters; calibrate; measure every option.

        The model itself is not changed. Give validation rows that the model was not trained on: what is
        measured on others flatters.

        Args:
            train: (x, y), or batches of (x, y) such as a DataLoader; y are class numbers.
            val: likewise; None takes 30% of `train`.
            epochs: at most, for each learned codec and exit; None takes each one's own default.
            seed: the same seed, data and machine give the same weights.
            progress: show bars on standard error.
            budget_s: seconds after which the training of learned codecs is cut short; None for no limit,
                but with no `epochs` either a codec that nobody asked for gets a minute.
            device: that learned codecs are trained on; `auto` is `cuda` where there is one.
            augment: of the rows learned codecs are trained on (`learning.Schedule`).
            checkpoint: directory from which their training is resumed.
            schedule: all these in one, in their place.
            codec: a learned codec for every cut, in place of those that `deploy` was asked for.
            filter: for every cut: where it is sure that nothing is there, or that an exit is right, nothing
                is sent. None for none; one that was fitted before goes.
            tail_data: (x, y) as `train` for extra tails behind a learned codec, by name, y their own class
                numbers. A tail that is not named is taught by its original on the rows of `train`.

        Raises:
            ConfigError: too few rows, labels that do not fit, a model that is no classifier, training that
                diverged, a bundle that no longer holds the whole model, or a filter with nothing to
                answer by.
        """
        self._need("both", "fit")
        fields = Schedule(
            epochs=epochs,
            budget_s=budget_s,
            seed=seed,
            device=device,
            augment=augment,
            checkpoint=_path(checkpoint),
            progress=progress,
        )
        if schedule is not None and fields != Schedule():
            raise ConfigError("fit takes schedule= or its fields, not both")
        rows = self._gather(train, "train")
        held = None if val is None else self._gather(val, "val")
        self._stop()
        asked = self._plan if codec is None else with_codec(self._plan, choose(codec))
        others = {name: self._gather(x, f"tail_data['{name}']") for name, x in (tail_data or {}).items()}
        plan, report = fit_plan(asked, rows, held, schedule or fields, filter, others)
        self._plan = measured_again(plan, rows)
        self._digest = None
        self._policy, self._thresholds = ready_policy(
            self._policy_spec, self._plan.options, self._plan.evidence
        )
        return report

    def evaluate(self, data: Any, route: Route | str | None = None, *, sizes: bool = True) -> Evaluation:
        """Answer labelled rows by every option (or those of a route), with no link and no policy.

        Args:
            data: (x, y), or batches of (x, y).
            route: only options of this route.
            sizes: encode row by row, so that bytes are those of batch 1; slower.

        Raises:
            ConfigError: the data do not fit, or the model is no classifier.
        """
        self._need("both", "evaluate")
        return evaluate(self._plan, self._gather(data, "data"), _route(route), sizes=sizes)

    def explain(
        self, plot: Path | str | None = None, *, deadline: float = 0.1, rtt: float = 0.02, show: bool = True
    ) -> str:
        """Say (and draw) what crosses each cut, what each option costs, and which wins at which uplink.

        Args:
            plot: also draw it to this file.
            deadline, rtt: seconds that the policy is asked about.
            show: print the text as well as returning it.

        Raises:
            MissingExtra: a plot was asked for and matplotlib is not installed.
        """
        at = Conditions(deadline, rtt)
        text = explain_text(self._plan, self._policy, self._policy_name, at, self._thresholds)
        if plot is not None:
            from splitedge.explain_plot import draw

            draw(self._plan, self._policy, self._policy_name, at, plot)
        if show:
            print(text)  # noqa: T201 - what the caller asked for
        return text

    # Bundles --------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """Digest of the bundle this is, or would be if it were saved: 64 hex digits.

        Raises:
            BundleError: it can not be saved.
        """
        if self._digest is None:
            with tempfile.TemporaryDirectory(prefix="splitedge-") as directory:
                self._digest = save_plan(self._plan, Path(directory) / "bundle")
        return self._digest

    def save(self, directory: Path | str) -> str:
        """Write a bundle that `load`, `splitedge serve` and `splitedge edge` take; returns its digest.

        Raises:
            BundleError: a part can not be saved, or the directory holds something else.
        """
        self._need("both", "save")
        self._digest = save_plan(self._plan, directory)
        return self._digest

    @property
    def cloud_half(self) -> CloudSegments:
        """The cloud's half, as a server takes it."""
        if self._side == "edge":
            raise ConfigError("this is the edge's half of a bundle; load the cloud's with side='cloud'")
        return self._plan.cloud(self.digest)

    # Life -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let requests in flight end and stop everything. May be called twice; no call works after it."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> Running:
        running = self._running
        if running is not None:
            return running
        with self._lock:
            if self._closed:
                raise ConfigError("this deployment is closed")
            if self._side == "cloud":
                raise ConfigError("this is the cloud's half of a bundle: serve it; load side='edge' to ask")
            if self._running is None:
                self._running = Running(
                    self._plan,
                    self._policy,
                    self._around,
                    here=self._side == "both",
                    digest=lambda: self.digest,
                    on_record=self._recent.append,
                )
            return self._running

    def _stop(self) -> None:
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.close()

    # Small things ---------------------------------------------------------------------------------

    @property
    def _policy_name(self) -> str:
        return self._policy_spec if isinstance(self._policy_spec, str) else self._policy_spec.name

    def _gather(self, data: Any, what: str) -> LabelledRows:
        return gather(data, self._plan.inputs, what)

    def _need(self, side: Side, what: str) -> None:
        if self._side != side:
            raise BundleError(
                f"{what} needs both halves; this deployment was loaded with side='{self._side}'"
            )


def load(
    directory: Path | str,
    side: Side = "both",
    *,
    cloud: str | None = None,
    policy: str | Policy | None = None,
    keys: Path | str | None = None,
    records: Path | str | None = None,
    settings: EngineSettings | None = None,
    power: str = "none",
    device: str = "cpu",
    digest: str | None = None,
    black_box: BlackBoxSettings | None = None,
) -> Deployment | LanguageDeployment:
    """Load a bundle that `Deployment.save` or `LanguageDeployment.save` wrote.

    Args:
        directory: the bundle.
        side: `edge` loads head, exits and encoders (and needs `cloud` for any remote route); `cloud`
            tail and decoders, to be served; `both` everything.
        cloud: the server; None computes the cloud's half here where `side` is `both`.
        policy: another one than the bundle's.
        keys: key directory for a server on another machine.
        records: append one row a request to this file.
        settings: the engine's.
        power: name of the profile that joules are modelled with.
        device: where the model's halves in this process run: `cpu`, `cuda`, `cuda:1`, or `auto` for a GPU
            where there is one. A plan's seconds are those of the device it was measured on, the CPU.
        digest: refuse any other bundle than this one.
        black_box: of a language model: an OpenAI-compatible endpoint in place of our own cloud.

    Raises:
        BundleError: a file is missing, changed or foreign; the message names it.
        UnknownName: a codec or policy that is not installed here.
        ConfigError: an argument that a bundle of this kind does not take.
    """
    if sealed.kind(directory) == "language":
        from splitedge.llm.deployment import load_deployment

        foreign = {"policy": policy, "records": records, "settings": settings}
        given = [name for name, value in foreign.items() if value is not None]
        if given:
            raise ConfigError(f"a language model's bundle takes no {', '.join(given)}")
        return load_deployment(
            directory, side, cloud=cloud, keys=keys, power=power, digest=digest, device=device,
            black_box=black_box,
        )  # fmt: skip
    if black_box is not None:
        raise ConfigError("black_box is for the bundle of a language model")
    plan, found = load_plan(directory, side, digest=digest)
    return Deployment(
        plan,
        policy=policy,
        cloud=cloud,
        keys=keys,
        records=records,
        settings=settings,
        power=power,
        device=device,
        side=side,
        digest=found.digest,
    )


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


def _route(route: Route | str | None) -> Route | None:
    if route is None or isinstance(route, Route):
        return route
    try:
        return Route(route)
    except ValueError:
        raise ConfigError(f"no route '{route}'; there are {', '.join(r.value for r in Route)}") from None
