"""A language bundle, and real processes of `splitedge serve`, `edge` and `link` around it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import string
import subprocess
import sys
import time
import urllib.request

from llm_models import tiny

from splitedge import keys
from splitedge.llm.deployment import deploy_language
from splitedge.llm.exits import ExitSchedule
from splitedge.llm.tokenizers import CharTokenizer

ALPHABET = "".join(
    dict.fromkeys(string.ascii_letters + string.digits + " .,:;!?'\"-()\n" + "äöüßéèñçåøæœ€£¥§°µ")
)
TOKENIZER = CharTokenizer(ALPHABET[:97])
SHORT = ExitSchedule(texts=48, length=48, epochs=1, width=16, progress=False)


def saved(directory, exits=()):
    """A bundle of a tiny Llama and a tiny GPT-2 in the device; the deployment it was made by."""
    deployment = deploy_language(tiny("llama"), TOKENIZER, local=tiny("gpt2", seed=5), exits=exits)
    deployment.plan = replaced(deployment.plan)
    if exits:
        deployment.fit(schedule=SHORT)
    deployment.save(directory)
    return deployment


def replaced(plan):
    """The plan without end tokens: texts then have the length asked for."""
    from dataclasses import replace

    return replace(plan, stops=frozenset())


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two_keys(folder):
    """Key directories of a cloud and an edge that trust each other."""
    cloud, edge = folder / "cloud-keys", folder / "edge-keys"
    ours, theirs = keys.new_keys(cloud, "cloud"), keys.new_keys(edge, "edge")
    keys.trust(cloud, theirs)
    keys.trust(edge, ours)
    return cloud, edge


class Process:
    """A `splitedge` command that answers on an HTTP port when it is ready."""

    def __init__(self, *arguments, http=None, environment=None):
        self.arguments, self.http = [str(a) for a in arguments], http
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self.process = None

    def spawn(self):
        """Start it and do not wait."""
        command = [sys.executable, "-m", "splitedge", *self.arguments]
        self.process = subprocess.Popen(
            command, env=self.environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        return self

    def wait_ready(self):
        """Wait until it answers over HTTP that it is ready."""
        end = time.monotonic() + 100
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.arguments} ended: {self.process.stderr.read()}")
            address = f"http://127.0.0.1:{self.http}/v2/health/ready"
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=2):
                return self
            time.sleep(0.05)
        raise AssertionError(f"{self.arguments} did not get ready")

    def start(self):
        """Start it, and wait where it has an HTTP port."""
        self.spawn()
        return self if self.http is None else self.wait_ready()

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        with self.process:
            self.process.wait(20)
        return self.process.returncode

    def __enter__(self):
        return self if self.process is not None else self.start()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        self.process.stderr.close()
