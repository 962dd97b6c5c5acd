"""An OpenAI-compatible endpoint in the cloud's place: asks become requests, its text becomes tokens.

The endpoint has a tokenizer of its own, so only text crosses: the prompt as its caller gave it and the
answer so far go up, the text that follows comes down and is made into this device's ids a word at a time.
It gives `cloud_stream` and `assist`; it can not verify drafts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable

from splitedge.edge.asking import Question
from splitedge.errors import (
    AuthenticationError,
    CloudBusy,
    CloudFailed,
    CloudUnavailable,
    ConfigError,
    LinkDown,
    LinkError,
    RequestError,
    WireError,
)
from splitedge.estimate import LinkEstimator
from splitedge.llm.black_box import Asked, BlackBox
from splitedge.llm.detokenizing import Retokenizer
from splitedge.llm.happenings import Denied, Enough, Event, Needed, Send, Told
from splitedge.llm.tokenizers import Tokenizer, plain_text

log = logging.getLogger(__name__)

PROBE_S = 2.0


class BlackBoxRemote:
    """One endpoint as the runtime of an edge sees a cloud; see `asking.Remote`.

    Args:
        box: asks it.
        tokenizer: of this device.
        clock: seconds.
        changed: told when it comes into reach or goes, with the reason.

    Attributes:
        estimator: of its round trip. decode_s: seconds of it for one of our tokens; NaN before the first.
    """

    def __init__(
        self,
        box: BlackBox,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        changed: Callable[[bool, str], None],
    ) -> None:
        self._box, self._tokenizer, self._clock, self._changed = box, tokenizer, clock, changed
        self.estimator = LinkEstimator()
        self.decode_s = math.nan
        self.up, self.reason = False, "not asked yet"
        self.error: LinkError | None = None
        self._contexts: dict[int, list[int]] = {}
        self._tasks: dict[int, tuple[int, asyncio.Task[None]]] = {}
        self._probe: asyncio.Task[None] | None = None
        self._reached = asyncio.Event()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look whether the endpoint answers."""
        self._loop = loop
        self._probe = loop.create_task(self._look())

    def close(self) -> None:
        """Drop all requests."""
        for _, task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        if self._probe is not None:
            self._probe.cancel()
        self._closing = self._loop.create_task(self._box.close())

    async def connected(self, timeout_s: float) -> None:
        """Wait until it answers.

        Raises:
            LinkDown: it did not within `timeout_s`. AuthenticationError: it refuses the key.
        """
        try:
            await asyncio.wait_for(self._reached.wait(), timeout_s)
        except TimeoutError:
            if self.error is not None:
                raise self.error from None
            raise LinkDown(f"the endpoint did not answer within {timeout_s:g} s: {self.reason}") from None

    def ask(self, action: Send, question: Question, hear: Callable[[Event], None]) -> int:
        """Send an ask; words on it come to `hear`. Returns bytes of the request's body.

        Raises:
            WireError: it holds drafts.
        """
        if action.drafts:
            raise WireError("a black box can not verify drafts")
        ids = self._contexts.setdefault(question.context, [])
        if action.start > len(ids):
            self._loop.call_soon(hear, Needed(action.ask, len(ids)))
            return 0
        running = self._tasks.get(question.context)
        if running is not None and running[0] == action.ask and not running[1].done():
            return 0  # asked again while it is under way: HTTP has its own time limits
        if running is not None:
            running[1].cancel()
        ids[action.start :] = action.ids
        if action.want < 1:
            return 0  # nobody waits, and an endpoint keeps nothing
        known = plain_text(self._tokenizer, ids[: question.prompt])
        said = question.said
        asked = Asked(
            known if said is None else said.text,
            () if said is None else said.messages,
            plain_text(self._tokenizer, ids[question.prompt :]),
            action.want,
            question.sampling,
        )
        body = self._box.body(asked)
        job = self._run(action.ask, list(ids), question, body, hear)
        self._tasks[question.context] = (action.ask, self._loop.create_task(job))
        return len(body)

    def cancel(self, context: int) -> None:
        """Nobody waits for a text any more."""
        self._contexts.pop(context, None)
        running = self._tasks.pop(context, None)
        if running is not None:
            self._loop.call_soon(running[1].cancel)  # it may be this task that says so

    # Requests -------------------------------------------------------------------------------------

    async def _run(
        self, ask: int, ids: list[int], question: Question, body: bytes, hear: Callable[[Event], None]
    ) -> None:
        written = Retokenizer(self._tokenizer, ids[question.prompt :])
        began, count, held = self._clock(), 0, question.context
        try:
            async with contextlib.aclosing(self._box.write(body)) as pieces:
                async for piece in pieces:
                    new = written.push(piece.text, last=bool(piece.finish))
                    start = len(ids)
                    ids += new
                    count += len(new)
                    if held in self._contexts:
                        self._contexts[held] = list(ids)
                    ended = piece.finish == "length"
                    if ended and not count:
                        raise CloudFailed("the endpoint gave no text")
                    hear(Told(ask, start, tuple(new), 0, ended, piece.nbytes))
                    if piece.finish and not ended:
                        hear(Enough())
            if count:
                seconds = (self._clock() - began) / count
                old = self.decode_s
                self.decode_s = seconds if math.isnan(old) else old + 0.1 * (seconds - old)
        except CloudBusy as error:
            hear(Denied(ask, error.retry_after_s))
        except CloudUnavailable as error:
            hear(Denied(ask, 0.5, error))
            self._lost(str(error))
        except CloudFailed as error:
            hear(Denied(ask, 0.5, error))
        except (RequestError, LinkError) as error:
            hear(Denied(ask, 0.0, error))
        except ConfigError as error:
            hear(Denied(ask, 0.0, LinkError(str(error))))
        except Exception as error:
            log.exception("a request to the endpoint broke")
            hear(Denied(ask, 0.5, CloudFailed(f"the client broke: {type(error).__name__}")))

    # Reach ----------------------------------------------------------------------------------------

    def _lost(self, reason: str) -> None:
        self._reached.clear()
        if self.up:
            self._tell(False, reason)
        if self._probe is None or self._probe.done():
            self._probe = self._loop.create_task(self._look())

    async def _look(self) -> None:
        while not self.up:
            try:
                began = self._clock()
                await self._box.reach()
            except AuthenticationError as error:
                self.error, self.reason = error, str(error)
            except (RequestError, LinkError, ConfigError) as error:
                self.reason = str(error)
            else:
                self.error = None
                self.estimator.observe_rtt(self._clock(), self._clock() - began)
                self._reached.set()
                self._tell(True, "it answers")
                return
            await asyncio.sleep(PROBE_S)

    def _tell(self, up: bool, reason: str) -> None:
        self.up, self.reason = up, reason
        self._changed(up, reason)
