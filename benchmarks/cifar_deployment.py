"""A deployment with real answers to simulate: every option right or wrong on every test image, and its bytes.

    python benchmarks/cifar_deployment.py --out out/cifar-deployment

ResNet-56 in the cloud and ResNet-8 of MLPerf Tiny on the device, with their published weights; two exits in
ResNet-56, a learned bottleneck and int8 at one cut each, WebP of the input at five qualities. Learned parts
see 25,000 training images, 2,000 test images calibrate and choose, the other 8,000 make the table. About
15 minutes of one core, then kept in `--out`. `--quick` makes the same of scikit-learn's digits in seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from common import Report, console, show_machine

import splitedge
from splitedge.bundle import load_plan, save_plan
from splitedge.evaluation import Evaluation
from splitedge.fitting import measured_again
from splitedge.learning import Schedule
from splitedge.rows import gather
from splitedge.sim.demo_model import digits, train

if TYPE_CHECKING:
    from collections.abc import Sequence

    from splitedge.deployment import Deployment

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPLITEDGE_DATA") or ROOT.parent / "shared" / "data")
#: How many times slower than this machine the device is: one Cortex-A55 core takes 70.6 ms for FastestDet,
#: a desktop core 4.5 ms (both ncnn, as FastestDet's README states them; not measured again).
SLOWER = 70.6 / 4.5
VALIDATION = 2000
SMALL = 250  # rows of the quick table
EPOCHS = 6
WEBP = ("webp", {"qualities": [1, 10, 30, 60, 90]})
CODECS = {"net.layer2": "int8", "net.layer3.0": "bottleneck:channels=8,bits=4"}
EXITS = ["net.layer1", "net.layer2"]

Part = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Made:
    """A deployment on disk.

    Attributes:
        bundle: directory that `splitedge serve` and `splitedge edge` take.
        evaluation: of every option on the test rows, with the option table.
        images: test rows as the model takes them, and their classes, in the order of the evaluation.
    """

    bundle: Path
    evaluation: Path
    images: Part


def cifar(folder: Path, data: Path = DATA) -> Made:
    """The CIFAR-10 deployment; made where `folder` does not hold it."""
    images = data / "images" / "cifar10"
    if not images.is_dir():
        sys.exit(f"no images/cifar10 in {data}; set SPLITEDGE_DATA, or take --quick")
    x, y = _arrays(images / "cifar10_test.npz")
    made = Made(folder / "bundle", folder / "evaluation.npz", (x[VALIDATION:], y[VALIDATION:]))
    if not made.evaluation.exists():
        sys.path.insert(0, str(ROOT / "examples"))
        from cifar_resnet import Cloud, Device

        rows = _arrays(images / "cifar10_train_a.npz")
        cloud, device = Cloud(data / "weights").eval(), Device(data / "weights").eval()
        with splitedge.deploy(
            cloud, rows[0][:64], exits=EXITS, local=device, codec=CODECS, input_codec=WEBP, power="phone-lte"
        ) as deployment:
            schedule = Schedule(epochs=EPOCHS, checkpoint=folder / "checkpoint", progress=False)
            report = deployment.fit(rows, (x[:VALIDATION], y[:VALIDATION]), schedule=schedule)
            console.print(str(report), highlight=False)
            _keep(deployment, made)
    return made


def small(folder: Path, webp: tuple[str, dict[str, list[int]]] | None = WEBP) -> Made:
    """The same kind of deployment for scikit-learn's digits: one exit, a bottleneck, WebP; in seconds.

    Args:
        folder: where it is kept.
        webp: of the input; None for no such options.
    """
    data = digits()
    rows = data.test[0][:SMALL], data.test[1][:SMALL]
    made = Made(folder / "bundle", folder / "evaluation.npz", rows)
    if not made.evaluation.exists():
        model = train(data.train, epochs=8)
        with splitedge.deploy(
            model,
            data.train[0][:32],
            exits="stem",
            codec={"stem": "bottleneck:channels=2,bits=2"},
            input_codec=webp,
        ) as deployment:
            deployment.fit(data.train, data.val, schedule=Schedule(epochs=4, batch_size=64, progress=False))
            _keep(deployment, made)
    return made


def _keep(deployment: Deployment, made: Made) -> None:
    evaluation = deployment.evaluate(made.images)
    deployment.save(made.bundle)
    evaluation.save(made.evaluation)


def measure_again(made: Made) -> None:
    """Put the seconds of stages that this machine takes now into bundle and evaluation."""
    plan, _ = load_plan(made.bundle, "both")
    rows = gather(made.images, plan.inputs, "images")
    plan = measured_again(plan, rows)
    save_plan(plan, made.bundle)
    replace(Evaluation.load(made.evaluation), table=plan.options).save(made.evaluation)


def _arrays(path: Path) -> Part:
    with np.load(path, allow_pickle=False) as file:
        return torch.from_numpy(file["x"]), torch.from_numpy(file["y"].astype(np.int64))


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep bundle and evaluation here")
    parser.add_argument(
        "--quick", action="store_true", help="digits in place of CIFAR-10: under 45 s on 2 cores"
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure the seconds of stages again: the machine is quiet now"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args(argv)


def main() -> None:
    """Make it, and say what its options are."""
    args = options()
    show_machine("a deployment to simulate")
    name = "digits-deployment" if args.quick else "cifar-deployment"
    folder = args.out or ROOT / "out" / name
    folder.mkdir(parents=True, exist_ok=True)
    made = small(folder) if args.quick else cifar(folder)
    if args.measure:
        measure_again(made)
    found = Evaluation.load(made.evaluation)
    report = Report(name)
    for option in found.table:
        at = found.options.index(option.name)
        sent = float(found.nbytes[at].mean())
        report.add(f"{option.name}: right", found.accuracy[option.name], "of rows")
        report.add(f"{option.name}: bytes up", sent, "B")
        report.add(f"{option.name}: on the device, {SLOWER:.1f} times slower", option.edge_s * SLOWER, "s")
        report.add(f"{option.name}: in the cloud", option.cloud_s, "s")
    for f in report.figures:
        console.print(f"{f.name}: {f.value:.4g} {f.unit}", highlight=False)
    report.notes.append(f"{len(found.labels)} rows; bundle and evaluation in {folder}")
    report.finish(args.json)


if __name__ == "__main__":
    main()
