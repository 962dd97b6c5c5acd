"""The cloud server as a process of its own: SIGTERM, SIGKILL and restart under requests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
import zmq

from splitedge.codec import TensorSpec, make_codec
from splitedge.wire import Hello, Infer, Lane, Refuse, Reply, Welcome, pack, unpack

SERVER = """
import asyncio, os, sys, time
from splitedge.cloud.server import serve
from splitedge.cloud.settings import ServerSettings
from splitedge.codec import TensorSpec, make_codec
from splitedge.wire import Lane

SPEC = (TensorSpec((1, 1), "int64"),)
RAW = make_codec("raw", SPEC)
LOG, ENDPOINT, SLEEP = sys.argv[1], sys.argv[2], float(sys.argv[3])


class Logged:
    digest, batchable = "b" * 64, True
    lanes = (Lane("b" * 64, "cut", RAW.id),)
    cut_specs = lambda self, lane: SPEC
    output_specs = lambda self: SPEC
    max_bytes = lambda self, lane, level, rows: RAW.max_bytes(level, rows)
    decode = lambda self, lane, data, max_rows: RAW.decode(data, max_rows=max_rows)

    def tail(self, lane, tensors):
        with open(LOG, "a") as log:
            log.writelines(f"{os.getpid()} {value}\\n" for value in tensors[0].flatten().tolist())
        time.sleep(SLEEP)
        return (tensors[0] * 2,)


def ready(endpoint):
    print("ready", flush=True)


asyncio.run(serve([Logged()], ServerSettings(listen=ENDPOINT, http="", drain_s=5), ready))
"""

SPEC = (TensorSpec((1, 1), "int64"),)
RAW = make_codec("raw", SPEC)
LANE = Lane("b" * 64, "cut", RAW.id)


class Cloud:
    """Starts, kills and starts again one server on one port; reads what it executed."""

    def __init__(self, folder, sleep_s=0.0):
        self.script, self.log = folder / "server.py", folder / "log"
        self.script.write_text(SERVER)
        self.log.write_text("")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.sleep_s = sleep_s
        self.process = None

    def start(self):
        command = [sys.executable, str(self.script), str(self.log), self.endpoint, str(self.sleep_s)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout.readline() == "ready\n"

    def end(self, number):
        self.process.send_signal(number)
        with self.process:
            self.process.wait(20)
        return self.process.returncode

    def executed(self):
        """(process, value) as often as it ran; warming up runs zeros."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return Counter((pid, int(value)) for pid, value in lines if value != "0")


@contextlib.contextmanager
def running(folder, sleep_s=0.0):
    cloud = Cloud(folder, sleep_s)
    context = zmq.Context()
    edge = context.socket(zmq.DEALER)
    edge.setsockopt(zmq.RECONNECT_IVL, 20)
    edge.setsockopt(zmq.IMMEDIATE, 1)
    try:
        cloud.start()
        edge.connect(cloud.endpoint)
        yield cloud, edge
    finally:
        context.destroy(linger=0)
        if cloud.process.poll() is None:
            cloud.end(signal.SIGKILL)


def send(edge, message):
    """Send if there is a connection."""
    with contextlib.suppress(zmq.Again):
        edge.send_multipart(pack(message), zmq.NOBLOCK)


def receive(edge, seconds):
    return unpack(edge.recv_multipart()) if edge.poll(int(seconds * 1000)) else None


def ask(edge, message, seconds=10.0):
    """Send until something comes back."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        send(edge, message)
        answer = receive(edge, 0.2)
        if answer is not None:
            return answer
    raise AssertionError(f"no answer to {message}")


def infer(request, attempt=1):
    return Infer(request, attempt, 0, 1, 0, RAW.encode((torch.tensor([[request]]),)).data)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_sigterm_ends_what_is_in_flight_and_exits_0(tmp_path, number):
    with running(tmp_path, sleep_s=0.3) as (cloud, edge):
        assert isinstance(ask(edge, Hello(b"session!", (LANE,))), Welcome)
        send(edge, infer(1))
        while not cloud.executed():
            time.sleep(0.01)
        send(edge, infer(2))
        time.sleep(0.1)
        cloud.process.send_signal(number)
        answers = [receive(edge, 5), receive(edge, 5)]
        assert [(type(a), a.request) for a in answers] == [(Reply, 1), (Reply, 2)]
        assert cloud.process.wait(10) == 0
        cloud.process.stdout.close()


@pytest.mark.slow
def test_killed_and_started_again_it_answers_everything_and_runs_nothing_twice_in_a_lifetime(tmp_path):
    with running(tmp_path, sleep_s=0.001) as (cloud, edge):
        epochs, answers, attempts = set(), {}, Counter()
        kills, requests = 3, 800
        open_ids = list(range(1, requests + 1))
        end = time.monotonic() + 90
        while open_ids and time.monotonic() < end:
            if kills and len(answers) > (4 - kills) * requests // 5:
                cloud.end(signal.SIGKILL)
                cloud.start()
                kills -= 1
            welcome = ask(edge, Hello(b"session!", (LANE,)))
            if not isinstance(welcome, Welcome):
                continue
            epochs.add(welcome.epoch)
            for request in open_ids[:16]:
                attempts[request] += 1
                send(edge, infer(request, attempts[request]))
            while (answer := receive(edge, 0.1)) is not None:
                if isinstance(answer, Reply):
                    assert answer.tensors[0].item() == 2 * answer.request
                    answers[answer.request] = answer
            open_ids = [r for r in open_ids if r not in answers]
        assert len(answers) == requests and len(epochs) == 4
        assert max(cloud.executed().values()) == 1, "executed twice in one lifetime"
        assert cloud.end(signal.SIGTERM) == 0


def test_a_session_is_asked_to_say_hello_again_after_a_restart(tmp_path):
    with running(tmp_path) as (cloud, edge):
        first = ask(edge, Hello(b"session!", (LANE,)))
        assert isinstance(ask(edge, infer(1)), Reply)
        assert cloud.end(signal.SIGTERM) == 0
        cloud.start()
        answer = ask(edge, infer(2))
        assert isinstance(answer, Refuse) and answer.kind == "unknown" and "hello again" in answer.message
        again = ask(edge, Hello(b"session!", (LANE,)))
        assert isinstance(again, Welcome) and again.epoch != first.epoch
        assert isinstance(ask(edge, infer(2, 2)), Reply)
