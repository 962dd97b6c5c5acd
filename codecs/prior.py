"""A learned factorised prior: how likely each rounded value of a latent is, and so how many bits it takes.

One mixture of logistic distributions a channel, as in the entropy models of learned compression (Balle et
al., ICLR 2018, section 6.1, there with a small network in place of the mixture). It shapes the latent in
training and is not deployed: a codec's frozen integer tables are counted on real latents.
"""

from __future__ import annotations

import torch
from torch import nn

COMPONENTS = 3
#: Means of the outer components and scale of all at first: close to a normal variable of mean 0, variance 1.
MEAN, SCALE = 0.8, 0.4
#: A value is taken to be at least so likely: 30 bits at most.
FLOOR = 1e-9


class Prior(nn.Module):
    """Likelihoods of a latent of about unit variance in each channel, cut into bins.

    Args:
        channels: of the latent; each has a mixture of its own.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(COMPONENTS, channels))
        self.means = nn.Parameter(torch.linspace(-MEAN, MEAN, COMPONENTS)[:, None].repeat(1, channels))
        self.log_scales = nn.Parameter(torch.full((COMPONENTS, channels), SCALE).log())

    def likelihood(self, z: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """Probability of the bins around some values, at least `FLOOR`.

        Bins that lie side by side sum to the probability of what they cover.

        Args:
            z: middles of bins, float32 (rows, channels, ...).
            width: of the bins, float32 (channels,).

        Returns:
            float32 of the shape of `z`.
        """
        shape = (COMPONENTS, 1, -1, *(1 for _ in z.shape[2:]))
        means, scales = self.means.view(shape), self.log_scales.exp().view(shape)
        far = (z - means).abs()  # below the mean as above it; there a difference of sigmoids keeps its digits
        half = width.view(shape[1:]) / 2
        inside = torch.sigmoid((half - far) / scales) - torch.sigmoid((-half - far) / scales)
        mixed: torch.Tensor = (self.weights.softmax(0).view(shape) * inside).sum(0)
        return mixed.clamp_min(FLOOR)

    def bits(self, z: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        """Code length of each row, float32 (rows,); arguments as of `likelihood`."""
        return -self.likelihood(z, width).log2().flatten(1).sum(1)
