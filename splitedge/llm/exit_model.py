"""The first blocks of a language model with exits: what a device runs in the mode `exit`.

A token that left at an early exit has no keys and values behind it. They are filled exactly, in one pass,
as soon as a later token goes deeper: never left as holes (agreement of later tokens would fall to 0.64).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch

from splitedge.errors import ConfigError
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.cache import KVCache
from splitedge.llm.exits import TrainedExits
from splitedge.llm.halves import LanguageHead, steps_of
from splitedge.llm.token_model import CHUNK, Step, checked, common

Fill = Literal["exact", "propagate"]


class ExitModel:
    """Head and exits, one context at a time; a `TokenModel`.

    Args:
        head: embedding and the blocks before the cut.
        anatomy: of the whole model.
        exits: that stand in the head, none deeper than the cut.
        thresholds: confidence from which each exit is taken; missing ones are passed by.
        fill: keys and values of tokens that left early are computed (`exact`) or made from the state with
            which they left (`propagate`: cheaper, and wrong by what docs/language-splitting.md measures).

    Attributes:
        depth_run: tokens computed by each exit's blocks, for what it cost.

    Raises:
        ConfigError: an exit stands behind the cut.
    """

    def __init__(
        self,
        head: LanguageHead,
        anatomy: Anatomy,
        exits: TrainedExits,
        thresholds: dict[int, float] | None = None,
        fill: Fill = "exact",
    ) -> None:
        if not exits.depths or exits.depths[-1] > head.body.last:
            raise ConfigError(f"exits behind {exits.depths} blocks; the device runs {head.body.last}")
        self._head, self.anatomy, self._exits, self._fill = head, anatomy, exits, fill
        self.thresholds = dict(exits.thresholds if thresholds is None else thresholds)
        # Parts of the head that end in an exit, and what is left before the cut.
        self._ends = [*exits.depths, *([head.body.last] if exits.depths[-1] < head.body.last else [])]
        self._cache = KVCache()
        self._ids: list[int] = []
        self._states: list[torch.Tensor] = [torch.zeros(0) for _ in self._ends]  # (tokens, hidden) each
        self.depth_run = [0 for _ in self._ends]
        self._left: dict[int, int] = {}  # position: part behind which its token left

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return self.anatomy.vocabulary

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.anatomy.context

    def fresh(self) -> ExitModel:
        """Another context of the same weights."""
        other = copy.copy(self)
        other._cache, other._ids = KVCache(), []
        other._states = [torch.zeros(0) for _ in self._ends]
        other.depth_run, other._left = [0 for _ in self._ends], {}
        return other

    def step(self, ids: Sequence[int]) -> Step:
        """What comes after these ids, by the first exit that is sure enough, else by the last one."""
        checked(ids, self.vocabulary, self.context)
        self._follow(ids)
        last = len(self._exits.heads) - 1
        for i, (net, trust) in enumerate(zip(self._exits.heads, self._exits.trust, strict=True)):
            state = self._through(i, len(ids))[-1:]
            with torch.inference_mode():
                said = net(state.unsqueeze(0))[0, -1].float()
            logits = said.cpu().numpy()
            sure = float(trust.of(net.sureness(state[-1], said, trust.signal)))
            if sure >= self.thresholds.get(i, 2.0) or i == last:
                self._left[len(ids) - 1] = i
                return Step(logits, i, sure)
        raise AssertionError("there is at least one exit")

    def states(self, start: int, stop: int) -> torch.Tensor:
        """Hidden states at the cut of the tokens `start` to `stop`, float (tokens, hidden): what is sent.

        Raises:
            ConfigError: the model has not been given so many tokens.
        """
        if not 0 <= start <= stop <= len(self._ids):
            raise ConfigError(f"states of the tokens {start} to {stop}; {len(self._ids)} are known")
        return self._through(len(self._ends) - 1, stop)[start:stop]

    def follow(self, ids: Sequence[int]) -> None:
        """Take these ids without asking for what comes after them."""
        checked(ids, self.vocabulary, self.context)
        self._follow(ids)

    def forget(self) -> None:
        """Free what was kept."""
        self._ids = []
        self._left = {}
        self._cache.clear()
        self._states = [torch.zeros(0) for _ in self._ends]

    def _follow(self, ids: Sequence[int]) -> None:
        kept = common(self._ids, ids)
        self._cache.crop(kept)
        self._states = [state[:kept] for state in self._states]
        self._left = {at: part for at, part in self._left.items() if at < kept}
        self._ids = list(ids)

    @torch.inference_mode()
    def _through(self, part: int, stop: int) -> torch.Tensor:
        """Hidden states behind a part, of the first `stop` tokens at least; computes what is missing."""
        for start, end, copied in self._missing(part, stop):
            positions, mask = steps_of([start], [end - start], end - start)
            begin, last = 0 if part == 0 else self._ends[part - 1], self._ends[part]
            if part == 0:
                entering = self._head.embedded(torch.tensor([self._ids[start:end]]), positions)
            else:
                entering = self._through(part - 1, end)[start:end].unsqueeze(0)
            if copied:
                self._head.body.fill(entering, positions, self._cache, begin, last)
                leaving = entering[0]
            else:
                leaving = self._head.body(entering, positions, self._cache, mask, first=begin, last=last)[0]
                self.depth_run[part] += end - start
            old = self._states[part]
            self._states[part] = leaving.clone() if not len(old) else torch.cat([old, leaving])
        return self._states[part]

    def _missing(self, part: int, stop: int) -> list[tuple[int, int, bool]]:
        """Stretches of tokens still to run through a part, and whether their states are only copied."""
        found: list[tuple[int, int, bool]] = []
        for at in range(len(self._states[part]), stop):
            left = self._left.get(at, part)
            copied = self._fill == "propagate" and left < part and at < len(self._ids) - 1
            if found and found[-1][2] is copied and at - found[-1][0] < CHUNK:
                found[-1] = (found[-1][0], at + 1, copied)
            else:
                found.append((at, at + 1, copied))
        return found
