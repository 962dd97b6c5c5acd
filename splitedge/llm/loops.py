"""Where a deployment's runtime lives: an event loop on a thread of its own, or its caller's."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from splitedge.edge.language import LanguageRuntime, Stream
from splitedge.edge.link import Link as Wire
from splitedge.errors import ConfigError, Rejected
from splitedge.llm.happenings import Emit, Fail, Finish
from splitedge.loopback import Loopback

T = TypeVar("T")


async def forward(stream: Stream, pieces: queue.SimpleQueue[Emit | Finish | Fail]) -> None:
    """Hand a stream's items to a thread that waits for them."""
    while True:
        item = await stream.queue.get()
        pieces.put(item)
        if not isinstance(item, Emit):
            return


class Here:
    """A runtime on its owner's event loop."""

    def __init__(self, runtime: LanguageRuntime) -> None:
        self.runtime = runtime

    def call(self, job: Coroutine[Any, Any, T]) -> T:
        """Refuses: the owner of the loop writes by the runtime itself."""
        job.close()
        raise ConfigError("this deployment runs on its caller's event loop; write by that runtime")

    def close(self, link: Wire | None) -> None:
        """The owner closes it."""


class Looped:
    """An event loop on a thread of its own, with a runtime on it."""

    def __init__(self, runtime: LanguageRuntime) -> None:
        self.runtime = runtime
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="splitedge-language-loop", daemon=True)
        self._thread.start()
        self.call(runtime.start())
        if runtime.remote is not None:
            with contextlib.suppress(Exception):  # texts get by without the cloud, and say why
                self.call(runtime.connected(2.0))

    def call(self, job: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it."""
        if threading.current_thread() is self._thread:
            job.close()
            raise Rejected("called from its own event loop, which would wait for itself")
        return asyncio.run_coroutine_threadsafe(job, self._loop).result()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def close(self, link: Wire | None) -> None:
        """Stop the runtime, its link and the thread."""

        async def shut() -> None:
            await self.runtime.close()
            if isinstance(link, Loopback):
                await link.wait_closed()

        self.call(shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._loop.close()


Running = Looped | Here
