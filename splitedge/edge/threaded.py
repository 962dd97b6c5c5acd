"""A runtime for callers without an event loop: it runs on a thread of its own, several threads may ask."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from splitedge.edge.runtime import EdgeRuntime
from splitedge.errors import Rejected
from splitedge.policy import Route
from splitedge.result import Result

T = TypeVar("T")
_open: weakref.WeakSet[ThreadedRuntime] = weakref.WeakSet()


class ThreadedRuntime:
    """Starts a runtime on a daemon thread; `infer` blocks until the answer.

    Closed by `close`, by leaving a `with` block, or when the interpreter exits. Not usable in a forked
    child: threads and sockets do not survive a fork.

    Args:
        runtime: not yet started.

    Raises:
        SplitedgeError: the runtime could not be started.
    """

    def __init__(self, runtime: EdgeRuntime) -> None:
        self._runtime = runtime
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may close while its own thread submits
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="splitedge-edge", daemon=True)
        self._thread.start()
        try:
            self._call(runtime.start())
        except BaseException:
            self._stop()
            raise
        _open.add(self)

    @property
    def runtime(self) -> EdgeRuntime:
        """What runs on the thread; its counters may be read from here, its methods not be called."""
        return self._runtime

    def infer(self, inputs: Any, deadline_s: float | None = None, route: Route | None = None) -> Result:
        """Answer one request; see `EdgeRuntime.infer`.

        Raises:
            CodecError: the inputs do not fit the model.
            RequestError: the request ended without an answer.
        """
        return self._call(self._runtime.infer(inputs, deadline_s, route))

    def connected(self, timeout_s: float = 5.0) -> None:
        """Wait for the cloud; see `EdgeRuntime.connected`.

        Raises:
            LinkError: there is none, or it does not take us.
        """
        self._call(self._runtime.connected(timeout_s))

    def close(self, drain_s: float = 5.0) -> None:
        """Let requests in flight end for `drain_s` seconds, then stop. May be called twice."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        _open.discard(self)
        try:
            asyncio.run_coroutine_threadsafe(self._shut(drain_s), self._loop).result(drain_s + 15.0)
        finally:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, job: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine on the runtime's loop; for callers with a loop of their own.

        Raises:
            Rejected: closed, or opened before a fork.
        """
        why = "it was opened before a fork; open one in the child"
        if os.getpid() == self._pid:  # else the lock may be held by a thread that the child has not
            with self._lock:  # so that nothing is handed to a loop that `close` has stopped meanwhile
                if not self._closed:
                    return asyncio.run_coroutine_threadsafe(job, self._loop)
            why = "it was closed"
        job.close()
        raise Rejected(f"this deployment can not be used: {why}")

    def _call(self, job: Coroutine[Any, Any, T]) -> T:
        if threading.current_thread() is self._thread:
            job.close()
            raise Rejected("called from its own event loop, which would wait for itself; use the runtime")
        future = self.submit(job)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # a no-op where the job ended; else (Ctrl-C) nobody waits any more
            raise

    async def _shut(self, drain_s: float) -> None:
        await self._runtime.drain(drain_s)
        await self._runtime.close()
        await self._loop.shutdown_default_executor()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()


@atexit.register
def _close_all() -> None:
    for runtime in list(_open):
        with contextlib.suppress(Exception):  # the interpreter goes down; nobody could act on it
            runtime.close(drain_s=0.0)
