"""Compare a captured program with the model it came from, and with itself on other batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from splitedge.capture import Captured, FixedBatch, evaluating, repeated
from splitedge.codec import TensorSpec
from splitedge.errors import PartitionError
from splitedge.lower import WAY_OUT
from splitedge.program import Program
from splitedge.structure import Structure, as_call, describe, restore

CHECKED_ROWS = (1, 3)


def verify(
    model: nn.Module, program: Program, captured: Captured, inputs: Structure, example_inputs: Any
) -> None:
    """Compare program and model on the example, at one and at three rows where the batch is dynamic.

    Raises:
        FixedBatch: the model fails at one or at three rows.
        PartitionError: they differ; the model does something that capture can not see.
    """
    for rows in CHECKED_ROWS if captured.batch is not None else (captured.rows,):
        some = _rows(inputs.specs, example_inputs, captured.rows, rows)
        args, kwargs = as_call(restore(captured.inputs, some))
        with evaluating(model):
            try:
                tree, expected = describe(model(*args, **kwargs))
            except Exception as error:
                raise FixedBatch(f"the model fails on {rows} rows: {error}; {WAY_OUT}") from error
            same = tree == captured.outputs and all(map(_agree, expected, program(*some)))
        if not same:
            raise PartitionError(
                f"the captured program and the model differ on {rows} of the example's rows: the model "
                "does something that capture can not see (Python state, a branch on the batch size, "
                f"random numbers); {WAY_OUT}"
            )


def rows_are_independent(
    program: Program, captured: Captured, inputs: Structure, outputs: Structure, example_inputs: Any
) -> bool:
    """Whether a row's answer stays the same among other rows, tried on the example.

    The other rows are made of the first one's numbers, so that they differ and are as valid.
    """
    if captured.batch is None:
        return False
    alone = _rows(inputs.specs, example_inputs, captured.rows, 1)
    several = _rows(inputs.specs, alone, 1, 3)
    mixed = [
        _unlike(t) if spec.batch_dim is not None else t for t, spec in zip(several, inputs.specs, strict=True)
    ]
    with torch.no_grad():
        pairs = zip(program(*alone), program(*mixed), outputs.specs, strict=True)
        return all(_agree(one, _first_row(three, spec)) for one, three, spec in pairs)


def _rows(specs: Sequence[TensorSpec], value: Any, have: int, want: int) -> list[torch.Tensor]:
    return repeated(describe(value)[1], [s.batch_dim is not None for s in specs], have, want)


def _unlike(tensor: torch.Tensor) -> torch.Tensor:
    """Row i holds the first (i + 1)-th part of its numbers over and over: other statistics, same range."""
    rows = []
    for i, row in enumerate(tensor):
        part = row.flatten()[: -(-row.numel() // (i + 1))]
        single = row.numel() == 1 and row.is_floating_point()
        filled = part.repeat(i + 1)[: row.numel()].roll(i)
        rows.append(row / (i + 1) if single else filled.reshape(row.shape))
    return torch.stack(rows)


def _first_row(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    if spec.batch_dim is None:
        return tensor
    return tensor.narrow(spec.batch_dim, 0, spec.shape[spec.batch_dim])


def _agree(expected: torch.Tensor, got: torch.Tensor) -> bool:
    """Equal but for rounding: other batch sizes may use other kernels."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, got)
    scale = expected.abs().nan_to_num(0.0, 0.0, 0.0).amax().item() if expected.numel() else 0.0
    tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 2e-2
    return torch.allclose(expected, got, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
