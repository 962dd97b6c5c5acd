"""Language models of the benchmark `llm.py`: stories260K a draft distilled from it, a cloud made slow.

What is trained here is kept under `out/llm-bench` (git-ignored).
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from splitedge.llm.cloud_model import CloudLanguageModel, Logits, PassRow
from splitedge.llm.exits import written_texts
from splitedge.llm.halves import split_language_model

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPLITEDGE_DATA", ROOT.parent / "shared" / "data"))
KEPT = ROOT / "out" / "llm-bench"


class Bytes:
    """A tokenizer that is not needed: prompts are ids here."""

    def encode(self, text: str) -> list[int]:
        """Bytes."""
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        """A character an id."""
        return "".join(chr(32 + i) for i in ids)


def llama(
    hidden: int, layers: int, heads: int, inner: int, vocabulary: int, context: int, seed: int
) -> torch.nn.Module:
    """A Llama with random weights, in eval mode."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=inner, vocab_size=vocabulary, max_position_embeddings=context,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def stories() -> torch.nn.Module | None:
    """stories260K (llama2.c's file, version 0), 260,000 parameters; None where it is not at hand."""
    path = DATA / "weights" / "stories260K" / "stories260K.bin"
    if not path.is_file():
        return None
    raw = path.read_bytes()
    dim, inner, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", raw[:28])
    flat = torch.from_numpy(np.frombuffer(raw, dtype="<f4", offset=28).copy())
    config = transformers.LlamaConfig(
        hidden_size=dim, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=abs(vocabulary), max_position_embeddings=context,
        tie_word_embeddings=True, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    at, kv = 0, kv_heads * dim // heads
    state: dict[str, torch.Tensor] = {}

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return flat[at - size : at].reshape(shape)

    state["model.embed_tokens.weight"] = state["lm_head.weight"] = take(abs(vocabulary), dim)
    for name, shape in (
        ("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)), ("self_attn.k_proj", (kv, dim)),
        ("self_attn.v_proj", (kv, dim)), ("self_attn.o_proj", (dim, dim)),
        ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (inner, dim)), ("mlp.down_proj", (dim, inner)), ("mlp.up_proj", (inner, dim)),
    ):  # fmt: skip
        for i, weight in enumerate(take(layers, *shape)):
            if "q_proj" in name or "k_proj" in name:  # neighbours turn there, halves here
                count = heads if "q_proj" in name else kv_heads
                weight = weight.view(count, dim // heads // 2, 2, dim).transpose(1, 2).reshape(shape)
            state[f"model.layers.{i}.{name}.weight"] = weight
    state["model.norm.weight"] = take(dim)
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False)
    return model.eval()


def own_text(model: torch.nn.Module, count: int, length: int, seed: int) -> torch.Tensor:
    """Texts that a model writes itself at temperature 1, int64 (count, length)."""
    return written_texts(*split_language_model(model, 0), count, length, seed, 1)


def draft_of(target: torch.nn.Module, texts: int, epochs: int, name: str) -> torch.nn.Module:
    """Every other block of the target, then distilled on text that the target writes."""
    config = target.config
    kept = range(0, config.num_hidden_layers, 2)
    draft = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(
        config.to_dict() | {"num_hidden_layers": len(kept)}
    ))  # fmt: skip
    file = KEPT / f"{name}-{len(kept)}-{texts}x{epochs}.safetensors"
    if file.is_file():
        draft.load_state_dict(load_file(file), strict=False)
        return draft.eval()
    state = {k: w for k, w in target.state_dict().items() if ".layers." not in k}
    for i, block in enumerate(kept):
        begin = f"model.layers.{block}."
        state |= {
            f"model.layers.{i}.{k.removeprefix(begin)}": w
            for k, w in target.state_dict().items()
            if k.startswith(begin)
        }
    draft.load_state_dict(state)
    torch.manual_seed(7)
    ids = own_text(target, texts, 128, 11)
    optimiser = torch.optim.AdamW(draft.parameters(), lr=4e-3)
    steps = epochs * (len(ids) // 16)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps + 1)
    draft.train()
    for _ in range(epochs):
        for part in ids[torch.randperm(len(ids))][: len(ids) // 16 * 16].split(16):
            with torch.no_grad():
                wanted = target(part).logits.log_softmax(-1)
            said = draft(part).logits.log_softmax(-1)
            loss = F.kl_div(said, wanted, reduction="none", log_target=True).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            pace.step()
    KEPT.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone() for k, v in draft.state_dict().items() if k != "lm_head.weight"}, file)
    return draft.eval()


def shakespeare(steps: int) -> tuple[torch.nn.Module, torch.Tensor] | None:
    """A byte-level Llama of 6 blocks trained on the spot, and held-out text; None without a text."""
    files = sorted((DATA / "text" / "tinyshakespeare").glob("*.txt"))
    if not files:
        return None
    ids = torch.from_numpy(
        np.frombuffer(max(files, key=lambda f: f.stat().st_size).read_bytes(), np.uint8).copy()
    )
    learn, held = ids[: -len(ids) // 10].long(), ids[-len(ids) // 10 :].long()
    model = llama(96, 6, 4, 256, 256, 512, 5)
    file = KEPT / f"shakespeare-{steps}.safetensors"
    if file.is_file():
        model.load_state_dict(load_file(file), strict=False)
        return model.eval(), held
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps + 1)
    model.train()
    for _ in range(steps):
        at = torch.randint(0, len(learn) - 129, (16,))
        part = torch.stack([learn[i : i + 128] for i in at])
        loss = model(part, labels=part).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        pace.step()
    KEPT.mkdir(parents=True, exist_ok=True)
    save_file({k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}, file)
    return model.eval(), held


class SlowCloud(CloudLanguageModel):
    """A cloud whose passes last at least as long as a large model's: what is left it sleeps, so that the
    device on the same machine is not slowed by it.
    """

    fixed_s, row_s = 0.06, 0.0018

    def run(self, rows: Sequence[PassRow]) -> list[Logits]:
        """As the model does, in `fixed_s + row_s * tokens` at least."""
        begun = time.perf_counter()
        out = super().run(rows)
        wanted = self.fixed_s + self.row_s * sum(row.count for row in rows)
        time.sleep(max(0.0, wanted - (time.perf_counter() - begun)))
        return out
