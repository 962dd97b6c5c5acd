"""The same digits for a small vision transformer: what codec `tokens` is measured on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from splitedge.codecs.bench_digits import SIDE, conv, digit_rows, subject_of, trained
from splitedge.codecs.bench_subject import Subject
from splitedge.codecs.contenders import Place

WIDTH, HEADS, BLOCKS = 32, 4, 4


class DigitViT(nn.Module):
    """float32 (N, 1, 32, 32), 0 to 1, to logits (N, 10).

    64 patches of 4x4 and a class token. Convolutions make the patches (Xiao et al., NeurIPS 2021, section 4):
    a plain linear embedding learns too little from so few rows.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            conv(1, 16, 2), conv(16, 32, 2), conv(32, 32, 1), nn.Conv2d(32, WIDTH, 1)
        )
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.randn(1, (SIDE // 4) ** 2 + 1, WIDTH) * 0.02)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    WIDTH, HEADS, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
                )
                for _ in range(BLOCKS)
            )
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.classifier = nn.Linear(WIDTH, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify."""
        tokens = self.patches(images * 2 - 1).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.places
        logits: torch.Tensor = self.classifier(self.norm(self.blocks(tokens)[:, 0]))
        return logits


def digits_vit(*, seed: int = 0, epochs: int = 12) -> Subject:
    """The data, and the model trained on it (10 s)."""
    parts = digit_rows(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = trained(DigitViT(), parts[0], epochs, 4e-3)
    cuts: Mapping[Place, str] = {
        "early": "blocks.0",
        "middle": "blocks.1",
        "late": "blocks.2",
        "learned": "blocks.0",
    }
    return subject_of("digits-vit", model, parts, cuts)
