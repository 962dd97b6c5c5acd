"""The learned bottleneck: trained in a few steps on a small convolutional net, through `deploy` and alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import splitedge
from splitedge.codec import TensorSpec
from splitedge.codecs import checkpoint
from splitedge.codecs.augment import augment_of
from splitedge.codecs.bottleneck import Bottleneck
from splitedge.errors import CodecError, ConfigError
from splitedge.learning import Schedule


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).eval()


def rows(count=96):
    """Four classes, told apart by which quarter of the image is bright."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 8, 8, generator=generator) * 0.3
    for i, k in enumerate(labels.tolist()):
        images[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.7
    return images, labels


def fitted(options="bits=2,channels=2", **how):
    images, labels = rows()
    deployment = splitedge.deploy(
        classifier(), images[:4], codec=f"bottleneck:{options}", cut="1", policy="static:split"
    )
    report = deployment.fit(
        (images[:64], labels[:64]), (images[64:], labels[64:]), progress=False, **({"epochs": 2} | how)
    )
    return deployment, report, images


def the_codec(deployment):
    return next(c for c in deployment._plan.codecs.values() if isinstance(c, Bottleneck))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_trains_and_answers_with_the_bytes_it_says(bits):
    deployment, report, images = fitted(f"bits={bits},channels=2")
    (trained,) = report.codecs
    with deployment:
        result = deployment(images[:1])
    packed = 8 + -(-2 * 16 * bits // 8)
    assert result.route is splitedge.Route.SPLIT and result.output.shape == (1, 4)
    assert 8 < trained.val_bytes[0] <= packed and 0 <= trained.val_accuracy[0] <= 1


def test_learns():
    images, labels = rows(256)
    model = classifier().train()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    deployment = splitedge.deploy(
        model.eval(),
        images[:4],
        codec="bottleneck:bits=2,channels=4,width=16",
        cut="1",
        policy="static:split",
    )
    report = deployment.fit(
        (images[:192], labels[:192]), (images[192:], labels[192:]), epochs=40, progress=False
    )
    deployment.close()
    assert report.codecs[0].teacher_accuracy > 0.9
    assert report.codecs[0].val_accuracy[0] > 0.9


def test_the_same_seed_gives_the_same_codec():
    first, second = (the_codec(fitted(seed=3)[0]) for _ in range(2))
    assert first.id == second.id
    assert first.id != the_codec(fitted(seed=4)[0]).id


def test_saved_halves_answer_alike(tmp_path):
    deployment, _, images = fitted()
    deployment.save(tmp_path / "bundle")
    with deployment, splitedge.load(tmp_path / "bundle", policy="static:split") as again:
        assert torch.equal(deployment(images[:3]).output, again(images[:3]).output)
    files = {path.name for path in (tmp_path / "bundle" / "edge").iterdir()}
    assert not any(name.startswith("decoder") for name in files)


def test_what_is_damaged_is_refused():
    deployment, _, images = fitted("bits=4,channels=2")
    codec = the_codec(deployment)
    data = codec.encode((images[:1],)).data
    assert len(codec.decode(data)) == 1
    for i in range(len(data)):
        for bit in range(8):
            with pytest.raises(CodecError):
                codec.decode(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])
    for n in range(len(data)):
        with pytest.raises(CodecError):
            codec.decode(data[:n])
    with pytest.raises(CodecError, match="NaN"):
        codec.encode((torch.full_like(images[:1], torch.nan),))
    deployment.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"bits": 5}, "bits is one of"), ({"stride": 3}, "stride"), ({"channels": 0}, "channels")],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(CodecError, match=message):
        Bottleneck.check(
            [TensorSpec((1, 3, 32, 32), "float32")], [TensorSpec((1, 16, 16, 16), "float32")], **options
        )


def test_a_cut_of_several_tensors_is_refused():
    spec = TensorSpec((1, 3, 32, 32), "float32")
    with pytest.raises(CodecError, match="takes one tensor"):
        Bottleneck.check([spec], [spec, spec])


def test_training_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    whole = the_codec(fitted(epochs=4)[0]).id
    stopped = []

    def once(*args):
        real(*args)
        stopped.append(args)
        if len(stopped) == 3:
            raise KeyboardInterrupt

    real = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", once)
    with pytest.raises(KeyboardInterrupt):
        fitted(epochs=4, checkpoint=tmp_path)
    assert the_codec(fitted(epochs=4, checkpoint=tmp_path)[0]).id == whole
    assert len(stopped) == 4  # three epochs before, the last one now
    with pytest.raises(ConfigError, match="other sizes"):
        fitted(epochs=5, checkpoint=tmp_path)
    with pytest.raises(ConfigError, match="other sizes"):
        fitted("bits=3,channels=2", epochs=4, checkpoint=tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path):
    for where in (tmp_path, tmp_path / "cut-1"):
        where.mkdir(exist_ok=True)
        (where / checkpoint.FILE).write_bytes(b"\0" * 40)
    with pytest.raises(ConfigError, match="can not be read"):
        fitted(checkpoint=tmp_path)


def test_crops_are_windows_of_the_padded_image():
    image = torch.arange(3 * 64, dtype=torch.float32).reshape(1, 3, 8, 8)
    augment = augment_of("flip-crop", (image,))
    (out,) = augment((image.expand(16, -1, -1, -1),), torch.Generator().manual_seed(0))
    assert out.shape == (16, 3, 8, 8) and len({tuple(o.flatten().tolist()) for o in out}) > 4
    with pytest.raises(ConfigError, match="flip-crop"):
        augment_of("spin", (image,))  # type: ignore[arg-type]
    assert Schedule().augment == "auto"
