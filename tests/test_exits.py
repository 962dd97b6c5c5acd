"""Exit heads on the features of a small CNN over scikit-learn's digits."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from splitedge.codec import TensorSpec
from splitedge.errors import ConfigError
from splitedge.exits import ExitHead, build_exit, train_exit

FEATURES = TensorSpec((1, 16, 8, 8), "float32")


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 1, 8, 8) in 0..1 and classes, in a fixed random order."""
    data, target = load_digits(return_X_y=True)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)[order], torch.tensor(target)[
        order
    ]


@cache
def teacher() -> tuple[torch.Tensor, torch.Tensor]:
    """Features at the cut and logits of a CNN trained on the first 900 digits, for all digits."""
    x, y = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU())
        tail = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
        )
        optimiser = torch.optim.Adam([*head.parameters(), *tail.parameters()], lr=2e-3)
        for _ in range(12):
            for part in torch.randperm(900).split(64):
                loss = F.cross_entropy(tail(head(x[part])), y[part])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    with torch.no_grad():
        features = head(x)
        return features, tail(features)


def accuracy(head: ExitHead, features: torch.Tensor, targets: torch.Tensor) -> float:
    with torch.no_grad():
        return float((head(features).argmax(1) == targets).float().mean())


@pytest.mark.parametrize("distilled", [False, True])
def test_an_exit_learns_digits(distilled: bool) -> None:
    features, logits = teacher()
    _, y = digits()
    head = build_exit(FEATURES, 10)
    before = accuracy(head, features[900:], y[900:])
    report = train_exit(
        head, features[:900], y[:900], teacher_logits=logits[:900] if distilled else None, progress=False
    )
    after = accuracy(head, features[900:], y[900:])
    assert before < 0.3
    assert after > 0.92
    assert (report.train_rows, report.val_rows) == (720, 180)
    assert report.val_accuracy > 0.9
    assert 1 <= report.best_epoch <= report.epochs <= 40
    assert not head.training


def test_the_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    features, _ = teacher()
    _, y = digits()

    def weights(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)  # the global generator must not matter
        head = build_exit(FEATURES, 10, seed=seed)
        train_exit(head, features[:300], y[:300], epochs=3, seed=seed, progress=False)
        return torch.cat([p.detach().flatten() for p in head.parameters()])

    assert torch.equal(weights(1, 10), weights(1, 20))
    assert not torch.equal(weights(1, 10), weights(2, 10))


def test_building_and_training_leave_the_global_generator_alone() -> None:
    features, _ = teacher()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_exit(build_exit(FEATURES, 10), features[:100], digits()[1][:100], epochs=1, progress=False)
    assert torch.equal(torch.rand(3), expected)


def test_batches_and_explicit_validation_rows() -> None:
    features, logits = teacher()
    _, y = digits()
    whole, parts = build_exit(FEATURES, 10), build_exit(FEATURES, 10)
    val = (features[300:400], y[300:400])
    first = train_exit(whole, features[:300], y[:300], val=val, epochs=2, progress=False)
    second = train_exit(
        parts,
        iter(features[:300].split(70)),
        iter(y[:300].split(50)),
        val=(val[0].split(10), val[1].split(30)),
        epochs=2,
        progress=False,
    )
    assert first.val_loss == second.val_loss
    assert (second.train_rows, second.val_rows) == (300, 100)
    del logits


def test_training_stops_early_and_keeps_the_best_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(120, 6, generator=generator)
    targets = torch.randint(0, 3, (120,), generator=generator)  # nothing to learn: it can only overfit
    head = build_exit(TensorSpec((1, 6), "float32"), 3, hidden=128)
    val = (features[80:], targets[80:])
    report = train_exit(
        head, features[:80], targets[:80], val=val, epochs=300, patience=5, lr=1e-2, progress=False
    )
    assert report.epochs == report.best_epoch + 5 < 300
    with torch.no_grad():
        assert float(F.cross_entropy(head(val[0]), val[1])) == pytest.approx(report.val_loss, rel=1e-5)


