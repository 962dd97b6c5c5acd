"""Head and tail of a causal language model, driven block by block with explicit positions and masks.

A model's own forward derives positions and masks from its cache, and a cache that lacks the first layers
says that nothing was seen yet. So neither half ever calls it. What comes out is bit for bit what the whole
model gives; `split_language_model` tries that before it returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from splitedge.errors import PartitionError
from splitedge.llm.anatomy import Anatomy, anatomy_of, first_hidden
from splitedge.llm.cache import KVCache, Ragged, causal_mask

_PROBE = (7, 1, 1, 4, 1)  # tokens of each step of the trial: a prompt, single steps, a draft


class Blocks(nn.Module):
    """Blocks `first` to `last` (not included) of a model, with what they need of positions.

    Attributes:
        first, last: numbers in the whole model.
    """

    def __init__(self, anatomy: Anatomy, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.blocks = nn.ModuleList(anatomy.blocks[first:last])
        self.rotary = anatomy.rotary
        self._eager = anatomy.attention == "eager"
        self._takes = _takes(anatomy.blocks[0])

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache | Ragged,
        mask: torch.Tensor | None,
        last: int | None = None,
        first: int | None = None,
    ) -> torch.Tensor:
        """Hidden states (N, T, hidden) through the blocks.

        Args:
            hidden: what enters.
            positions: int64 (N, T), counted from the beginning of each context.
            cache: keys and values before these tokens; gets theirs.
            mask: bool (N, 1, T, tokens); None where the tokens are the first, or single ones.
            last: stop before this block; None for all.
            first: begin with this block; None for the first.
        """
        known: dict[str, Any] = {"use_cache": True, "past_key_values": cache, "position_ids": positions}
        known["attention_mask"] = self._mask(mask, hidden)
        if self.rotary is not None:
            known["position_embeddings"] = self.rotary(hidden, position_ids=positions)
        given = {name: value for name, value in known.items() if name in self._takes}
        begin = 0 if first is None else first - self.first
        end = len(self.blocks) if last is None else last - self.first
        for block in self.blocks[begin:end]:
            out = block(hidden, **given)
            hidden = out if isinstance(out, torch.Tensor) else out[0]
        return hidden

    def fill(
        self, hidden: torch.Tensor, positions: torch.Tensor, cache: KVCache, first: int, last: int
    ) -> None:
        """Give blocks keys and values of tokens as if `hidden` (1, T, hidden) entered each of them alike.

        What is kept is wrong by as much as the states would have changed on the way ("state propagation" of
        Elbayad et al., "Depth-Adaptive Transformer", ICLR 2020). Only norms and attention run.

        Raises:
            PartitionError: a block's norm and attention can not be told by their names.
        """
        given: dict[str, Any] = {"past_key_values": cache, "position_ids": positions}
        if self.rotary is not None:
            given["position_embeddings"] = self.rotary(hidden, position_ids=positions)
        for block in self.blocks[first - self.first : last - self.first]:
            norm, attention = _entrance(block)
            takes = _takes(attention)
            mask = {"attention_mask": None} if "attention_mask" in takes else {}
            attention(norm(hidden), **{n: v for n, v in given.items() if n in takes}, **mask)

    def _mask(self, mask: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor | None:
        width = hidden.shape[1]
        if not self._eager:
            return None if mask is None else mask.to(hidden.device)
        if mask is None:
            if width == 1:
                return None
            mask = causal_mask([0] * len(hidden), [width] * len(hidden), width)
        bias = torch.zeros(mask.shape, dtype=hidden.dtype, device=hidden.device)
        return bias.masked_fill(~mask.to(hidden.device), torch.finfo(hidden.dtype).min)


class LanguageHead(nn.Module):
    """Embedding and the blocks before the cut: what a device runs.

    Attributes:
        body: its blocks.
        scale: that embeddings are multiplied by.
    """

    def __init__(self, anatomy: Anatomy, cut: int, scale: float = 1.0) -> None:
        super().__init__()
        self.embed, self.positions = anatomy.embed, anatomy.positions
        self.body = Blocks(anatomy, 0, cut)
        self.scale = scale

    def embedded(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Ids int64 (N, T) at positions (N, T) to what enters the first block (N, T, hidden)."""
        hidden: torch.Tensor = self.embed(ids)
        if self.scale != 1.0:
            hidden = hidden * torch.tensor(self.scale, dtype=hidden.dtype)
        return hidden if self.positions is None else hidden + self.positions(positions)

    def forward(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: KVCache | Ragged, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Ids int64 (N, T) to the hidden states at the cut (N, T, hidden). See `Blocks` for the others."""
        hidden: torch.Tensor = self.body(self.embedded(ids, positions), positions, cache, mask)
        return hidden


class Unembedding(nn.Module):
    """Norm, unembedding and soft cap: hidden states behind the last block to logits."""

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__()
        self.norm, self.unembed = anatomy.norm, anatomy.unembed
        self._softcap = anatomy.softcap

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, T, hidden) to (N, T, vocabulary)."""
        out: torch.Tensor = self.unembed(self.norm(hidden))
        if self._softcap is not None:
            out = torch.tanh(out / self._softcap) * self._softcap
        return out


class LanguageTail(nn.Module):
    """The blocks from the cut on, norm and unembedding: what a server runs.

    Attributes:
        body: its blocks.
        logits: hidden states behind the last block (N, T, hidden) to logits (N, T, vocabulary).
    """

    def __init__(self, anatomy: Anatomy, cut: int) -> None:
        super().__init__()
        self.body = Blocks(anatomy, cut, anatomy.depth)
        self.logits = Unembedding(anatomy)

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache | Ragged,
        mask: torch.Tensor | None,
        keep: slice | None = None,
    ) -> torch.Tensor:
        """Hidden states at the cut (N, T, hidden) to logits (N, T, vocabulary), of the tokens `keep` only."""
        hidden = self.body(hidden, positions, cache, mask)
        logits: torch.Tensor = self.logits(hidden if keep is None else hidden[:, keep])
        return logits


