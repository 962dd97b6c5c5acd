"""A black-box cloud: our own edge in the mode `local` as a real OpenAI-compatible process, and one that
misbehaves in every way."""

from __future__ import annotations

import asyncio
import json
import string
import time

import pytest
from aiohttp import web
from language_processes import TOKENIZER, Process, free_port, saved
from llm_models import tiny
from pydantic import ValidationError

from splitedge.edge.openai_settings import BlackBoxSettings, black_box_patience
from splitedge.errors import (
    AuthenticationError,
    CloudBusy,
    CloudFailed,
    CloudUnavailable,
    ConfigError,
    LinkError,
    Rejected,
    RequestError,
)
from splitedge.http_guard import HttpLimits, HttpServer, guarded_app
from splitedge.llm.black_box import Asked, BlackBox, retry_after
from splitedge.llm.deployment import deploy_language
from splitedge.llm.detokenizing import Detokenizer, Retokenizer, StopStrings
from splitedge.llm.generation import Patience
from splitedge.llm.modes import Mode, Way
from splitedge.llm.sampling import Sampling
from splitedge.llm.tokenizers import ByteTokenizer, CharTokenizer

NONE = frozenset()


def chunk(text, finish=None):
    body = {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


class Stub:
    """An endpoint of which a test says what it answers: a list of answers, each used once, the last again."""

    def __init__(self, *answers):
        self.answers, self.bodies, self.keys = list(answers), [], []
        limits = HttpLimits()
        app = guarded_app(limits)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/completions", self.answer)
        app.router.add_post("/v1/chat/completions", self.answer)
        self.server = HttpServer(app, "127.0.0.1", 0, limits)

    async def models(self, request):
        return web.json_response({"data": []})

    async def answer(self, request):
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("Authorization", ""))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            return await answer(request)
        if isinstance(answer, web.Response):
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in answer:
            await response.write(piece)
        await response.write_eof()
        return response

    def settings(self, **more):
        return BlackBoxSettings(url=self.server.url + "/v1", model="stub", **more)


def refusal(status, message="no", **headers):
    body = json.dumps({"error": {"message": message}}).encode()
    return web.Response(status=status, body=body, headers=headers)


async def read(stub, asked=None, **more):
    """What the client gives for the stub's next answer."""
    await stub.server.start()
    box = BlackBox(stub.settings(**more))
    asked = asked or Asked("Once", (), " upon", 5, Sampling(0.5, seed=3))
    try:
        return [piece async for piece in box.write(box.body(asked))]
    finally:
        await box.close()
        await stub.server.close()


def test_pieces_come_as_they_are_and_the_prompt_goes_as_text():
    stub = Stub([b": hello\n\n", chunk(" a"), chunk(" cat", "stop"), b"data: [DONE]\n\n"])
    pieces = asyncio.run(read(stub))
    assert [(p.text, p.finish) for p in pieces] == [(" a", ""), (" cat", "stop")]
    body = stub.bodies[0]
    assert (body["prompt"], body["max_tokens"], body["stream"]) == ("Once upon", 5, True)
    assert (body["temperature"], body["seed"]) == (0.5, 3)
    whole = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "length"}]}
    stub = Stub(web.json_response(whole))
    asked = Asked("user: a", (("user", "a"),), "so", 5, Sampling())
    assert asyncio.run(read(stub, asked, api="chat"))[0].text == "Hi"
    assert stub.bodies[0]["messages"] == [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "so"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (refusal(401), AuthenticationError, "refuses"),
        (refusal(403), AuthenticationError, "refuses"),
        (refusal(429, **{"Retry-After": "7"}), CloudBusy, "too much"),
        (refusal(400, "bad top_p"), Rejected, "bad top_p"),
        (refusal(404, "no model"), Rejected, "no model"),
        (refusal(500), CloudFailed, "failed"),
        (refusal(503), CloudFailed, "failed"),
        (web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), CloudFailed, "redirects"),
        ([chunk("a"), b"data: {nonsense\n\n"], CloudFailed, "no JSON"),
        ([b"data: [1]\n\n"], CloudFailed, "no completion"),
        ([chunk("a"), b'data: {"error": {"message": "out of memory"}}\n\n'], CloudFailed, "out of memory"),
        ([chunk("a")], CloudUnavailable, "ended in the middle"),
        ([chunk("a"), b"data: [DONE]\n\n"], CloudUnavailable, "ended in the middle"),
        ([b"data: " + b"x" * 300_000], CloudFailed, "without an end|more than"),
        ([chunk("a" * 500)] * 10, CloudFailed, "more than 2000 bytes"),
    ],
)
def test_every_way_to_fail_has_its_error(answer, error, match):
    with pytest.raises(error, match=match) as caught:
        asyncio.run(read(Stub(answer), max_response=2000))
    if error is CloudBusy:
        assert caught.value.retry_after_s == 7.0


