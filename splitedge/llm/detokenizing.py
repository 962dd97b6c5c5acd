"""Ids to text and back while a text grows: pieces that are never taken back, and stop strings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from splitedge.errors import CloudFailed
from splitedge.llm.tokenizers import Tokenizer, plain_ids, plain_text

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 8  # ids before a span with which it is decoded, so that spaces between them come out right
_HELD = 24  # ids after which a character that stays unfinished is given as it is


class Detokenizer:
    """Text of ids that come a few at a time. What was given stays; an unfinished character waits.

    Args:
        tokenizer: of the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._from = self._read = 0

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """Text that these ids add; `last`: nothing follows, give what waits."""
        self._ids += ids
        if self._read == len(self._ids):
            return ""
        before = plain_text(self._tokenizer, self._ids[self._from : self._read])
        now = plain_text(self._tokenizer, self._ids[self._from :])
        waits = now.endswith(_UNFINISHED) and len(self._ids) - self._read < _HELD
        if (waits and not last) or len(now) <= len(before):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return now[len(before) :]


class StopStrings:
    """Looks for strings that end a text, wherever tokens begin and end.

    Args:
        stops: each at least one character.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str, last: bool = False) -> str:
        """What of the text so far can be given: all before the first stop string (then `found` is true), and
        nothing that may be the beginning of one.
        """
        if self.found:
            return ""
        self._held += text
        at = min((i for stop in self._stops if (i := self._held.find(stop)) >= 0), default=-1)
        if at >= 0:
            self.found = True
            out, self._held = self._held[:at], ""
            return out
        keep = 0 if last else self._beginning()
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def _beginning(self) -> int:
        """Characters at the end of what is held that may begin a stop string."""
        most = min(len(self._held), max((len(stop) - 1 for stop in self._stops), default=0))
        for count in range(most, 0, -1):
            end = self._held[-count:]
            if any(stop.startswith(end) for stop in self._stops):
                return count
        return 0


class Retokenizer:
    """Ids of a text that another tokenizer's model writes, a word at a time.

    The ids may be other ones than the tokenizer would make of the whole text; their text is exact.

    Args:
        tokenizer: of the ids.
        before: ids that the text goes on from.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._last = list(before)[-_CONTEXT:]
        self._held = ""

    def push(self, text: str, last: bool = False) -> list[int]:
        """Ids of the words that are complete with this text; `last`: of all that waits.

        Raises:
            CloudFailed: the tokenizer can not write it.
        """
        self._held += text
        end = len(self._held)
        if not last:
            gaps = [found.start() for found in re.finditer(r"\s", self._held)]
            end = gaps[-1] if gaps else 0
        span, self._held = self._held[:end], self._held[end:]
        if not span:
            return []
        ids = self._ids(span)
        self._last = [*self._last, *ids][-_CONTEXT:]
        return ids

    def _ids(self, span: str) -> list[int]:
        tokenizer, context = self._tokenizer, self._last
        base = plain_text(tokenizer, context)
        whole = plain_ids(tokenizer, base + span)
        anchor = plain_ids(tokenizer, "\n")
        anchored = plain_ids(tokenizer, "\n" + span) if anchor is not None else None
        tried = [
            plain_ids(tokenizer, span),
            whole[len(context) :] if whole is not None and whole[: len(context)] == context else None,
            anchored[len(anchor or ()) :] if anchored is not None else None,
        ]
        for ids in tried:
            if ids and plain_text(tokenizer, [*context, *ids]) == base + span:
                return ids
        raise CloudFailed(f"the cloud's text can not be written with this device's tokenizer: {span[:40]!r}")
