"""`splitedge fit`: from a bundle and two files of rows to a fitted bundle, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tiny_codec import install
from torch import nn

import splitedge


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A bundle, rows to train and validate on, and a plug-in for the process that fits."""
    root = tmp_path_factory.mktemp("fit")
    digits = load_digits()
    x, y = (digits.images / 16.0)[:, None].astype(np.float32), digits.target
    np.savez(root / "train.npz", x=x[:900], y=y[:900])
    np.savez(root / "val.npz", x=x[900:1300], y=y[900:1300])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    with splitedge.deploy(model, torch.tensor(x[:8]), cut="1", exits="0", codec="int8") as deployment:
        deployment.save(root / "bundle")
    install(root / "site")
    return root


def run(place, *arguments):
    path = os.pathsep.join([str(Path(__file__).parent), str(place / "site")])
    return subprocess.run(
        [sys.executable, "-m", "splitedge", "fit", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=place,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


def test_it_trains_on_the_users_own_rows(place):
    done = run(
        place, "bundle", "--data", "train.npz", "--val", "val.npz", "--codec", "tiny:rate=0.01",
        "--epochs", 3, "--seed", 1, "--filter-recall", 0.9, "--nothing", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "codec 'tiny' at '1'" in done.stdout and "split:1/tiny:1" in done.stdout
    assert "900 training rows, 300 validation rows, 100 more" in done.stdout
    assert "filter of split:1/tiny:1: keeps back" in done.stdout
    assert "bundle-fitted" in done.stderr


def test_its_help_has_an_example(place):
    shown = run(place, "--help").stdout
    assert "Example" in shown and "--data train.npz" in shown


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": np.zeros((4, 1, 8, 8), np.float32)}, "lacks 'y'"),
        ({"x": np.zeros((4, 1, 8, 8), np.float32), "y": np.zeros(3, int)}, "both need as many"),
        ({"x": np.zeros((4, 1, 8, 8), np.float32), "y": np.zeros(4)}, "class numbers"),
        ({"x": np.zeros((40, 1, 9, 9), np.float32), "y": np.zeros(40, int)}, "do not fit the model"),
        ({"x": np.full((4, 1, 8, 8), np.nan, np.float32), "y": np.zeros(4, int)}, "NaN"),
        ({"x": np.array([{}, {}], object), "y": np.zeros(2, int)}, "plain arrays"),
    ],
)
def test_rows_that_are_none_are_one_line_and_status_1(place, tmp_path, arrays, told):
    np.savez(tmp_path / "bad.npz", **arrays)
    done = run(place, "bundle", "--data", tmp_path / "bad.npz")
    assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("codec", "told"), [("int8", "needs no training"), ("tiny:rat=1", "Did you mean 'rate'")]
)
def test_a_codec_that_can_not_be_trained_is_refused(place, codec, told):
    done = run(place, "bundle", "--data", "train.npz", "--codec", codec)
    assert done.returncode == 1 and told in done.stderr
