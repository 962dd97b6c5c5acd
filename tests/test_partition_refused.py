"""What can not be captured says which construct it is and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from splitedge.errors import PartitionError
from splitedge.partition import capture


class Fc(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)


class Branch(Fc):
    def forward(self, x):
        y = self.fc(x)
        if y.sum() > 0:
            return y
        return -y


class DataShape(Fc):
    def forward(self, x):
        y = self.fc(x)
        return y[y > 0]


class Writes(Fc):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.fc(x) + self.calls


class WritesInput(Fc):
    def forward(self, x):
        x.mul_(2)
        return self.fc(x)


class Random(Fc):
    def forward(self, x):
        return self.fc(x) + torch.rand(4)


class DropoutInEval(Fc):
    def forward(self, x):
        return nn.functional.dropout(self.fc(x), 0.5, training=True)


class FixedBatch(Fc):
    def forward(self, x):
        return self.fc(x).reshape(2, 4) * torch.ones(2, 1)


class BranchOnBatch(Fc):
    def forward(self, x):
        return self.fc(x) if x.shape[0] < 3 else 2 * self.fc(x)


class GivesObject(Fc):
    def forward(self, x):
        self.fc(x)
        return {"x": object()}


class Breaks(Fc):
    def forward(self, x):
        return self.fc(x.reshape(-1, 7))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Branch, r"depends on the values of a tensor.*`if y.sum\(\) > 0:` \(test_partition_refused.py:\d+\)"),
        (DataShape, r"not so much for each row|depends on the values|neither so much"),
        (Writes, "writes to 'calls'"),
        (WritesInput, "writes to"),
        (Random, "draws random numbers|may call"),
        (DropoutInEval, "dropout on in eval mode"),
        (FixedBatch, "batch size"),
        (BranchOnBatch, "batch size"),
        (Breaks, "fails on the example inputs"),
    ],
)
def test_the_construct_and_the_way_out_are_named(model: type[nn.Module], says: str) -> None:
    with pytest.raises(PartitionError, match=says) as caught:
        capture(model().eval(), torch.randn(2, 4))
    if model is not Breaks:
        assert "deploy(head=..., tail=...)" in str(caught.value)


def test_an_output_that_is_no_tensor_is_named() -> None:
    with pytest.raises(PartitionError, match=r"output\['x'\] is a builtins.object"):
        capture(GivesObject(), torch.randn(2, 4))


def test_example_inputs_must_hold_a_tensor() -> None:
    with pytest.raises(PartitionError, match="no tensor"):
        capture(nn.Identity(), {"x": 3})


def test_a_fixed_batch_is_kept_only_on_request() -> None:
    model, x = FixedBatch().eval(), torch.randn(2, 4)
    auto = capture(model, x, dynamic_batch="auto")
    assert not auto.dynamic_batch
    assert "batch size" in auto.fixed_batch_reason
    head, tail = auto.split(auto.cut("fc"))
    assert torch.equal(tail(*head(x)), model(x))
    assert auto.cut("fc").specs[0].batch_dim is None
    assert capture(model, x, dynamic_batch=False).fixed_batch_reason == "dynamic_batch=False"


def test_auto_keeps_a_dynamic_batch_where_it_can() -> None:
    graph = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(1, 4), dynamic_batch="auto")
    assert graph.dynamic_batch
    assert graph.fixed_batch_reason == ""


def test_a_model_that_fails_at_one_row_has_a_fixed_batch() -> None:
    model, x = nn.BatchNorm1d(4, track_running_stats=False), torch.randn(2, 4)
    with pytest.raises(PartitionError, match="fails on 1 rows: Expected more than 1 value"):
        capture(model, x)
    assert "fails on 1 rows" in capture(model, x, dynamic_batch="auto").fixed_batch_reason
