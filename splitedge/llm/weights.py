"""Parts of a language model as tensors, and an empty model filled with those that a half needs.

A half never holds the other's weights: the model is built without memory (on the device `meta`) from its
configuration, and only the parts that run here get tensors. No code comes from a bundle: the model's class
is looked up in `transformers` by a type from a fixed list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from splitedge.errors import BundleError, MissingExtra, SplitedgeError
from splitedge.llm.anatomy import Anatomy, anatomy_of

#: Model types that a bundle may name; each is tested in tests/test_llm_bundle.py.
MODEL_TYPES = ("gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3")
MAX_DEPTH = 1024
#: Of a configuration, what could reach outside of the bundle, or is of no use in it.
_FOREIGN = ("auto_map", "_name_or_path", "name_or_path", "quantization_config", "architectures")


class ModelEntry(BaseModel):
    """A model in a bundle's manifest.

    Attributes:
        config: of `transformers`, with its `model_type`.
        attention: `sdpa` or `eager`.
        context: most tokens of prompt and answer together.
        depth: blocks.
        scale: that embeddings are multiplied by.
        tied: whether embedding and unembedding are one matrix.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    config: dict[str, Any]
    attention: str
    context: int = Field(ge=1)
    depth: int = Field(ge=1, le=MAX_DEPTH)
    scale: float
    tied: bool

    @classmethod
    def of(cls, anatomy: Anatomy, scale: float) -> ModelEntry:
        """From the live model.

        Raises:
            BundleError: its type is not one that a bundle may name.
        """
        kind = getattr(anatomy.config, "model_type", "")
        if kind not in MODEL_TYPES:
            raise BundleError(
                f"a bundle can hold models of the types {', '.join(MODEL_TYPES)}, not '{kind}'; it runs in "
                "process, and behind splitedge.llm.black_box where it is served otherwise"
            )
        config = json.loads(anatomy.config.to_json_string(use_diff=False))
        for name in _FOREIGN:
            config.pop(name, None)
        return cls(
            config=config,
            attention=anatomy.attention,
            context=anatomy.context,
            depth=anatomy.depth,
            scale=scale,
            tied=anatomy.tied,
        )

    def empty(self) -> Anatomy:
        """The model without memory.

        Raises:
            BundleError: the configuration is none, or of a type that is not allowed.
            MissingExtra: `transformers` is not installed.
        """
        try:
            from transformers import AutoConfig, AutoModelForCausalLM
        except ImportError:
            raise MissingExtra("llm", "a language model's bundle") from None
        kind = self.config.get("model_type")
        if kind not in MODEL_TYPES:
            raise BundleError(f"'manifest.json': a model of the type {kind!r}; there are {MODEL_TYPES}")
        foreign = [name for name in _FOREIGN if name in self.config]
        if foreign:
            raise BundleError(f"'manifest.json': the model's configuration names {foreign[0]}")
        try:
            config = AutoConfig.for_model(**self.config)
            if int(config.num_hidden_layers) != self.depth:
                raise BundleError(f"'manifest.json': {config.num_hidden_layers} blocks, not {self.depth}")
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    config, attn_implementation=self.attention
                )
            anatomy = anatomy_of(model.eval(), self.context)
        except SplitedgeError as error:
            raise BundleError(f"'manifest.json': {error}") from None
        except Exception as error:  # transformers raises anything at a configuration it does not like
            raise BundleError(
                f"'manifest.json': this version of transformers makes no model of its configuration: "
                f"{type(error).__name__}: {error}"
            ) from None
        if anatomy.rotary is not None:  # its angles are computed, not stored
            anatomy = replace(anatomy, rotary=type(anatomy.rotary)(anatomy.config).eval())
        return anatomy


def parts_of(
    anatomy: Anatomy, first: int, last: int, *, embeds: bool, unembeds: bool
) -> dict[str, nn.Module]:
    """Blocks `first` to `last` (not included) with what stands before and behind them, by name."""
    found: dict[str, nn.Module | None] = {}
    if embeds:
        found |= {"embed": anatomy.embed, "positions": anatomy.positions}
    if last > first:
        found["rotary"] = anatomy.rotary
    found |= {f"blocks.{i}": anatomy.blocks[i] for i in range(first, last)}
    if unembeds:
        found |= {"norm": anatomy.norm, "unembed": anatomy.unembed}
    return {name: module for name, module in found.items() if module is not None}


def tensors_of(parts: Mapping[str, nn.Module], tied: bool) -> dict[str, torch.Tensor]:
    """Parameters and buffers of parts, by `part.name`; a matrix that is both ends' is kept once."""
    out = {}
    for part, module in parts.items():
        if part == "unembed" and tied and "embed" in parts:
            continue
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            out[f"{part}.{name}"] = tensor.detach().cpu().clone().contiguous()
    return out


def fill(parts: Mapping[str, nn.Module], tensors: Mapping[str, torch.Tensor], tied: bool, file: str) -> None:
    """Give empty parts their tensors.

    Raises:
        BundleError: one lacks, is of another shape or kind, or is too much.
    """
    left = set(tensors)
    for part, module in parts.items():
        shared = part == "unembed" and tied and "embed" in parts
        source = "embed" if shared else part
        for name, old in list(module.named_parameters()):
            new = _one(tensors, f"{source}.{name}", old, file)
            left.discard(f"{source}.{name}")
            owner, leaf = _owner(module, name)
            if shared:
                setattr(owner, leaf, parts["embed"].get_parameter(name))
            else:
                owner.register_parameter(leaf, nn.Parameter(new, requires_grad=False))
        for name, kept in list(module.named_buffers()):
            new = _one(tensors, f"{source}.{name}", kept, file)
            left.discard(f"{source}.{name}")
            owner, leaf = _owner(module, name)
            setattr(owner, leaf, new)
        rest = [t for t in chain(module.parameters(), module.buffers()) if t.is_meta]
        assert not rest, part
    if left:
        raise BundleError(f"'{file}' holds {sorted(left)[0]}, which its configuration does not know")


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _one(tensors: Mapping[str, torch.Tensor], key: str, old: torch.Tensor, file: str) -> torch.Tensor:
    new = tensors.get(key)
    if new is None:
        raise BundleError(f"'{file}' lacks {key}")
    if new.shape != old.shape:
        raise BundleError(f"'{file}': {key} is {tuple(new.shape)}; its configuration says {tuple(old.shape)}")
    if new.is_floating_point() != old.is_floating_point():
        raise BundleError(f"'{file}': {key} is of dtype {new.dtype}")
    return new
