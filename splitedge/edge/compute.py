"""Runs a model's stages: on one worker thread, or on the event loop where that is cheaper.

Handing a stage to a thread and its outcome back costs about 100 µs. A stage known to be shorter than
`INLINE_S` runs where it is; how long each takes is measured every time it runs, so a stage that grows
slow goes back to the thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from splitedge.events import Stage
from splitedge.parts import EdgeModel, Flow, Outcome

INLINE_S = 300e-6
_REMEMBER = 5  # measurements of each stage


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
        self._last: dict[Stage, deque[float]] = {}
        self._seconds: dict[Stage, float] = {}  # of one row
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._busy = 0  # jobs handed to the thread and not yet back
        self._closed = False
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="splitedge-compute", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> int:
        """Stages on the thread or waiting for it."""
        return self._busy

    def inline(self, stage: Stage, rows: int) -> bool:
        """Whether a stage would run on the caller's thread now."""
        return not self._busy and self._seconds.get(stage, INLINE_S) * rows < INLINE_S

    def run(self, request: int, flow: Flow, stage: Stage) -> None:
        """Compute a stage; `done` is called before this returns or later."""
        if self.inline(stage, flow.rows):
            outcome, seconds = self._compute(flow, stage)
            self._learn(stage, seconds / flow.rows)
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

    def _compute(self, flow: Flow, stage: Stage) -> tuple[Outcome | Exception, float]:
        start = time.perf_counter()
        try:
            outcome: Outcome | Exception = self._model.run(flow, stage)
        except Exception as error:  # a model may raise anything; its request must still end
            outcome = error
        return outcome, time.perf_counter() - start

    def _learn(self, stage: Stage, row_s: float) -> None:
        """The median of the last few: one that the scheduler interrupted says nothing of the stage."""
        known = self._last.setdefault(stage, deque(maxlen=_REMEMBER))
        known.append(row_s)
        self._seconds[stage] = sorted(known)[len(known) // 2]

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._closed:
                self._report(self._finish, job, *self._compute(job.flow, job.stage))
        self._report(self._ended.set)

    def _report(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    def _finish(self, job: _Job, outcome: Outcome | Exception, seconds: float) -> None:
        self._busy -= 1
        self._learn(job.stage, seconds / job.flow.rows)
        if not self._closed:
            self._done(job.request, job.stage, outcome)
