"""Start splitedge's own verbs as real processes and stop them: what demo, examples and benchmarks need."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from splitedge.errors import SplitedgeError

STOP_S = 15.0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """One running verb; its output goes to a log file, which an early death quotes."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self.log = name, log
        self._process = process

    def check(self) -> None:
        """Raise if the process has ended.

        Raises:
            SplitedgeError: it has; the message quotes the end of its log.
        """
        if self._process.returncode is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise SplitedgeError(f"{self.name} ended with status {self._process.returncode}:\n{tail}")

    async def until(self, ready: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until `ready()`; fails at once if the process dies.

        Raises:
            SplitedgeError: it died, or `seconds` have passed.
        """
        end = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise SplitedgeError(f"{self.name} was not ready within {seconds:g} s; see {self.log}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL for one that does not listen."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def verb(arguments: Sequence[str | Path], log: Path, *, threads: int = 1) -> AsyncIterator[Process]:
    """Run `splitedge ARGUMENTS...` for the length of a with-block, computing on `threads` threads."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "splitedge", *map(str, arguments), stdout=file, stderr=file, env=env
        )
    running = Process(f"splitedge {arguments[0]}", process, log)
    try:
        yield running
    finally:
        await running.stop()
