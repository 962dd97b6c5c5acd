"""A cloud in this process: the real server core behind a link that packs and unpacks real frames.

What differs from a socket is only that nothing can be lost between the two. `disconnect` and `connect`
play an outage.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from splitedge.cloud.desk import LanguageHalf
from splitedge.cloud.host import CloudHost
from splitedge.cloud.settings import ServerSettings
from splitedge.edge.link import Frames, LinkState, OnMessage, OnState
from splitedge.errors import LinkDown, LinkError, SplitedgeError
from splitedge.parts import CloudModel

log = logging.getLogger(__name__)

PEER = b"loopback"
#: Tails never run on the event loop: one that turns slow would stop the edge's own timers. The only edge
#: is this process, so the caps that keep edges from each other are wide.
APART = ServerSettings(
    inline_below_s=0.0,
    max_rows=65535,
    max_batch_rows=65535,
    max_message_bytes=1 << 30,
    queue_bytes=1 << 32,
    peer_queue_bytes=1 << 32,
)


class Loopback:
    """An `edge.link.Link` whose other end is a `CloudHost` on the same event loop.

    Args:
        model: the cloud's half; None for none.
        settings: of the in-process server; its sockets are not used.
        language: a language model's half, in place of it or beside it.
    """

    def __init__(
        self,
        model: CloudModel | None,
        settings: ServerSettings | None = None,
        language: LanguageHalf | None = None,
    ) -> None:
        models = [] if model is None else [model]
        languages = [] if language is None else [language]
        self.host = CloudHost(models, settings or APART, self._reply, languages=languages)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._up = False

    @property
    def encrypted(self) -> bool:
        """Nothing is encrypted within a process."""
        return False

    def start(self, loop: asyncio.AbstractEventLoop, on_message: OnMessage, on_state: OnState) -> None:
        """Start the cloud; `on_state` tells when it is warm."""
        if self._loop is not None:
            raise LinkError("this link was started already")
        self._loop, self._on_message, self._on_state = loop, on_message, on_state
        self._opening = loop.create_task(self._open())

    async def _open(self) -> None:
        try:
            await self.host.start()
        except SplitedgeError as error:
            log.error("the in-process cloud can not start: %s", error)
            self._on_state(LinkState(False, str(error), LinkError(str(error))))
            return
        self.connect()

    def connect(self) -> None:
        """Plug the link in (again). On the loop's thread."""
        if self._loop is not None and self._closing is None and not self._up:
            self._up = True
            self._on_state(LinkState(True, "the cloud runs in this process"))

    def disconnect(self, reason: str = "unplugged") -> None:
        """Pull the plug: what is on its way is lost. On the loop's thread."""
        if self._up:
            self._up = False
            self._on_state(LinkState(False, reason))

    def send(self, frames: Frames) -> None:
        """Hand a message to the cloud on the loop's next turn.

        Raises:
            LinkDown: the link is unplugged, closed or not yet open.
        """
        if self._loop is None or not self._up:
            raise LinkDown("the in-process cloud is not connected")
        self._loop.call_soon(self._deliver, [bytes(frame) for frame in frames])

    def _deliver(self, frames: list[bytes]) -> None:
        if self._up:
            self.host.deliver(PEER, frames)

    def _reply(self, peer: bytes, frames: Sequence[bytes | memoryview]) -> None:
        if self._loop is not None and self._up:
            self._loop.call_soon(self._arrive, [bytes(frame) for frame in frames])

    def _arrive(self, frames: list[bytes]) -> None:
        if self._up:
            self._on_message(frames)

    def close(self) -> None:
        """Stop the cloud; `wait_closed` waits for its thread."""
        self._up = False
        if self._loop is not None and self._closing is None:
            self._closing = self._loop.create_task(self._close())

    async def _close(self) -> None:
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        await self.host.close()

    async def wait_closed(self) -> None:
        """Return when the cloud's thread has ended."""
        if self._closing is not None:
            await self._closing
