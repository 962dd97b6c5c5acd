"""The parts of a decoder-only model, found by its structure: embedding, blocks, norm, unembedding.

Nothing here knows a class name. What the structure does not tell (a scaled embedding, a soft cap) is read
from the configuration or tried out, and `split_language_model` compares the whole with the model itself.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from splitedge.errors import PartitionError

_WAY_OUT = "deploy the model whole (local=, or the cloud's stream), or take one of full attention"


@dataclass(frozen=True)
class Anatomy:
    """A causal language model in parts; all are the model's own modules, not copies.

    Attributes:
        embed: ids (N, T) int64 to hidden states (N, T, hidden).
        positions: learned position embedding (GPT-2), added to them; None for none.
        rotary: gives (cos, sin) for hidden states and positions (N, T); None for none.
        blocks: in order; each takes hidden states and gives hidden states.
        norm: before the unembedding.
        unembed: hidden states to logits (N, T, vocabulary).
        softcap: logits are bounded to +-softcap by tanh; None for none.
        hidden, vocabulary: sizes.
        context: most tokens of prompt and answer together.
        attention: `sdpa` or `eager`.
        config: the model's own configuration, for what else may be asked.
    """

    embed: nn.Module
    positions: nn.Module | None
    rotary: nn.Module | None
    blocks: tuple[nn.Module, ...]
    norm: nn.Module
    unembed: nn.Module
    softcap: float | None
    hidden: int
    vocabulary: int
    context: int
    attention: str
    config: Any

    @property
    def depth(self) -> int:
        """How many blocks."""
        return len(self.blocks)

    @property
    def tied(self) -> bool:
        """Whether embedding and unembedding are one matrix: both halves then need it."""
        return getattr(self.embed, "weight", None) is getattr(self.unembed, "weight", ...)


def anatomy_of(model: nn.Module, context: int | None = None) -> Anatomy:
    """Find the parts of a `transformers` causal language model.

    Args:
        model: decoder-only, of the Llama, Qwen, Mistral, Gemma or GPT-2 kind: one list of blocks, full
            attention.
        context: most tokens that will be asked of it; None for all that it was made for.

    Raises:
        PartitionError: it is built otherwise; the message names what stands in the way.
    """
    config = getattr(model, "config", None)
    base = getattr(model, "base_model", None)
    if config is None or not isinstance(base, nn.Module) or not hasattr(model, "get_output_embeddings"):
        raise PartitionError(
            f"{type(model).__name__} is no transformers language model: it has no config, base_model and "
            "output embeddings. Give the object that AutoModelForCausalLM.from_pretrained returns"
        )
    _refuse(type(model).__name__, config)
    whole: Any = model
    limit = int(getattr(config, "max_position_embeddings", 0) or 2048)
    context = _context(type(model).__name__, config, limit, context)
    unembed = whole.get_output_embeddings()
    if not isinstance(unembed, nn.Module):
        raise PartitionError(
            f"{type(model).__name__} has no output embeddings: is it a causal language model?"
        )
    attention = getattr(config, "_attn_implementation", None) or "sdpa"
    if attention not in ("sdpa", "eager"):
        raise PartitionError(
            f"{type(model).__name__} runs with the attention '{attention}'; load it with "
            "attn_implementation='sdpa' (or 'eager'), which take the masks that a split needs"
        )
    parts = _children(type(model).__name__, base, whole.get_input_embeddings())
    return Anatomy(
        **parts,
        unembed=unembed,
        softcap=getattr(config, "final_logit_softcapping", None),
        hidden=int(config.hidden_size),
        vocabulary=int(config.vocab_size),
        context=context,
        attention=attention,
        config=config,
    )


def _refuse(name: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise PartitionError(f"{name} is an encoder-decoder; only decoders can be split. {_WAY_OUT}")
    kinds = set(getattr(config, "layer_types", None) or ())
    strange = kinds - {"full_attention", "sliding_attention"}
    if strange:
        raise PartitionError(
            f"{name} has layers of the kind {', '.join(sorted(strange))}, whose state is no cache of keys "
            f"and values. {_WAY_OUT}"
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise PartitionError(f"{name} shares keys and values between layers. {_WAY_OUT}")


def _context(name: str, config: Any, limit: int, asked: int | None) -> int:
    """Tokens that may be asked for; sliding windows must not be shorter."""
    if asked is not None and not 1 <= asked <= limit:
        raise PartitionError(f"{name} was made for {limit} tokens; context={asked} is out of range")
    context = asked if asked is not None else limit
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else bool(getattr(config, "use_sliding_window", True))
    if window is not None and slides and window < context:
        raise PartitionError(
            f"{name} attends to the last {window} tokens only, fewer than its context of {context}. "
            f"Give context={window} if no prompt and answer together are longer, else {_WAY_OUT}"
        )
    return context


def _children(name: str, base: nn.Module, embed: nn.Module) -> dict[str, Any]:
    """Sort the children of the base model by what they are."""
    found: dict[str, Any] = {"embed": embed, "positions": None, "rotary": None}
    blocks: list[str] = []
    norms: list[str] = []
    for child, module in base.named_children():
        if module is embed or isinstance(module, nn.Dropout):
            continue
        if isinstance(module, nn.ModuleList):
            blocks.append(child)
        elif "rotary" in child:
            if found["rotary"] is not None or "layer_type" in inspect.signature(module.forward).parameters:
                raise PartitionError(f"{name} has rotary embeddings of several kinds ({child}). {_WAY_OUT}")
            found["rotary"] = module
        elif isinstance(module, nn.Embedding):
            found["positions"] = module
        else:
            norms.append(child)
    if len(blocks) != 1 or len(norms) != 1:
        raise PartitionError(
            f"{name}: expected one list of blocks and one norm behind it, found the lists "
            f"{', '.join(blocks) or 'none'} and the modules {', '.join(norms) or 'none'}. {_WAY_OUT}"
        )
    found["blocks"] = tuple(getattr(base, blocks[0]))
    found["norm"] = getattr(base, norms[0])
    return found


def first_hidden(model: nn.Module, blocks: tuple[nn.Module, ...], ids: torch.Tensor) -> torch.Tensor:
    """What the model itself gives its first block for these ids: (N, T, hidden)."""
    seen: list[torch.Tensor] = []
    hook = blocks[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        hook.remove()
    return seen[0]
