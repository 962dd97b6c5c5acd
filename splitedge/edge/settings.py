"""The edge's settings, with units, defaults and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from splitedge.edge.openai_settings import BlackBoxSettings, LanguageEdgeSettings

_MIB = 2**20


class EdgeSettings(BaseModel):
    """What an operator may turn on an edge. Unknown names are refused.

    Attributes:
        name: the model's name in the HTTP API.
        cloud: endpoint of the cloud (`tcp://host:port`); None computes everything here.
        keys: this device's key directory (`splitedge keys new`); needed off loopback.
        key_name: which private key of that directory, where it holds several.
        cloud_key: which trusted key is the cloud's, where there are several.
        device: where head, exits and local model run: `auto` (a GPU where there is one), `cpu`, `cuda`,
            `cuda:1`.
        policy: policy by name, `"deadline:0.02,low=0.3"`, or as a table with its `name` and its argument's
            keys; None takes the bundle's.
        power: name of the power profile that models joules.
        battery: whether to read the system's battery and tell the policy.
        battery_interval_s: seconds between two readings.
        http: `host:port` of API, metrics and dashboard; port 0 for any free one.
        max_body: bytes of an HTTP request's body.
        max_connections: open HTTP connections.
        receive_s: seconds for an HTTP request's header to arrive, and again for its body.
        records: file to append one row a request to.
        recent: records kept in memory for the dashboard and `/records`.
        drain_s: seconds that requests in flight get when the daemon stops.
        heartbeat_s: seconds between heartbeats on the link; a silent peer is given up after three.
        reconnect_s, reconnect_max_s: backoff between attempts to connect.
        hello_s: seconds to wait for the cloud's welcome before asking again.
        max_message: bytes of one message from the cloud.
        max_unanswered: bytes that may be on their way to the cloud without a sign of having arrived.
        language: of a language model: how texts are written.
        black_box: of a language model: an OpenAI-compatible endpoint in the cloud's place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="model", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    cloud: str | None = None
    keys: Path | None = None
    key_name: str | None = None
    cloud_key: str | None = None
    device: str = "auto"
    policy: str | None = None
    power: str = "none"
    battery: bool = False
    battery_interval_s: float = Field(default=30.0, gt=0, le=3600, allow_inf_nan=False)
    http: str = "127.0.0.1:8080"
    max_body: int = Field(default=32 * _MIB, ge=1024, le=2**31)
    max_connections: int = Field(default=256, ge=1, le=65536)
    receive_s: float = Field(default=10.0, gt=0, le=600, allow_inf_nan=False)
    records: Path | None = None
    recent: int = Field(default=1000, ge=1, le=100_000)
    drain_s: float = Field(default=10.0, ge=0, le=600, allow_inf_nan=False)
    heartbeat_s: float = Field(default=0.5, ge=0.05, le=60, allow_inf_nan=False)
    reconnect_s: float = Field(default=0.1, ge=0.01, le=60, allow_inf_nan=False)
    reconnect_max_s: float = Field(default=2.0, ge=0.01, le=600, allow_inf_nan=False)
    hello_s: float = Field(default=1.0, gt=0, le=60, allow_inf_nan=False)
    max_message: int = Field(default=32 * _MIB, ge=_MIB // 4, le=2**31)
    max_unanswered: int = Field(default=64 * _MIB, ge=_MIB, le=2**32)
    language: LanguageEdgeSettings = LanguageEdgeSettings()
    black_box: BlackBoxSettings | None = None

    @field_validator("policy", mode="before")
    @classmethod
    def _policy(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        told = {key: str(given).lower() if isinstance(given, bool) else given for key, given in value.items()}
        name = told.pop("name", None)
        if not isinstance(name, str) or not name:
            raise ValueError("a policy's table needs its name, as in name = 'deadline'")
        nested = [key for key, given in told.items() if isinstance(given, dict | list)]
        if nested:
            raise ValueError(f"'{nested[0]}' of a policy must be a number, a text or a truth value")
        told = {key: f"({given})" if "," in str(given) else given for key, given in told.items()}
        return ":".join(filter(None, (name, ",".join(f"{key}={given}" for key, given in told.items()))))

    @field_validator("http")
    @classmethod
    def _address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"'{value}' is no address; write HOST:PORT, e.g. 127.0.0.1:8080")
        return value

    @property
    def http_host(self) -> str:
        """Host part of `http`, without brackets."""
        return self.http.rpartition(":")[0].strip("[]")

    @property
    def http_port(self) -> int:
        """Port part of `http`."""
        return int(self.http.rpartition(":")[2])
