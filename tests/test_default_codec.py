"""Where nobody names a codec: a learned bottleneck where it can be trained and is good enough, else int8."""

from __future__ import annotations

import pytest
import tiny_codec
import torch
from torch import nn

import splitedge
from splitedge import Route
from splitedge.choice import Default
from splitedge.errors import CodecError, ConfigError


class Net(nn.Module):
    """Quarters of an image, told apart by their brightness: no training needed. Takes uint8 as well."""

    def __init__(self):
        super().__init__()
        self.pool = nn.Sequential(nn.AvgPool2d(2), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU())
        self.quarters = nn.AvgPool2d(2)
        self.out = nn.Linear(64, 4)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.mix[0].weight[0, 0, 1, 1] = self.deep[0].weight[0, 0, 1, 1] = 1.0
            self.out.weight[:, :4] = 4 * torch.eye(4)

    def forward(self, x):
        x = self.deep(self.mix(self.pool(x.float())))
        return self.out(self.quarters(x).flatten(1))


def rows(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 8, 8, generator=generator) * 0.3
    for i, k in enumerate(labels.tolist()):
        images[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.7
    return images, labels


TRAIN, VAL = rows(192), rows(96, seed=2)


def split_codecs(deployment):
    return [o.codec for o in deployment.options if o.route is Route.SPLIT]


def test_before_fit_int8_stands_in_with_one_note():
    with splitedge.deploy(Net(), TRAIN[0][:8], cut=["mix", "deep"]) as deployment:
        assert split_codecs(deployment) == ["int8", "int8"]
        (note,) = (note for note in deployment.notes if "bottleneck" in note)
        assert "not trained yet" in note and "'mix.1', 'deep.1'" in note and "fit(train, val)" in note
        assert deployment(TRAIN[0][:2], route="split").output.shape == (2, 4)


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_fit_puts_the_bottleneck_in_and_a_bundle_keeps_that(tmp_path, kind):
    def as_kind(x):
        return (x * 255).to(torch.uint8) if kind == "uint8" else x

    train, val = (as_kind(TRAIN[0]), TRAIN[1]), (as_kind(VAL[0]), VAL[1])
    with splitedge.deploy(Net(), train[0][:8], cut="mix") as deployment:
        deployment.save(tmp_path / "fresh")
    with splitedge.load(tmp_path / "fresh") as deployment:
        assert "not trained yet" in str(deployment.notes)
        (before,) = (o for o in deployment.options if o.route is Route.SPLIT)
        report = deployment.fit(train, val, epochs=30, progress=False)
        assert split_codecs(deployment) == ["bottleneck"], report
        (after,) = (o for o in deployment.options if o.route is Route.SPLIT)
        assert after.bytes_up < before.bytes_up
        assert "not trained yet" not in str(deployment.notes)
        deployment.save(tmp_path / "fitted")
        wanted = deployment(val[0][:3], route="split").output
    with splitedge.load(tmp_path / "fitted") as again:
        assert torch.equal(again(val[0][:3], route="split").output, wanted)


def test_one_that_is_clearly_worse_than_the_model_is_not_put_in_unless_it_was_named(tmp_path):
    with splitedge.deploy(Net(), TRAIN[0][:8], cut="mix") as deployment:
        report = deployment.fit(TRAIN, VAL, epochs=1, progress=False)
        assert split_codecs(deployment) == ["int8"]
        assert report.codecs[0].unused and "not used" in str(report)
        assert any("stays on cut 'mix.1'" in note and "epochs=" in note for note in deployment.notes)
        deployment.save(tmp_path / "bundle")
    with splitedge.load(tmp_path / "bundle") as deployment:
        assert any("stays on cut" in note for note in deployment.notes)
        deployment.fit(TRAIN, VAL, epochs=1, codec="bottleneck", progress=False)
        assert split_codecs(deployment) == ["bottleneck"]
        assert not any("stays on cut" in note for note in deployment.notes)


def test_with_few_rows_exits_are_fitted_all_the_same():
    few = TRAIN[0][:80], TRAIN[1][:80]
    with splitedge.deploy(Net(), few[0][:8], cut="deep", exits="mix") as deployment:
        report = deployment.fit(few, progress=False, epochs=1)
        assert split_codecs(deployment) == ["int8"] and not report.codecs and not report.stop_rows
        assert any("too few" in note for note in deployment.notes)
        assert "exit:0" in {s.name for s in report.sureness}


class Forked(nn.Module):
    """Two tensors cross behind `two`; the output is a dict of one name."""

    def __init__(self, output):
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 8)
        self.last = nn.Linear(16, 3)
        self.output = output

    def forward(self, x):
        left = self.one(x).relu()
        y = self.last(torch.cat([self.two(left).relu(), left], 1))
        return {self.output: y}


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens):
        return self.last(self.embed(tokens).mean(1).relu())


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).relu().reshape(4, 8))


