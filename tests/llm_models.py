"""Small causal language models of every family, with random weights, and stories260K where it is."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

DATA = Path(os.environ.get("SPLITEDGE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 97}


def _like_llama(kind: str, **more):
    config = getattr(transformers, f"{kind}Config")(
        **SIZES, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=128, **more
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config)


FAMILIES = {
    "llama": lambda: _like_llama("Llama"),
    "qwen2": lambda: _like_llama("Qwen2"),
    "qwen3": lambda: _like_llama("Qwen3", head_dim=8),
    "mistral": lambda: _like_llama("Mistral", sliding_window=None),
    "gemma": lambda: _like_llama("Gemma", head_dim=8),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=97, n_positions=128)
    ),
}


def tiny(family: str, seed: int = 0) -> torch.nn.Module:
    """A model of a family with random weights, in eval mode; unlike ids give clearly unlike logits."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.2)
    return model.eval()


def stories() -> torch.nn.Module:
    """stories260K: a trained Llama of 260,000 parameters (llama2.c's file, version 0)."""
    path = DATA / "weights" / "stories260K" / "stories260K.bin"
    if not path.is_file():
        pytest.skip(f"no {path}: the trained language model is not part of the project")
    raw = path.read_bytes()
    dim, inner, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", raw[:28])
    flat = torch.from_numpy(np.frombuffer(raw, dtype="<f4", offset=28).copy())
    config = transformers.LlamaConfig(
        hidden_size=dim, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=abs(vocab), max_position_embeddings=context,
        tie_word_embeddings=True, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return flat[at - size : at].reshape(shape)

    kv = kv_heads * dim // heads
    names = (
        ("input_layernorm.weight", (dim,)), ("self_attn.q_proj.weight", (dim, dim)),
        ("self_attn.k_proj.weight", (kv, dim)), ("self_attn.v_proj.weight", (kv, dim)),
        ("self_attn.o_proj.weight", (dim, dim)), ("post_attention_layernorm.weight", (dim,)),
        ("mlp.gate_proj.weight", (inner, dim)), ("mlp.down_proj.weight", (dim, inner)),
        ("mlp.up_proj.weight", (inner, dim)),
    )  # fmt: skip
    state = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for name, shape in names:
        for i, weight in enumerate(take(layers, *shape)):
            if "q_proj" in name or "k_proj" in name:  # neighbours turn there, halves here
                count = heads if "q_proj" in name else kv_heads
                weight = weight.view(count, dim // heads // 2, 2, dim).transpose(1, 2).reshape(shape)
            state[f"model.layers.{i}.{name}"] = weight
    state["model.norm.weight"] = take(dim)
    model.load_state_dict(state, strict=False)
    return model.eval()
