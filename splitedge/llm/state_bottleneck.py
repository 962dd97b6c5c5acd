"""A learned way to write hidden states: each token's row of a fixed number of bytes, as the model needs it.

It stands here and not among `splitedge.codecs`: those write the tensors of one request at a level that may
change with each; a context's rows are kept on the cloud, grow and are cropped by tokens, and all have one
size. A row is a scale (float16) and the codes of a linear transform's coefficients, each with as many bits
as it is worth: a transform to independent coefficients of the metric that the tail sees, bits by reverse
water-filling (Cover and Thomas, "Elements of Information Theory", section 10.3.3), then trained on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from splitedge.errors import CodecError, ConfigError
from splitedge.llm.state_codecs import Int4States, _finite, _Rows

_NAME = re.compile(r"bottleneck(?::bytes=(\d{1,6}))?")
_SCALE = 2  # bytes of a row's scale
_MOST_BITS = 8
_WIDTH = 128  # of the decoder's correction
#: Outermost level of the best uniform quantiser of 1 to 8 bits for a normal variable of variance 1 (Max,
#: "Quantizing for Minimum Distortion", 1960, table II and its continuation).
_REACH = (0.798, 1.494, 2.051, 2.514, 2.916, 3.279, 3.613, 3.925)


def is_bottleneck(codec: str) -> bool:
    """Whether a codec of this name has to be learned."""
    return codec.partition(":")[0] == "bottleneck"


def bytes_wanted(codec: str, hidden: int) -> int:
    """Bytes of a row for `bottleneck` (those of int4) or `bottleneck:bytes=N`.

    Raises:
        ConfigError: the name says something else, or there are too few bytes, or more than int8 takes.
    """
    found = _NAME.fullmatch(codec)
    if found is None:
        raise ConfigError(f"'{codec}' is not 'bottleneck' or 'bottleneck:bytes=N'")
    if found[1] is None:
        return Int4States(hidden).width
    width, least = int(found[1]), _SCALE + -(-hidden // 16)
    if not least <= width <= hidden + 4:
        raise ConfigError(
            f"a bottleneck of {width} bytes for states of {hidden} values; {least} to {hidden + 4} make sense"
        )
    return width


class Bottleneck(nn.Module):
    """Codec of hidden states; a `StateCodec`.

    Args:
        hidden: values of a state.
        bits: of each coefficient, 1 to 8.
    """

    name = "bottleneck"
    bits: torch.Tensor
    reach: nn.Parameter

    def __init__(self, hidden: int, bits: Sequence[int]) -> None:
        super().__init__()
        if hidden < 1 or not bits or min(bits) < 1 or max(bits) > _MOST_BITS:
            raise ConfigError(f"coefficients of 1 to {_MOST_BITS} bits, got {list(bits)} for {hidden} values")
        self.hidden = hidden
        self.register_buffer("bits", torch.tensor(list(bits), dtype=torch.int64))
        self.encoder = nn.Linear(hidden, len(bits))
        self.decoder = nn.Linear(len(bits), hidden)
        self.correction = nn.Sequential(
            nn.Linear(len(bits), _WIDTH), nn.SiLU(), nn.Linear(_WIDTH, hidden, bias=False)
        )
        last = self.correction[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        self.reach = nn.Parameter(torch.tensor([_REACH[b - 1] for b in bits]))
        self._rows = _BottleneckRows(hidden, bits)

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return self._rows.width

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """What comes back of states (..., hidden); gradients pass the rounding as if it were not there."""
        scale = _scale_of(states)
        level = self._levels(states / scale)
        level = level + (level.round() - level).detach()
        return self._restored(level) * scale

    def _levels(self, shape: torch.Tensor) -> torch.Tensor:
        """Codes of states of scale 1, not rounded yet."""
        top = (2**self.bits - 1).float()
        out: torch.Tensor = ((self.encoder(shape) / self.reach).clamp(-1.0, 1.0) + 1.0) * 0.5 * top
        return out

    def _restored(self, level: torch.Tensor) -> torch.Tensor:
        top = (2**self.bits - 1).float()
        value = (level / top * 2.0 - 1.0) * self.reach
        out: torch.Tensor = self.decoder(value) + self.correction(value)
        return out

    @torch.no_grad()
    def encode(self, states: torch.Tensor) -> bytes:
        """float32 (tokens, hidden) to rows."""
        values = torch.from_numpy(self._rows._states(states))
        scale = _scale_of(values)
        if scale.numel() and float(scale.max()) > 65504.0:
            raise CodecError("hidden states are too large for a bottleneck; take fp32 or int8")
        codes = self._levels(values / scale).round().to(torch.uint8).numpy()
        return self._rows.pack(scale.numpy().astype("<f2"), codes)

    @torch.no_grad()
    def decode(self, rows: bytes | memoryview) -> torch.Tensor:
        """Rows to float32 (tokens, hidden)."""
        scale, codes = self._rows.unpack(rows)
        if not np.isfinite(scale).all():
            raise CodecError("rows of bottleneck hold values that are not finite")
        found = self._restored(torch.from_numpy(codes.astype(np.float32))) * torch.from_numpy(scale)
        return _finite(found.numpy(), self.name)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it, for a file; see `from_tensors`."""
        return {name: value.detach().clone().contiguous() for name, value in self.state_dict().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Bottleneck:
        """Make it again.

        Raises:
            ConfigError: these are no bottleneck's.
        """
        try:
            weight, bits = tensors["encoder.weight"], tensors["bits"]
            made = cls(weight.shape[1], [int(b) for b in bits.tolist()])
            made.load_state_dict(dict(tensors))
        except (KeyError, RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ConfigError(f"these are not the tensors of a bottleneck: {error}") from None
        return made.eval().requires_grad_(False)


class _BottleneckRows(_Rows):
    """Scale and codes as bytes and back."""

    name = "bottleneck"

    def __init__(self, hidden: int, bits: Sequence[int]) -> None:
        super().__init__(hidden)
        self._total = sum(bits)
        # Of the eight bits of each code, those that are kept.
        self._kept = np.arange(8)[None, :] >= 8 - np.array(bits)[:, None]

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return _SCALE + -(-self._total // 8)

    def pack(self, scale: npt.NDArray[np.float16], codes: npt.NDArray[np.uint8]) -> bytes:
        """Scales (tokens, 1) and codes (tokens, coefficients) to rows."""
        bits = np.unpackbits(codes[:, :, None], axis=2)[:, self._kept]
        return np.concatenate([scale.view(np.uint8), np.packbits(bits, axis=1)], axis=1).tobytes()

    def unpack(self, rows: bytes | memoryview) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Rows to scales (tokens, 1) and codes (tokens, coefficients)."""
        table = self._table(rows)
        scale = np.ascontiguousarray(table[:, :_SCALE]).view("<f2").astype(np.float32)
        bits = np.unpackbits(table[:, _SCALE:], axis=1, count=self._total)
        spread = np.zeros((len(table), *self._kept.shape), np.uint8)
        spread[:, self._kept] = bits
        return scale, np.packbits(spread, axis=2)[:, :, 0]


def _scale_of(states: torch.Tensor) -> torch.Tensor:
    """Root mean square of states (..., hidden), as float16 keeps it: (..., 1)."""
    scale = states.float().square().mean(-1, keepdim=True).sqrt().clamp(min=1e-4, max=1e6)
    return scale.half().float() if float(scale.max() if scale.numel() else 0.0) <= 65504.0 else scale


def fitted_bottleneck(states: torch.Tensor, metric: torch.Tensor, width: int) -> Bottleneck:
    """The best linear one for a squared error: what training begins with.

    Args:
        states: float32 (tokens, hidden).
        metric: (hidden, hidden), positive: what an error of a state of scale 1 costs is `e' metric e`.
        width: bytes of a row.
    """
    shape = (states / _scale_of(states)).double()
    mean = shape.mean(0)
    values, vectors = torch.linalg.eigh(metric.double())
    values = values.clamp_min(float(values.max()) * 1e-4)
    there = vectors * values.sqrt() @ vectors.T
    back = vectors / values.sqrt() @ vectors.T
    spread = torch.cov(((shape - mean) @ there).T).reshape(len(mean), len(mean))
    variance, basis = torch.linalg.eigh(spread)
    variance = variance.clamp_min(1e-12)
    bits = water_filled(variance.numpy(), 8 * (width - _SCALE))
    used = np.flatnonzero(bits)
    basis, deviation = basis[:, used], variance[used].sqrt()
    made = Bottleneck(states.shape[1], [int(b) for b in bits[used]])
    forth = there @ basis / deviation
    with torch.no_grad():
        made.encoder.weight.copy_(forth.T)
        made.encoder.bias.copy_(-(mean @ forth))
        made.decoder.weight.copy_(back @ (basis * deviation))
        made.decoder.bias.copy_(mean)
    return made


def water_filled(variance: npt.NDArray[np.float64], total: int) -> npt.NDArray[np.int64]:
    """Bits of each coefficient, 0 to 8, `total` in all at most: the next always goes where most is lost."""
    bits = np.zeros(len(variance), np.int64)
    lost = variance.astype(np.float64).copy()
    for _ in range(total):
        worst = int(np.argmax(np.where(bits < _MOST_BITS, lost, -1.0)))
        if bits[worst] >= _MOST_BITS:
            break
        bits[worst] += 1
        lost[worst] /= 4.0
    return bits


def distortion(found: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Mean squared error of rows (..., hidden) over their mean square, averaged: a scalar."""
    error = F.mse_loss(found, states, reduction="none").mean(-1)
    return (error / states.square().mean(-1).clamp_min(1e-12)).mean()
