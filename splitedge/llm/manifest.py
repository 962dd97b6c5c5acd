"""A language plan as a bundle's manifest holds it: plain data, every field checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitedge.errors import BundleError, ConfigError
from splitedge.llm.aids import Aids
from splitedge.llm.exits import ExitReport, Signal, TrainedExits, Trust
from splitedge.llm.tokenizers import TokenizerEntry
from splitedge.llm.weights import MAX_DEPTH, ModelEntry
from splitedge.thresholds import Threshold

KIND = "language"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrustEntry(_Entry):
    """The fields of `exits.Trust`."""

    signal: Signal
    knots: list[float] = Field(max_length=1 << 20)
    values: list[float] = Field(max_length=1 << 20)
    rows: int


class LanguageExitEntry(_Entry):
    """A trained exit; its adapter lies in `edge/exits.safetensors` as `<number>.<name>`. The other fields
    are those of `exits.ExitReport` and `thresholds.Threshold`; null is NaN.
    """

    depth: int = Field(ge=1, le=MAX_DEPTH)
    width: int = Field(ge=1)
    trust: TrustEntry
    agreement: float
    calibration_error: float
    taken: float
    threshold: float
    reason: str
    rows: int
    coverage: float
    accuracy: float | None
    lower: float

    @classmethod
    def of(cls, exits: TrainedExits, number: int) -> LanguageExitEntry:
        """From the live exit."""
        trust, report = exits.trust[number], exits.reports[number]
        found = report.threshold
        return cls(
            depth=report.depth,
            width=int(exits.heads[number].adapter[1].out_features),  # type: ignore[arg-type]
            trust=TrustEntry(
                signal=trust.signal, knots=list(trust.knots), values=list(trust.values), rows=trust.rows
            ),
            agreement=report.agreement,
            calibration_error=report.calibration_error,
            taken=report.taken,
            threshold=float(found.value),
            reason=found.reason,
            rows=found.rows,
            coverage=found.coverage,
            accuracy=None if math.isnan(found.accuracy) else found.accuracy,
            lower=found.lower,
        )

    def make(self) -> tuple[Trust, ExitReport]:
        """The live objects."""
        t = self.trust
        if len(t.knots) != len(t.values) or not t.knots:
            raise BundleError("'manifest.json': an exit's calibration has no knots, or not as many values")
        accuracy = math.nan if self.accuracy is None else self.accuracy
        found = Threshold(self.threshold, self.reason, self.rows, self.coverage, accuracy, self.lower)
        report = ExitReport(self.depth, self.agreement, self.calibration_error, found, self.taken)
        return Trust(t.signal, tuple(t.knots), tuple(t.values), t.rows), report


class LanguageEntry(_Entry):
    """A language deployment. Fields are those of `LanguagePlan`.

    Attributes:
        kind: tells it from other bundles.
        model: the cloud's; its parts lie in `edge/model.safetensors` and `cloud/model.safetensors`.
        local: the device's own, in `edge/local.safetensors`.
        exits: trained ones; empty before `fit`.
        aids: as `Aids.to_json` gives them; null for none.
    """

    kind: Literal["language"]
    model: ModelEntry
    cut: int = Field(ge=0, le=MAX_DEPTH)
    codec: str
    depths: list[int] = Field(max_length=MAX_DEPTH)
    stops: list[int] = Field(max_length=4096)
    exits: list[LanguageExitEntry] = Field(max_length=MAX_DEPTH)
    local: ModelEntry | None
    tokenizer: TokenizerEntry
    kv_fill: Literal["exact", "propagate"] = "exact"
    aids: dict[str, Any] | None = None

    def made_aids(self) -> Aids:
        """The live aids."""
        try:
            return Aids() if self.aids is None else Aids.from_json(self.aids)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"'manifest.json': plan.aids: {error}") from None


def parse_language(plan: Mapping[str, Any]) -> LanguageEntry:
    """Check a manifest's plan.

    Raises:
        BundleError: a field is missing, foreign or of a wrong type; the message names it.
    """
    try:
        entry = LanguageEntry.model_validate(dict(plan))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"'manifest.json': plan.{where}: {first['msg']}") from None
    if entry.cut > entry.model.depth:
        raise BundleError(f"'manifest.json': a cut at {entry.cut} of {entry.model.depth} blocks")
    if any(not 1 <= depth <= entry.cut for depth in entry.depths):
        raise BundleError(f"'manifest.json': exits at {entry.depths}, and the device runs {entry.cut} blocks")
    if entry.exits and [exit_.depth for exit_ in entry.exits] != entry.depths:
        raise BundleError("'manifest.json': the exits are not those of 'depths'")
    return entry
