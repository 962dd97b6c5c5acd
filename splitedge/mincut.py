"""The cheapest division of a graph of computations between two machines, as a minimum cut.

After DADS (Hu et al., "Dynamic adaptive DNN surgery for inference acceleration on the edge", INFOCOM
2019): a node on the source side runs on the edge, one on the sink side in the cloud. Data only flows from
edge to cloud, so the edge side is closed under "needs"; a value that crosses is paid once, however many
of its consumers are in the cloud. Solved with Dinic's algorithm on whole numbers, so that it ends and is
exact to a picosecond.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PICOSECOND = 1e-12


@dataclass(frozen=True, slots=True)
class LatencyModel:
    """What a division is charged with.

    Attributes:
        edge_s: seconds of each computing node on the device, by node name (`Graph.nodes`).
        cloud_s: seconds of each on the server.
        goodput_bps: bits per second that the uplink achieves.
        fixed_s: seconds that any division with work in the cloud costs besides (a round trip, the reply).
    """

    edge_s: Mapping[str, float]
    cloud_s: Mapping[str, float]
    goodput_bps: float
    fixed_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.goodput_bps > 0:
            raise ValueError(f"goodput_bps must be positive, got {self.goodput_bps}")
        if not self.fixed_s >= 0:
            raise ValueError(f"fixed_s must not be negative, got {self.fixed_s}")

    @classmethod
    def from_flops(
        cls,
        flops: Mapping[str, int],
        *,
        edge_flops_per_s: float,
        cloud_flops_per_s: float,
        goodput_bps: float,
        fixed_s: float = 0.0,
        edge_call_s: float = 0.0,
        cloud_call_s: float = 0.0,
    ) -> LatencyModel:
        """From operation counts (`Graph.flops`), FLOP/s of both machines and seconds for each call."""
        return cls(
            {name: n / edge_flops_per_s + edge_call_s for name, n in flops.items()},
            {name: n / cloud_flops_per_s + cloud_call_s for name, n in flops.items()},
            goodput_bps,
            fixed_s,
        )


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in the network: who makes it (-1: it is an input), who uses it, seconds to send it."""

    producer: int
    consumers: tuple[int, ...]
    send_s: float


def cheapest(edge_s: Sequence[float], cloud_s: Sequence[float], values: Sequence[Value]) -> frozenset[int]:
    """The nodes to run on the edge so that compute plus transfer takes least, all else in the cloud.

    Args:
        edge_s: seconds of node i on the edge.
        cloud_s: seconds of node i in the cloud.
        values: who needs what; an infinite `send_s` forbids the value to cross.

    Raises:
        ValueError: a cost is negative or not a number, or a compute cost is infinite.
    """
    count = len(edge_s)
    if len(cloud_s) != count:
        raise ValueError(f"{count} edge costs and {len(cloud_s)} cloud costs")
    finite = [_whole(s) for s in (*edge_s, *cloud_s)]
    sends = [None if math.isinf(v.send_s) else _whole(v.send_s) for v in values]
    unbounded = sum(finite) + sum(s for s in sends if s is not None) + 1
    source, sink = count + len(values), count + len(values) + 1
    flow = _Flow(sink + 1)
    for i in range(count):
        flow.edge(source, i, finite[count + i])
        flow.edge(i, sink, finite[i])
    for v, (value, send) in enumerate(zip(values, sends, strict=True)):
        producer = source if value.producer < 0 else value.producer
        flow.edge(producer, count + v, unbounded if send is None else send)
        for consumer in value.consumers:
            flow.edge(count + v, consumer, unbounded)  # in the cloud it needs the value there
            if value.producer >= 0:
                flow.edge(consumer, producer, unbounded)  # on the edge it needs the producer there
    flow.maximise(source, sink)
    reached = flow.reachable(source)
    return frozenset(i for i in range(count) if i in reached)


def _whole(seconds: float) -> int:
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"costs are seconds, not negative and finite; got {seconds}")
    return round(seconds / PICOSECOND)


class _Flow:
    """Dinic's maximum flow, without recursion. Edge e and its reverse e ^ 1 stand side by side."""

    def __init__(self, nodes: int) -> None:
        self.out: list[list[int]] = [[] for _ in range(nodes)]
        self.head: list[int] = []
        self.room: list[int] = []

    def edge(self, tail: int, head: int, capacity: int) -> None:
        self.out[tail].append(len(self.head))
        self.head.append(head)
        self.room.append(capacity)
        self.out[head].append(len(self.head))
        self.head.append(tail)
        self.room.append(0)

    def maximise(self, source: int, sink: int) -> None:
        while (levels := self._levels(source))[sink] >= 0:
            at = [0] * len(self.out)
            while self._augment(source, sink, levels, at):
                pass

    def _levels(self, source: int) -> list[int]:
        levels = [-1] * len(self.out)
        levels[source] = 0
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for e in self.out[node]:
                if self.room[e] and levels[self.head[e]] < 0:
                    levels[self.head[e]] = levels[node] + 1
                    queue.append(self.head[e])
        return levels

    def _augment(self, source: int, sink: int, levels: list[int], at: list[int]) -> bool:
        """Push along one shortest path; `at` remembers which edges of a node are exhausted."""
        path: list[int] = []
        node = source
        while node != sink:
            if at[node] < len(self.out[node]):
                e = self.out[node][at[node]]
                if self.room[e] and levels[self.head[e]] == levels[node] + 1:
                    path.append(e)
                    node = self.head[e]
                else:
                    at[node] += 1
            elif path:
                node = self.head[path.pop() ^ 1]
                at[node] += 1
            else:
                return False
        push = min(self.room[e] for e in path)
        for e in path:
            self.room[e] -= push
            self.room[e ^ 1] += push
        return True

    def reachable(self, source: int) -> set[int]:
        return {node for node, level in enumerate(self._levels(source)) if level >= 0}
