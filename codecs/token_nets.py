"""Networks of `tokens`: a linear encoder with scores on the edge, a decoder by place in the cloud, and what
lies between them in training.

The attention of a vision transformer does not cross its cut, so a token's score is computed anew from the
tokens, by one attention row with projections of its own (`TokenEncoder`). Which tokens to keep and how to
merge the others follows EViT (Liang et al., ICLR 2022, section 3), which takes the class token's attention
inside the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from splitedge.codecs.bottleneck import UniformCoding
from splitedge.codecs.student import Answer, Chain, Student

#: The decoder's hidden layers, in widths of a token.
HIDDEN = 2


class TokenEncoder(nn.Module):
    """Tokens to latents and scores.

    A latent is a linear map of its token, normalised per channel with running statistics (no weights); the
    class token has a map of its own. A score is the attention logit between a token and the class token (the
    mean of all where there is none) under learned projections of `rank` dimensions.

    Args:
        width: of a token.
        channels: of a latent.
        rank: dimensions that query and key are compared in.
        class_token: whether token 0 is one; it has no score, for it is always sent.
    """

    def __init__(self, width: int, channels: int, rank: int, class_token: bool) -> None:
        super().__init__()
        self.width, self.first = width, int(class_token)
        kinds = 1 + self.first
        self.maps = nn.ModuleList(nn.Linear(width, channels, bias=False) for _ in range(kinds))
        self.norms = nn.ModuleList(nn.BatchNorm1d(channels, affine=False) for _ in range(kinds))
        self.query = nn.Linear(width, rank, bias=False)
        self.key = nn.Linear(rank, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (N, T, width) to latents, float32 (N, channels, T), and scores, float32 (N, places)."""
        alike = F.layer_norm(tokens, (self.width,))
        asking = alike[:, :1] if self.first else alike.mean(1, keepdim=True)
        wanted = self.key(self.query(asking)).transpose(1, 2)
        scores = torch.matmul(alike[:, self.first :], wanted).squeeze(2) / math.sqrt(self.width)
        parts = (tokens[:, :1], tokens[:, 1:]) if self.first else (tokens,)
        found = [
            norm(to(part).transpose(1, 2))
            for part, to, norm in zip(parts, self.maps, self.norms, strict=True)
        ]
        return torch.cat(found, 2), scores


class TokenCoding(UniformCoding):
    """What arrives of some latents: those kept through the deployed quantiser, one merged token for the rest.

    The merged token is the mean of the latents left out, weighted by the softmax of their scores. It varies
    less than a single one, so it is quantised at a gain that is trained with the ranges, one a level.

    Whether a token is kept has no gradient of its own. It is given that of a sigmoid of its score's distance
    from the threshold (straight-through), so that a score grows where the token, in place of the merged
    one, makes the loss smaller.

    Args:
        channels: of a latent.
        bits: of a code.
        places: tokens that may be left out.
        keep: how many of them are kept, by level.
    """

    def __init__(self, channels: int, bits: int, places: int, keep: Sequence[int]) -> None:
        super().__init__(channels, bits)
        self.places, self.keep = places, tuple(keep)
        self.log_gain = nn.Parameter(torch.zeros(len(self.keep)))

    def extra_repr(self) -> str:
        """What a checkpoint is told apart by."""
        return f"{super().extra_repr()}, places={self.places}, keep={self.keep}"

    def arrived(self, z: torch.Tensor, scores: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder takes: float32 (N, channels, T), and (N, T), 1 where a place has its own token and
        0 where it has the merged one.
        """
        values, _ = self(z, level)
        kept = torch.ones_like(z[:, 0])
        if self.keep[level] == self.places:
            return values, kept
        own = kept_of(scores, self.keep[level])
        left = scores.masked_fill(own > 0.5, -torch.inf).softmax(1)
        rest, first = z[..., -self.places :], z.shape[2] - self.places
        gain = self.log_gain[level].exp()
        merged, _ = self((rest * left[:, None]).sum(2, keepdim=True) * gain, level)
        merged = merged / gain
        whole = values[..., first:]
        mixed = torch.where(own[:, None] > 0.5, whole, merged)
        mixed = mixed + (own - own.detach())[:, None] * (whole - merged).detach()
        return torch.cat([values[..., :first], mixed], 2), torch.cat([kept[:, :first], own], 1)

    def gains(self) -> list[float]:
        """What is deployed."""
        return [float(gain) for gain in self.log_gain.detach().exp()]


def kept_of(scores: torch.Tensor, k: int) -> torch.Tensor:
    """1 for the k highest of each row's scores, 0 for the others, with a sigmoid's gradient; (N, n)."""
    ordered = scores.detach().sort(1, descending=True)
    threshold = ordered.values[:, k - 1 : k + 1].mean(1, keepdim=True)
    hard = torch.zeros_like(scores).scatter(1, ordered.indices[:, :k], 1.0)
    soft = (scores - threshold).sigmoid()
    return hard + (soft - soft.detach())


class TokenDecoder(nn.Module):
    """Latents back to tokens, each at its place: a linear layer, a vector for the place, and small MLPs.

    Args:
        channels: of a latent.
        tokens: T, the class token included.
        width: of a token.
        blocks: residual MLPs.
        class_token: whether token 0 is one.
    """

    def __init__(self, channels: int, tokens: int, width: int, blocks: int, class_token: bool) -> None:
        super().__init__()
        self.first = int(class_token)
        self.maps = nn.ModuleList(nn.Linear(channels, width) for _ in range(1 + self.first))
        self.own, self.missing = (nn.Parameter(torch.zeros(tokens, width)) for _ in range(2))
        self.blocks = nn.ModuleList(_mlp(width) for _ in range(blocks))

    def forward(self, z: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """float32 (N, channels, T), and float32 (N, T), 1 for a place with its own token and 0 for the merged
        one, to the cut's tensor, float32 (N, T, width).
        """
        z = z.transpose(1, 2)
        x: torch.Tensor = self.maps[-1](z[:, self.first :])
        if self.first:
            x = torch.cat([self.maps[0](z[:, :1]), x], 1)
        mask = kept.unsqueeze(2)
        x = x + mask * self.own + (1 - mask) * self.missing
        for block in self.blocks:
            x = x + block(x)
        return x


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, HIDDEN * width), nn.GELU(), nn.Linear(HIDDEN * width, width)
    )


class TokenStudent(Student):
    """Trained for all levels at once by the sandwich rule (Yu and Huang, ICCV 2019, section 3): in every step
    the lowest, the highest, and one drawn from between.
    """

    encoder: TokenEncoder
    coding: TokenCoding
    decoder: TokenDecoder

    def __init__(
        self, encoder: TokenEncoder, coding: TokenCoding, decoder: TokenDecoder, tail: Chain
    ) -> None:
        super().__init__(encoder, coding, decoder, tail)
        self.levels = len(coding.keep)

    def draw(self, generator: torch.Generator) -> Sequence[int]:
        """Levels that one step trains."""
        if self.levels <= 2:
            return range(self.levels)
        between = int(torch.randint(1, self.levels - 1, (), generator=generator))
        return (0, between, self.levels - 1)

    def forward(self, reads: torch.Tensor, level: int = 0) -> Answer:
        """All of it, at one level."""
        z, scores = self.encoder(reads)
        values, kept = self.coding.arrived(z.float(), scores.float(), level)
        cut = self.decoder(values, kept)
        outputs, taps = self.tail(cut)
        return Answer(cut, outputs, taps)
