"""cut="auto" on a model whose best division is no prefix of any order of its calls."""

import pytest
import torch
from torch import nn

import splitedge
from splitedge.partition import capture


class Fork(nn.Module):
    """A wide input that is cheap to shrink beside a small one that is dear to work on: the device should do
    the first branch alone, though the model computes the second one first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shrink = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU())
        self.dear = nn.Sequential(
            *(nn.Conv2d(1, 64, 5, 2, 2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 5, 1, 2), nn.ReLU(), nn.Conv2d(64, 64, 5, 1, 2), nn.ReLU()),
        )
        self.classifier = nn.Linear(4 * 64 + 64, 10)

    def forward(self, wide, small):
        small = self.dear(small).mean((2, 3))
        return self.classifier(torch.cat([self.shrink(wide).flatten(1), small], 1))


@pytest.fixture(scope="module")
def fork():
    torch.manual_seed(0)
    return Fork().eval(), (torch.rand(4, 3, 64, 64), torch.rand(4, 1, 16, 16))


def test_the_minimum_cut_is_among_the_options_where_no_listed_cut_comes_near(fork, tmp_path):
    model, (wide, small) = fork
    listed = {cut.name for cut in capture(model, (wide, small)).cuts()}
    with splitedge.deploy(model, (wide, small), codec="raw", cloud_speed=10.0) as deployment:
        chosen = [option.cut for option in deployment.options if option.cut]
        assert set(chosen) - listed, chosen
        result = deployment((wide[:2], small[:2]), route="split")
        assert torch.allclose(result.output, model(wide[:2], small[:2]), atol=1e-5)
        deployment.save(tmp_path / "bundle")
    with splitedge.load(tmp_path / "bundle") as again:
        result = again((wide[:1], small[:1]), route="split")
        assert torch.allclose(result.output, model(wide[:1], small[:1]), atol=1e-5)


def test_cuts_are_nested_or_not(fork):
    graph = capture(*fork)
    cuts = graph.cuts()
    assert graph.nested(cuts)
    assert not graph.nested(cuts[::-1])
    with pytest.raises(splitedge.PartitionError):
        capture(*fork).nested([cuts[0].__class__(**{**vars_of(cuts[0]), "name": "elsewhere"})])


def vars_of(cut):
    return {name: getattr(cut, name) for name in cut.__slots__}
