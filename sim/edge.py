"""One simulated device: the shell around the engine, as `edge.runtime` and `edge.remote` are the real one.

It feeds the very `Engine` of the daemon with the same events in the same order and carries its actions out
on virtual time: stages take drawn seconds, messages cross `Link`s, answers are rows of an evaluation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from splitedge.engine import Engine
from splitedge.estimate import ClockOffset
from splitedge.events import (
    Answer,
    Arrived,
    BatteryRead,
    CancelRemote,
    Draining,
    Event,
    Fail,
    LinkChanged,
    Ping,
    Ponged,
    Refused,
    Replied,
    Run,
    Send,
    Sent,
    Source,
    Stage,
    StageDone,
    StageKind,
    Tick,
)
from splitedge.policy import Option, Route, wants_features
from splitedge.record import Record
from splitedge.sim import sizes
from splitedge.sim.answers import Answers
from splitedge.sim.cloud import Reply, Session, SimCloud
from splitedge.sim.connection import Connection, Later
from splitedge.sim.curves import Floats
from splitedge.sim.device import Battery, Seconds, on_head
from splitedge.sim.link import Link
from splitedge.sim.measured import Drawn, Measured
from splitedge.sim.scenario import Scenario
from splitedge.sim.shell import Shell
from splitedge.sim.workload import Rows

_MAX_MS: Final = 0xFFFF_FFFF
_ENCODE: Final = StageKind.ENCODE
_FILTER: Final = Source.FILTER

Ended = Callable[["Edge", Record, int, bool], None]


@dataclass(frozen=True, slots=True)
class Work:
    """The requests of one device.

    Attributes:
        t_s: when each arrives, never falling, shape (n,).
        rows: the row of the evaluation each is, shape (n,).
        edge_z, cloud_z: the normal numbers that its seconds are drawn with, shape (n,) each.
        shell_z: those of its shells, where they are measured ones; None for constants.
    """

    t_s: Floats
    rows: Rows
    edge_z: Floats
    cloud_z: Floats
    shell_z: Floats | None = None


class Edge:
    """One device with its engine.

    Args:
        index: of the device.
        engine: a fresh one.
        scenario: shell costs, deadline, cuts, battery interval.
        answers: what every option answers to every row.
        work: its requests.
        links: up and down.
        cloud: where remote routes are computed.
        battery: None on mains.
        later: schedules a call at a second of the run's clock.
        ended: takes each request's record, the row it was and whether it was answered right.
        measured: what stages and shells take; None draws log-normals of the option table, with the
            scenario's constants.
    """

    def __init__(
        self,
        index: int,
        engine: Engine,
        scenario: Scenario,
        answers: Answers,
        work: Work,
        links: tuple[Link, Link],
        cloud: SimCloud,
        battery: Battery | None,
        later: Later,
        ended: Ended,
        measured: Measured | None = None,
    ) -> None:
        self.index = index
        self.engine = engine
        options = engine.options
        self._on_head = tuple(on_head(option) for option in options)
        self._stage_option = _stage_options(options)
        self._seconds: Seconds | Drawn = Seconds([o.edge_s for o in options], [o.edge_s_q95 for o in options])
        self._answers = answers
        self._t: list[float] = work.t_s.tolist()
        self._rows: list[int] = work.rows.tolist()
        self._edge_z: list[float] = work.edge_z.tolist()
        self._cloud_z: list[float] = work.cloud_z.tolist()
        deadline_ms = scenario.work.deadline_ms
        self._deadline_s = None if deadline_ms is None else deadline_ms / 1e3
        self._shell = Shell(scenario.shell, measured, work.shell_z)
        if measured is not None:
            self._seconds = measured.edge(options, scenario.device.slower)
        self._up, self._down = links
        self._cloud = cloud
        self._session = Session(self, index.to_bytes(8, "big"))
        self._battery = battery
        self._battery_s = scenario.device.battery_interval_s
        self._radio_at = -math.inf
        self._later = later
        self._ended = ended
        self._head: dict[int, float] = {}  # seconds of the head that were run, by request
        self._encoded: dict[int, int] = {}  # option encoded last
        self._sent: dict[tuple[int, int], float] = {}  # when each attempt was sent
        self._leaves_at = self._hears_at = 0.0  # one loop: a slow message holds up those behind it
        self._offset = ClockOffset()
        self._events: deque[Event] = deque()
        self._wakes_at = math.inf
        self._now = 0.0
        self._link = Connection(
            *links, sizes.hello(options), scenario.channel.cuts, later, self._link_changed
        )
        self._do: dict[type, Callable[[float, Any], None]] = {
            Run: self._run,
            Send: self._send,
            Answer: self._answer,
            Fail: self._fail,
            CancelRemote: self._cancel_remote,
            Ping: self._ping,
        }

    def start(self) -> None:
        """Second 0: connected, the battery read, the first request to come."""
        self._feed(0.0, LinkChanged(True, "connected"))
        if self._battery is not None:
            self._read_battery(0.0, None)
        if self._t:
            self._later(self._t[0], self._arrive, 0)

    # The engine -----------------------------------------------------------------------------------

    def _feed(self, now: float, event: Event) -> None:
        """Step the engine; what its actions cause at once is fed after them, in order."""
        events, do, step = self._events, self._do, self.engine.step
        while True:
            for action in step(now, event):
                do[type(action)](now, action)
            if not events:
                break
            event = events.popleft()
        wake = self.engine.wake_at
        if wake < self._wakes_at:
            self._wakes_at = wake
            self._later(wake, self._tick, wake)

    def _tick(self, now: float, wake: float) -> None:
        if wake != self._wakes_at:
            return  # an earlier one took its place
        self._wakes_at = math.inf
        if self.engine.wake_at <= now:
            self._feed(now, Tick())
        elif self.engine.wake_at < math.inf:
            self._wakes_at = wake = self.engine.wake_at
            self._later(wake, self._tick, wake)

    def _arrive(self, now: float, i: int) -> None:
        if i + 1 < len(self._t):
            self._later(self._t[i + 1], self._arrive, i + 1)
        self._feed(now, Arrived(i + 1, 1, self._deadline_s, None, self._features(i)))

    def _features(self, i: int) -> tuple[float, ...] | None:
        """Of the input of a request, for a policy that wants them."""
        known = self._answers.features
        return known[self._rows[i]] if known is not None and wants_features(self.engine.policy) else None

    # Stages ---------------------------------------------------------------------------------------

    def _run(self, now: float, action: Run) -> None:
        stage = action.stage
        option = self._stage_option[stage]
        i = action.request - 1
        seconds = self._seconds.draw(option, self._edge_z[i])
        if self._on_head[option]:
            ran = self._head.get(action.request, 0.0)
            if seconds > ran:
                self._head[action.request] = seconds
                seconds -= ran
            else:
                seconds = 0.0
        self._later(now + seconds, self._computed, (action.request, stage, option, seconds))

    def _computed(self, now: float, done: tuple[int, Stage, int, float]) -> None:
        if self._battery is not None:
            self._spend(now, self.engine.power.compute_w * done[3])
        shell_s = self._shell.stage(done[0])
        if shell_s:
            self._later(now + shell_s, self._stage_done, done)
        else:
            self._stage_done(now, done)

    def _stage_done(self, now: float, done: tuple[int, Stage, int, float]) -> None:
        request, stage, option, seconds = done
        row = self._rows[request - 1]
        if stage.kind is not _ENCODE:
            sure = self._answers.confidence[option][row]
            self._feed(now, StageDone(request, stage, seconds, 0.0, sure))
            return
        self._encoded[request] = option
        sure, nbytes = self._answers.encoded(option, row)
        if self._on_head[option]:
            self._feed(now, StageDone(request, stage, seconds, 0.0, sure, nbytes))
        else:
            self._feed(now, StageDone(request, stage, 0.0, seconds, sure, nbytes))

    # The cloud ------------------------------------------------------------------------------------

    def _send(self, now: float, action: Send) -> None:
        request, attempt, option = action.request, action.attempt, action.option
        nbytes = self._answers.encoded(option, self._rows[request - 1])[1]
        self._sent[request, attempt] = now
        left = action.deadline_s
        left_ms = 0 if left == math.inf else min(_MAX_MS, max(1, int(left * 1000)))
        message = (self._link.number, request, attempt, option, nbytes, left_ms)
        self._transmit(now, nbytes, self._infer, message, request)
        self._events.append(Sent(request, attempt, nbytes))

    def _transmit(
        self, now: float, nbytes: int, then: Callable[[float, Any], None], what: Any, request: int
    ) -> None:
        """Put a message on the link, after what the shell needs for it; request 0 for one of none."""
        if self._battery is not None:
            self._radio(now, nbytes, self.engine.power.j_per_bit_up)
        shell_s = self._shell.send(request)
        if shell_s:
            self._leaves_at = max(self._leaves_at, now + shell_s)
            self._later(self._leaves_at, self._on_link, (nbytes, then, what))
        else:
            arrives = self._up.send(now, nbytes)
            if arrives < math.inf:
                self._later(arrives, then, what)

    def _on_link(self, now: float, message: tuple[int, Callable[[float, Any], None], Any]) -> None:
        self._link.up(now, *message)

    def _infer(self, now: float, message: tuple[int, int, int, int, int, int]) -> None:
        if not self._link.reached(message[0]):
            return
        shell_s = self._shell.cloud(message[1])
        if shell_s:
            self._later(now + shell_s, self._admit, message)
        else:
            self._cloud.infer(now, self._session, *message)

    def _admit(self, now: float, message: tuple[int, int, int, int, int, int]) -> None:
        self._cloud.infer(now, self._session, *message)

    def cloud_z(self, request: int) -> float:
        """See `cloud.Client`."""
        return self._cloud_z[request - 1]

    def cloud_says(self, now: float, connection: int, reply: Reply) -> None:
        """See `cloud.Client`."""
        shell_s = self._shell.cloud(reply.request)
        if shell_s:
            self._later(now + shell_s, self._cloud_sends, (connection, reply))
        else:
            self._cloud_sends(now, (connection, reply))

    def _cloud_sends(self, now: float, what: tuple[int, Reply]) -> None:
        connection, reply = what
        if not self._link.returns(connection):
            return
        if reply.refusal is None:
            nbytes = self._answers.bytes_down[reply.option]
        else:
            nbytes = sizes.refuse(reply.refusal, reply.message)
        arrives = self._down.send(now, nbytes)
        if arrives < math.inf:
            self._later(arrives, self._arrived_back, (connection, self._hear_reply, reply, nbytes))

    def _arrived_back(self, now: float, what: tuple[int, Callable[..., None], Any, int]) -> None:
        """The last byte of a message from the cloud is here."""
        connection, hear, message, nbytes = what
        if connection != self._link.number:
            return
        self._link.heard(now)
        if self._battery is not None:
            self._radio(now, nbytes, self.engine.power.j_per_bit_down)
        shell_s = self._shell.receive(message.request if type(message) is Reply else 0)
        if shell_s:
            self._hears_at = max(self._hears_at, now + shell_s)
            self._later(self._hears_at, self._heard, what)
        else:
            hear(now, message, nbytes)

    def _heard(self, now: float, what: tuple[int, Callable[..., None], Any, int]) -> None:
        connection, hear, message, nbytes = what
        if connection == self._link.number:
            hear(now, message, nbytes)

    def _hear_reply(self, now: float, reply: Reply, nbytes: int) -> None:
        request, attempt = reply.request, reply.attempt
        sent = self._sent.pop((request, attempt), None)
        if sent is None:
            return
        if reply.refusal is not None:
            why = reply.refusal, reply.message, reply.retry_after_s
            self._feed(now, Refused(request, attempt, *why))
            return
        offset, inside_s = self._offset, self._shell.stamped(request)
        received, sent_back = reply.received_s - inside_s, reply.sent_s + inside_s
        offset.observe(sent, received, sent_back, now)
        up_s, down_s = offset.one_way(sent, received, sent_back, now)
        sure = self._answers.confidence[reply.option][self._rows[request - 1]]
        self._feed(
            now, Replied(request, attempt, up_s, down_s, reply.queue_s, 0.0, reply.tail_s, nbytes, sure)
        )

    def _cancel_remote(self, now: float, action: CancelRemote) -> None:
        self._transmit(now, sizes.CANCEL, self._cancel, (self._link.number, action.request), 0)

    def _cancel(self, now: float, what: tuple[int, int]) -> None:
        if self._link.reached(what[0]):
            self._cloud.cancel(now, self._session, what[1])

    def _ping(self, now: float, action: Ping) -> None:
        self._transmit(now, sizes.PING, self._pong, (self._link.number, now), 0)

    def _pong(self, now: float, ping: tuple[int, float]) -> None:
        number, sent = ping
        if self._link.reached(number):
            back = (number, self._hear_pong, (sent, now), sizes.PONG)
            self._link.down(now, sizes.PONG, self._arrived_back, back)

    def _hear_pong(self, now: float, stamps: tuple[float, float], nbytes: int) -> None:
        sent, received = stamps
        self._offset.observe(sent, received, received, now)
        self._feed(now, Ponged(now - sent))

    def _link_changed(self, now: float, up: bool, reason: str) -> None:
        self._sent.clear()
        self._feed(now, LinkChanged(up, reason))

    # Energy ---------------------------------------------------------------------------------------

    def _radio(self, now: float, nbytes: int, j_per_bit: float) -> None:
        tail_j = self.engine.power.tail_joules(now - self._radio_at)
        self._radio_at = now
        self._spend(now, 8.0 * nbytes * j_per_bit + tail_j)

    def _spend(self, now: float, joules: float) -> None:
        assert self._battery is not None
        self._battery.spend(joules)

    def _read_battery(self, now: float, _: None) -> None:
        """What the daemon does every `battery_interval_s`; a device without charge shuts down."""
        assert self._battery is not None
        charge = self._battery.fraction(now)
        self._feed(now, BatteryRead(charge))
        if charge > 0.0:
            self._later(now + self._battery_s, self._read_battery, None)
        else:
            self._feed(now, Draining())

    # Ends -----------------------------------------------------------------------------------------

    def _answer(self, now: float, action: Answer) -> None:
        request, record = action.request, action.record
        row = self._rows[request - 1]
        if action.source is _FILTER:
            option = self._encoded[request]
        else:
            option = self._answers.index[record.option]
        self._forget(request)
        self._ended(self, record, row, self._answers.correct[option][row])

    def _fail(self, now: float, action: Fail) -> None:
        self._forget(action.request)
        self._ended(self, action.record, self._rows[action.request - 1], False)

    def _forget(self, request: int) -> None:
        self._head.pop(request, None)
        self._encoded.pop(request, None)


def _stage_options(options: tuple[Option, ...]) -> dict[Stage, int]:
    """The option each stage belongs to."""
    found: dict[Stage, int] = {}
    for i, option in enumerate(options):
        if option.route is Route.EXIT and option.exit is not None:
            found[Stage(StageKind.EXIT, option.exit)] = i
        elif option.route is Route.LOCAL:
            found[Stage(StageKind.LOCAL)] = i
        else:
            found[Stage(StageKind.ENCODE, i)] = i
    return found