def test_distillation_brings_an_exit_nearer_to_its_teacher() -> None:
    features, logits = teacher()
    _, y = digits()

    def distance(weight: float) -> float:
        head = build_exit(FEATURES, 10)
        train_exit(
            head,
            features[:900],
            y[:900],
            teacher_logits=logits[:900],
            kd_weight=weight,
            epochs=15,
            progress=False,
        )
        with torch.no_grad():
            ours, theirs = F.log_softmax(head(features[900:]), 1), F.log_softmax(logits[900:], 1)
        return float(F.kl_div(ours, theirs, reduction="batchmean", log_target=True))

    assert distance(0.9) < distance(0.0)


SPECS = [
    TensorSpec((1, 12), "float32"),
    TensorSpec((1, 5, 12), "float32"),
    TensorSpec((1, 12, 7, 5), "float32"),
    TensorSpec((1, 12, 1, 1), "float32"),
    TensorSpec((1, 12, 2, 3, 4), "float32"),
    TensorSpec((1, 12, 4, 4), "bfloat16"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_heads_fit_features_of_every_shape_and_export_with_a_dynamic_batch(spec: TensorSpec) -> None:
    head = build_exit(spec, 4).eval()
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(9, *spec.shape[1:], generator=generator).to(
        torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    )
    head.standardise(batch)
    expected = head(batch)
    assert expected.shape == (9, 4)
    assert expected.dtype is torch.float32
    rows = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(head, (batch[:3],), dynamic_shapes=({0: rows},)).module()
    torch.testing.assert_close(program(batch), expected)
    torch.testing.assert_close(program(batch[:1]), expected[:1])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_pooled_features_are_standardised(spec: TensorSpec) -> None:
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    batch = (torch.randn(200, *spec.shape[1:]) * 50 + 7).to(dtype)
    batch[:, 0] = 3.0
    head = build_exit(spec, 4)
    head.standardise(batch)
    with torch.no_grad():
        seen = (head.pool(batch) - head.shift) * head.scale
    assert bool(seen.isfinite().all())
    assert float(seen.mean(0).abs().max()) < 1e-2
    assert float(seen.std(0).max()) < 1.1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec((1, 5), "int64"), "features are floats"),
        (TensorSpec((1,), "float32"), "no features"),
        (TensorSpec((5, 1, 8), "float32", 1), "not the batch"),
        (TensorSpec((5, 8), "float32", None), "not the batch"),
    ],
)
def test_no_exit_stands_on_what_is_no_feature(spec: TensorSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_exit(spec, 10)


def test_rows_that_do_not_fit_are_refused() -> None:
    head = build_exit(TensorSpec((1, 4), "float32"), 3)
    x, y = torch.rand(20, 4), torch.arange(20) % 3
    for features, targets, options, message in (
        (torch.rand(20, 5), y, {}, "the exit stands on"),
        (x, y[:10], {}, "class numbers expected"),
        (x, y.float(), {}, "class numbers expected"),
        (x, y + 1, {}, "between 0 and 2"),
        (x, y, {"teacher_logits": torch.rand(20, 4)}, "teacher_logits"),
        (x, y, {"val": 0.0}, "no rows"),
        (x, y, {"val": 1.0}, "no rows"),
        (x, y, {"epochs": 0}, "1 or more"),
        (x[:1], y[:1], {}, "too few"),
        ([], y, {}, "no batches"),
        (x * float("nan"), y, {}, "diverged"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_exit(head, features, targets, progress=False, **options)
    with pytest.raises(ConfigError, match="2 classes"):
        build_exit(TensorSpec((1, 4), "float32"), 1)


def test_the_bar_appears_only_when_training_takes_a_while(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = torch.rand(40, 4), torch.arange(40) % 3
    spec = TensorSpec((1, 4), "float32")
    train_exit(build_exit(spec, 3), x, y, epochs=2)
    quick = capfd.readouterr()
    assert quick.out + quick.err == ""
    monkeypatch.setattr("splitedge.training._SHOW_AFTER_S", -1.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    train_exit(build_exit(spec, 3), x, y, epochs=2)
    slow = capfd.readouterr()
    assert slow.out == ""
    assert "validation" in slow.err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu_brings_the_head_back_home() -> None:
    features, logits = teacher()
    _, y = digits()
    head = build_exit(FEATURES, 10)
    train_exit(head, features[:900], y[:900], teacher_logits=logits[:900], device="cuda", progress=False)
    assert head.shift.device.type == "cpu"
    assert accuracy(head, features[900:], y[900:]) > 0.92
