"""The OpenAI-compatible API with the official client, before real edge and cloud processes with keys."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
import urllib.request

import numpy as np
import pytest
import torch
from language_processes import Process, free_port, saved, two_keys

from splitedge.llm.aids import Aids
from splitedge.llm.cascade import fit_judge
from splitedge.llm.reading import ANSWER
from splitedge.llm.sampling import Sampling
from splitedge.llm.token_model import WholeModel

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.timeout(300)  # imports of three processes on a busy machine


class World:
    """One cloud, one edge, a client; and the same deployment in this process to compare with."""

    def __init__(self, folder):
        self.folder, self.bundle = folder, folder / "bundle"
        self.here = saved(self.bundle)
        self.cloud_keys, self.edge_keys = two_keys(folder)
        self.port, self.cloud_http, self.edge_http = free_port(), free_port(), free_port()
        self.records = folder / "texts.jsonl"
        self.cloud = self.new_cloud()
        self.edge = Process(
            "edge", self.bundle, "--cloud", f"tcp://127.0.0.1:{self.port}", "--keys", self.edge_keys,
            "--http", f"127.0.0.1:{self.edge_http}", "--records", self.records, "--name", "tiny",
            http=self.edge_http, environment={"SPLITEDGE_EDGE__MAX_BODY": "20000"},
        )  # fmt: skip
        self.client = self.client_of(self.edge_http)

    def new_cloud(self):
        return Process(
            "serve", self.bundle, "--listen", f"tcp://127.0.0.1:{self.port}", "--keys", self.cloud_keys,
            "--http", f"127.0.0.1:{self.cloud_http}", "--context-mib", 64, http=self.cloud_http,
        )  # fmt: skip

    def client_of(self, port):
        return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    def complete(self, prompt="Once", **more):
        extension, others = more.pop("ours", {}), more.pop("others", {})
        return self.client.completions.create(
            model="tiny", prompt=prompt, extra_body={"splitedge": extension, **others}, **more
        )

    def page(self, path, port=None):
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.edge_http}{path}", timeout=10) as page:
            return page.read().decode()

    def wait_up(self):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if json.loads(self.page("/status"))["cloud"]["up"]:
                return
            time.sleep(0.05)
        raise AssertionError("the edge did not find its cloud")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("openai"))
    with made.cloud.spawn(), made.edge.spawn():
        made.cloud.wait_ready()
        made.edge.wait_ready()
        made.wait_up()
        yield made
    made.here.close()
    made.client.close()


def test_a_text_equals_the_one_written_in_process(world):
    for mode in ("cloud_stream", "spec", "local"):
        mine = world.here.generate("Once", max_tokens=20, mode=mode)
        theirs = world.complete(max_tokens=20, temperature=0, ours={"mode": mode})
        choice, more = theirs.choices[0], theirs.model_extra["splitedge"]
        assert choice.text == mine.text and choice.finish_reason == "length"
        assert more["mode"] == mode and more["ids"] == list(mine.ids) and not more["degraded"]
        assert len(more["sources"]) == 20 and (more["bytes_up"] > 0) is (mode != "local")
        assert (theirs.usage.prompt_tokens, theirs.usage.completion_tokens) == (4, 20)


def test_a_seed_gives_the_same_draw_streamed_or_not(world):
    how = Sampling(temperature=0.8, top_p=0.9, seed=7)
    mine = world.here.generate("Once", max_tokens=24, mode="cloud_stream", sampling=how)
    given = {"max_tokens": 24, "temperature": 0.8, "top_p": 0.9, "seed": 7}
    whole = world.complete(**given, ours={"mode": "spec", "drafts": 4})
    assert whole.choices[0].text == mine.text
    chunks = list(world.complete(**given, stream=True, stream_options={"include_usage": True},
                                 ours={"mode": "cloud_stream"}))  # fmt: skip
    assert "".join(c.choices[0].text for c in chunks if c.choices) == mine.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 24 and not chunks[-1].choices
    assert chunks[-2].model_extra["splitedge"]["sources"] == ["cloud"] * 24
    assert len(chunks) > 5
    drawn = world.complete(max_tokens=8, ours={"mode": "local"}).model_extra["splitedge"]["seed"]
    again = [world.complete(max_tokens=8, seed=drawn, ours={"mode": "local"}).choices[0].text for _ in "ab"]
    assert again[0] == again[1]


def test_the_rule_of_verification_can_be_asked_for(world):
    how = Sampling(temperature=0.8, top_p=0.9, seed=7)
    mine = world.here.generate("Once", max_tokens=24, mode="spec", drafts=3, rule="rejection", sampling=how)
    ours = {"mode": "spec", "drafts": 3, "rule": "rejection"}
    told = world.complete(max_tokens=24, temperature=0.8, top_p=0.9, seed=7, ours=ours)
    more = told.model_extra["splitedge"]
    assert told.choices[0].text == mine.text and more["accepted"] == mine.accepted
    assert (more["rule"], more["lossless"]) == ("rejection", False)
    greedy = world.complete(max_tokens=8, temperature=0, ours=ours).model_extra["splitedge"]
    assert (greedy["rule"], greedy["lossless"]) == ("coupling", True)


def test_stop_strings_are_cut_off_wherever_tokens_end(world):
    for mode in ("cloud_stream", "spec", "local"):
        told = world.here.generate("Once", max_tokens=30, mode=mode).text
        stop = told[11:14]
        found = world.complete(max_tokens=30, temperature=0, stop=["☃", stop], ours={"mode": mode})
        wanted = told[: told.index(stop)]
        assert found.choices[0].text == wanted and found.choices[0].finish_reason == "stop"
        assert found.usage.completion_tokens == len(wanted) + len(stop)
        assert not found.model_extra["splitedge"]["degraded"]
        chunks = list(
            world.complete(max_tokens=30, temperature=0, stop=stop, stream=True, ours={"mode": mode})
        )
        assert "".join(c.choices[0].text for c in chunks) == wanted
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_chat_goes_through_the_plain_template(world):
    talk = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    given = {"model": "tiny", "messages": talk, "max_completion_tokens": 10, "temperature": 0}
    mine = world.here.generate("system: Short.\nuser: Hi\nassistant:", max_tokens=10, mode="spec")
    whole = world.client.chat.completions.create(**given)
    assert whole.choices[0].message.content == mine.text and whole.choices[0].message.role == "assistant"
    chunks = list(world.client.chat.completions.create(**given, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == mine.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].model_extra["splitedge"]["mode"] in ("cloud_stream", "spec", "local")


def test_logprobs_are_those_of_the_model_that_decided(world):
    """The cloud's, in whatever mode it wrote; the values are those of the model's own logits."""
    asked = {"max_tokens": 6, "temperature": 0, "logprobs": 2}
    stream, spec = (world.complete(**asked, ours={"mode": mode}) for mode in ("cloud_stream", "spec"))
    assert spec.model_extra["splitedge"]["proposed"] > 0
    whole = WholeModel.of(world.here.plan.head, world.here.plan.tail, world.here.plan.anatomy)
    prompt, written = world.here.tokenizer.encode("Once"), stream.model_extra["splitedge"]["ids"]
    for i, token in enumerate(written):
        said = torch.tensor(whole.step(prompt + written[:i]).logits).log_softmax(-1)
        for answer in (stream, spec):
            told = answer.choices[0].logprobs
            assert told.token_logprobs[i] == pytest.approx(float(said[token]), abs=1e-4)
            assert sorted(told.top_logprobs[i].values())[::-1] == pytest.approx(
                said.topk(2).values.tolist(), abs=1e-4
            )


def test_logprobs_of_the_device(world):
    found = world.complete(max_tokens=5, temperature=0, logprobs=2, ours={"mode": "local"})
    told = found.choices[0].logprobs
    assert "".join(told.tokens) == found.choices[0].text and len(told.token_logprobs) == 5
    for value, top in zip(told.token_logprobs, told.top_logprobs, strict=True):
        assert value == max(top.values()) <= 0 and len(top) == 2
    chat = world.client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], logprobs=True, top_logprobs=3,
        max_tokens=4, extra_body={"splitedge": {"mode": "local"}},
    )  # fmt: skip
    content = chat.choices[0].logprobs.content
    assert "".join(one.token for one in content) == chat.choices[0].message.content
    assert all(len(one.top_logprobs) == 3 for one in content)


def test_a_cascade_asks_the_cloud_where_the_judge_does_not_accept(world, tmp_path):
    """An edge of its own, whose judge accepts answers by what the threshold says: never, then always."""
    rng = np.random.default_rng(0)
    judge = fit_judge(rng.random((400, len(ANSWER))), np.round(rng.random(400)), np.ones(400), aim="budget")
    port, cloud_port, cloud_http = free_port(), free_port(), free_port()
    for threshold, mode in ((1.0, "cloud_stream"), (0.0, "local")):
        world.here.attach(Aids(judge=judge.at(threshold)))
        bundle = tmp_path / mode
        world.here.save(bundle)
        asked = ["edge", bundle, "--http", f"127.0.0.1:{port}", "--name", "tiny", "--mode", "cascade"]
        with contextlib.ExitStack() as stack:
            if mode != "local":  # the other edge has no cloud at all
                listen = f"tcp://127.0.0.1:{cloud_port}"
                asked += ["--cloud", listen]
                cloud = Process(
                    "serve", bundle, "--listen", listen, "--http", f"127.0.0.1:{cloud_http}", http=cloud_http
                )
                stack.enter_context(cloud.spawn())
            edge = Process(*asked, http=port)
            stack.enter_context(edge.spawn())
            client = stack.enter_context(world.client_of(port))
            if mode != "local":
                cloud.wait_ready()
            edge.wait_ready()
            answer = client.completions.create(model="tiny", prompt="Once", max_tokens=12, temperature=0)
            wanted = world.here.generate("Once", max_tokens=12, mode=mode)
            ours = answer.model_extra["splitedge"]
            assert answer.choices[0].text == wanted.text and ours["mode"] == mode
            assert ours["why"].startswith("the device's answer will do with score")
            assert ours["total_s"] >= ours["ttft_s"] > 0 and (ours["bytes_up"] > 0) == (mode != "local")
    with pytest.raises(openai.BadRequestError, match="a judge"):
        world.complete(max_tokens=4, ours={"mode": "cascade"})


def test_errors_have_their_status_and_say_what_is_wrong(world):
    def fails(kind, match, **more):
        with pytest.raises(kind, match=match) as caught:
            world.complete(**{"max_tokens": 5, **more})
        return caught.value

    with pytest.raises(openai.NotFoundError, match="serves 'tiny'"):
        world.client.completions.create(model="gpt-4", prompt="a")
    assert world.client.models.list().data[0].id == "tiny"
    assert world.client.models.retrieve("tiny").model_extra["splitedge"]["context"] == 128
    error = fails(openai.BadRequestError, "maximum context length is 128", max_tokens=125)
    assert error.code == "context_length_exceeded"
    fails(openai.BadRequestError, "'Greek'|alphabet", prompt="Ω")
    fails(openai.BadRequestError, "n: ", n=2)
    fails(openai.BadRequestError, "logit_bias", logit_bias={"5": 1})
    fails(openai.BadRequestError, "frequency_penalty", frequency_penalty=0.5)
    fails(openai.BadRequestError, "unrecognised argument: colour", others={"colour": 1})
    fails(openai.BadRequestError, "can not write in the mode 'split'", ours={"mode": "split"})
    fails(openai.BadRequestError, "splitedge.drafts", ours={"drafts": 1000})
    fails(openai.BadRequestError, "prompt is empty", prompt="")
    fails(openai.BadRequestError, "vocabulary", prompt=[4000])
    assert fails(openai.APIStatusError, ".", prompt="x" * 30000).status_code == 413
    late = {"mode": "cloud_stream", "deadline_ms": 1}
    assert fails(openai.APIStatusError, "deadline", max_tokens=100, ours=late).status_code == 504


def test_records_and_metrics_count_what_was_written(world):
    from splitedge.llm.text_records import read_texts, summary_of

    before = len(read_texts(world.records))
    world.complete(max_tokens=6, ours={"mode": "spec"})
    rows = read_texts(world.records)
    assert len(rows) == before + 1
    row = rows[-1]
    assert (row.mode, row.tokens, row.finish, row.error) == ("spec", 6, "length", "")
    assert row.bytes_up > 0 and row.total_s >= row.ttft_s > 0
    assert summary_of(rows)["texts"] == len(rows)
    assert 'splitedge_texts_total{mode="spec",outcome="length"}' in world.page("/metrics")
    cloud = world.page("/metrics", world.cloud_http)
    assert "splitedge_cloud_context_budget_bytes 6.7108864e+07" in cloud
    told = [
        line
        for line in cloud.splitlines()
        if 'kind="told"' in line and line.startswith("splitedge_cloud_tokens_total")
    ]
    assert float(told[0].split()[-1]) > 0


def test_the_dashboard_needs_nothing_from_elsewhere(world):
    page = world.page("/")
    assert set(re.findall(r"https?://[^\"]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in page and page.count("function get(") == 1 and "$" not in page
    told = json.loads(world.page("/records?count=5"))["records"]
    drawn = set(re.findall(r"\br\.([a-z_]+)", page)) | set(re.findall(r'(?:sum|middle)\(rows, "(\w+)"', page))
    assert told and drawn <= set(told[0])
    assert set(re.findall(r"\bs\.([a-z_]+)", page)) - {"append"} <= set(json.loads(world.page("/status")))


def test_a_client_that_hangs_up_ends_its_text(world):
    stream = world.complete(max_tokens=110, stream=True, ours={"mode": "cloud_stream"})
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 30
    while json.loads(world.page("/status"))["in_flight"] and time.monotonic() < end:
        time.sleep(0.02)
    assert json.loads(world.page("/status"))["in_flight"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "rule"), [("cloud_stream", "coupling"), ("spec", "coupling"), ("spec", "rejection")]
)
def test_a_cloud_that_is_killed_and_started_again_changes_no_text(world, mode, rule):
    how = Sampling(temperature=0.7, seed=11)
    model = mode if rule == "rejection" else "cloud_stream"
    mine = world.here.generate("Once upon", max_tokens=110, mode=model, drafts=1, rule=rule, sampling=how)
    chunks = []
    stream = world.complete("Once upon", max_tokens=110, temperature=0.7, seed=11, stream=True,
                            ours={"mode": mode, "drafts": 1, "rule": rule})  # fmt: skip
    for chunk in stream:
        chunks.append(chunk)
        if len(chunks) == 4:
            world.cloud.end(signal.SIGKILL)
            world.cloud.process.stderr.close()
            threading.Thread(target=world.cloud.start).start()
    assert "".join(c.choices[0].text for c in chunks) == mine.text
    told = chunks[-1].model_extra["splitedge"]
    assert not told["degraded"] and told["total_s"] > 1  # a text without a break takes a fraction of that
    world.wait_up()


@pytest.mark.slow
def test_a_lost_link_in_the_middle_changes_no_text(world):
    """The pacer between edge and cloud loses the link several times while texts are written."""
    trace = world.folder / "link.csv"
    trace.write_text("t_s,mbps\n0,2\n60,2\n")
    port, http = free_port(), free_port()
    cuts = [part for i in range(1, 40) for part in ("--cut", f"{i * 1.5}-{i * 1.5 + 0.4}")]
    link = Process("link", "--trace", trace, "--to", f"tcp://127.0.0.1:{world.port}",
                   "--listen", f"tcp://127.0.0.1:{port}", "--rtt-ms", 20,
                   *cuts)  # fmt: skip
    edge = Process("edge", world.bundle, "--cloud", f"tcp://127.0.0.1:{port}", "--keys", world.edge_keys,
                   "--http", f"127.0.0.1:{http}", "--name", "tiny", http=http)  # fmt: skip
    mine = world.here.generate("Once upon", max_tokens=100, mode="cloud_stream")
    with link, edge, contextlib.ExitStack() as stack:
        assert link.process.poll() is None
        client = stack.enter_context(world.client_of(http))
        longest = 0.0
        for mode in ("spec", "cloud_stream", "spec", "cloud_stream"):
            found = client.completions.create(
                model="tiny", prompt="Once upon", max_tokens=100, temperature=0, timeout=30,
                extra_body={"splitedge": {"mode": mode, "drafts": 2}},
            )  # fmt: skip
            assert found.choices[0].text == mine.text
            longest = max(longest, found.model_extra["splitedge"]["total_s"])
        assert longest > 0.4  # some of them met a cut
