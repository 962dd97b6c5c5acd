"""Turn llama2.c's stories260K.bin into a directory that `transformers` and `splitedge llm` load.

python benchmarks/_stories260k.py stories260K.bin out/stories260K
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def read(path: Path) -> Any:
    """The file (llama2.c's version 0) as a `LlamaForCausalLM`, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = path.read_bytes()
    dim, inner, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", raw[:28])
    flat = torch.from_numpy(np.frombuffer(raw, dtype="<f4", offset=28).copy())
    config = LlamaConfig(
        hidden_size=dim, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=abs(vocab), max_position_embeddings=context,
        tie_word_embeddings=True, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    at = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return flat[at - size : at].reshape(shape)

    kv = kv_heads * dim // heads
    state = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for name, shape in (
        ("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)), ("self_attn.k_proj", (kv, dim)),
        ("self_attn.v_proj", (kv, dim)), ("self_attn.o_proj", (dim, dim)),
        ("post_attention_layernorm", (dim,)), ("mlp.gate_proj", (inner, dim)),
        ("mlp.down_proj", (dim, inner)), ("mlp.up_proj", (inner, dim)),
    ):  # fmt: skip
        for i, weight in enumerate(take(layers, *shape)):
            if name.endswith(("q_proj", "k_proj")):  # there neighbours turn together, here halves
                count = heads if name.endswith("q_proj") else kv_heads
                weight = weight.view(count, dim // heads // 2, 2, dim).transpose(1, 2).reshape(shape)
            state[f"model.layers.{i}.{name}.weight"] = weight
    state["model.norm.weight"] = take(dim)
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False)
    return model.eval()


if __name__ == "__main__":
    read(Path(sys.argv[1])).save_pretrained(sys.argv[2])
