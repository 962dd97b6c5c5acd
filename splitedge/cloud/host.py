"""The shell around `CloudCore` under asyncio: one thread per model, timers, draining. No sockets.

The ROUTER server puts a socket before it; an in-process cloud calls `deliver` directly:

    host = CloudHost(models, settings, send)     # send(peer, frames) is called on the loop
    await host.start()
    host.deliver(b"me", pack(Hello(...)))        # replies come through send, from a later turn of the loop
    await host.close()
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from splitedge.cloud.core import CloudCore, Send
from splitedge.cloud.desk import LanguageHalf
from splitedge.cloud.executor import Result, execute
from splitedge.cloud.language import Pass
from splitedge.cloud.metrics import CloudMetrics
from splitedge.cloud.settings import ServerSettings
from splitedge.cloud.work import Batch
from splitedge.codec import DTYPES, Tensors
from splitedge.errors import BundleError
from splitedge.events import Refusal
from splitedge.llm.cloud_model import Logits
from splitedge.parts import CloudModel
from splitedge.wire import Lane
from splitedge.worker import Worker

if TYPE_CHECKING:
    import zmq

log = logging.getLogger(__name__)

SWEEP_S = 1.0
WARM_RUNS = 3
#: Longest turn of inline batches before the loop may read its socket again.
TURN_NS = 2_000_000


class CloudHost:
    """Runs the batches of a `CloudCore`: quick lanes on the loop's thread, others on a thread per model.

    Args:
        models: what is served.
        settings: limits and budgets; those of sockets are not used.
        send: called on the loop with a connection and the frames for it; must not raise.
        after: called on the loop after each turn of work.
        metrics: counters; own ones where not given.
        languages: language models served beside them; each lane computes on a thread of its own.
    """

    def __init__(
        self,
        models: Sequence[CloudModel],
        settings: ServerSettings,
        send: Send,
        after: Callable[[], None] | None = None,
        metrics: CloudMetrics | None = None,
        languages: Sequence[LanguageHalf] = (),
    ) -> None:
        self.core = CloudCore(models, settings, send, time.monotonic_ns, metrics, languages)
        self.warm = False
        self._models = tuple(models)
        self._after = after
        self._workers: list[Worker] = []
        self._writers: list[Worker] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._scheduled = False

    async def start(self) -> None:
        """Start the threads and run every lane a few times on zeros.

        Raises:
            BundleError: a tail can not run at all.
        """
        self._loop = asyncio.get_running_loop()
        self._workers = [Worker(f"tail-{i}") for i in range(len(self._models))]
        self._writers = [Worker(f"language-{i}") for i in range(len(self.core.desk.served))]
        try:
            for model, worker in zip(self._models, self._workers, strict=True):
                await self._warm(model, worker)
        except BaseException:
            await self.close()
            raise
        self.warm = True
        self._sweep()

    def deliver(self, peer: bytes, frames: Sequence[bytes | memoryview | zmq.Frame], user: str = "") -> None:
        """Take one message; what it asks for is done on a later turn of the loop."""
        self.core.deliver(peer, frames, user)
        self._schedule()

    def pump(self) -> None:
        """Start whatever can be started now."""
        self._scheduled = False
        turn_ends = time.monotonic_ns() + TURN_NS
        for index in range(len(self._models)):
            while (batch := self.core.next_batch(index)) is not None:
                if not batch.quick:
                    self._hand_over(batch)
                    break
                with self.core.metrics.batch_running():
                    results, ran = _run(batch)
                self.core.finish(batch, results, ran)
                if time.monotonic_ns() > turn_ends:
                    self._schedule()
                    break
        for number in range(len(self._writers)):
            self._write(number)
        self._set_timer()
        if self._after is not None:
            self._after()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and let those in flight end; whether they did in time."""
        self.core.drain()
        end = time.monotonic() + timeout_s
        while (self.core.in_flight or self.core.desk.waiting) and time.monotonic() < end:
            await asyncio.sleep(0.005)
        return not (self.core.in_flight or self.core.desk.waiting)

    async def close(self) -> None:
        """Stop threads and timers. What is in flight is not answered; `drain` first."""
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        self._timer = self._sweeper = None
        for worker in (*self._workers, *self._writers):
            if not await asyncio.to_thread(worker.close, 5.0):
                log.warning("a tail still runs; its thread ends with the process")
        self._workers, self._writers = [], []
        self._loop = None
        self.warm = False

    # Work ----------------------------------------------------------------------------------------

    def _hand_over(self, batch: Batch) -> None:
        loop = self._loop
        assert loop is not None, "pump is called between start and close"

        def job() -> None:
            with self.core.metrics.batch_running():
                results, ran = _run(batch)
            try:
                loop.call_soon_threadsafe(self._done, batch, results, ran)
            except RuntimeError:
                log.info("a batch ended after the loop was closed")

        self._workers[batch.index].submit(job)

    def _write(self, number: int) -> None:
        """Start a language model's next pass, unless one runs."""
        work = self.core.desk.next_pass(number)
        if work is None:
            return
        loop, model = self._loop, self.core.desk.model(number)
        assert loop is not None, "pump is called between start and close"

        def job() -> None:
            logits: Sequence[Logits] | Exception
            try:
                logits = model.run(work.rows)
            except Exception as error:
                log.exception("a pass of a language model broke")
                logits = error
            try:
                loop.call_soon_threadsafe(self._written, number, work, logits)
            except RuntimeError:
                log.info("a pass ended after the loop was closed")

        self._writers[number].submit(job)

    def _written(self, number: int, work: Pass, logits: Sequence[Logits] | Exception) -> None:
        self.core.desk.finish(number, work, logits)
        if self._loop is not None:
            self.pump()

    def _done(self, batch: Batch, results: list[Result], ran: tuple[float, float]) -> None:
        self.core.finish(batch, results, ran)
        if self._loop is not None:
            self.pump()

    def _schedule(self) -> None:
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._loop is not None:
            self.pump()

    def _set_timer(self) -> None:
        """One timer for the next deadline or the end of a wait for company."""
        at = self.core.wake_at()
        if self._timer is not None:
            if at == self._timer_ns:
                return
            self._timer.cancel()
            self._timer = None
        if at is not None and self._loop is not None:
            delay = max(0.0, (at - time.monotonic_ns()) / 1e9)
            self._timer, self._timer_ns = self._loop.call_later(delay, self._wake), at

    def _wake(self) -> None:
        self._timer = None
        self.core.expire()
        self._turn()

    def _sweep(self) -> None:
        if self._loop is not None:
            self.core.sweep()
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    async def _warm(self, model: CloudModel, worker: Worker) -> None:
        """Run each lane on zeros in the model's own thread, and tell the core how long it took."""
        loop = asyncio.get_running_loop()
        for lane in model.lanes:
            inputs = tuple(
                torch.zeros(spec.shape_at(1), dtype=DTYPES[spec.dtype]) for spec in model.cut_specs(lane)
            )
            for _ in range(WARM_RUNS):
                future: asyncio.Future[float] = loop.create_future()
                worker.submit(partial(_timed, model, lane, inputs, future, loop))
                try:
                    seconds = await future
                except Exception as error:
                    where = f"bundle {model.digest[:12]}: the tail behind cut '{lane.cut}'"
                    raise BundleError(f"{where} can not run here: {error}") from error
            self.core.observe(lane, 1, seconds)


def _run(batch: Batch) -> tuple[list[Result], tuple[float, float]]:
    """Results, and seconds of the clock and of this thread's processor time.

    A batch always ends in results, whatever breaks, so that nothing stays in flight for ever.
    """
    begin, cpu = time.perf_counter(), time.thread_time()
    try:
        results = execute(batch.model, batch.lane, batch.tasks)
    except Exception as error:
        log.exception("a batch broke")
        message = f"the cloud raised {type(error).__name__}; its log says more"
        results = [Result(0, refusal=Refusal.FAILED, message=message) for _ in batch.tasks]
    return results, (time.perf_counter() - begin, time.thread_time() - cpu)


def _timed(
    model: CloudModel,
    lane: Lane,
    inputs: Tensors,
    future: asyncio.Future[float],
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Run a tail once and give the future its seconds or its error."""

    def settle(seconds: float, error: Exception | None) -> None:
        if not future.done():
            if error is None:
                future.set_result(seconds)
            else:
                future.set_exception(error)

    begin, failure = time.perf_counter(), None
    try:
        with torch.inference_mode():
            model.tail(lane, inputs)
    except Exception as error:
        failure = error
    loop.call_soon_threadsafe(settle, time.perf_counter() - begin, failure)
