"""What a user may say of codec `tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from splitedge.codec import TensorSpec
from splitedge.codecs.bottleneck import HALF_RANGE
from splitedge.codecs.nets import Latent
from splitedge.errors import CodecError

MAX_LEVELS, MAX_TOKENS = 16, 4096


@dataclass(frozen=True, slots=True)
class TokensOptions:
    """Options of `tokens`.

    Attributes:
        keep: tokens kept, by level: a part of all (0.25; the class token does not count) or how many (16).
        channels: codes a token; None for an eighth of its width, from 4 to 16.
        bits: of a code: 8, 6, 4, 3 or 2.
        class_token: whether token 0 is a class token, which is always sent.
        rank: dimensions that tokens are scored in.
        decoder_blocks: residual MLPs in the cloud.
    """

    keep: float | Sequence[float] = (0.25, 0.5, 1.0)
    channels: int | None = None
    bits: int = 4
    class_token: bool = True
    rank: int = 16
    decoder_blocks: int = 2

    def __post_init__(self) -> None:
        limits = {"channels": (1, 1024), "rank": (1, 1024), "decoder_blocks": (0, 64)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is None and name == "channels":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise CodecError(f"{name} is a whole number from {least} to {most}, got {value}")
        if self.bits not in HALF_RANGE:
            raise CodecError(f"bits is one of {', '.join(map(str, HALF_RANGE))}, got {self.bits}")
        if not isinstance(self.class_token, bool):
            raise CodecError(f"class_token is true or false, got {self.class_token}")
        wanted = self._wanted()
        if not 1 <= len(wanted) <= MAX_LEVELS or not all(is_share(n) or is_count(n) for n in wanted):
            raise CodecError(
                f"keep is 1 to {MAX_LEVELS} parts (0.25) or numbers (16) of tokens, got {self.keep}"
            )

    def _wanted(self) -> list[Any]:
        return list(self.keep) if isinstance(self.keep, Sequence) else [self.keep]

    def counts(self, places: int) -> tuple[int, ...]:
        """Tokens kept of so many, by level, fewest first.

        Raises:
            CodecError: more than there are.
        """
        wanted = self._wanted()
        found = {max(round(n * places), 1) if is_share(n) else int(n) for n in wanted}
        if max(found) > places:
            raise CodecError(f"keep asks for {max(found)} tokens of {places}")
        return tuple(sorted(found))

    def latent(self, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec]) -> Latent:
        """The latent for these tensors.

        Raises:
            CodecError: they are no tokens.
        """
        crossing = ", ".join(map(str, cut))
        if len(cut) != 1 or len(cut[0].shape) != 3 or (cut[0].dtype, cut[0].batch_dim) != ("float32", 0):
            raise CodecError(
                f"'tokens' takes one tensor, float32(N, tokens, width), the cut has {crossing}; pick a cut "
                "between two blocks of a vision transformer, or codec 'int8'"
            )
        if tuple(reads) != tuple(cut):
            raise CodecError("'tokens' reads the cut that it stands at")
        _, tokens, width = cut[0].shape
        if not 2 + self.class_token <= tokens <= MAX_TOKENS:
            raise CodecError(
                f"'tokens' takes {2 + self.class_token} to {MAX_TOKENS} tokens, the cut has {tokens}"
            )
        return Latent(self.channels or max(4, min(16, width // 8)), (tokens,))


def is_share(n: object) -> bool:
    """A part of all tokens."""
    return isinstance(n, float) and 0 < n <= 1


def is_count(n: object) -> bool:
    """A number of tokens."""
    return isinstance(n, int) and not isinstance(n, bool) and n >= 1
