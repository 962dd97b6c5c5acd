"""Many contexts on one cloud: each text is the one it would be alone, within the memory that there is."""

from __future__ import annotations

import random

import numpy as np
import pytest
from llm_models import tiny

from splitedge.cloud.contexts import ContextStore, Key
from splitedge.cloud.language import LanguageBatcher, No, Word
from splitedge.events import Refusal
from splitedge.llm.cloud_model import CloudLanguageModel
from splitedge.llm.draft_tables import table_of
from splitedge.llm.halves import split_language_model
from splitedge.llm.hashing import EMPTY, id_bytes, rolled
from splitedge.llm.sampling import Sampling, choose
from splitedge.llm.token_model import WholeModel
from splitedge.wire import Ask

NET = tiny("llama")
MODEL = CloudLanguageModel(*split_language_model(NET, 0))
ALONE = WholeModel(NET)
SAMPLED = Sampling(temperature=0.8, top_k=20, top_p=0.95, seed=11)


def key(number, user="a"):
    return Key(user, b"12345678", number, 0)


def ask(number, ids, *, start=0, before=EMPTY, drafts=0, want=1, epoch=0, how=SAMPLED, request=1):
    scaled = (round(how.temperature * 1e6), round(how.top_p * 1e6), how.top_k, how.seed)
    head = (request, 1, 0, 0, number, epoch, start, before, len(ids), drafts, want)
    return Ask(*head, *scaled, (), id_bytes(ids))


def written(prompt, count, how=SAMPLED):
    ids = list(prompt)
    for _ in range(count):
        ids.append(choose(ALONE.step(ids).logits, len(ids), how))
    return ids[len(prompt) :]


class Cloud:
    """A batcher with its passes run at once."""

    def __init__(self, budget=10**8, **more):
        self.words = []
        self.store = ContextStore(budget, **more)
        self.batcher = LanguageBatcher(MODEL, self.store, self.words.append)
        self.now = 0

    def take(self, number, asked, user="a"):
        self.now += 1_000_000
        self.batcher.take(key(number, user), asked, self.now)

    def turn(self):
        self.now += 1_000_000
        work = self.batcher.next_pass(self.now)
        if work is not None:
            self.batcher.finish(work, MODEL.run(work.rows), self.now)
        return work is not None

    def idle(self):
        while self.turn():
            pass
        words, self.words[:] = list(self.words), []
        return words


def test_a_text_is_streamed_as_the_model_alone_writes_it():
    cloud = Cloud()
    cloud.take(1, ask(1, [5, 6, 7], want=12))
    words = cloud.idle()
    assert [w.tokens[0] for w in words] == written([5, 6, 7], 12)
    assert [w.start for w in words] == list(range(3, 15)) and [w.last for w in words] == [False] * 11 + [True]


def test_right_drafts_are_accepted_and_the_first_wrong_one_is_corrected():
    wanted = written([5, 6, 7], 6)
    for right in range(5):
        drafts = [*wanted[:right], *((token + 1) % 97 for token in wanted[right:4])]
        cloud = Cloud()
        cloud.take(1, ask(1, [5, 6, 7, *drafts], drafts=4))
        (word,) = cloud.idle()
        assert (word.accepted, word.start, word.tokens) == (right, 3 + right, (wanted[right],))
        held = [5, 6, 7, *wanted[: right + 1]]
        more = ask(1, wanted[right + 1 : right + 2], start=len(held), before=rolled(EMPTY, id_bytes(held)))
        cloud.take(1, more)
        (word,) = cloud.idle()
        assert word.tokens == (written([5, 6, 7], right + 3)[-1],)


