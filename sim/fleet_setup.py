"""From a scenario to the arrays that the loops of fleet mode work on."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from splitedge.errors import SimulationError
from splitedge.evaluation import Evaluation
from splitedge.events import Refusal
from splitedge.paths import Paths
from splitedge.policy import Option, Route
from splitedge.power import PowerModel
from splitedge.sim import sizes
from splitedge.sim.connection import HANDSHAKE_S, HEARTBEAT_S, HELLO_S, RECONNECT_S
from splitedge.sim.curves import Floats
from splitedge.sim.device import log_normal_sigma, on_head
from splitedge.sim.fleet_end import ROUTES
from splitedge.sim.fleet_estimate import estimators
from splitedge.sim.fleet_link import LINK, Way, way
from splitedge.sim.fleet_rules import ANSWER, OPTION, RULES
from splitedge.sim.fleet_world import DEVICE, ENDED, FREE, NONE, SEEN, SLOT, Ints, World
from splitedge.sim.link import Channel
from splitedge.sim.scenario import Scenario
from splitedge.sim.shell import refuse_measured
from splitedge.sim.traces import Trace
from splitedge.sim.workload import start_s

_MESSAGES = 4  # pings and heartbeats of a device under way at once: two, and two that lost their connection
_LEAST_S = 1e-3  # of the way back from the cloud, where a channel has no delay


class Table(NamedTuple):
    """Parts of `World`, which see."""

    table: Any
    exits: Ints
    fallbacks: Ints
    answers: Any
    longest_s: float


def table_of(options: tuple[Option, ...], evaluation: Evaluation) -> Table:
    """The options of a scenario (times as they are there) with the answers of an evaluation.

    Raises:
        ConfigError: the engine could not carry them out.
    """
    paths = Paths(options)
    exits = sorted(paths.depth, key=lambda number: paths.depth[number])
    index = {o.exit: i for i, o in enumerate(options) if o.route is Route.EXIT}
    lanes = {(o.cut, o.codec): i for i, o in enumerate(options)}
    table = np.zeros(len(options), OPTION)
    for i, option in enumerate(options):
        to, gate = table[i], option.gate
        to["remote"], to["on_head"], to["gated"] = option.remote, on_head(option), gate is not None
        to["gate_exit"] = NONE if gate is None or gate.exit is None else index[gate.exit]
        to["route"] = ROUTES.index(option.route.value)
        to["before"] = len(paths.stages[i]) - 1
        to["depth"] = NONE if option.exit is None else paths.depth[option.exit]
        to["lane"] = lanes[option.cut, option.codec]
        to["edge_s"], to["edge_q95_s"] = option.edge_s, option.edge_s_q95
        to["cloud_s"], to["cloud_q95_s"] = option.cloud_s, option.cloud_s_q95
        to["bytes_up_q95"], to["bytes_down"] = option.bytes_up_q95, round(option.bytes_down)
        to["accuracy"] = option.accuracy
        to["edge_median_s"], to["edge_sigma"] = _drawn(option.edge_s, option.edge_s_q95)
        to["cloud_median_s"], to["cloud_sigma"] = _drawn(option.cloud_s, option.cloud_s_q95)
    answers = np.zeros(evaluation.correct.shape, ANSWER)
    answers["confidence"], answers["right"] = evaluation.confidence, evaluation.correct
    answers["message"] = np.where(np.array(paths.remote)[:, None], np.rint(evaluation.nbytes), 0.0)
    return Table(
        table.view(np.recarray),
        np.array([index[number] for number in exits], np.int64),
        np.array(paths.fallbacks, np.int64),
        answers.view(np.recarray),
        paths.longest_s,
    )


def _drawn(mean: float, q95: float) -> tuple[float, float]:
    """Median and sigma of the log-normal that seconds are drawn from."""
    sigma = log_normal_sigma(mean, q95)
    return mean * math.exp(-0.5 * sigma * sigma), sigma


def ways_of(scenario: Scenario, up: Trace, down: Trace) -> tuple[Way, Way]:
    """Both directions of the channel, as exact mode takes them.

    Raises:
        TraceError: a trace lacks its direction, or a number is out of range.
    """
    part = scenario.channel
    rtt = part.rtt_ms / 1e3 if part.rtt_ms is not None else (up.rtt or 0.0)
    start = 0.0 if part.loop else part.start_s
    room = part.buffer_kb * 1000
    one = way(Channel(up.capacity("up"), rtt, room, start, part.loop))
    other = way(Channel(down.capacity("down"), rtt, room, start, part.loop))
    return one, other


def rules_of(
    scenario: Scenario, power: PowerModel, table: Table, up: Trace, options: tuple[Option, ...]
) -> Any:
    """Constants of a run.

    Raises:
        ConfigError: the scenario names measured seconds.
        SimulationError: the engine's settings ask for what fleet mode has not.
    """
    engine, part, shell, channel = scenario.engine, scenario.device, scenario.shell, scenario.channel
    refuse_measured(scenario, "fleet mode")
    for name, there in (
        ("outages", bool(channel.outages)),
        ("half_duplex", channel.half_duplex),
        ("loss", channel.loss > 0.0),
    ):
        if there:
            raise SimulationError(
                f"fleet mode does not model channel.{name}; leave it out or simulate in exact mode "
                "(mode = 'exact')"
            )
    if engine.compute_slots != 1:
        raise SimulationError(
            f"fleet mode computes one stage at a time on a device, engine.compute_slots is "
            f"{engine.compute_slots}; simulate in exact mode"
        )
    deadline_ms = scenario.work.deadline_ms
    rtt_s = float(rtt_of(scenario, up).min())
    hello, welcome = sizes.hello(options)
    remote = table.table["cloud_median_s"][table.table["remote"]]
    quickest = 0.5 * float(remote.min()) if remote.size else 0.0
    rules = {
        "timed": deadline_ms is not None,
        "deadline_s": math.inf if deadline_ms is None else deadline_ms / 1e3,
        "margin_s": engine.margin_s,
        "slack_s": engine.guard_slack_s,
        "timeout_s": engine.default_timeout_s,
        "patience_s": engine.patience_s,
        "max_in_flight": engine.max_in_flight,
        "max_attempts": engine.max_attempts,
        "overdue_factor": engine.overdue_factor,
        "overdue_min_s": engine.overdue_min_s,
        "breaker_failures": engine.breaker_failures,
        "probe_base_s": engine.probe_base_s,
        "probe_max_s": engine.probe_max_s,
        "ping_s": engine.ping_interval_s,
        "ping_idle_s": engine.ping_idle_max_s,
        "ping_timeout_s": engine.ping_timeout_s,
        "retry_base_s": engine.retry_base_s,
        "retry_max_s": engine.retry_max_s,
        "retry_jitter": engine.retry_jitter,
        "heartbeat_s": HEARTBEAT_S,
        "reconnect_s": RECONNECT_S,
        "handshake_s": HANDSHAKE_S,
        "hello_s": HELLO_S,
        "beat_bytes": sizes.BEAT,
        "echo_bytes": sizes.BEAT_BACK,
        "hello_bytes": hello,
        "welcome_bytes": welcome,
        "ping_bytes": sizes.PING,
        "pong_bytes": sizes.PONG,
        "cancel_bytes": sizes.CANCEL,
        "refusal_bytes": sizes.refuse(Refusal.BUSY, "it would wait 0.123 s, 0.123 s are left"),
        "compute_w": power.compute_w,
        "idle_w": power.idle_w,
        "j_per_bit_up": power.j_per_bit_up,
        "j_per_bit_down": power.j_per_bit_down,
        "tail_w": power.tail_w,
        "tail_s": power.tail_s,
        "battery_j": math.inf if part.battery_j is None else part.battery_j,
        "battery_interval_s": part.battery_interval_s,
        "charge": part.charge,
        "shared_cell": part.shared_cell,
        "down_ahead_s": 0.0 if channel.down_start_s is None else channel.down_start_s - channel.start_s,
        "back_s": max(_LEAST_S, 0.5 * rtt_s),
        "lookahead_s": max(_LEAST_S, 0.5 * rtt_s + quickest + 2.0 * shell.cloud_ms / 1e3),
        "executors": scenario.cloud.executors,
        "max_rows": scenario.cloud.max_rows,
        "max_wait_s": scenario.cloud.max_wait_ms / 1e3,
        "per_row": scenario.cloud.per_row,
        "queue_requests": scenario.cloud.queue_requests,
        "stage_s": shell.stage_ms / 1e3,
        "send_s": shell.send_ms / 1e3,
        "receive_s": shell.receive_ms / 1e3,
        "hand_s": shell.cloud_ms / 1e3,
        "longest_s": table.longest_s,
    }
    assert RULES.names is not None
    return np.array([tuple(rules[name] for name in RULES.names)], RULES).view(np.recarray)


def rtt_of(scenario: Scenario, up: Trace) -> Floats:
    """Round-trip seconds without queueing, all there are."""
    part = scenario.channel
    if part.rtt_ms is not None:
        return np.array([part.rtt_ms / 1e3])
    return up.rtt.value if up.rtt is not None else np.zeros(1)


def world_of(scenario: Scenario, rules: Any, table: Table, up: Trace, down: Trace) -> World:
    """All devices at second 0, connected, nothing asked yet."""
    count = scenario.device.count
    device = np.zeros(count, DEVICE)
    starts = [start_s(scenario, i, up.duration_s) for i in range(count)]
    device["start_s"] = starts
    device["head"] = device["tail"] = NONE
    device["stands"] = NONE
    device["connected"] = 1
    device["beat_at"] = HEARTBEAT_S
    device["backoff"] = rules[0].probe_base_s
    for name in ("probe_at", "pong_due", "pong_at", "echo_at", "connect_at", "welcome_at"):
        device[name] = np.inf
    for name in ("last_life", "missed_at", "radio_at", "awake_at", "uplink_at", "offset_at"):
        device[name] = -np.inf
    device["ping_at"] = 0.0 if rules[0].ping_s > 0.0 else np.inf
    device["offset_delay"] = np.inf
    device["charge"] = np.nan
    device["read_at"] = 0.0 if rules[0].battery_j < np.inf else np.inf
    links = np.zeros(2 if rules[0].shared_cell else 2 * count, LINK)
    slots = 2 * count + max(64, count)
    remote = table.table["remote"]
    cloud_s = float(table.table["cloud_s"][remote].mean()) if remote.any() else 0.0
    one, other = ways_of(scenario, up, down)
    world = World(
        device=device.view(np.recarray),
        wakes=np.full(count, -np.inf),
        slot=np.zeros(slots, SLOT).view(np.recarray),
        ended=np.zeros(2 * slots, ENDED).view(np.recarray),
        pools=np.zeros((6, slots + _MESSAGES * count), np.int64),
        counts=np.zeros(6, np.int64),
        clock=np.array([0.0, cloud_s, np.inf, 0.0]),
        links=links.view(np.recarray),
        **estimators(count, scenario.link)._asdict(),
        seen=np.zeros((SEEN, count)),
        batch=np.zeros(scenario.cloud.max_rows, np.int64),
        due=np.zeros((2, slots + _MESSAGES * count), np.int64),
        due_at=np.zeros((2, slots + _MESSAGES * count)),
        busy=np.zeros(rules[0].executors),
        up=one,
        down=other,
        table=table.table,
        exits=table.exits,
        fallbacks=table.fallbacks,
        answers=table.answers,
        cuts=np.array(sorted(scenario.channel.cuts), np.float64).reshape(-1, 2),
        rules=rules,
    )
    shared = np.arange(2 * count, slots)[::-1]
    world.pools[FREE, : len(shared)] = shared
    world.counts[FREE] = len(shared)
    return world


def with_room(world: World, requests: int) -> World:
    """The same with at least `requests` free slots that are no device's own."""
    slots = len(world.slot)
    if world.counts[FREE] >= requests:
        return world
    more = max(slots, requests)

    def longer(array: Any, by: int = more) -> Any:
        grown = np.zeros((*array.shape[:-1], array.shape[-1] + by), array.dtype)
        grown[..., : array.shape[-1]] = array
        return grown

    pools = longer(world.pools)
    pools[FREE, world.counts[FREE] : world.counts[FREE] + more] = np.arange(slots, slots + more)
    world.counts[FREE] += more
    return world._replace(
        slot=longer(world.slot).view(np.recarray),
        ended=longer(world.ended, 2 * more).view(np.recarray),
        pools=pools,
        due=longer(world.due),
        due_at=longer(world.due_at),
    )
