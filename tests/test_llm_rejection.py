"""Drafts verified by rejection sampling: the law of texts is the cloud's model's, link or no link."""

from __future__ import annotations

import functools
import math
import time

import numpy as np
import pytest
import torch
from generation_bench import STOP, VOCABULARY, Bench
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_models import transformers
from scipy import stats

from splitedge.errors import ConfigError, WireError
from splitedge.llm import rejection
from splitedge.llm.deployment import deploy_language
from splitedge.llm.draft_tables import DraftTable, read_tables, table_of
from splitedge.llm.happenings import Compute, Finish, Needed, Proposed, Told
from splitedge.llm.modes import Mode, Way
from splitedge.llm.rejection import acceptance, replacement, verify
from splitedge.llm.sampling import Sampling, log_probabilities
from splitedge.llm.token_model import WholeModel

#: A law that is right fails a test of this level once in so many seeds; the seeds are fixed.
LEVEL = 1e-3


def g_test(counts, law):
    """p-value of counts against a law, cells under 5 expected together; 0 where what can not be was drawn."""
    counts, expected = np.asarray(counts, float).ravel(), np.asarray(law, float).ravel() * np.sum(counts)
    if counts[expected == 0].any():
        return 0.0
    few = expected < 5
    counts = np.append(counts[~few], counts[few].sum())
    expected = np.append(expected[~few], expected[few].sum())
    live = expected > 0
    return stats.power_divergence(counts[live], expected[live], lambda_="log-likelihood").pvalue


laws = st.lists(st.floats(-8, 8), min_size=2, max_size=12)


@settings(deadline=None)
@given(laws, st.integers(0, 2**32), st.sampled_from([1.0, 0.7]), st.integers(0, 4), st.integers(1, 12))
def test_the_law_of_the_rule_is_the_targets(logits, seed, top_p, top_k, most):
    how = Sampling(temperature=0.8, top_k=top_k, top_p=top_p)
    p = np.exp(log_probabilities(np.array(logits, np.float32), how))
    table = table_of(np.random.default_rng(seed).normal(0, 3, len(logits)), how, most)
    q = np.zeros_like(p)
    q[table.ids] = table.probabilities
    assert len(table.ids) <= most and q.sum() == pytest.approx(1.0, abs=1e-12)
    kept = q[table.ids] * acceptance(p, table)
    law = replacement(p, table) * (1.0 - kept.sum())
    law[table.ids] += kept
    np.testing.assert_allclose(law, p, atol=1e-12)
    assert kept.sum() == pytest.approx(np.minimum(p, q).sum(), abs=1e-12)


def test_what_is_drawn_has_the_targets_law():
    """The first token of a round with one draft, and the one behind it, over 20,000 seeds."""
    rng = np.random.default_rng(1)
    how = Sampling(temperature=0.9, top_p=0.9)
    target, draft = rng.normal(0, 2, (2, 8)).astype(np.float32), rng.normal(0, 2, 8)
    table = table_of(draft, how, 8)
    first, behind, drafted = np.zeros(8), np.zeros(8), np.zeros(8)
    for seed in range(20_000):
        seeded = Sampling(how.temperature, top_p=how.top_p, seed=seed)
        token = table.draw(seed, 5)
        drafted[token] += 1
        right, told = verify(target, [token], [table], 5, seeded)
        first[token if right else told] += 1
        if right:
            behind[told] += 1
    q = np.zeros(8)
    q[table.ids] = table.probabilities
    p, then = (np.exp(log_probabilities(row, how)) for row in target)
    assert g_test(drafted, q) > LEVEL and g_test(first, p) > LEVEL and g_test(behind, then) > LEVEL
    kept = np.minimum(p, q).sum()
    assert stats.binomtest(int(behind.sum()), 20_000, kept).pvalue > LEVEL


