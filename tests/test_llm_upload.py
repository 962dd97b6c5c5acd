"""A prompt's hidden states go up in pieces while the head computes the next ones, and each goes up once."""

from __future__ import annotations

import itertools

import pytest
from llm_models import tiny

from splitedge import deploy
from splitedge.edge.language import PIECE
from splitedge.llm.exit_model import ExitModel
from splitedge.llm.exits import ExitSchedule
from splitedge.llm.sampling import Sampling, choose
from splitedge.llm.token_model import WholeModel
from splitedge.wire import Ask, Limits, unpack

SHORT = ExitSchedule(texts=48, length=48, epochs=1, width=16, progress=False)
PROMPT = [(7 * i + 3) % 97 for i in range(110)]
NET = tiny("llama")


class Letters:
    def encode(self, text):
        return [ord(c) % 97 for c in text]

    def decode(self, ids):
        return "".join(chr(33 + i) for i in ids)


def written(count):
    alone, ids = WholeModel(NET), list(PROMPT)
    for _ in range(count):
        ids.append(choose(alone.step(ids).logits, len(ids), Sampling()))
    return tuple(ids[len(PROMPT) :])


@pytest.fixture
def watched(monkeypatch):
    """A deployment whose sent asks and computed states are listed in the order in which they come."""
    seen = []
    states = ExitModel.states

    def computed(self, start, stop):
        found = states(self, start, stop)
        seen.append(("computed", start, stop))
        return found

    monkeypatch.setattr(ExitModel, "states", computed)
    with deploy(NET, tokenizer=Letters(), cut=2, codec="fp32", kv_fill="propagate") as deployment:
        deployment.fit(schedule=SHORT)
        deployment.generate([1], max_tokens=1, mode="split", stops=frozenset())
        send = deployment.link.send

        def sent(frames):
            message = unpack([bytes(frame) for frame in frames], Limits())
            if isinstance(message, Ask):
                seen.append(("sent", message.start, message.start + message.count, message.want))
            send(frames)

        monkeypatch.setattr(deployment.link, "send", sent)
        seen.clear()
        yield deployment, seen


def test_a_long_prompt_is_sent_while_its_rest_is_computed(watched, monkeypatch):
    monkeypatch.setattr("splitedge.edge.language.PIECE", 32)
    deployment, seen = watched
    text = deployment.generate(PROMPT, max_tokens=4, mode="split", stops=frozenset())
    assert text.ids == written(4)
    asks = [what for what in seen if what[0] == "sent"]
    assert [ask[1:3] for ask in asks[:4]] == [(0, 32), (32, 64), (64, 96), (96, 110)]
    assert [ask[3] for ask in asks] == [0, 0, 0, 1, 1, 1, 1]
    # Each state once: what comes next begins where the last one ended.
    assert all(a[2] == b[1] for a, b in itertools.pairwise(asks))
    assert text.asks == 4 and text.bytes_up > 113 * 128
    # The first piece is under way before the third is computed.
    assert seen.index(("sent", 0, 32, 0)) < seen.index(("computed", 64, 96))


def test_an_exits_prompt_goes_up_in_pieces_too_and_short_ones_in_one(watched):
    deployment, seen = watched
    assert deployment.plan.kv_fill == "propagate" and len(PROMPT) > PIECE
    text = deployment.generate(PROMPT, max_tokens=6, mode="exit", stops=frozenset())
    assert len(text.ids) == 6 and not text.degraded
    asks = [what for what in seen if what[0] == "sent"]
    assert [ask[1:3] for ask in asks[:2]] == [(0, PIECE), (PIECE, 110)]
    seen.clear()
    deployment.generate(PROMPT[:10], max_tokens=1, mode="split", stops=frozenset())
    assert [what for what in seen if what[0] == "sent"] == [("sent", 0, 10, 1)]


def test_an_outage_between_pieces_changes_nothing(watched, monkeypatch):
    monkeypatch.setattr("splitedge.edge.language.PIECE", 16)
    deployment, seen = watched
    writing = deployment.stream(PROMPT, max_tokens=5, mode="split", stops=frozenset())
    while not any(what[0] == "sent" for what in seen):
        pass
    deployment.outage("a tunnel")
    deployment.outage(None)
    assert writing.result().ids == written(5)
