"""A cascade by HTTP: the device answers, a judge looks at it, the cloud answers anew where it will not do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from splitedge.edge.asking import Said
from splitedge.edge.language import LanguageRuntime, Stream
from splitedge.llm.generation import Tally, Wish
from splitedge.llm.happenings import Emit
from splitedge.llm.modes import Mode, OnLoss, Rule, Way
from splitedge.llm.sampling import Sampling

#: Stands where a mode does.
CASCADE = "cascade"


class Judging(Protocol):
    """Decides how a text is written, and whether the device's answer will do: `LanguageDeployment`."""

    def decide(
        self,
        prompt: int,
        max_tokens: int,
        mode: Mode | str,
        drafts: int | None,
        on_loss: OnLoss,
        *,
        rule: Rule = "coupling",
    ) -> tuple[Way, str]:
        """See `LanguageDeployment.decide`."""
        ...

    def check_cascade(self) -> None:
        """See `LanguageDeployment.check_cascade`."""
        ...

    def accepts(self, prompt: Sequence[int], answer: Sequence[int], ended: bool) -> tuple[bool, str]:
        """See `LanguageDeployment.accepts`."""
        ...


@dataclass(frozen=True, slots=True)
class Cascaded:
    """Who answers.

    Attributes:
        stream: the answer, the device's with all of it written, or the cloud's with all still to come.
        way, why: how it is written, and the judge's sentence.
        first: what the device's answer took that was not accepted; None where it was.
    """

    stream: Stream
    way: Way
    why: str
    first: Tally | None = None


async def cascade(
    writer: Judging,
    runtime: LanguageRuntime,
    wish: Wish,
    *,
    drafts: int | None,
    on_loss: OnLoss,
    sampling: Sampling,
    said: Said | None,
    logprobs: int = -1,
) -> Cascaded:
    """Let the device answer, and begin the cloud's answer where the judge does not accept that.

    While the cloud is out of reach and `on_loss` is `local`, the device's answer is kept, marked as degraded.
    What failed (its deadline passed) is given as it is.

    Raises:
        ConfigError: there is no judge or no local model.
        Rejected: see `LanguageRuntime.write`.
    """
    writer.check_cascade()
    prompt, count = list(wish.prompt), wish.max_tokens
    here, _ = writer.decide(len(prompt), count, Mode.LOCAL, drafts, on_loss)
    mine = runtime.write(wish, here, sampling, said=said, logprobs=logprobs)
    try:
        items: list[object] = []
        while not items or isinstance(items[-1], Emit):
            items.append(await mine.queue.get())
        for item in items:
            mine.queue.put_nowait(item)  # type: ignore[arg-type]  # what came out of it
        if mine.error is not None:
            return Cascaded(mine, here, "asked for")
        answer = mine.ids[len(prompt) :]
        kept, why = await asyncio.to_thread(writer.accepts, prompt, answer, mine.reason == "stop")
    finally:
        runtime.cancel(mine)  # does nothing to a text that has ended
    if kept:
        return Cascaded(mine, here, why)
    if on_loss == "local" and not runtime.up:
        mine.tally.degraded, mine.tally.reason = True, "not accepted, but the cloud is out of reach"
        return Cascaded(mine, here, why)
    there, _ = writer.decide(len(prompt), count, Mode.STREAM, drafts, on_loss)
    left = wish.deadline_s
    if left < math.inf:
        left = max(left - mine.tally.ended_s, 1e-3)
    wish = replace(wish, deadline_s=left)
    anew = runtime.write(wish, there, sampling, said=said, logprobs=logprobs)
    return Cascaded(anew, there, why, mine.tally)
