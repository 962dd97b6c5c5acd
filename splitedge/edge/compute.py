"""Runs a model's stages: on one worker thread, or on the event loop where that is cheaper.

Handing a stage to a thread and its outcome back costs about 100 µs, and under load the two threads wait
for each other's hold of the interpreter (5 ms a turn, by Python's default). A stage shorter than `INLINE_S`
runs on the loop instead. How long each takes is measured every time it runs, so one that grows slow goes
back to the thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from splitedge.events import Stage
from splitedge.parts import EdgeModel, Flow, Outcome

INLINE_S = 300e-6
_REMEMBER = 5  # measurements of each stage
_TRY_AGAIN = 200  # runs on the thread after which a stage too slow for the loop is tried there again


class _Pace:
    """How long one stage takes, in seconds of one row.

    On the thread CPU seconds are counted, because its wall seconds hold waits for the interpreter that a
    run on the loop would not have; what waits without computing (a device, a disk) is found out there.
    """

    def __init__(self) -> None:
        self._thread: deque[float] = deque(maxlen=_REMEMBER)
        self._loop: deque[float] = deque(maxlen=_REMEMBER)
        self._since = 0

    def ran(self, inline: bool, row_s: float) -> None:
        """One more measurement."""
        (self._loop if inline else self._thread).append(row_s)
        self._since = 0 if inline else self._since + 1
        if self._since >= _TRY_AGAIN:
            self._loop.clear()

    def row_s(self) -> float:
        """The median of the last few: one that the scheduler interrupted says nothing of the stage."""
        known = sorted(self._loop or self._thread)
        return known[len(known) // 2] if known else math.inf


@dataclass(slots=True)
class _Job:
    request: int
    flow: Flow
    stage: Stage


Done = Callable[[int, Stage, Outcome | Exception], None]


class StageRunner:
    """Computes one stage at a time, in the order asked for.

    Args:
        model: whose stages.
        loop: the event loop; `done` is called on its thread.
        done: takes request, stage, and the outcome or the exception that the stage raised.
    """

    def __init__(self, model: EdgeModel, loop: asyncio.AbstractEventLoop, done: Done) -> None:
        self._model = model
        self._loop = loop
        self._done = done
        self._paces: defaultdict[Stage, _Pace] = defaultdict(_Pace)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._busy = 0  # jobs handed to the thread and not yet back
        self._closed = False
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="splitedge-compute", daemon=True)
        self._thread.start()

    def inline(self, stage: Stage, rows: int) -> bool:
        """Whether a stage would run on the caller's thread now."""
        return not self._busy and self._paces[stage].row_s() * rows < INLINE_S

    def run(self, request: int, flow: Flow, stage: Stage) -> None:
        """Compute a stage; `done` is called before this returns or later."""
        if self.inline(stage, flow.rows):
            outcome, seconds = self._compute(flow, stage, time.perf_counter)
            self._paces[stage].ran(True, seconds / flow.rows)
            self._done(request, stage, outcome)
        else:
            self._busy += 1
            self._jobs.put(_Job(request, flow, stage))

    async def close(self, wait_s: float = 5.0) -> None:
        """End the thread after the stage it is in; nothing more is reported."""
        self._closed = True
        self._jobs.put(None)
        with contextlib.suppress(TimeoutError):  # a stage that never ends dies with the process
            await asyncio.wait_for(self._ended.wait(), wait_s)

    def _compute(
        self, flow: Flow, stage: Stage, clock: Callable[[], float]
    ) -> tuple[Outcome | Exception, float]:
        start = clock()
        try:
            outcome: Outcome | Exception = self._model.run(flow, stage)
        except Exception as error:  # a model may raise anything; its request must still end
            outcome = error
        return outcome, clock() - start

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._closed:
                self._report(self._finish, job, *self._compute(job.flow, job.stage, time.thread_time))
        self._report(self._ended.set)

    def _report(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    def _finish(self, job: _Job, outcome: Outcome | Exception, seconds: float) -> None:
        self._busy -= 1
        self._paces[job.stage].ran(False, seconds / job.flow.rows)
        if not self._closed:
            self._done(job.request, job.stage, outcome)