def test_silence_and_absence_are_unavailable():
    async def silent(request):
        await asyncio.sleep(5)

    with pytest.raises(CloudUnavailable):
        asyncio.run(read(Stub(silent), idle_s=0.2))

    async def nobody():
        box = BlackBox(BlackBoxSettings(url=f"http://127.0.0.1:{free_port()}/v1", model="m"))
        try:
            await box.reach()
        finally:
            await box.close()

    with pytest.raises(CloudUnavailable):
        asyncio.run(nobody())
    assert (retry_after("3"), retry_after(None), retry_after("soon"), retry_after("1e9")) == (3, 1, 1, 3600)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_the_key_comes_from_the_environment_and_is_told_nowhere(monkeypatch):
    monkeypatch.setenv("STUB_KEY", "sk-secret-1234")
    stub = Stub(refusal(401, "wrong key sk-secret-1234"))
    with pytest.raises(AuthenticationError, match="the key in STUB_KEY") as caught:
        asyncio.run(read(stub, key_env="STUB_KEY"))
    assert stub.keys == ["Bearer sk-secret-1234"] and "secret" not in str(caught.value)
    monkeypatch.delenv("STUB_KEY")
    with pytest.raises(AuthenticationError, match="STUB_KEY holds no key"):
        asyncio.run(read(Stub(refusal(401)), key_env="STUB_KEY"))
    monkeypatch.setenv("STUB_KEY", "k")
    with pytest.raises(ConfigError, match="plain text"):
        BlackBox(BlackBoxSettings(url="http://example.org/v1", model="m", key_env="STUB_KEY"))._key()
    for wrong in ("http://me:secret@host/v1", "ftp://host", "host/v1", "https://host/v1?key=1"):
        with pytest.raises(ValidationError):
            BlackBoxSettings(url=wrong, model="m")


def deployed(stub):
    small = tiny("gpt2", seed=5)
    patience = Patience(overdue_s=5, attempts=1, retry_s=0.1, longest_wait_s=3)
    return deploy_language(small, TOKENIZER, local=small, black_box=stub.settings(), patience=patience)


