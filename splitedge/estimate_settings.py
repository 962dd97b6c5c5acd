"""How the link is estimated: what an operator may turn."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Prior(NamedTuple):
    """What is believed before anything was measured."""

    mean: float
    low: float
    high: float


class EstimatorSettings(BaseModel):
    """How the link is estimated.

    Attributes:
        kind: `quantiles` (EWMA mean, low and high from a sliding window), `ewma` or `harmonic` (low and
            high from a log-normal with the variance seen).
        count: samples kept at most.
        window_s: samples older than this, counted from the newest, are dropped.
        alpha: weight of a new sample of full weight in an EWMA.
        half_life_s: seconds without evidence after which the usual counts for half of the estimate.
        memory: samples, at most one every 0.1 s, over which the usual is an average.
        prior_weight: weight of the prior, in samples.
        noise_s: timing noise of one transfer: transmission times below it say only "at least as fast as".
        small_bytes: a transfer of this size has half the weight of a long one.
        goodput_bps, downlink_bps, rtt_s, queue_s: priors as (mean, low, high).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["quantiles", "ewma", "harmonic"] = "quantiles"
    count: int = Field(default=32, ge=2, le=4096)
    window_s: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    alpha: float = Field(default=0.25, gt=0, le=1)
    half_life_s: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    memory: int = Field(default=300, ge=1, le=1_000_000)
    prior_weight: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    noise_s: float = Field(default=0.001, gt=0, allow_inf_nan=False)
    small_bytes: float = Field(default=4096.0, gt=0, allow_inf_nan=False)
    goodput_bps: Prior = Prior(10e6, 2e6, 50e6)
    downlink_bps: Prior = Prior(20e6, 4e6, 100e6)
    rtt_s: Prior = Prior(0.05, 0.01, 0.15)
    queue_s: Prior = Prior(0.002, 0.0001, 0.01)

    @model_validator(mode="after")
    def _ordered(self) -> EstimatorSettings:
        for name in ("goodput_bps", "downlink_bps", "rtt_s", "queue_s"):
            prior: Prior = getattr(self, name)
            if not (0.0 < prior.low <= prior.mean <= prior.high < math.inf):
                raise ValueError(
                    f"{name} must be (mean, low, high) with 0 < low <= mean <= high, got {prior}"
                )
        return self
