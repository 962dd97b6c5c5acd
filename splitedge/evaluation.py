"""What every option of a plan answers on labelled rows: right or wrong, how sure, at how many bytes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter

from splitedge.codec import MAX_ROWS, Codec, Tensors
from splitedge.costs import framed_up, split_rows
from splitedge.errors import ConfigError, RecordError
from splitedge.features import features_of
from splitedge.gating import spare
from splitedge.plan import Plan
from splitedge.policy import Gate, Option, Route
from splitedge.rows import LabelledRows
from splitedge.segments import Evidence, confidence_of
from splitedge.thresholds import Floats

BATCH = 64
_TABLE = TypeAdapter(tuple[Option, ...])
_EVIDENCE = TypeAdapter(dict[int, Evidence])


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One column a row of data, one line an option; no link and no policy take part, an option's filter does.

    Attributes:
        options: names, as in the option table.
        correct: whether the answer is right, bool (options, rows).
        confidence: calibrated probability of that, float (options, rows).
        nbytes: framed bytes sent for the row alone, float (options, rows); 0 where nothing is sent,
            NaN where not measured.
        labels: right classes, (rows,).
        table: the options with what they cost, in the same order: with it the evaluation is all that the
            simulator needs of a deployment.
        evidence: what each exit said on validation rows, by its number, from which policies that go by
            confidence take their thresholds; empty before `fit`.
        features: cheap numbers of each row's input, float32 (rows, F), as a policy that `wants_features`
            sees them (`features.NAMES`); None in files from before there were any.
    """

    options: tuple[str, ...]
    correct: npt.NDArray[np.bool_]
    confidence: Floats
    nbytes: Floats
    labels: npt.NDArray[np.int64]
    table: tuple[Option, ...] = ()
    evidence: Mapping[int, Evidence] = field(default_factory=dict)
    features: npt.NDArray[np.float32] | None = None

    @property
    def accuracy(self) -> dict[str, float]:
        """Part of the rows answered right, by option."""
        return {name: float(self.correct[i].mean()) for i, name in enumerate(self.options)}

    def save(self, path: Path | str) -> None:
        """Write all arrays to an `.npz` (no pickle inside)."""
        features: dict[str, Any] = {} if self.features is None else {"features": self.features}
        np.savez_compressed(
            path,
            options=np.array(self.options),
            correct=self.correct,
            confidence=self.confidence,
            nbytes=self.nbytes,
            labels=self.labels,
            table=np.array(_TABLE.dump_json(self.table).decode()),
            evidence=np.array(_EVIDENCE.dump_json(dict(self.evidence)).decode()),
            **features,
        )

    @classmethod
    def load(cls, path: Path | str) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            RecordError: the file is missing, damaged or something else.
        """
        evidence: dict[int, Evidence] = {}
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as data:
                names = tuple(str(name) for name in data["options"])
                table = _TABLE.validate_json(str(data["table"])) if "table" in data else ()
                if "evidence" in data:
                    evidence = _EVIDENCE.validate_json(str(data["evidence"]))
                found = cls(
                    names,
                    data["correct"],
                    data["confidence"],
                    data["nbytes"],
                    data["labels"],
                    table,
                    evidence,
                    data.get("features"),
                )
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise RecordError(f"{path} is no evaluation that can be read: {error}") from error
        shape = (len(names), len(found.labels))
        if not found.correct.shape == found.confidence.shape == found.nbytes.shape == shape:
            raise RecordError(f"{path}: its arrays do not agree on {shape[0]} options and {shape[1]} rows")
        extra = found.features
        if extra is not None and (extra.ndim != 2 or len(extra) != shape[1]):
            raise RecordError(f"{path}: features of shape {extra.shape} for {shape[1]} rows")
        if table and tuple(option.name for option in table) != names:
            raise RecordError(f"{path}: its option table is not that of its answers ({', '.join(names)})")
        return found

    def __str__(self) -> str:
        width = max(len(name) for name in self.options)
        lines = [f"{'option':<{width}}  accuracy  mean confidence  mean bytes up"]
        for i, name in enumerate(self.options):
            sent = self.nbytes[i].mean()
            sure = self.confidence[i].mean()
            right = f"{self.correct[i].mean():>8.1%}"
            lines.append(f"{name:<{width}}  {right}  {_or_dash(sure, '15.3f')}  {_or_dash(sent, '13.0f')}")
        return "\n".join([*lines, f"{len(self.labels)} rows"])


def _or_dash(value: float, form: str) -> str:
    return f"{'-':>{form.split('.')[0]}}" if np.isnan(value) else f"{value:{form}}"


def evaluate(plan: Plan, rows: LabelledRows, route: Route | None = None, *, sizes: bool = True) -> Evaluation:
    """Answer every row by every option.

    Args:
        plan: with all its segments.
        rows: to answer.
        route: only the options of this route.
        sizes: encode row by row, so that bytes are those of batch 1; slower.

    Raises:
        ConfigError: the model is no classifier, or no option has the route.
    """
    chosen = [option for option in plan.options if route in (None, option.route)]
    if not chosen:
        raise ConfigError(f"no option of this deployment has the route '{route}'")
    if plan.answers.logits is None:
        raise ConfigError("accuracy is defined for classifiers: one output of logits, or one named 'logits'")
    parts = [_answer(plan, batch, chosen, sizes) for batch in rows.batches(BATCH if plan.batchable else 1)]
    correct, confidence, nbytes = (np.concatenate([part[i] for part in parts], axis=1) for i in range(3))
    names = tuple(option.name for option in chosen)
    return Evaluation(
        names,
        correct.astype(bool),
        confidence,
        nbytes,
        rows.labels.numpy(),
        tuple(chosen),
        plan.evidence,
        np.concatenate([features_of(batch.inputs, batch.dims) for batch in rows.batches(BATCH)]),
    )


def _answer(
    plan: Plan, batch: LabelledRows, options: list[Option], sizes: bool
) -> tuple[npt.NDArray[Any], Floats, Floats]:
    """(correct, confidence, bytes) of one batch, each of shape (options, rows)."""
    shape = len(options), len(batch)
    correct, confidence, nbytes = np.zeros(shape, bool), np.zeros(shape), np.zeros(shape)
    with torch.inference_mode():
        reached = boundaries_of(plan, batch.inputs, plan.edge_end)
        for i, option in enumerate(options):
            logits, confidence[i], nbytes[i] = answer_by(plan, option, batch.inputs, reached, sizes)
            correct[i] = (logits.argmax(1) == batch.labels).numpy()
    return correct, confidence, nbytes


def boundaries_of(plan: Plan, inputs: Tensors, last: int | None = None) -> list[Tensors]:
    """The tensors of a batch at every boundary up to `last`; None goes on to the model's output."""
    reached = [inputs]
    for i in range(len(plan.boundaries) if last is None else last):
        reached.append(tuple(plan.segments[i](*reached[-1])))
    return reached