@pytest.mark.parametrize("budget", [10**8, 60_000])
def test_texts_of_many_contexts_do_not_mix(budget):
    """Streams, drafts and prompts at once, with room for all, and with room for a few only."""
    rng = random.Random(3)
    cloud = Cloud(budget)
    texts = {n: [rng.randrange(97) for _ in range(rng.randrange(1, 9))] for n in range(24)}
    begun = {n: len(ids) for n, ids in texts.items()}
    waits, seen_need = set(), 0
    pending = set(texts)
    for _ in range(4000):
        for n in sorted(pending - waits)[: rng.randrange(1, 6)]:
            ids = texts[n]
            start = rng.choice([0, len(ids) - 1])
            drafts = [rng.randrange(97) for _ in range(rng.randrange(3))]
            before = rolled(EMPTY, id_bytes(ids[:start]))
            cloud.take(n, ask(n, [*ids[start:], *drafts], start=start, before=before, drafts=len(drafts),
                              want=rng.randrange(1, 4)), user=f"user{n % 3}")  # fmt: skip
            waits.add(n)
        cloud.turn()
        words, cloud.words[:] = list(cloud.words), []
        for word in words:
            n = word.key.context
            if isinstance(word, No):
                assert word.kind in (Refusal.BUSY, Refusal.NEED)
                seen_need += word.kind is Refusal.NEED
                waits.discard(n)
                if word.kind is Refusal.NEED:
                    texts[n], ids = list(texts[n]), texts[n]
                    cloud.take(n, ask(n, ids, want=1), user=f"user{n % 3}")
                    waits.add(n)
                continue
            drafted = written(texts[n], word.accepted) if word.accepted else []
            texts[n] += [*drafted, *word.tokens]
            if word.last:
                waits.discard(n)
            if len(texts[n]) >= begun[n] + 10:
                pending.discard(n)
        assert cloud.store.nbytes <= budget
        if not pending and not waits:
            break
    assert not pending
    for n, ids in texts.items():
        assert ids[begun[n] :] == written(ids[: begun[n]], len(ids) - begun[n]), n
    assert (budget > 10**7) or (seen_need and cloud.store.demoted)


def test_asks_can_be_repeated_and_taken_back():
    cloud = Cloud()
    prompt = [5, 6, 7]
    first = ask(1, prompt, want=3)
    cloud.take(1, first)
    told = [w.tokens[0] for w in cloud.idle()]
    cloud.take(1, first)
    assert [w.tokens[0] for w in cloud.idle()] == told
    other = ask(1, [9], start=2, before=rolled(EMPTY, id_bytes(prompt[:2])), epoch=1)
    cloud.take(1, other)
    assert cloud.idle()[0].tokens == tuple(written([5, 6, 9], 1))
    cloud.take(1, first)
    assert cloud.idle() == []  # of an older epoch
    cloud.take(1, ask(1, [4], start=3, before=123, epoch=1))
    assert [(w.kind, w.message) for w in cloud.idle()] == [(Refusal.NEED, "0")]
    cloud.take(2, ask(2, [4], start=3, before=123))
    assert [(w.kind, w.message) for w in cloud.idle()] == [(Refusal.NEED, "0")]
    cloud.take(1, ask(1, [4], start=30, before=123, epoch=1))
    assert [(w.kind, w.message) for w in cloud.idle()] == [(Refusal.NEED, "4")]


def test_contexts_of_others_can_not_be_reached():
    cloud = Cloud()
    cloud.take(1, ask(1, [5, 6, 7], want=1), user="a")
    cloud.idle()
    cloud.take(1, ask(1, [8], start=3, before=rolled(EMPTY, id_bytes([5, 6, 7]))), user="b")
    assert cloud.idle()[0].kind is Refusal.NEED


def test_a_prompt_sent_ahead_is_computed_before_it_is_asked_for():
    cloud = Cloud()
    cloud.take(1, ask(1, list(range(40)), want=0))
    (word,) = cloud.idle()
    assert isinstance(word, Word) and word.last and not word.tokens
    context = cloud.store.find(key(1))
    assert context.computed == context.held == 40
    cloud.take(1, ask(1, [3], start=40, before=context.hashes[-1]))
    work = cloud.batcher.next_pass(cloud.now)
    assert [row.count for row in work.rows] == [1]


