"""ResNet-56 in the cloud, ResNet-8 on the device, a recorded uplink between them.

    python examples/cifar_resnet.py --data ../shared/data --trace mahimahi/TMobile-UMTS-driving

Deploys the two published networks (93.4% and 87.2% on the CIFAR-10 test set), fits one exit on
1,500 training images, and streams test images through five strategies over the recorded channel, with
a cloud server and edge daemons as real processes.
"""

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from models import load_resnet8, load_resnet_cifar, normalise
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import splitedge
from splitedge.keys import new_keys, trust
from splitedge.sim.compare import Strategy, Stream, compare
from splitedge.sim.formats import read_trace
from splitedge.sim.link import Channel

HELD_OUT = 600
DATA = Path(os.environ.get("SPLITEDGE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


class Cloud(torch.nn.Module):
    """ResNet-56 on raw uint8 images (N, 3, 32, 32): the camera's bytes are what is compressed."""

    def __init__(self, weights: Path):
        super().__init__()
        self.net = load_resnet_cifar(56, weights)

    def forward(self, images):
        return self.net(normalise(images))


class Device(torch.nn.Module):
    """ResNet-8 on the same images."""

    def __init__(self, weights: Path):
        super().__init__()
        self.net = load_resnet8(weights)

    def forward(self, images):
        return self.net(images.float())


def images(path: Path, first: int, count: int):
    with np.load(path, allow_pickle=False) as file:
        x, y = file["x"][first : first + count], file["y"][first : first + count]
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))


def bundles(data: Path, work: Path, fit: int):
    """One bundle with everything, one that has neither exit nor local model: what others deploy today."""
    cloud, device = Cloud(data / "weights").eval(), Device(data / "weights").eval()
    train = images(data / "images/cifar10/cifar10_train_a.npz", 0, fit)
    # The networks have seen every training image: how right they are shows on others only. The last test
    # images measure and calibrate, the first ones are streamed.
    val = images(data / "images/cifar10/cifar10_test.npz", 10_000 - HELD_OUT, HELD_OUT)
    full, bare = work / "full", work / "bare"
    cuts = ["net.layer2", "net.layer3"]
    with splitedge.deploy(
        cloud, train[0][:64], exits=["net.layer1"], local=device, cut=cuts, codec="int8"
    ) as deployment:
        print(deployment.fit(train, val, epochs=10))
        deployment.explain()
        deployment.save(full)
    with splitedge.deploy(cloud, train[0][:64], cut=cuts, codec="int8") as deployment:
        deployment.save(bare)
    return full, bare


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with images/, weights/, traces/")
    parser.add_argument(
        "--trace", default="mahimahi/TMobile-UMTS-driving", help="pair in traces/: NAME.up.csv, NAME.down.csv"
    )
    parser.add_argument("--rtt-ms", type=float, default=60.0, help="RTT without queueing")
    parser.add_argument("--deadline-ms", type=float, default=150.0)
    parser.add_argument("--rate", type=float, default=20.0, help="images a second")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--start-s", type=float, default=0.0, help="where in the trace to begin")
    parser.add_argument("--fit", type=int, default=1500, help="training images for the exit")
    parser.add_argument("--only", help="run just the strategies whose name contains this")
    parser.add_argument("--keep", type=Path, help="keep bundles, logs and records in this folder")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    args = parser.parse_args()

    if not (args.data / "images/cifar10").is_dir():
        parser.error(f"no images/cifar10 in {args.data}; give --data, or set SPLITEDGE_DATA")
    with contextlib.nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        work.mkdir(exist_ok=True)
        full, bare = work / "full", work / "bare"
        if not (full.exists() and bare.exists()):  # --keep of an earlier run
            full, bare = bundles(args.data, work, args.fit)
            trust(work / "edge", new_keys(work / "cloud", "cloud"))
            trust(work / "cloud", new_keys(work / "edge", "edge"))
        x, y = images(args.data / "images/cifar10/cifar10_test.npz", 0, args.requests)
        stream = Stream(x.numpy(), y.numpy(), args.rate, args.deadline_ms / 1e3)
        up = read_trace(args.data / "traces" / f"{args.trace}.up.csv")
        down = read_trace(args.data / "traces" / f"{args.trace}.down.csv")

        def channels():
            options = {"rtt_s": args.rtt_ms / 1e3, "start_s": args.start_s}
            return Channel.of(up, "up", **options), Channel.of(down, "down", **options)

        strategies = [
            Strategy("device (ResNet-8)", full, "static:local"),
            Strategy("cloud", bare, "static:cloud"),
            Strategy("split", bare, "static:split"),
            Strategy("latency:0.05", full, "latency:0.05"),
            Strategy("splitedge", full, "deadline"),
        ]
        strategies = [s for s in strategies if not args.only or args.only in s.name]
        console = Console(stderr=True)
        with console.status("starting processes") as status:
            rows = asyncio.run(
                compare(
                    strategies,
                    stream,
                    channels,
                    (work / "cloud", work / "edge"),
                    work,
                    progress=lambda name, share: status.update(f"{name}: {share:.0%}"),
                )
            )
    if args.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    title = f"{args.requests} images at {args.rate:g}/s over {args.trace}, deadline {args.deadline_ms:g} ms"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("strategy", "right", "in time", "met", "p50/p95 ms", "bytes", "mJ", "routes"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.accuracy:.1%}",
            f"{row.correct_in_time:.1%}",
            f"{row.deadlines_met:.1%}",
            f"{row.p50_s * 1e3:.0f}/{row.p95_s * 1e3:.0f}",
            f"{row.bytes_per_request:.0f}",
            f"{row.joules_per_request * 1e3:.1f}",
            "\n".join(f"{route} {count}" for route, count in row.routes.items()),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
