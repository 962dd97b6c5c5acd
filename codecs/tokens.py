"""`tokens`: for vision transformers. The highest-scored tokens and one merged token cross the cut, each as a
few b-bit codes; a level is how many are kept.

Which tokens, and the merged one: after EViT (Liang et al., ICLR 2022), with scores of our own
(`token_nets`). The tail was captured for all tokens and runs unchanged: a token that was kept returns to
its place, every other place gets the merged one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from splitedge.codec import Network, Tensors, TensorSpec
from splitedge.codecs.bottleneck import HALF_RANGE
from splitedge.codecs.latent_codec import LatentCodec
from splitedge.codecs.nets import Latent
from splitedge.codecs.range_coder import RangeCoder
from splitedge.codecs.shapes import read_options
from splitedge.codecs.stages import DISTIL_THEN_TUNE
from splitedge.codecs.student import Teacher, chain_of
from splitedge.codecs.subsets import Bools, Subsets
from splitedge.codecs.tables import Symbols, Tables
from splitedge.codecs.token_nets import TokenCoding, TokenDecoder, TokenEncoder, TokenStudent
from splitedge.codecs.training import train
from splitedge.codecs.uniform import F32, Uniform
from splitedge.errors import CodecError
from splitedge.learning import Schedule, Task

MAX_LEVELS = 16


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
        if not 1 <= len(wanted) <= MAX_LEVELS or not all(_is_share(n) or _is_count(n) for n in wanted):
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
        found = {max(round(n * places), 1) if _is_share(n) else int(n) for n in wanted}
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
        if tokens < 2 + self.class_token:
            raise CodecError(f"the cut has {tokens} tokens: there is nothing to leave out")
        return Latent(self.channels or max(4, min(16, width // 8)), (tokens,))


def _is_share(n: object) -> bool:
    return isinstance(n, float) and 0 < n <= 1


def _is_count(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 1


class Tokens(LatentCodec):
    """Levels are numbers of tokens. A body names which, row by row (`Subsets`), then come the range-coded
    codes: class token, merged token, tokens kept in order.

    Args:
        reads: float32 (N, tokens, width).
        gives: the model's flat output.
        latent, uniform, tables, networks, encoder, decoder: as `LatentCodec` takes them; the latent has one
            position a token.
        class_token: whether token 0 is one.
        keep: tokens kept, by level.
        gains: what the merged token is multiplied by to be quantised, by level.
    """

    name: ClassVar[str] = "tokens"
    reads_cut: ClassVar[bool] = True
    options: ClassVar[type | None] = TokensOptions

    def __init__(
        self,
        reads: Sequence[TensorSpec],
        gives: Sequence[TensorSpec] | None = None,
        *,
        latent: Latent,
        uniform: Uniform,
        tables: Tables,
        networks: dict[str, str],
        encoder: Network | None,
        decoder: Network | None,
        class_token: bool,
        keep: Sequence[int],
        gains: Sequence[float],
    ) -> None:
        super().__init__(
            reads,
            gives,
            latent=latent,
            uniform=uniform,
            tables=tables,
            networks=networks,
            encoder=encoder,
            decoder=decoder,
        )
        self._keep, self._gains, self._first = tuple(keep), tuple(gains), int(class_token)
        self._places = latent.positions - self._first
        self._subsets = [Subsets(self._places, k) for k in keep]
        self._coders = [RangeCoder(tables, self._first + k + (k < self._places)) for k in keep]

    @property
    def levels(self) -> tuple[str, ...]:
        """By tokens kept, the class token and the merged one not counted."""
        return tuple(f"{k} tokens" for k in self._keep)

    @property
    def unpacked_specs(self) -> tuple[TensorSpec, ...]:
        """The latent of every place, and 1 where it is the place's own token and 0 where the merged one."""
        return self.decoder_specs(self._latent)

    def max_body(self, level: int, rows: int) -> int:
        """Which tokens, and their codes packed."""
        return rows * self._subsets[level].nbytes + self._coders[level].max_bytes(rows)

    def codes(self, tensors: Tensors) -> Symbols:
        """Codes of all levels one behind the other, uint8 (rows, channels, codes)."""
        z, scores = self._latents(tensors)
        return np.concatenate([self._chosen(z, scores, level)[1] for level in range(len(self._keep))], 2)

    def _latents(self, tensors: Tensors) -> tuple[F32, F32]:
        if self._encoder is None:
            raise CodecError("this half of the bundle holds no encoder; load side='edge'")
        z, scores = (t.float().cpu().numpy() for t in self._encoder(*(t.to(self._device) for t in tensors)))
        if not (np.isfinite(z).all() and np.isfinite(scores).all()):
            raise CodecError(
                "the tokens hold NaN or infinity, or values beyond float32; they can not be coded"
            )
        return z, scores

    def _chosen(self, z: F32, scores: F32, level: int) -> tuple[Bools, Symbols]:
        """Which tokens are kept, bool (rows, places), and codes of what is sent, (rows, channels, tokens)."""
        k, (rows, channels, _) = self._keep[level], z.shape
        order = np.argsort(-scores, axis=1, kind="stable")
        taken = np.zeros(scores.shape, np.bool_)
        np.put_along_axis(taken, order[:, :k], True, axis=1)
        rest = z[..., self._first :]
        parts = [z[..., : self._first]]
        if k < self._places:
            logits = np.where(taken, np.float32(-np.inf), scores)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            merged = np.einsum("rcp,rp->rc", rest, weights) * self._gains[level]
            parts.append(merged[..., None].astype(np.float32))
        parts.append(rest.transpose(0, 2, 1)[taken].reshape(rows, k, channels).transpose(0, 2, 1))
        return taken, self._uniform.codes(np.concatenate(parts, 2))

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        taken, codes = self._chosen(*self._latents(tensors), level)
        which = b"".join(map(self._subsets[level].encode, taken))
        return which + self._coders[level].encode(codes)

    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        k, subsets, first = self._keep[level], self._subsets[level], self._first
        size = subsets.nbytes
        if len(body) < rows * size:
            raise CodecError(f"body of {len(body)} bytes ends before it has said which tokens it holds")
        taken = np.stack([subsets.decode(body[i * size : (i + 1) * size]) for i in range(rows)])
        values = self._uniform.values(self._coders[level].decode(body[rows * size :], rows))
        kept = np.ones((rows, self._latent.positions), np.float32)
        kept[:, first:] = taken
        out = np.empty((rows, self._latent.positions, values.shape[1]), np.float32)
        values = values.transpose(0, 2, 1)
        out[:, :first] = values[:, :first]
        if k < self._places:
            out[:, first:] = values[:, first : first + 1] / np.float32(self._gains[level])
        out[:, first:][taken] = values[:, -k:].reshape(rows * k, -1)
        z = np.ascontiguousarray(out.transpose(0, 2, 1))
        return torch.from_numpy(z), torch.from_numpy(kept)

    # State and training ---------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {"class_token": bool(self._first), "keep": list(self._keep), "gains": list(self._gains)}

    @classmethod
    def _read_settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        class_token, keep, gains = (config.get(name) for name in ("class_token", "keep", "gains"))
        places = config["latent"][-1] - (class_token is True)
        good = (
            isinstance(class_token, bool)
            and isinstance(keep, list)
            and 1 <= len(keep) <= MAX_LEVELS
            and all(_is_count(k) and k <= places for k in keep)
            and keep == sorted(set(keep))
            and isinstance(gains, list)
            and len(gains) == len(keep)
            and all(isinstance(gain, float) and 1e-6 < gain < 1e6 for gain in gains)
        )
        if not good or len(config["latent"]) != 2:
            raise CodecError("the saved state of 'tokens' lacks its levels, or they do not fit its latent")
        return {"class_token": class_token, "keep": keep, "gains": gains}

    @classmethod
    def decoder_specs(cls, latent: Latent) -> tuple[TensorSpec, ...]:
        """See `unpacked_specs`."""
        return (latent.spec, TensorSpec((1, latent.positions), "float32"))

    @classmethod
    def check(cls, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec], **options: Any) -> None:
        """See `LearnedCodec.check`. Options: `TokensOptions`."""
        asked = read_options(TokensOptions, options)
        asked.counts(asked.latent(reads, cut).positions - asked.class_token)

    @classmethod
    def train(
        cls, task: Task, schedule: Schedule, **options: Any
    ) -> tuple[Self, tuple[float, ...], tuple[float, ...], int]:
        """Train one; see `LearnedCodec.train`. Options: `TokensOptions`."""
        asked = read_options(TokensOptions, options)
        latent = asked.latent(task.reads, task.cut)
        _, tokens, width = task.cut[0].shape
        places = tokens - asked.class_token
        keep = asked.counts(places)
        torch.manual_seed(schedule.seed)
        student = TokenStudent(
            TokenEncoder(width, latent.channels, asked.rank, asked.class_token),
            coding := TokenCoding(latent.channels, asked.bits, places, keep),
            TokenDecoder(latent.channels, tokens, width, asked.decoder_blocks, asked.class_token),
            chain_of(task),
        )
        teacher = Teacher(task)
        epochs = train(student, teacher, task, schedule, DISTIL_THEN_TUNE)
        settings = {"class_token": asked.class_token, "keep": keep, "gains": coding.gains()}
        codec = cls.made(task, teacher, student, latent, coding.uniform(), **settings)
        return codec, *codec.measured(teacher, task), epochs
