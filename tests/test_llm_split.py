"""A split language model is the model, bit for bit; what can not be split is refused with the reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llm_models import FAMILIES, SIZES, stories, tiny, transformers

from splitedge.errors import ConfigError, PartitionError
from splitedge.llm import KVCache, Ragged, Sampling, anatomy_of, choose, gumbel, split_language_model
from splitedge.llm.halves import largest_difference, steps_of
from splitedge.llm.sampling import log_probabilities


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cut", [0, 2, 4])
def test_head_and_tail_give_the_models_own_logits(family, cut):
    model = tiny(family)
    head, tail, anatomy = split_language_model(model, cut)
    assert largest_difference(model, head, tail, anatomy) == 0.0


def test_a_trained_model_tells_its_story():
    model = stories()
    head, tail, _ = split_language_model(model, 2)
    ids, cache = [1], KVCache()
    with torch.no_grad():
        for position in range(12):
            where, mask = steps_of([position], [1], 1)
            logits = tail(head(torch.tensor([[ids[-1]]]), where, cache, mask), where, cache, mask)
            ids.append(int(logits[0, -1].argmax()))
    whole = model.generate(torch.tensor([[1]]), max_new_tokens=12, do_sample=False)[0].tolist()
    assert ids == whole


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_contexts_of_unlike_lengths_run_as_one_batch(family):
    model = tiny(family)
    head, tail, anatomy = split_language_model(model, 2)
    rng = torch.Generator().manual_seed(1)
    prompts = [torch.randint(anatomy.vocabulary, (n,), generator=rng).tolist() for n in (3, 9, 5)]
    more = [torch.randint(anatomy.vocabulary, (n,), generator=rng).tolist() for n in (4, 1, 2)]

    def run(caches, parts, past):
        width = max(map(len, parts))
        ids = torch.tensor([[*part, *[0] * (width - len(part))] for part in parts])
        counts = [len(part) for part in parts]
        where, mask = steps_of(past, counts, width)
        cache = Ragged(caches, counts)
        with torch.no_grad():
            return tail(head(ids, where, cache, mask), where, cache, mask)

    together = [KVCache() for _ in prompts]
    run(together, prompts, [0, 0, 0])
    found = run(together, more, [len(p) for p in prompts])
    for i, (prompt, part) in enumerate(zip(prompts, more, strict=True)):
        alone = [KVCache()]
        run(alone, [prompt], [0])
        wanted = run(alone, [part], [len(prompt)])[0]
        torch.testing.assert_close(found[i, : len(part)], wanted, atol=2e-5, rtol=1e-4)
        assert together[i].length(0) == alone[0].length(0) == len(prompt) + len(part)


def test_a_cropped_cache_goes_on_as_if_the_rest_had_not_been():
    head, tail, _ = split_language_model(tiny("llama"), 2)

    def step(cache, ids, past):
        where, mask = steps_of([past], [len(ids)], len(ids))
        with torch.no_grad():
            return tail(head(torch.tensor([ids]), where, cache, mask), where, cache, mask)

    cache = KVCache()
    step(cache, [1, 2, 3], 0)
    wanted = step(cache, [4], 3)
    cache.crop(3)
    step(cache, [9, 9, 9, 9], 3)
    cache.crop(3)
    assert torch.equal(step(cache, [4], 3), wanted)


def test_what_can_not_be_split_is_refused_with_the_reason():
    window = transformers.MistralConfig(
        **SIZES, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=128, sliding_window=16
    )
    model = transformers.MistralForCausalLM(window).eval()
    with pytest.raises(PartitionError, match=r"last 16 tokens.*context=16"):
        anatomy_of(model)
    split_language_model(model, 2, context=16)
    t5 = transformers.T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=32)
    with pytest.raises(PartitionError, match="encoder-decoder"):
        anatomy_of(transformers.T5ForConditionalGeneration(t5))
    with pytest.raises(PartitionError, match="no transformers language model"):
        anatomy_of(torch.nn.Linear(2, 2))
    with pytest.raises(PartitionError, match="4 blocks"):
        split_language_model(tiny("llama"), 5)
    broken = tiny("llama")
    broken.model.norm.weight.data.fill_(float("nan"))  # NaN differs from nothing, so it must be looked for
    with pytest.raises(PartitionError, match="NaN: check its weights"):
        split_language_model(broken, 2)


def test_the_noise_depends_on_seed_and_position_alone():
    first = gumbel(7, 3, 50)
    assert np.array_equal(first, gumbel(7, 3, 50))
    assert np.array_equal(first[:20], gumbel(7, 3, 20))
    assert not np.array_equal(first, gumbel(7, 4, 50))
    assert not np.array_equal(first, gumbel(8, 3, 50))
    # Pinned: a device and a server of other versions must draw alike.
    assert gumbel(1, 2, 3).tolist() == pytest.approx(PINNED, abs=1e-12)


PINNED = [2.8850203336334075, 1.0120580066182079, -0.812240801967224]


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    drawn = [choose(logits, i, Sampling(temperature=1.0, seed=3)) for i in range(20_000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert np.abs(shares - np.exp(logits)).max() < 0.012
    kept = np.exp(log_probabilities(logits, Sampling(temperature=1.0, top_p=0.75)))
    assert kept.tolist() == pytest.approx([0.625, 0.375, 0, 0])
    kept = np.exp(log_probabilities(logits, Sampling(temperature=1.0, top_k=1)))
    assert kept.tolist() == pytest.approx([1, 0, 0, 0])
    assert choose(logits, 5, Sampling()) == 0


def test_sampling_out_of_range_is_refused():
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"seed": -1}):
        with pytest.raises(ConfigError):
            Sampling(**wrong)
    with pytest.raises(ConfigError, match="not finite"):
        choose(np.array([np.nan, 1.0]), 0, Sampling())
