"""What was trained to choose between device and cloud in a language deployment: router, judge, gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitedge.errors import ConfigError
from splitedge.llm.cascade import Judge
from splitedge.llm.gate import Gate
from splitedge.llm.router import QueryRouter

SCHEMA = "splitedge.language-aids/1"


@dataclass(frozen=True)
class Aids:
    """All of them, each None where it was not trained.

    Attributes:
        router: chooses per query before anything is written (`mode="route"`).
        judge: chooses per query when the device has answered (`mode="cascade"`).
        gate: chooses per token (`mode="assist"`), and says how sure a draft is (`mode="spec"`).
    """

    router: QueryRouter | None = None
    judge: Judge | None = None
    gate: Gate | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        found = {name: getattr(self, name) for name in ("router", "judge", "gate")}
        said = {name: None if aid is None else aid.to_json() for name, aid in found.items()}
        return {"schema": SCHEMA, **said}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Aids:
        """What `to_json` gave.

        Raises:
            ConfigError: it is something else, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ConfigError(f"these are no aids that this version reads (expected '{SCHEMA}')")
        router, judge, gate = (data.get(name) for name in ("router", "judge", "gate"))
        return cls(
            None if router is None else QueryRouter.from_json(router),
            None if judge is None else Judge.from_json(judge),
            None if gate is None else Gate.from_json(gate),
        )