def test_nonsense_is_refused_and_leases_end():
    cloud = Cloud(lease_s=5.0)
    bad = ask(1, [5, 6])
    bad.payload = b"123"
    for wrong in (bad, ask(1, [97]), ask(1, [0] * 200)):
        cloud.take(1, wrong)
        assert cloud.idle()[0].kind is Refusal.BAD
    cloud.take(1, ask(1, [5, 6]))
    cloud.idle()
    cloud.now += 6 * 10**9
    cloud.take(2, ask(2, [5, 6]))
    assert cloud.store.find(key(1)) is None
    tight = Cloud(2_000)
    tight.take(1, ask(1, [1] * 60, want=60))
    assert tight.idle()[0].kind is Refusal.BUSY


def test_damaged_tables_are_refused_and_end_no_pass():
    table = table_of(ALONE.step([5, 6, 7]).logits, SAMPLED, 97)  # p itself, but for rounding
    token, good = table.draw(11, 3), table.pack()
    cloud = Cloud()
    for wrong in (b"\0", good[:-1], good * 2, good[:2] + b"\xff" * 4 + good[6:]):
        cloud.take(1, ask(1, [5, 6, 7], want=3))  # superseded, so that nothing is told of it
        bad = ask(1, [5, 6, 7, token], drafts=1)
        bad.tables = wrong
        cloud.take(1, bad)
        (word,) = cloud.idle()
        assert word.kind is Refusal.BAD and ("draft" in word.message)
    greedy = ask(1, [5, 6, 7, token], drafts=1, how=Sampling())
    greedy.tables = good
    cloud.take(1, greedy)
    assert cloud.idle()[0].kind is Refusal.BAD
    right = ask(1, [5, 6, 7, token], drafts=1)
    right.tables = good
    cloud.take(1, right)
    (word,) = cloud.idle()
    assert word.accepted == 1


def test_a_model_that_fails_ends_asks_and_not_the_cloud():
    cloud = Cloud()
    cloud.take(1, ask(1, [5, 6, 7]))
    work = cloud.batcher.next_pass(cloud.now)
    cloud.batcher.finish(work, MemoryError("no"), cloud.now)
    assert [(w.kind, w.message) for w in cloud.idle()] == [(Refusal.FAILED, "MemoryError")]
    cloud.take(1, ask(1, [5, 6, 7]))
    assert cloud.idle()[0].tokens == tuple(written([5, 6, 7], 1))


def test_a_long_prompt_lets_others_through():
    from llm_models import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        **sizes, vocab_size=97, num_key_value_heads=1, max_position_embeddings=2048
    )
    model = CloudLanguageModel(*split_language_model(transformers.LlamaForCausalLM(config).eval(), 0))
    words = []
    batcher = LanguageBatcher(model, ContextStore(10**8), words.append)
    batcher.take(key(1), ask(1, list(np.arange(900) % 97)), 0)
    batcher.take(key(2, "b"), ask(2, [5]), 1)
    passes = 0
    while (work := batcher.next_pass(2 + passes)) is not None:
        batcher.finish(work, model.run(work.rows), 3 + passes)
        passes += 1
        if passes == 1:
            assert [w.key.context for w in words] == [2]
    assert passes == 4 and [w.key.context for w in words] == [2, 1]


def test_what_is_kept_of_a_text_is_let_go_when_it_ends():
    cloud = Cloud()
    cloud.take(1, ask(1, [5, 6, 7], want=3))
    cloud.take(2, ask(2, [8, 9], want=30))
    work = cloud.batcher.next_pass(cloud.now)
    cloud.batcher.cancel(key(1))  # the pass still writes to its cache
    assert len(cloud.store) == 2
    cloud.batcher.finish(work, MODEL.run(work.rows), cloud.now)
    assert [c.key for c in cloud.store] == [key(2)] and {w.key for w in cloud.words} == {key(2)}
    cloud.turn()
    cloud.batcher.cancel(key(2))
    assert not len(cloud.store) and cloud.store.nbytes == 0 and not cloud.turn()
    cloud.batcher.cancel(key(2))  # may come twice