class Served:
    """A stub on a thread of its own, so that a deployment in this thread can talk to it."""

    def __init__(self, *answers):
        import threading

        self.stub = Stub(*answers)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.stub.server.start(), self.loop).result()
        return self.stub

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.stub.server.close(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def test_a_stream_that_breaks_goes_on_from_its_text():
    broken = [chunk(" a time"), chunk(" there wa")]
    rest = [chunk(" was"), chunk(" a cat", "stop")]
    with (
        Served(broken, refusal(429, **{"Retry-After": "0"}), refusal(500), rest) as stub,
        deployed(stub) as edge,
    ):
        assert set(edge.modes) == {Mode.LOCAL, Mode.STREAM, Mode.ASSIST}
        found = edge.generate("Once upon", max_tokens=60, mode="cloud_stream", stops=NONE)
        assert (found.text, found.finish) == (" a time there was a cat", "stop")
        assert set(found.sources) == {"cloud"} and len(stub.bodies) == 4
        assert (
            stub.bodies[0]["prompt"] == "Once upon" and stub.bodies[-1]["prompt"] == "Once upon a time there"
        )


def test_what_can_not_be_mended_ends_the_text_with_its_error():
    with Served(refusal(401)) as stub, deployed(stub) as edge, pytest.raises(AuthenticationError):
        edge.generate("Once", max_tokens=5, mode="cloud_stream")
    with Served(refusal(400, "no such model")) as stub, deployed(stub) as edge:
        with pytest.raises(Rejected, match="no such model"):
            edge.generate("Once", max_tokens=5, mode="cloud_stream")
        with pytest.raises(RequestError, match="can not write in the mode 'spec'"):
            edge.generate("Once", max_tokens=5, mode="spec")
    with Served(refusal(500)) as stub, deployed(stub) as edge:
        began = time.monotonic()
        with pytest.raises((RequestError, LinkError), match="failed"):
            edge.generate("Once", max_tokens=5, mode="cloud_stream")
        assert time.monotonic() - began < 20
        found = edge.generate("Once", max_tokens=5, mode="cloud_stream", on_loss="local")
        assert found.degraded and set(found.sources) == {"local"}


def test_assist_asks_for_a_burst_where_the_device_is_not_sure():
    with Served([chunk(" wide", "length")]) as stub, deployed(stub) as edge:
        way = Way(Mode.ASSIST, thresholds={-1: 0.5}, burst=5)
        found = edge.generate("Once", max_tokens=10, way=way, stops=NONE)
        assert found.text == " wide wide" and found.sources == ("cloud",) * 10
        assert [body["prompt"] for body in stub.bodies] == ["Once", "Once wide"]


def like(made, other):
    made.normalizer, made.decoder = other.normalizer, other.decoder
    return made


def test_retokenised_text_is_exact():
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(),
         tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    alphabet = [f"<0x{i:02X}>" for i in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", *alphabet], show_progress=False
    )
    made.train_from_iterator(["▁once▁upon▁a▁time▁there▁was▁a▁cat\n"] * 3, trainer)
    model = json.loads(made.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    plain = tokenizers.models.BPE(model["vocab"], merges, byte_fallback=True, unk_token="<unk>")
    made = like(
        tokenizers.Tokenizer(plain), made
    )  # the trainer made the bytes special, which Llama's are not
    llama_like = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    text = "once upon  a time\nthere was a cat, 3 äöü 你好 "
    for tokenizer in (llama_like, ByteTokenizer(), CharTokenizer(string.printable + "äöü你好")):
        for size in (1, 3, 7, 100):
            again, ids = Retokenizer(tokenizer), []
            pieces = [text[i : i + size] for i in range(0, len(text), size)]
            for piece in pieces:
                ids += again.push(piece)
            ids += again.push("", last=True)
            shown = Detokenizer(tokenizer)
            assert "".join(shown.push([i]) for i in ids) + shown.push([], last=True) == text, (
                tokenizer,
                size,
            )
    with pytest.raises(CloudFailed, match="can not be written"):
        Retokenizer(CharTokenizer("ab")).push("c d", last=True)


def test_stop_strings_hold_back_what_may_begin_one():
    for stops in (["END"], ["ND", "END"], ["E", "xyz"], []):
        text = "some ENENDxyz"
        cut = min((text.index(s) for s in stops if s in text), default=len(text))
        for size in (1, 2, 3, 20):
            scan, shown = StopStrings(stops), ""
            for i in range(0, len(text), size):
                shown += scan.push(text[i : i + size])
                assert text[:cut].startswith(shown)
            shown += scan.push("", last=True)
            assert shown == text[:cut] and scan.found is (cut < len(text))


@pytest.mark.slow
def test_another_edge_serves_as_the_black_box(tmp_path):
    """An edge process before a real OpenAI-compatible server process, which is killed and restarted."""
    openai = pytest.importorskip("openai")
    here = saved(tmp_path / "bundle")
    wanted = here.generate("Once upon", max_tokens=40, mode="local").text
    here.close()
    far, near = free_port(), free_port()
    server = Process("edge", tmp_path / "bundle", "--http", f"127.0.0.1:{far}", "--name", "far", http=far)
    address = f"http://127.0.0.1:{far}/v1"
    edge = Process("edge", tmp_path / "bundle", "--http", f"127.0.0.1:{near}", "--name", "near",
                   "--black-box", address, "--black-box-model", "far", http=near)  # fmt: skip
    with server.spawn(), edge.spawn():
        server.wait_ready()
        edge.wait_ready()
        with openai.OpenAI(base_url=f"http://127.0.0.1:{near}/v1", api_key="none", max_retries=0) as client:

            def write(**ours):
                return client.completions.create(
                    model="near", prompt="Once upon", max_tokens=40, temperature=0, timeout=60,
                    extra_body={"splitedge": ours},
                )  # fmt: skip

            found = write(mode="cloud_stream")
            assert found.choices[0].text == wanted
            assert set(found.model_extra["splitedge"]["sources"]) == {"cloud"}
            assert write(mode="assist").choices[0].text == wanted
            server.end(9)
            server.process.stderr.close()
            local = write(mode="cloud_stream", on_loss="local")
            assert local.model_extra["splitedge"]["degraded"] and local.choices[0].text == wanted
            with pytest.raises(openai.APIStatusError) as caught:
                write(mode="cloud_stream", deadline_ms=1500)
            assert caught.value.status_code == 504
            server.start()
            assert write(mode="cloud_stream").choices[0].text == wanted
    assert black_box_patience(10.0).attempts == 1
