"""The life of a daemon: it serves until SIGTERM or SIGINT, and ends what is under way."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def until_signal() -> Iterator[Callable[[], Awaitable[None]]]:
    """While in it, a signal to end is taken, from start-up on; the value waits for one.

    To be entered on an event loop of the main thread. While it waits, what start-up made is left out by the
    garbage collector: looking through it again would stop requests for tens of ms.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)

    async def wait() -> None:
        gc.collect()
        gc.freeze()
        await stop.wait()

    try:
        yield wait
    finally:
        gc.unfreeze()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
