"""Labelled rows from whatever a caller holds: arrays, tensors, or any iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from splitedge.codec import DTYPES, Tensors, TensorSpec
from splitedge.errors import CodecError, ConfigError
from splitedge.structure import Structure


def as_flat(value: Any, structure: Structure) -> Tensors:
    """Flat tensors of a caller's input, NumPy arrays taken as tensors of the model's own dtype.

    Raises:
        CodecError: the value nests in another way than the model's input.
    """
    if not _has_array(value):
        return structure.flatten(value)
    flat = structure.flatten(_to_tensors(value))
    return tuple(_cast(t, spec) for t, spec in zip(flat, structure.specs, strict=True))


def _has_array(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_array(child) for child in value.values())
    if isinstance(value, tuple | list):
        return any(_has_array(child) for child in value)
    return isinstance(value, np.ndarray)


def _to_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_tensors(child) for key, child in value.items()}
    if isinstance(value, tuple | list):
        return [_to_tensors(child) for child in value]
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _cast(tensor: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """NumPy makes float64 and int64 by default; only the width is changed, never the kind."""
    wanted = DTYPES[spec.dtype]
    same_kind = tensor.is_floating_point() == wanted.is_floating_point and tensor.dtype is not torch.bool
    return tensor.to(wanted) if same_kind and wanted is not torch.bool else tensor


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Flat input tensors of many rows with the right class of each.

    Attributes:
        inputs: one batch of all rows, on the CPU.
        labels: shape (rows,), int64.
        dims: batch dimension of each input, None for one that all rows share.
    """

    inputs: Tensors
    labels: torch.Tensor
    dims: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: torch.Tensor) -> LabelledRows:
        """Some of the rows, in the order of `index`."""
        chosen = tuple(
            t if dim is None else t.index_select(dim, index)
            for t, dim in zip(self.inputs, self.dims, strict=True)
        )
        return LabelledRows(chosen, self.labels[index], self.dims)

    def first(self, count: int) -> LabelledRows:
        """The first rows."""
        return self.take(torch.arange(min(count, len(self))))

    def divide(self, part: float, seed: int) -> tuple[LabelledRows, LabelledRows]:
        """Two disjoint parts, drawn at random; the second has `part` of the rows.

        Raises:
            ConfigError: one of the two would be empty.
        """
        count = round(part * len(self))
        if not 0 < count < len(self):
            raise ConfigError(f"{len(self)} rows are too few to divide into {part:.0%} and the rest")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[count:]), self.take(order[:count])

    def batches(self, size: int) -> Iterator[LabelledRows]:
        """In order, at most `size` rows each."""
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self))))


def gather(data: Any, structure: Structure, what: str) -> LabelledRows:
    """All rows of `data`, checked against the model's input.

    Args:
        data: a pair (x, y), or an iterable of such pairs (a DataLoader, say); x as the model takes it.
        structure: of the model's input.
        what: how errors call the data.

    Raises:
        ConfigError: no rows, labels that are no class numbers, or inputs that do not fit the model.
    """
    pairs: Iterable[Any] = [data] if _is_pair(data) else data
    parts = [_part(pair, structure, what) for pair in pairs]
    if not parts or not sum(len(part) for part in parts):
        raise ConfigError(f"{what} holds no rows")
    dims = parts[0].dims
    inputs = tuple(
        parts[0].inputs[i] if dim is None else torch.cat([part.inputs[i] for part in parts], dim)
        for i, dim in enumerate(dims)
    )
    return LabelledRows(inputs, torch.cat([part.labels for part in parts]), dims)


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and not isinstance(data[1], tuple | list | Mapping)


def _part(pair: Any, structure: Structure, what: str) -> LabelledRows:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ConfigError(f"{what}: give (x, y), or batches of (x, y); a batch was {type(pair).__name__}")
    labels = torch.as_tensor(pair[1]).detach().cpu()
    if labels.dim() != 1 or labels.is_floating_point() or labels.dtype is torch.bool:
        raise ConfigError(
            f"{what}: labels are class numbers of shape (rows,), got {labels.dtype} {tuple(labels.shape)}"
        )
    try:
        inputs = tuple(t.detach().cpu() for t in as_flat(pair[0], structure))
        rows = structure.rows(inputs)
    except CodecError as error:
        raise ConfigError(f"{what}: the inputs do not fit the model: {error}") from None
    if rows != len(labels):
        raise ConfigError(f"{what}: {rows} rows of inputs and {len(labels)} labels")
    dims = tuple(spec.batch_dim for spec in structure.specs)
    return LabelledRows(inputs, labels.long(), dims)
