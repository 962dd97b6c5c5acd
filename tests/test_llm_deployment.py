"""A language model deployed in this process: every mode through the public door, real frames between."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from llm_models import tiny

from splitedge import deploy
from splitedge.errors import ConfigError, RequestError
from splitedge.llm.deployment import LanguageDeployment, deploy_language
from splitedge.llm.exits import ExitSchedule
from splitedge.llm.modes import Mode
from splitedge.llm.sampling import Sampling, choose
from splitedge.llm.token_model import WholeModel

BIG, SMALL = tiny("llama"), tiny("gpt2", seed=5)
ALONE = WholeModel(BIG)
NONE = frozenset()
SHORT = ExitSchedule(texts=48, length=48, epochs=1, width=16, progress=False)


class Letters:
    """A tokenizer of 97 characters."""

    def encode(self, text):
        return [ord(c) % 97 for c in text]

    def decode(self, ids):
        return "".join(chr(33 + i) for i in ids)


def written(prompt, count, how=None):
    ids = list(prompt)
    for _ in range(count):
        ids.append(choose(ALONE.step(ids).logits, len(ids), how or Sampling()))
    return tuple(ids[len(prompt) :])


@pytest.fixture(scope="module")
def pair():
    with deploy(BIG, tokenizer=Letters(), local=SMALL, exits=[1, 3]) as deployment:
        assert isinstance(deployment, LanguageDeployment)
        deployment.fit(schedule=SHORT)
        yield deployment


PROMPT = [5, 6, 7]


@pytest.mark.parametrize("mode", ["cloud_stream", "spec", "exit", "assist", "local", "auto"])
def test_every_mode_writes_a_text(pair, mode):
    text = pair.generate(PROMPT, max_tokens=12, mode=mode, stops=NONE)
    assert len(text.ids) == len(text.sources) == 12 and text.finish == "length"
    assert text.text == Letters().decode(list(text.ids))
    if text.mode.lossless:
        assert text.ids == written(PROMPT, 12)
    assert text.ttft_s > 0 and text.total_s >= text.ttft_s and not text.degraded
    assert (text.bytes_up == 0) is (text.mode is Mode.LOCAL)


def test_sampled_drafts_give_the_clouds_own_draw(pair):
    how = Sampling(temperature=0.9, top_p=0.95, seed=3)
    streamed = pair.generate(PROMPT, max_tokens=16, mode="cloud_stream", sampling=how, stops=NONE)
    drafted = pair.generate(PROMPT, max_tokens=16, mode="spec", drafts=5, sampling=how, stops=NONE)
    assert streamed.ids == drafted.ids == written(PROMPT, 16, how)


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_hidden_states_cross_instead_of_ids(codec):
    with deploy_language(BIG, Letters(), cut=2, codec=codec) as deployment:
        deployment.fit(schedule=SHORT)
        assert Mode.SPLIT in deployment.modes and Mode.STREAM not in deployment.modes
        text = deployment.generate(PROMPT, max_tokens=10, mode="split", stops=NONE)
        assert len(text.ids) == 10 and set(text.sources) == {"cloud"}
        if codec == "fp32":
            assert text.ids == written(PROMPT, 10)
        assert deployment.generate(PROMPT, max_tokens=5, mode="exit", stops=NONE).finish == "length"


def test_an_outage_in_the_middle_changes_nothing(pair):
    for mode in ("cloud_stream", "spec"):
        writing = pair.stream(PROMPT, max_tokens=60, mode=mode, stops=NONE)
        next(iter(writing))
        pair.outage("a tunnel")
        threading.Timer(0.2, pair.outage, (None,)).start()
        assert writing.result().ids == written(PROMPT, 60)
        time.sleep(0.3)


def test_without_the_cloud_the_device_goes_on_where_it_may(pair):
    pair.outage("a tunnel")
    try:
        text = pair.generate(PROMPT, max_tokens=8, mode="cloud_stream", on_loss="local", stops=NONE)
        assert text.degraded and "tunnel" in text.reason and set(text.sources) == {"local"}
        assert pair.generate(PROMPT, max_tokens=3, stops=NONE).mode is Mode.LOCAL
        with pytest.raises(RequestError, match="deadline"):
            pair.generate(PROMPT, max_tokens=8, mode="cloud_stream", deadline_s=0.3)
    finally:
        pair.outage(None)


def test_many_texts_at_once_do_not_mix(pair):
    prompts = [[i, i + 1, 2 * i] for i in range(12)]
    modes = ["cloud_stream", "spec"]
    writings = [pair.stream(p, max_tokens=10, mode=modes[i % 2], stops=NONE) for i, p in enumerate(prompts)]
    for prompt, writing in zip(prompts, writings, strict=True):
        assert writing.result().ids == written(prompt, 10)


def test_what_can_not_be_is_refused(pair):
    with pytest.raises(RequestError, match="context of 128"):
        pair.generate([1] * 100, max_tokens=100)
    with pytest.raises(RequestError, match="vocabulary"):
        pair.generate([97], max_tokens=1)
    with pytest.raises(RequestError, match="at least one token"):
        pair.generate([], max_tokens=1)
    with pytest.raises(ConfigError, match="no mode 'telepathy'; there are auto"):
        pair.generate([1], mode="telepathy")
    with pytest.raises(RequestError, match="can not write in the mode 'split'"):
        pair.generate([1], mode="split")
    with pytest.raises(ConfigError, match="share a tokenizer"):
        config = SMALL.config.__class__(n_embd=32, n_layer=1, n_head=4, vocab_size=50, n_positions=64)
        deploy_language(BIG, Letters(), local=SMALL.__class__(config).eval())
    with pytest.raises(ConfigError, match="does not stand on the device"):
        deploy_language(BIG, Letters(), cut=1, exits=[2])
    with pytest.raises(ConfigError, match="no exit to train"):
        deploy_language(BIG, Letters()).fit()
    assert torch.equal(next(BIG.parameters()), next(tiny("llama").parameters()))