@pytest.mark.parametrize(
    ("model", "example", "cut", "why"),
    [
        (Forked("logits"), torch.randn(4, 6), "two", "takes one tensor"),
        (Forked("boxes"), torch.randn(4, 6), "one", "no classifier"),
        (Forked("boxes"), torch.randn(4, 6), "auto", "no classifier"),
        (Tokens(), torch.randint(0, 20, (4, 5)), "auto", "int64"),
        (Fixed(), torch.randn(4, 6), "first", "batches of one size"),
    ],
)
def test_where_it_can_not_stand_int8_stays_and_it_is_said(model, example, cut, why):
    with splitedge.deploy(model, example, cut=cut) as deployment:
        assert set(split_codecs(deployment)) == {"int8"}
        (note,) = (note for note in deployment.notes if "bottleneck" in note)
        assert why in note and "can not work there" in note
    if "classifier" not in why:
        with pytest.raises((CodecError, splitedge.PartitionError), match="bottleneck"):
            splitedge.deploy(model, example, cut=cut, codec="bottleneck")


def test_halves_by_hand_have_it_too():
    net = Net()
    head, tail = (
        nn.Sequential(net.pool, net.mix),
        nn.Sequential(net.deep, net.quarters, nn.Flatten(), net.out),
    )
    with splitedge.deploy(head=head, tail=tail, example_inputs=TRAIN[0][:8]) as deployment:
        assert any("not trained yet" in note for note in deployment.notes)


def test_what_nobody_asked_for_takes_a_minute_at_most_where_no_limit_is_given(monkeypatch):
    tiny_codec.register(monkeypatch)
    seen, train = [], tiny_codec.Tiny.train.__func__

    def watched(cls, task, schedule, **options):
        seen.append(schedule.budget_s)
        return train(cls, task, schedule, steps=1)

    monkeypatch.setattr(tiny_codec.Tiny, "train", classmethod(watched))
    for name in (Default("tiny"), "tiny"):
        with splitedge.deploy(Net(), TRAIN[0][:8], cut=["mix", "deep"], codec=name) as deployment:
            for how in ({}, {"epochs": 1}, {"budget_s": 8.0}):
                deployment.fit(TRAIN, VAL, progress=False, **how)
    assert seen == [30.0, 30.0, None, None, 4.0, 4.0, None, None, None, None, 4.0, 4.0]


def test_training_that_fails_names_the_way_out(monkeypatch):
    tiny_codec.register(monkeypatch)

    def fails(cls, task, schedule, **options):
        raise RuntimeError("derivative is not implemented")

    monkeypatch.setattr(tiny_codec.Tiny, "train", classmethod(fails))
    with splitedge.deploy(Net(), TRAIN[0][:8], cut="mix", codec=Default("tiny")) as deployment:
        with pytest.raises(ConfigError, match=r"derivative.*codec='int8'"):
            deployment.fit(TRAIN, VAL, progress=False)
        assert split_codecs(deployment) == ["int8"]