def answer_by(
    plan: Plan, option: Option, inputs: Tensors, reached: list[Tensors], sizes: bool
) -> tuple[torch.Tensor, Floats, Floats | float]:
    """Logits, confidence and bytes of a batch by one option."""
    at = plan.answers.logits
    assert at is not None
    if option.route is Route.LOCAL and plan.local is not None:
        logits = plan.local.segment(*inputs)[at]
        return logits, confidence_of(logits, plan.local.scale), 0.0
    if option.route is Route.EXIT and option.exit is not None:
        head = plan.exits[option.exit]
        (logits,) = head.segment(*reached[head.boundary])
        return logits, confidence_of(logits, head.scale), 0.0
    boundary = plan.boundaries_by_name()[option.cut or ""]
    source = plan.source(boundary)
    codec = plan.codecs[boundary]
    unpacked, nbytes = _through(codec, option.level, reached[source], sizes)
    tensors = answered(plan, boundary, codec.expand(unpacked))
    logits, confidence = tensors[at], confidence_of(tensors[at], plan.answers.scale_of(option))
    if option.gate is None:
        return logits, confidence, nbytes
    kept, theirs, sure = _unsent(plan, boundary, option.gate, unpacked, reached)
    logits = torch.where(torch.from_numpy(kept)[:, None], theirs, logits)
    return logits, np.where(kept, sure, confidence), np.where(kept, 0.0, nbytes)


def _unsent(
    plan: Plan, boundary: int, gate: Gate, unpacked: Tensors, reached: list[Tensors]
) -> tuple[npt.NDArray[np.bool_], torch.Tensor, Floats]:
    """Which rows of a batch a filter keeps from being sent, what it answers, and how sure it is."""
    logits = None
    if gate.exit is not None:
        head = plan.exits[gate.exit]
        (logits,) = head.segment(*reached[head.boundary])
    sure = spare(plan.filters[boundary], plan.codecs[boundary].unpacked_specs, unpacked, logits)
    return sure >= gate.threshold, plan.answers.unsent(gate, sure, logits), sure


def answered(plan: Plan, boundary: int, decoded: Tensors) -> Tensors:
    """The model's flat output from what the codec of a cut has decoded."""
    if plan.codecs[boundary].gives == "cut":
        for i in range(boundary, len(plan.boundaries)):
            decoded = tuple(plan.segments[i](*decoded))
    return decoded


def _through(codec: Codec, level: int, tensors: Tensors, sizes: bool) -> tuple[Tensors, Floats | float]:
    """What the cloud unpacks of a batch; the bytes are NaN unless it is done row by row."""
    if not sizes:
        return codec.unpack(codec.encode(tensors, level)), np.nan
    payloads = [codec.encode(row, level) for row in split_rows(tensors, codec.read_specs, most=MAX_ROWS)]
    decoded = [codec.unpack(payload) for payload in payloads]
    joined = tuple(
        decoded[0][i] if spec.batch_dim is None else torch.cat([one[i] for one in decoded], spec.batch_dim)
        for i, spec in enumerate(codec.unpacked_specs)
    )
    return joined, np.array([float(framed_up(payload.data)) for payload in payloads])