def steps_of(
    past: Sequence[int], counts: Sequence[int], width: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Positions int64 (N, width) and the mask (None where none is needed) for rows that have `past` tokens
    and get `counts` more.
    """
    step = torch.arange(width)
    last = torch.tensor(counts).view(-1, 1) - 1
    positions = torch.tensor(past).view(-1, 1) + torch.minimum(step.view(1, -1), last)
    alone = len(past) == 1 or (len(set(past)) == 1 and len(set(counts)) == 1)
    if alone and (width == 1 or not any(past)):
        return positions, None
    return positions, causal_mask(past, counts, width)


def split_language_model(
    model: nn.Module, cut: int, context: int | None = None
) -> tuple[LanguageHead, LanguageTail, Anatomy]:
    """Cut a causal language model before block `cut`.

    Args:
        model: see `anatomy_of`; put into eval mode.
        cut: 0 (the device only embeds) to the number of blocks (the server only unembeds).
        context: most tokens that will be asked of it.

    Returns:
        Head, tail (their modules are the model's own, not copies), and the parts of the whole.

    Raises:
        PartitionError: it can not be cut, or the halves do not give the model's own logits.
    """
    anatomy = anatomy_of(model, context)
    if not 0 <= cut <= anatomy.depth:
        raise PartitionError(f"{type(model).__name__} has {anatomy.depth} blocks; it can not be cut at {cut}")
    model.eval()
    head = LanguageHead(anatomy, cut, _scale_of(model, anatomy))
    tail = LanguageTail(anatomy, cut)
    off = largest_difference(model, head, tail, anatomy)
    if off != 0.0:
        raise PartitionError(
            f"{type(model).__name__} cut before block {cut}: the halves' logits differ from the model's by "
            f"up to {off:.2g}. It does more between its blocks than its structure shows; deploy it whole"
        )
    return head, tail, anatomy


@torch.no_grad()
def largest_difference(model: nn.Module, head: LanguageHead, tail: LanguageTail, anatomy: Anatomy) -> float:
    """Largest difference of a logit between the halves and the model itself, over a prompt, single steps and
    a draft of random ids.

    Raises:
        PartitionError: a logit of the model is NaN, which differs from nothing.
    """
    generator = torch.Generator().manual_seed(0)
    total = min(sum(_PROBE), anatomy.context)
    ids = torch.randint(anatomy.vocabulary, (1, total), generator=generator)
    device = next(model.parameters()).device
    cache, theirs, worst, at = KVCache(), None, 0.0, 0
    for count in _PROBE:
        part = ids[:, at : at + count].to(device)
        if not part.shape[1]:
            break
        positions, mask = steps_of([at], [part.shape[1]], part.shape[1])
        positions = positions.to(device)
        found = tail(head(part, positions, cache, mask), positions, cache, mask)
        told = model(input_ids=part, past_key_values=theirs, use_cache=True)
        theirs = told.past_key_values
        if told.logits.isnan().any():
            raise PartitionError(
                f"{type(model).__name__} gives logits that are NaN: check its weights and dtype"
            )
        worst = max(worst, float((found - told.logits).abs().max()))
        at += count
    return worst


def _scale_of(model: nn.Module, anatomy: Anatomy) -> float:
    """What the model multiplies its embeddings by before the first block (Gemma does, in some versions)."""
    ids = torch.arange(min(4, anatomy.vocabulary)).view(1, -1).to(next(model.parameters()).device)
    seen = first_hidden(model, anatomy.blocks, ids)
    with torch.no_grad():
        ours: torch.Tensor = anatomy.embed(ids)
        if anatomy.positions is not None:
            return 1.0
        if torch.equal(ours, seen):
            return 1.0
        return float(anatomy.hidden**0.5)


def _entrance(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A block's first norm and its attention."""
    children = dict(block.named_children())
    norm = children.get("input_layernorm") or children.get("ln_1")
    attention = children.get("self_attn") or children.get("attn")
    if norm is None or attention is None:
        raise PartitionError(
            f"{type(block).__name__}: norm and attention not found among {', '.join(children)}; "
            "keys and values can only be filled exactly here"
        )
    return norm, attention


def _takes(block: nn.Module) -> frozenset[str]:
    """Names of the arguments that a block's forward has."""
    names = inspect.signature(block.forward).parameters
    wrapped = inspect.unwrap(block.forward)
    return frozenset(names) | frozenset(inspect.signature(wrapped).parameters) | _THROUGH


#: Blocks hand what they do not name themselves on to their attention.
_THROUGH = frozenset({"position_ids"})
