"""Ways in which a device and a cloud write one text together, each with its contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from splitedge.errors import ConfigError
from splitedge.llm.draft_tables import ENTRY, HEAD, MAX_TABLE
from splitedge.wire import MAX_TABLES


class Mode(StrEnum):
    """Who decides the tokens.

    - `local`: the device's model alone.
    - `cloud_stream`: the cloud's model exactly; it is asked once and streams.
    - `spec`: the device drafts, the cloud verifies several tokens a round. Lossless: the cloud's model
      exactly, greedy or sampled; by the rule `rejection` its law, not its draws (see `Rule`).
    - `split`: the head runs here, the tail there, every token crosses. The whole model exactly with a
      lossless payload, within the codec's error else.
    - `exit`: an exit of the head answers where it is confident, else the cloud does (CE-CoLLM, ICWS 2025).
      Lossy: each token of the cloud is exact given what stands before it.
    - `assist`: the local model answers where a gate trusts it, else the cloud gives a burst of tokens.
      Lossy likewise.
    """

    LOCAL = "local"
    STREAM = "cloud_stream"
    SPEC = "spec"
    SPLIT = "split"
    EXIT = "exit"
    ASSIST = "assist"

    @property
    def lossless(self) -> bool:
        """Whether the text is that of the cloud's model, token for token (with a lossless payload)."""
        return self in (Mode.STREAM, Mode.SPEC, Mode.SPLIT)

    @property
    def proposes(self) -> bool:
        """Whether the device's model chooses tokens while the link is up."""
        return self not in (Mode.STREAM, Mode.SPLIT)


#: How drafts of a sampled text are verified (`spec`).
#:
#: - `coupling`: both sides draw by the same noise (shared-seed Gumbel); a draft is right where the draws
#:   agree. The text is the one that the cloud's model writes with this seed, token for token.
#: - `rejection`: a draft x that was drawn from q is kept with probability min(1, p(x) / q(x)), else replaced
#:   by a draw from (p - q)+ (Leviathan et al., ICML 2023). Lossless in distribution: each text is as likely
#:   as under the cloud's model, and with one seed it is another text than `cloud_stream` writes, and with
#:   other `drafts` or `max_tokens` yet another. More drafts are kept (sum of min(p, q), the most that any
#:   rule can); q goes up with them.
#:
#: Greedy, the two are one.
Rule = Literal["coupling", "rejection"]
#: What happens while the cloud is out of reach.
OnLoss = Literal["wait", "local"]
MAX_DRAFTS = 64


def mode_named(name: str) -> Mode:
    """The mode of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in list(Mode):
        raise ConfigError(f"there is no mode '{name}'; there are auto, route, cascade, {', '.join(Mode)}")
    return Mode(name)


@dataclass(frozen=True, slots=True)
class Way:
    """A mode with its numbers.

    Attributes:
        mode: who decides.
        drafts: most tokens drafted a round (`spec`).
        adapt: stop drafting where the next draft costs more than it is expected to bring. Not by the rule
            `rejection`, whose rounds are always full: there what is drawn depends on where a round ends, and
            the text shall not depend on how long things took.
        rule: how drafts are verified (`spec`).
        table: tokens that a draft is drawn from at most, by the rule `rejection`: 2 + 6 bytes of uplink
            for each.
        thresholds: confidence from which the device's token is taken (`exit`, `assist`): by exit, -1 for the
            whole local model; missing is never.
        burst: tokens asked of the cloud at a time (`exit`, `assist`).
        eager: send the tokens that the device decides as they come, so that the cloud has computed them when
            it is asked (`exit`, `assist`); else they go with the next ask. A prompt goes at once always.
        keeps_told: whether the cloud goes on from tokens it told by itself; not where it is sent hidden
            states, which it can not make.
        on_loss: `wait` for the link, or go on by the device's model (`local`: those tokens are marked).
    """

    mode: Mode = Mode.STREAM
    drafts: int = 4
    adapt: bool = True
    thresholds: dict[int, float] = field(default_factory=dict)
    burst: int = 1
    eager: bool = False
    keeps_told: bool = True
    on_loss: OnLoss = "wait"
    rule: Rule = "coupling"
    table: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.drafts <= MAX_DRAFTS:
            raise ConfigError(f"drafts must be 1 to {MAX_DRAFTS}, got {self.drafts}")
        if not 1 <= self.burst <= 1024:
            raise ConfigError(f"burst must be 1 to 1024 tokens, got {self.burst}")
        if self.burst > 1 and not self.keeps_told:
            raise ConfigError("a burst needs a cloud that holds the whole model, not its tail alone")
        if self.on_loss not in ("wait", "local"):
            raise ConfigError(f"on_loss is 'wait' or 'local', got '{self.on_loss}'")
        if self.rule not in ("coupling", "rejection"):
            raise ConfigError(f"rule is 'coupling' or 'rejection', got '{self.rule}'")
        if not 1 <= self.table <= MAX_TABLE:
            raise ConfigError(f"table must be 1 to {MAX_TABLE} tokens, got {self.table}")
        if self.rejects and self.drafts * (HEAD + ENTRY * self.table) > MAX_TABLES:
            raise ConfigError(
                f"{self.drafts} drafts with tables of {self.table} tokens take more than {MAX_TABLES} bytes: "
                "lower drafts or table"
            )

    @property
    def rejects(self) -> bool:
        """Whether drafts are verified by rejection sampling."""
        return self.mode is Mode.SPEC and self.rule == "rejection"

    @property
    def lossless(self) -> bool:
        """Whether the text is that of the cloud's model, token for token (with a lossless payload)."""
        return self.mode.lossless and not self.rejects

    def trusts(self, exit: int, confidence: float) -> bool:
        """Whether a token of the device is taken without the cloud; a confidence that is NaN never is."""
        if self.mode is Mode.LOCAL:
            return True
        return confidence >= self.thresholds.get(exit, float("inf"))


@dataclass(frozen=True, slots=True)
class Pace:
    """What the draft length is weighed by, seconds: of one draft, of a round with the cloud besides drafting,
    and the acceptance rate so far.
    """

    draft_s: float = 0.01
    round_s: float = 0.1
    acceptance: float = 0.7


def goes_on(pace: Pace, confidences: list[float]) -> bool:
    """Whether another draft is worth its time.

    It is while its cost for each token that it is expected to add is below the average so far:
    draft_s / S(k+1) < (k draft_s + round_s) / (1 + S(1) + ... + S(k)), with S(i) the probability that the
    first i drafts are all right. The draft length then grows with the logarithm of the round trip only.

    Args:
        pace: what things cost.
        confidences: of the drafts so far, NaN for unknown.
    """
    survival, expected = 1.0, 1.0
    for confidence in confidences:
        survival *= confidence if confidence == confidence else pace.acceptance
        expected += survival
    following = survival * pace.acceptance
    if following <= 0.0:
        return False
    return pace.draft_s / following < (len(confidences) * pace.draft_s + pace.round_s) / expected
