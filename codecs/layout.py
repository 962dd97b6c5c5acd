"""How a tensor lies in a body: a leading axis of entries, then channels, then the values of a channel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from splitedge.codec import DTYPES, TensorSpec
from splitedge.errors import CodecError

Bytes = npt.NDArray[np.uint8]

# Below this many values a channel's own range costs more than it gains: one range a row then.
MIN_VALUES_PER_RANGE = 32


class Layout:
    """The geometry of one tensor of a spec, its batch dimension first.

    Attributes:
        spec: the tensor's spec.
        dtype: its torch dtype.
        entries: length of the leading axis for one row (more than 1 where rows are folded windows).
        channels: static ranges the tensor has (the first dimension behind the batch).
        inner: values of one channel of one entry.
        ranges: ranges an entry carries when it brings its own: one a channel, or one in all.
    """

    def __init__(self, spec: TensorSpec) -> None:
        if spec.dtype not in DTYPES:
            raise CodecError(f"dtype '{spec.dtype}' is not supported; use one of {', '.join(DTYPES)}")
        self.spec = spec
        self.dtype = DTYPES[spec.dtype]
        d = spec.batch_dim
        rest = spec.shape if d is None else (*spec.shape[:d], *spec.shape[d + 1 :])
        self._rest = rest
        self.entries = 1 if d is None else spec.shape[d]
        self.channels = rest[0] if rest else 1
        self.inner = math.prod(rest[1:])
        self.ranges = self.channels if self.inner >= MIN_VALUES_PER_RANGE else 1

    def entries_at(self, rows: int) -> int:
        """Length of the leading axis at a number of rows."""
        return self.entries if self.spec.batch_dim is None else self.entries * rows

    def values(self, rows: int) -> int:
        """Values in a batch."""
        return self.spec.numel(rows)

    def front(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the CPU, contiguous, its batch dimension first."""
        tensor = tensor.detach().cpu()
        if self.spec.batch_dim:
            tensor = tensor.movedim(self.spec.batch_dim, 0)
        return tensor.contiguous()

    def new(self, rows: int) -> torch.Tensor:
        """An empty tensor for a batch, batch dimension first; `back` gives it its own shape."""
        if self.spec.batch_dim is None:
            return torch.empty(self.spec.shape, dtype=self.dtype)
        return torch.empty((self.entries * rows, *self._rest), dtype=self.dtype)

    def back(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor from `new` in the spec's own order of dimensions."""
        if self.spec.batch_dim:
            return tensor.movedim(0, self.spec.batch_dim).contiguous()
        return tensor


def bytes_of(tensor: torch.Tensor) -> Bytes:
    """The memory of a contiguous CPU tensor as bytes, not copied (little-endian, as all we run on)."""
    view: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return view  # type: ignore[no-any-return]


def write_bytes(layout: Layout, tensor: torch.Tensor) -> Bytes:
    """A tensor's values as they are."""
    return bytes_of(layout.front(tensor))


def read_bytes(layout: Layout, raw: memoryview, rows: int) -> torch.Tensor:
    """A tensor from its values as they are; `raw` has exactly its length.

    Raises:
        CodecError: a byte of a bool tensor is neither 0 nor 1.
    """
    tensor = layout.new(rows)
    into = bytes_of(tensor)
    into[:] = np.frombuffer(raw, np.uint8)
    if layout.dtype is torch.bool and into.size and into.max() > 1:
        raise CodecError("a bool tensor holds bytes other than 0 and 1")
    return layout.back(tensor)


class Reader:
    """Takes sections off the front of a body and minds that all of it is used."""

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return self._body.nbytes - self._at

    def take(self, n: int, what: str) -> memoryview:
        """The next `n` bytes.

        Raises:
            CodecError: there are fewer.
        """
        if n > self.left:
            raise CodecError(f"body ends early: {what} needs {n} bytes, {self.left} are left")
        self._at += n
        return self._body[self._at - n : self._at]

    def close(self) -> None:
        """Check that nothing is left.

        Raises:
            CodecError: bytes are left over.
        """
        if self.left:
            raise CodecError(f"{self.left} bytes are left over behind the last tensor")
