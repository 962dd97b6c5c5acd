"""Hidden states as rows of bytes: each token's on its own, so that a context can grow and be cropped.

What crosses the cut for one token is a row of fixed size. A token's id is four bytes; these are for where
the cloud must not, or need not, run the head. A row says much of its token: see `splitedge llm leakage`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from splitedge.errors import CodecError, ConfigError
from splitedge.llm.cloud_model import StateCodec

__all__ = [
    "STATE_CODECS",
    "Fp16States",
    "Fp32States",
    "Int4States",
    "Int8States",
    "StateCodec",
    "state_codec",
]

GROUP = 16


class _Rows:
    """What all of them check."""

    name: ClassVar[str]

    def __init__(self, hidden: int) -> None:
        if hidden < 1:
            raise ConfigError(f"hidden states of {hidden} values")
        self.hidden = hidden

    @property
    def width(self) -> int:
        """Bytes of a row."""
        raise NotImplementedError

    def _states(self, states: torch.Tensor) -> npt.NDArray[Any]:
        if states.ndim != 2 or states.shape[1] != self.hidden:
            raise CodecError(f"{self.name} takes (tokens, {self.hidden}), got {tuple(states.shape)}")
        values = states.detach().float().cpu().numpy()
        if not np.isfinite(values).all():
            raise CodecError("hidden states that are not finite can not be sent")
        return values

    def _table(self, rows: bytes | memoryview) -> npt.NDArray[Any]:
        data = np.frombuffer(rows, np.uint8)
        if not len(data) or len(data) % self.width:
            raise CodecError(f"rows of {self.name} have {self.width} bytes each, got {len(data)}")
        return data.reshape(-1, self.width)


def _finite(values: npt.NDArray[Any], name: str) -> torch.Tensor:
    if not np.isfinite(values).all():
        raise CodecError(f"rows of {name} hold values that are not finite")
    return torch.from_numpy(values.astype(np.float32))


class Fp32States(_Rows):
    """Bit for bit: 4 bytes a value."""

    name = "fp32"

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return 4 * self.hidden

    def encode(self, states: torch.Tensor) -> bytes:
        """float32 (tokens, hidden) to rows."""
        return self._states(states).astype("<f4").tobytes()

    def decode(self, rows: bytes | memoryview) -> torch.Tensor:
        """Rows to float32 (tokens, hidden)."""
        return _finite(self._table(rows).view("<f4"), self.name)


class Fp16States(_Rows):
    """2 bytes a value; values over 65,504 are refused."""

    name = "fp16"

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return 2 * self.hidden

    def encode(self, states: torch.Tensor) -> bytes:
        """float32 (tokens, hidden) to rows."""
        values = self._states(states)
        if np.abs(values).max(initial=0.0) > 65504.0:
            raise CodecError("hidden states are too large for fp16; take fp32 or int8")
        return values.astype("<f2").tobytes()

    def decode(self, rows: bytes | memoryview) -> torch.Tensor:
        """Rows to float32 (tokens, hidden)."""
        return _finite(self._table(rows).view("<f2").astype(np.float32), self.name)


class Int8States(_Rows):
    """1 byte a value and one scale (float32) a token: codes -127 to 127 of its greatest magnitude."""

    name = "int8"

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self.hidden + 4

    def encode(self, states: torch.Tensor) -> bytes:
        """float32 (tokens, hidden) to rows."""
        values = self._states(states)
        scale = np.maximum(np.abs(values).max(axis=1, keepdims=True) / 127.0, 1e-30).astype("<f4")
        codes = np.rint(values / scale).clip(-127, 127).astype(np.int8)
        return np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], axis=1).tobytes()

    def decode(self, rows: bytes | memoryview) -> torch.Tensor:
        """Rows to float32 (tokens, hidden)."""
        table = self._table(rows)
        scale = np.ascontiguousarray(table[:, :4]).view("<f4")
        codes = np.ascontiguousarray(table[:, 4:]).view(np.int8)
        with np.errstate(all="ignore"):
            return _finite(codes.astype(np.float32) * scale, self.name)


class Int4States(_Rows):
    """Half a byte a value and one scale (float16) for each 16 values: codes -7 to 7."""

    name = "int4"

    @property
    def _groups(self) -> int:
        return -(-self.hidden // GROUP)

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self._groups * (2 + GROUP // 2)

    def encode(self, states: torch.Tensor) -> bytes:
        """float32 (tokens, hidden) to rows."""
        values = self._states(states)
        padded = np.zeros((len(values), self._groups, GROUP), np.float32)
        padded.reshape(len(values), -1)[:, : self.hidden] = values
        scale = np.maximum(np.abs(padded).max(axis=2, keepdims=True) / 7.0, 6e-8)
        if scale.max(initial=0.0) > 65504.0:
            raise CodecError("hidden states are too large for int4; take fp32 or int8")
        scale = scale.astype("<f2")
        codes = (np.rint(padded / np.maximum(scale.astype(np.float32), 6e-8)).clip(-7, 7) + 8).astype(
            np.uint8
        )
        packed = codes[..., ::2] | codes[..., 1::2] << 4
        parts = [scale.view(np.uint8).reshape(len(values), -1), packed.reshape(len(values), -1)]
        return np.concatenate(parts, axis=1).tobytes()

    def decode(self, rows: bytes | memoryview) -> torch.Tensor:
        """Rows to float32 (tokens, hidden)."""
        table = self._table(rows)
        scale = np.ascontiguousarray(table[:, : 2 * self._groups]).view("<f2").astype(np.float32)
        packed = table[:, 2 * self._groups :].reshape(len(table), self._groups, GROUP // 2)
        codes = np.empty((len(table), self._groups, GROUP), np.float32)
        codes[..., ::2], codes[..., 1::2] = packed & 15, packed >> 4
        with np.errstate(all="ignore"):
            values = (codes - 8.0) * scale[..., None]
        return _finite(values.reshape(len(table), -1)[:, : self.hidden], self.name)


STATE_CODECS: dict[str, type[Fp32States] | type[Fp16States] | type[Int8States] | type[Int4States]] = {
    made.name: made for made in (Fp32States, Fp16States, Int8States, Int4States)
}


def state_codec(name: str, hidden: int) -> StateCodec:
    """A codec by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in STATE_CODECS:
        raise ConfigError(f"no codec of hidden states '{name}'; there are {', '.join(STATE_CODECS)}")
    return STATE_CODECS[name](hidden)
