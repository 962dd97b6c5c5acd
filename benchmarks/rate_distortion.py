"""Every codec on one model: real bytes at batch 1 against accuracy, ours, published recipes, baselines.

    python benchmarks/rate_distortion.py --quick
    python benchmarks/rate_distortion.py --data cifar10 --budget 600 --keep trained --out plots

On digits by default (offline, a small CNN), or with a small vision transformer (`digits-vit`); on CIFAR-10
with the published ResNet-56 where ../shared/data, or SPLITEDGE_DATA, has both. `splitedge bench codecs` runs
the same on digits.
docs/rate-distortion.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from common import Report, show_machine

from splitedge.codecs.bench_digits import digits
from splitedge.codecs.bench_digits_vit import digits_vit
from splitedge.codecs.bench_goals import Figure as Found
from splitedge.codecs.bench_subject import Subject
from splitedge.codecs.commands import Request, conduct
from splitedge.rows import LabelledRows

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPLITEDGE_DATA") or ROOT.parent / "shared" / "data")
VALIDATION = 2000


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=("digits", "digits-vit", "cifar10"), default="digits")
    parser.add_argument(
        "--quick", action="store_true", help="under 45 s on 2 cores: few contenders, 6 s each"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--budget", type=float, metavar="S", help="seconds of training of each learned codec")
    parser.add_argument("--epochs", type=int, help="epochs of each, at most")
    parser.add_argument("--device", default="auto", help="where they are trained")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="contenders or families")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write PNGs, points.csv and table.md here")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep trained codecs and points, and reuse them"
    )
    parser.add_argument(
        "--train-rows", type=int, metavar="N", help="of CIFAR-10: train on the first N rows only"
    )
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table into this Markdown page")
    return parser.parse_args(argv)


def cifar10(data: Path, train_rows: int | None) -> Subject:
    """ResNet-56 on normalised images, with the last 2,000 training images held out to validate on.

    The published weights have seen those too, so that accuracy on them is high; it only says when to stop.
    """
    images = data / "images" / "cifar10"
    if not images.is_dir():
        sys.exit(f"no images/cifar10 in {data}; set SPLITEDGE_DATA, or take --data digits")
    sys.path.insert(0, str(ROOT / "examples"))
    from models import MEAN, STD, load_resnet_cifar, normalise

    parts = [_arrays(images / f"cifar10_train_{part}.npz") for part in "ab"]
    x, y = (torch.cat([part[i] for part in parts]) for i in range(2))
    test_x, test_y = _arrays(images / "cifar10_test.npz")
    most = len(y) - VALIDATION if train_rows is None else min(train_rows, len(y) - VALIDATION)
    return Subject(
        name="cifar10" if train_rows is None else f"cifar10-{most}",
        model=load_resnet_cifar(56, data / "weights"),
        train=_rows(normalise(x[:most]), y[:most]),
        val=_rows(normalise(x[-VALIDATION:]), y[-VALIDATION:]),
        test=_rows(normalise(test_x), test_y),
        cuts={"early": "layer1", "middle": "layer2", "late": "layer3", "learned": "layer3.0"},
        raw_bytes=x[0].numel(),
        # 0 and 255 of each channel: the image codecs then see the very pixels of the files.
        value_range=(_ends(0.0, MEAN, STD), _ends(1.0, MEAN, STD)),
    )


def _arrays(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return torch.from_numpy(file["x"]), torch.from_numpy(file["y"].astype(np.int64))


def _rows(x: torch.Tensor, y: torch.Tensor) -> LabelledRows:
    return LabelledRows((x,), y, (0,))


def _ends(value: float, mean: torch.Tensor, std: torch.Tensor) -> list[float]:
    ends: list[float] = ((value - mean) / std).flatten().tolist()
    return ends


def report_of(figures: Sequence[Found]) -> Report:
    """The figures as every benchmark writes them."""
    report = Report("rate-distortion")
    for f in figures:
        report.add(f.name, f.value, f.unit, at_most=f.goal)
    return report


def main() -> None:
    """Run, print, write."""
    args = options()
    show_machine("rate-distortion: bytes against accuracy")
    made = {"digits": digits, "digits-vit": digits_vit, "cifar10": lambda: cifar10(DATA, args.train_rows)}
    subject = made[args.data]()
    asked = Request(
        args.quick,
        tuple(args.only),
        args.budget,
        args.epochs,
        args.device,
        args.out,
        args.keep,
        page=args.page,
    )
    _, figures = conduct(subject, asked)
    report = report_of(figures)
    report.show_goals = lambda: None  # type: ignore[method-assign]  # printed already, with notes
    report.finish(args.json)


if __name__ == "__main__":
    main()
