"""Choose an option for every request, knowing what comes: a search over the queues of one device.

The model is exact mode's without what only goes wrong: a first-in-first-out device, the link's own queues,
executors that take requests one by one, the engine's fall-back begun when a reply is late. No retries,
refusals or batches, no packet lost, no medium shared. What a choice is really worth is for exact mode to say.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

from splitedge.power import PowerModel, power_profile
from splitedge.sim.connection import RECONNECT_S
from splitedge.sim.future import Ask, Future
from splitedge.sim.link import Link

#: Schedules kept after each request: enough that the search is seldom cut short, few enough to be quick.
BEAM = 12
_EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Queues:
    """One way to have answered the requests so far, and what it left behind.

    Attributes:
        right: requests answered right in time, or to be expected so.
        joules: spent on all.
        device_s: when the device is free.
        up, down: the links.
        cloud_s: when each executor is free.
        radio_s: the last transfer.
        chosen: the last option, and the way before it.
    """

    right: float
    joules: float
    device_s: float
    up: Link
    down: Link
    cloud_s: tuple[float, ...]
    radio_s: float
    chosen: tuple[int, object] | None = None


class Scheduler:
    """The search.

    Args:
        future: what comes.
        beam: schedules kept after each request.
    """

    def __init__(self, future: Future, beam: int = BEAM) -> None:
        scenario = future.scenario
        self._future = future
        self._beam = beam
        self._power: PowerModel = power_profile(scenario.device.power)
        self._shell = scenario.shell
        self._engine = scenario.engine
        self._cuts = [(begin, end + RECONNECT_S) for begin, end in scenario.channel.cuts]
        options = future.options
        self._remote = [option.remote for option in options]
        here = [i for i, option in enumerate(options) if not option.remote]
        self._spare = max(here, key=lambda i: options[i].accuracy, default=None)
        self._spare_q95_s = options[self._spare].edge_s_q95 if self._spare is not None else 0.0

    def plan(self) -> list[list[int]]:
        """The option of every request, by device, then request."""
        count = self._future.scenario.device.count
        return [self._search()] if count == 1 else self._one_by_one(count)

    def _search(self) -> list[int]:
        """Keep the best schedules as requests come: more right first, then fewer joules."""
        up, down = self._future.links(0)
        start = Queues(0.0, 0.0, 0.0, up, down, (0.0,) * self._future.scenario.cloud.executors, -math.inf)
        kept = [start]
        asks = self._future.asks
        for ask, then in zip(asks, [*(other.t_s for other in asks[1:]), math.inf], strict=True):
            found = [self.after(state, ask, option) for state in kept for option in range(len(self._remote))]
            kept = self._best(found, then)
        steps: list[int] = []
        chosen = kept[0].chosen
        while chosen is not None:
            steps.append(chosen[0])
            chosen = chosen[1]  # type: ignore[assignment]
        return steps[::-1]

    def _one_by_one(self, count: int) -> list[list[int]]:
        """Many devices: the best for each request as it comes, no regard to the next."""
        scenario = self._future.scenario
        cloud = (0.0,) * scenario.cloud.executors
        shared = self._future.links(0) if scenario.device.shared_cell else None
        devices = [
            Queues(0.0, 0.0, 0.0, *(shared or self._future.links(device)), cloud, -math.inf)
            for device in range(count)
        ]
        plan: list[list[int]] = [[] for _ in range(count)]
        for ask in self._future.asks:
            mine = replace(devices[ask.device], cloud_s=cloud)
            if shared is not None:
                mine = replace(mine, up=shared[0], down=shared[1])
            found = [self.after(mine, ask, option) for option in range(len(self._remote))]
            best = min(found, key=_worth)
            assert best.chosen is not None
            plan[ask.device].append(best.chosen[0])
            cloud = best.cloud_s
            if shared is not None:
                shared = best.up, best.down
            devices[ask.device] = replace(best, chosen=None)
        return plan

    def after(self, state: Queues, ask: Ask, option: int) -> Queues:
        """What answering a request by an option leaves behind."""
        done = max(ask.t_s, state.device_s) + ask.edge_s[option]
        joules = state.joules + self._power.compute_w * ask.edge_s[option]
        chosen = (option, state.chosen)
        if not self._remote[option] or ask.nbytes[option] == 0:
            in_time = done + self._shell.stage_ms / 1e3 <= ask.limit_s
            right = state.right + (ask.right[option] if in_time else 0.0)
            return replace(state, right=right, joules=joules, device_s=done, chosen=chosen)
        return self._by_cloud(state, ask, option, done, joules, chosen)

    def _by_cloud(
        self, state: Queues, ask: Ask, option: int, done: float, joules: float, chosen: tuple[int, object]
    ) -> Queues:
        shell = self._shell
        up, down = copy.copy(state.up), copy.copy(state.down)
        sent = done + (shell.stage_ms + shell.send_ms) / 1e3
        nbytes, back = ask.nbytes[option], self._future.bytes_down[option]
        here = up.send(sent, nbytes) + shell.cloud_ms / 1e3
        free, *others = sorted(state.cloud_s)
        ended = max(here, free) + ask.cloud_s[option]
        heard = math.inf
        if ended < math.inf:
            heard = down.send(ended + shell.cloud_ms / 1e3, back) + shell.receive_ms / 1e3
        lost = heard == math.inf or any(begin < heard and sent < end for begin, end in self._cuts)
        joules += self._power.joules(0.0, nbytes, 0.0 if lost else back)
        radio_s = state.radio_s
        for moment in (sent,) if lost else (sent, heard):  # each keeps the radio awake from the one before
            joules += self._power.tail_joules(moment - radio_s)
            radio_s = max(radio_s, moment)
        device_s = done
        last = ask.limit_s
        if self._spare is not None and ask.limit_s < math.inf:
            last = ask.limit_s - self._engine.margin_s
            guard = max(last - self._spare_q95_s - self._engine.guard_slack_s, 0.5 * (ask.t_s + last))
            if lost or heard > guard:  # the engine computes a fall-back
                device_s = max(done, guard) + ask.edge_s[self._spare]
                joules += self._power.compute_w * ask.edge_s[self._spare]
        in_time = not lost and heard <= last
        return Queues(
            state.right + (ask.right[option] if in_time else 0.0),
            joules,
            device_s,
            up,
            down,
            tuple(sorted((*others, min(ended, 1e12)))),
            radio_s,
            chosen,
        )

    def _best(self, found: list[Queues], now: float) -> list[Queues]:
        """The best, without those that another beats with shorter queues."""
        found.sort(key=_worth)
        kept: list[Queues] = []
        busy: list[tuple[float, ...]] = []
        for state in found:
            left = _busy_until(state, now)
            if any(all(a <= b + _EPS for a, b in zip(other, left, strict=True)) for other in busy):
                continue
            kept.append(state)
            busy.append(left)
            if len(kept) == self._beam:
                break
        return kept


def _worth(state: Queues) -> tuple[float, float]:
    """The least is the best; sums of probabilities are equal but for their rounding."""
    return -round(state.right, 9), state.joules


def _busy_until(state: Queues, now: float) -> tuple[float, ...]:
    """When each queue is empty; what is before the next request, at `now`, makes no difference."""
    if now == math.inf:
        return ()
    return (
        max(state.device_s, now),
        state.up.room_at(now, state.up.channel.buffer_bytes),
        state.down.room_at(now, state.down.channel.buffer_bytes),
        *(max(free, now) for free in state.cloud_s),
    )
