"""What the core keeps of each request, lane and model."""

from __future__ import annotations

from dataclasses import dataclass, field

from splitedge.cloud.batcher import Batcher, Entry
from splitedge.cloud.executor import Task
from splitedge.cloud.metrics import LaneMetrics
from splitedge.cloud.service import ServiceTime
from splitedge.cloud.sessions import Session
from splitedge.parts import CloudModel
from splitedge.wire import Lane


@dataclass(slots=True, eq=False)
class Work(Entry):
    """A request that waits or runs."""

    session: Session[Work]
    request: int
    attempt: int
    to: bytes  # the connection its latest attempt came on
    target: ServedLane
    payload: memoryview
    received_ns: int
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class ServedModel:
    """A model, what waits for it and what it runs now."""

    index: int
    model: CloudModel
    batcher: Batcher[Work]
    service: ServiceTime = field(default_factory=ServiceTime)
    running: Batch | None = None

    @property
    def batchable(self) -> bool:
        """Whether rows of several requests may be run as one batch."""
        return self.model.batchable


@dataclass(slots=True, eq=False)
class ServedLane:
    """A lane, the model behind it, and how large its payloads may be."""

    lane: Lane
    owner: ServedModel
    metrics: LaneMetrics
    service: ServiceTime = field(default_factory=ServiceTime)
    caps: dict[tuple[int, int], int] = field(default_factory=dict)

    def cap(self, level: int, rows: int) -> int:
        """The most bytes a payload may have.

        Raises:
            CodecError: the lane's codec has no such level.
        """
        cap = self.caps.get((level, rows))
        if cap is None:
            cap = self.caps[level, rows] = self.owner.model.max_bytes(self.lane, level, rows)
        return cap


@dataclass(slots=True, eq=False)
class Batch:
    """Work to be run now, together.

    Attributes:
        index: of the model among those given to the core.
        model, lane: what to run it on.
        tasks: payload and rows of each request.
        quick: whether the lane is so fast that handing it to a thread would cost more.
    """

    index: int
    model: CloudModel
    lane: Lane
    tasks: list[Task]
    quick: bool
    target: ServedLane
    works: list[Work]
    started_ns: int