weights = st.dictionaries(st.integers(0, 96), st.integers(1, 65535), min_size=1, max_size=9)
tables = st.lists(
    weights.map(lambda one: DraftTable(np.array(sorted(one)), np.array([one[i] for i in sorted(one)]))),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(deadline=None)
@given(tables, st.integers(0, 2**64 - 1), st.data())
def test_tables_come_back_and_damaged_ones_are_typed_errors(given_tables, seed, data):
    drafts = [table.draw(seed, i) for i, table in enumerate(given_tables)]
    packed = b"".join(table.pack() for table in given_tables)
    for got, sent in zip(read_tables(packed, drafts, 97), given_tables, strict=True):
        assert (got.ids == sent.ids).all() and (got.weights == sent.weights).all()
    at = data.draw(st.integers(0, len(packed) - 1))
    damaged = bytearray(packed)
    damaged[at] ^= data.draw(st.integers(1, 255))
    for wrong in (bytes(damaged), packed[:at], packed + b"\0", data.draw(st.binary(max_size=60))):
        try:  # damage may give other tables, never another kind of error, nor a law that can not be
            read = read_tables(wrong, drafts, 97)
        except WireError:
            continue
        for table, draft in zip(read, drafts, strict=True):
            assert table.find(draft) >= 0 and table.weights.min() > 0
    for cut in (packed[:at], packed + b"\0"):
        with pytest.raises(WireError):
            read_tables(cut, drafts, 97)
    with pytest.raises(WireError, match="can not have been drawn"):
        read_tables(packed, [97, *drafts[1:]], 97)


# One text, whatever the link does -------------------------------------------------------------------


@functools.cache
def laws_of(ids):
    """Logits of the cloud's model and of the device's behind some ids (a tuple)."""
    return np.random.default_rng([7, *ids]).normal(0, 1.5, (2, VOCABULARY))


class RejectingBench(Bench):
    """The bench of other modes, with laws in place of functions."""

    def __init__(self, way, how, **more):
        self.how = how
        super().__init__(way, **more)
        self.cloud = self
        self.ids = []

    def answer(self, send, chunk):
        if send.start > len(self.ids):
            return [Needed(send.ask, len(self.ids))]
        self.ids[send.start :] = send.ids
        base = len(self.ids) - send.drafts
        drafts, found = self.ids[base:], read_tables(send.tables, self.ids[base:], VOCABULARY)
        logits = np.array([laws_of(tuple(self.ids[: base + i]))[0] for i in range(len(drafts) + 1)])
        right, token = verify(logits, drafts, found, base, self.how)
        self.ids[base + right :] = [token]
        return [Told(send.ask, base + right, (token,), right, True, 50)]

    def _do(self, actions):
        for action in actions:
            if isinstance(action, Compute):
                seen = len(action.ids)
                table = table_of(laws_of(action.ids)[1], self.how, self.generation.way.table)
                token = table.draw(self.how.seed, seen)
                self._put(0.01, Proposed(seen, token, math.nan, -1, 0.01, table.pack()))
            else:
                super()._do([action])


@pytest.mark.parametrize("drafts", [1, 4])
@pytest.mark.parametrize("lose", [True, False])
def test_a_link_cut_at_any_moment_changes_nothing_of_a_text(drafts, lose):
    way, how = Way(Mode.SPEC, drafts=drafts, rule="rejection", table=6), Sampling(1.0, seed=drafts)
    calm = RejectingBench(way, how, stops=frozenset()).run()
    tally = calm.generation.tally
    assert isinstance(calm.ends[0], Finish) and {"draft", "cloud"} == set(calm.sources)
    assert 0 < tally.accepted < tally.proposed
    for at in range(calm.steps + 1):
        bench = RejectingBench(way, how, cut={at: 3.0}, lose=lose, forget=bool(at % 2), stops=frozenset())
        cut = bench.run()
        assert cut.text == calm.text and cut.sources == calm.sources, at
    often = dict.fromkeys(range(2, 60, 3), 0.7)
    assert RejectingBench(way, how, cut=often, forget=True, stops=frozenset()).run().text == calm.text
    ends = [RejectingBench(way, how, cut=cut, stops=frozenset({3, STOP})).run().text for cut in ({}, often)]
    assert ends[0] == ends[1] and len(ends[0]) < 20


def test_rounds_do_not_depend_on_how_long_things_take():
    way, how = Way(Mode.SPEC, drafts=4, rule="rejection"), Sampling(1.0, seed=3)
    assert way.adapt
    benches = [RejectingBench(way, how, rtt=rtt, stops=frozenset()).run() for rtt in (0.0, 0.1, 1.5)]
    assert len({tuple(bench.text) for bench in benches}) == 1 and len(benches[0].text) == 20


# Through the public door ----------------------------------------------------------------------------

WORDS = 7
PROMPT = [1, 4, 2]


class Digits:
    def encode(self, text):
        return [int(c) % WORDS for c in text]

    def decode(self, ids):
        return "".join(map(str, ids))


def little(layers, seed):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        vocab_size=WORDS, max_position_embeddings=64, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.35)
    return model


