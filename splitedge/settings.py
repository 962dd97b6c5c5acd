"""The engine's settings, with units, defaults and limits."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EngineSettings(BaseModel):
    """What an operator may turn on the engine. Unknown names are refused.

    Attributes:
        default_timeout_s: seconds after which a request without a deadline ends in an error.
        patience_s: seconds a request without a deadline waits for the cloud, at least, before the
            device answers it; a slower prediction (times `overdue_factor`) makes it wait longer.
        margin_s: seconds kept free before a deadline, for the shell to hand the answer over.
        guard_slack_s: the fall-back begins this much before the last moment (at most a quarter of the time
            left), because the shell may be woken late and the device slower than its 95th percentile.
        max_in_flight: requests accepted at once; more are rejected.
        compute_slots: stages the device computes at once.
        max_attempts: sendings of one request, the first included.
        retry_base_s, retry_max_s: backoff before attempt k+1 is `retry_base_s * 2**(k-1)`, at most
            `retry_max_s`, shortened by up to `retry_jitter` of itself at random.
        retry_jitter: fraction in [0, 1].
        overdue_factor, overdue_min_s: a reply is overdue after this many times its predicted 95th
            percentile, and never before `overdue_min_s`.
        breaker_failures: consecutive failures that open the circuit.
        probe_base_s, probe_max_s: while the circuit is open a ping is sent after `probe_base_s`, then
            twice that, up to `probe_max_s`.
        ping_interval_s: seconds between pings; doubled while no request arrives, up to `ping_idle_max_s`
            (a ping keeps a radio awake). 0 for no pings but those of an open circuit.
        ping_timeout_s: seconds after which a ping counts as lost.
        seed: of the generator of the jitter.
        reasons: whether the record of a request that went as the policy wanted says why, in words. One that
            did not always says it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    default_timeout_s: float = Field(default=30.0, gt=0, le=3600, allow_inf_nan=False)
    patience_s: float = Field(default=3.0, gt=0, le=3600, allow_inf_nan=False)
    margin_s: float = Field(default=0.005, ge=0, le=10, allow_inf_nan=False)
    guard_slack_s: float = Field(default=0.02, ge=0, le=10, allow_inf_nan=False)
    max_in_flight: int = Field(default=256, ge=1, le=1_000_000)
    compute_slots: int = Field(default=1, ge=1, le=1024)
    max_attempts: int = Field(default=5, ge=1, le=100)
    retry_base_s: float = Field(default=0.02, gt=0, le=60, allow_inf_nan=False)
    retry_max_s: float = Field(default=1.0, gt=0, le=600, allow_inf_nan=False)
    retry_jitter: float = Field(default=0.5, ge=0, le=1)
    overdue_factor: float = Field(default=4.0, ge=1, le=1000, allow_inf_nan=False)
    overdue_min_s: float = Field(default=1.0, gt=0, le=600, allow_inf_nan=False)
    breaker_failures: int = Field(default=3, ge=1, le=1000)
    probe_base_s: float = Field(default=0.2, gt=0, le=600, allow_inf_nan=False)
    probe_max_s: float = Field(default=5.0, gt=0, le=3600, allow_inf_nan=False)
    ping_interval_s: float = Field(default=1.0, ge=0, le=3600, allow_inf_nan=False)
    ping_idle_max_s: float = Field(default=30.0, gt=0, le=3600, allow_inf_nan=False)
    ping_timeout_s: float = Field(default=2.0, gt=0, le=3600, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)
    reasons: bool = True
