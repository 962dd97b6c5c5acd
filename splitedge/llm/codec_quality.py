"""What a codec of hidden states does to what the tail says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from splitedge.errors import ConfigError
from splitedge.llm.cache import KVCache
from splitedge.llm.cloud_model import StateCodec
from splitedge.llm.halves import LanguageHead, LanguageTail, steps_of
from splitedge.llm.state_bottleneck import distortion
from splitedge.llm.state_codecs import GROUP

Change = Callable[[torch.Tensor], torch.Tensor]
_BATCH = 16


@dataclass(frozen=True, slots=True)
class CodecQuality:
    """Of one codec, over tokens of texts that were read from their beginning, all by codec.

    Attributes:
        name: of it. width: bytes of a token.
        agreement: share of tokens at which the tail's first choice is the one for exact states.
        kl: mean Kullback-Leibler divergence of the tail's probabilities from those for exact states, nats.
        distortion: mean squared error of a state over its mean square, averaged.
        tokens: looked at.
    """

    name: str
    width: int
    agreement: float
    kl: float
    distortion: float
    tokens: int


@torch.no_grad()
def states_of(head: LanguageHead, texts: torch.Tensor) -> torch.Tensor:
    """Hidden states at the cut (texts, length, hidden) of ids (texts, length)."""
    parts = []
    for begin in range(0, len(texts), _BATCH):
        ids = texts[begin : begin + _BATCH]
        positions, mask = steps_of([0] * len(ids), [ids.shape[1]] * len(ids), ids.shape[1])
        parts.append(head(ids, positions, KVCache(), mask))
    return torch.cat(parts)


def tail_logits(tail: LanguageTail, states: torch.Tensor) -> torch.Tensor:
    """Logits (texts, length, vocabulary) for states (texts, length, hidden) of whole texts."""
    count, length = states.shape[:2]
    positions, mask = steps_of([0] * count, [length] * count, length)
    out: torch.Tensor = tail(states, positions, KVCache(), mask)
    return out


def batches(rows: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Rows in parts of `size`, the last one shorter."""
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def through(codec: StateCodec) -> Change:
    """A codec's way there and back, for states (texts, length, hidden)."""

    def change(states: torch.Tensor) -> torch.Tensor:
        rows = codec.encode(states.reshape(-1, states.shape[-1]))
        return codec.decode(rows).reshape(states.shape)

    return change


def grouped(bits: int) -> Change:
    """Plain integers of so many bits, a float16 scale for each 16 values: int4's scheme at other rates."""

    def change(states: torch.Tensor) -> torch.Tensor:
        hidden, top = states.shape[-1], 2 ** (bits - 1) - 1
        rows = F.pad(states.float(), (0, -hidden % GROUP))
        rows = rows.reshape(*rows.shape[:-1], -1, GROUP)
        scale = (rows.abs().amax(-1, keepdim=True) / top).clamp_min(6e-8).half().float().clamp_min(6e-8)
        out: torch.Tensor = ((rows / scale).round().clamp(-top, top) * scale).flatten(-2)[..., :hidden]
        return out

    return change


def plain_of(width: int, hidden: int) -> tuple[str, int, Change]:
    """The plain integers of most bits that fit in `width` bytes: name, bytes, and the way there and back.

    Raises:
        ConfigError: not even two bits fit.
    """
    groups = -(-hidden // GROUP)
    bits = min(8, (width // groups - 2) * 8 // GROUP)
    if bits < 2:
        raise ConfigError(
            f"{width} bytes a token are less than {groups * 6}, the least that plain integers take for "
            f"{hidden} values; there is nothing of as many bytes to compare with"
        )
    return f"int{bits}-g{GROUP}", groups * (2 + bits * GROUP // 8), grouped(bits)


@torch.no_grad()
def quality(
    tail: LanguageTail, states: torch.Tensor, ways: Sequence[tuple[str, int, Change]]
) -> list[CodecQuality]:
    """Judge ways of writing states.

    Args:
        tail: reads them.
        states: (texts, length, hidden), exact.
        ways: name, bytes of a token, and what comes back of states.
    """
    sums = torch.zeros(len(ways), 3, dtype=torch.float64)
    parts = batches(states, _BATCH)
    for part in parts:
        wanted = tail_logits(tail, part).float().log_softmax(-1)
        for i, (_, _, change) in enumerate(ways):
            found = change(part)
            said = tail_logits(tail, found).float().log_softmax(-1)
            kl = F.kl_div(said, wanted, reduction="none", log_target=True).sum(-1)
            same = (said.argmax(-1) == wanted.argmax(-1)).double()
            sums[i] += torch.tensor(
                [float(same.mean()), float(kl.double().mean()), float(distortion(found, part))],
                dtype=torch.float64,
            ) * (len(part) / len(states))
    tokens = states.shape[0] * states.shape[1]
    rows = zip(ways, sums.tolist(), strict=True)
    return [
        CodecQuality(n, w, min(1.0, same), max(0.0, kl), off, tokens) for (n, w, _), (same, kl, off) in rows
    ]