BIG, SMALL = little(2, 0), little(1, 3)
HOW = {"temperature": 0.8, "top_p": 0.97}


def law_of_two(model=BIG):
    """Exact law of the two tokens behind the prompt, (vocabulary, vocabulary)."""
    whole, how = WholeModel(model), Sampling(**HOW)
    first = np.exp(log_probabilities(whole.step(PROMPT).logits, how))
    rows = [np.exp(log_probabilities(whole.step([*PROMPT, a]).logits, how)) for a in range(WORDS)]
    return first[:, None] * np.array(rows)


def counted(deployment, seeds, way, length):
    """How often each pair of first tokens came."""
    counts = np.zeros((WORDS, WORDS))
    for begin in range(0, seeds, 250):
        writings = [
            deployment.stream(
                PROMPT, max_tokens=length, way=way, sampling=Sampling(**HOW, seed=s), stops=frozenset()
            )
            for s in range(begin, min(begin + 250, seeds))
        ]
        for writing in writings:
            a, b, *_ = writing.result().ids
            counts[a, b] += 1
        deployment.close()  # the cloud keeps contexts for a while, and takes longer the more there are
    return counts


def test_the_law_of_texts_is_the_clouds_and_a_wrong_rule_is_found_out(monkeypatch):
    one = Way(Mode.SPEC, drafts=1, rule="rejection", table=3)
    two = Way(Mode.SPEC, drafts=2, rule="rejection")
    law = law_of_two()
    with deploy_language(BIG, Digits(), local=SMALL) as pair:
        assert g_test(counted(pair, 1000, one, 2), law) > LEVEL
        assert g_test(counted(pair, 500, two, 3), law) > LEVEL
        monkeypatch.setattr(rejection, "acceptance", lambda p, table: np.ones(len(table.ids)))
        assert g_test(counted(pair, 250, one, 2), law) < 1e-9
        assert g_test(counted(pair, 250, two, 3), law) < 1e-9


def test_greedy_texts_are_those_of_the_coupling_and_seeds_give_a_text_again():
    how = Sampling(**HOW, seed=5)
    with deploy_language(BIG, Digits(), local=SMALL) as pair:
        rules = ("rejection", "coupling")
        greedy = [pair.generate(PROMPT, max_tokens=20, mode="spec", rule=rule) for rule in rules]
        assert greedy[0].ids == greedy[1].ids
        assert greedy[0].bytes_up < 2 * greedy[1].bytes_up
        calm = pair.generate(PROMPT, max_tokens=20, mode="spec", rule="rejection", sampling=how)
        assert 0 < calm.accepted < calm.proposed
        for at in range(1, 20, 2):
            writing = pair.stream(PROMPT, max_tokens=20, mode="spec", rule="rejection", sampling=how)
            given = 0
            for piece in writing:
                given += len(piece)
                if given >= at:
                    pair.outage("a tunnel")
                    time.sleep(0.005)
                    pair.outage(None)
                    break
            assert writing.result().ids == calm.ids


def test_a_way_that_can_not_be_is_refused():
    large = {"rule": "rejection", "drafts": 64, "table": 512}
    for wrong in ({"rule": "hope"}, {"table": 0}, {"table": 5000}, large):
        with pytest.raises(ConfigError):
            Way(Mode.SPEC, **wrong)
