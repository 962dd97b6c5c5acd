"""What goes into a generation (events) and what comes out (actions). Plain data, no behaviour.

A generation has no clock, socket or thread: a shell (the edge daemon, the simulator, a test) feeds it events
with the time and carries out the actions. All seconds are those of the shell's one clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from splitedge.errors import LinkError, RequestError
from splitedge.llm.logprobs import LogProbs

# Events ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Proposed:
    """The device's model chose what comes after the ids of a `Compute`.

    Attributes:
        after: how many ids it saw; a proposal for others than those asked for is dropped.
        token: its choice, drawn as the request says.
        confidence: calibrated probability that the cloud would choose the same; NaN where nobody knows.
        exit: number of the exit that chose; -1 for the whole local model.
        seconds: computed.
        table: law that the token was drawn from (`draft_tables`), where drafts are judged by rejection.
    """

    after: int
    token: int
    confidence: float
    exit: int = -1
    seconds: float = 0.0
    table: bytes = b""


@dataclass(frozen=True, slots=True)
class Told:
    """Tokens came from the cloud; the fields are those of `wire.Tell`.

    Attributes:
        ask: number of the ask it answers.
        start: number of the first token, counted from the beginning of the context.
        tokens: ids.
        accepted: drafts of the ask that were right.
        last: whether the ask is answered with this.
        nbytes: framed bytes received.
        compute_s: the cloud's.
        logprobs: of the accepted drafts and these tokens, where they were asked for.
    """

    ask: int
    start: int
    tokens: tuple[int, ...]
    accepted: int = 0
    last: bool = True
    nbytes: int = 0
    compute_s: float = 0.0
    logprobs: tuple[LogProbs, ...] = ()


@dataclass(frozen=True, slots=True)
class Needed:
    """The cloud holds only the first `held` tokens of this context (it restarted, or had no room)."""

    ask: int
    held: int


@dataclass(frozen=True, slots=True)
class Denied:
    """The cloud did not answer an ask: it has no room for `retry_after_s`, or it failed (`error`)."""

    ask: int
    retry_after_s: float = 0.0
    error: RequestError | LinkError | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """An ask was handed to the transport; `nbytes` framed bytes."""

    ask: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Link:
    """The connection to the cloud came up or went down."""

    up: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """`Generation.wake_at` has come."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The caller went away."""


@dataclass(frozen=True, slots=True)
class Enough:
    """The text ends here: the caller's stop string came, or the cloud says that it is complete."""


Event = Proposed | Told | Needed | Denied | Sent | Link | Tick | Cancelled | Enough

# Actions --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Compute:
    """Let the device's model choose what comes after `ids`; report `Proposed`. One at a time."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Ask the cloud (`wire.Ask`): it keeps the first `start` tokens and takes `ids`.

    Attributes:
        ask: number of this ask; a repeated one has the same, and a higher `attempt`.
        ids: tokens from `start` on, the drafts included.
        drafts: how many at the end are drafts.
        want: tokens asked for behind them.
        tables: laws that the drafts were drawn from, one behind another; empty for the coupling.
    """

    ask: int
    attempt: int
    epoch: int
    start: int
    ids: tuple[int, ...]
    drafts: int
    want: int
    tables: bytes = b""


@dataclass(frozen=True, slots=True)
class Emit:
    """Give the caller these tokens: they are final.

    Attributes:
        tokens: ids.
        sources: where each came from: `local`, `exit:1`, `draft` (the device's, found right), `cloud`.
    """

    tokens: tuple[int, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """The text is complete: `stop` (an end token or the caller's stop) or `length`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The text can not be completed; what was emitted stays right."""

    error: RequestError | LinkError


Action = Compute | Send | Emit | Finish | Fail
