"""What `explain` says and draws is what the policy would do."""

import builtins
import struct

import numpy as np
import pytest
import torch
from torch import nn

import splitedge
from splitedge.errors import MissingExtra
from splitedge.explain import GRID, Conditions, winners
from splitedge.policy import Decision, Option, Policy, Route, make_policy


class Net(nn.Module):
    """Two cuts worth naming."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
        self.out = nn.Linear(8 * 64, 5)

    def forward(self, x):
        return self.out(self.b(self.a(x)).flatten(1))


@pytest.fixture(scope="module")
def deployment():
    torch.manual_seed(0)
    net, x = Net(), torch.rand(4, 3, 16, 16)
    with splitedge.deploy(net, x, local=net, exits="a", cut=["a", "b"], policy="latency") as made:
        yield made


OPTIONS = (
    Option(Route.LOCAL, accuracy=0.8, edge_s=0.08, edge_s_q95=0.08),
    Option(Route.SPLIT, cut="c", codec="int8", edge_s=0.01, edge_s_q95=0.01, bytes_up=1e4, bytes_up_q95=1e4),
    Option(Route.CLOUD, codec="webp", bytes_up=5e4, bytes_up_q95=5e4),
)


def test_bands_cover_the_grid_and_agree_with_the_policy():
    policy, at = make_policy("latency", OPTIONS), Conditions(0.1, 0.02)
    bands = winners(policy, OPTIONS, at)
    assert bands[0].low_bps == GRID[0]
    assert bands[-1].high_bps == GRID[-1]
    assert [band.option for band in bands] == [0, 1, 2]
    for band in bands:
        for bps in (band.low_bps, band.high_bps):
            # Seconds by hand: edge, transmission, round trip.
            seconds = [0.08, 0.01 + 8e4 / bps + 0.02, 4e5 / bps + 0.02]
            assert int(np.argmin(seconds)) == band.option
            alone = policy.decide(at.observe(OPTIONS, np.array([bps])))
            assert int(np.broadcast_to(alone.option, (1,))[0]) == band.option


def test_a_deadline_changes_who_wins():
    policy = make_policy("deadline", OPTIONS)
    tight = winners(policy, OPTIONS, Conditions(0.09, 0.02))
    loose = winners(policy, OPTIONS, Conditions(60.0, 0.02))
    assert tight[0].option == 0
    assert loose[0].option != 0


def test_a_policy_that_answers_with_one_number_for_all_is_one_band():
    class Always(Policy):
        name = "always"

        def decide(self, obs):
            return Decision(1)

        def explain(self, obs, decision):
            return "always"

    (band,) = winners(Always(), OPTIONS, Conditions())
    assert (band.option, band.low_bps, band.high_bps) == (1, GRID[0], GRID[-1])


def test_the_text_names_every_cut_option_and_what_crosses(deployment, capsys):
    text = deployment.explain(deadline=0.05, rtt=0.01)
    assert capsys.readouterr().out == text + "\n"
    for option in deployment.options:
        assert option.name in text
        if option.remote:
            assert f"{option.bytes_up:,.0f}" in text
    assert "float32(N, 8, 16, 16)" in text
    assert f"{8 * 16 * 16 * 4:,}" in text
    assert "deadline 50 ms, round trip 10 ms" in text
    assert "not measured yet" in text
    assert "latency" in text


def test_a_loaded_half_explains_itself_too(deployment, tmp_path):
    deployment.save(tmp_path / "b")
    whole = deployment.explain(show=False)
    for side in ("edge", "cloud", "both"):
        with splitedge.load(tmp_path / "b", side=side) as loaded:
            assert loaded.explain(show=False) == whole


def test_the_figure_is_drawn_to_a_file(deployment, tmp_path, capsys):
    deployment.explain(plot=tmp_path / "e.png", show=False)
    assert capsys.readouterr().out == ""
    data = (tmp_path / "e.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > 1200 and height > 500


def test_a_figure_without_matplotlib_names_the_extra(deployment, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"splitedge\[sim\]"):
        deployment.explain(plot=tmp_path / "e.png", show=False)
