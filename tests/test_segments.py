"""The two halves of a chain of segments, on plain modules: what runs, how often, and what comes back."""

import math

import pytest
import torch
from torch import nn

from splitedge.calibration import Calibration
from splitedge.codec import TensorSpec, make_codec
from splitedge.errors import CodecError
from splitedge.events import Stage, StageKind
from splitedge.plan import Plan, twin
from splitedge.policy import Option, Route
from splitedge.segments import Answers, Boundary, ExitHead, Local
from splitedge.structure import Structure, describe

IMAGE = TensorSpec((1, 1, 4, 4), "float32")
WIDE = TensorSpec((1, 8), "float32")
LOGITS = TensorSpec((1, 3), "float32")


class Piece(nn.Module):
    """A layer as a segment that counts how often it ran."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.runs = 0

    def forward(self, *tensors):
        self.runs += 1
        return (self.layer(*tensors),)


def structure(value, *specs):
    return Structure(describe(value)[0], specs)


def make_plan(output=None):
    torch.manual_seed(0)
    segments = {
        0: Piece(nn.Sequential(nn.Flatten(), nn.Linear(16, 8))),
        1: Piece(nn.Linear(8, 8)),
        2: Piece(nn.Linear(8, 3)),
    }
    boundaries = (Boundary("", (IMAGE,)), Boundary("a", (WIDE,)), Boundary("b", (WIDE,)))
    options = (
        Option(Route.LOCAL),
        Option(Route.EXIT, exit=0),
        Option(Route.SPLIT, cut="a", codec="raw"),
        Option(Route.SPLIT, cut="b", codec="int8"),
        Option(Route.CLOUD, codec="raw"),
    )
    return Plan(
        inputs=structure(torch.zeros(1), IMAGE),
        answers=Answers(structure(torch.zeros(1) if output is None else output, LOGITS)),
        boundaries=boundaries,
        segments=segments,
        cuts=(0, 1, 2),
        codecs={
            0: make_codec("raw", (IMAGE,)),
            1: make_codec("raw", (WIDE,)),
            2: make_codec("int8", (WIDE,)),
        },
        exits=(ExitHead("a", 1, Piece(nn.Linear(8, 3))),),
        local=Local(Piece(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))),
        options=options,
    )


def whole(plan, x):
    with torch.inference_mode():
        for i in range(3):
            x = plan.segments[i].layer(x)
    return x


def through(plan, option, x):
    """What a request by one remote option comes to, with no link between."""
    edge, cloud = plan.edge("d" * 64), plan.cloud("d" * 64)
    flow = edge.open(x)
    payload = edge.run(flow, Stage(StageKind.ENCODE, option)).payload
    lane = edge.lane(option)
    tensors = cloud.decode(lane, memoryview(payload.data), flow.rows)
    return edge.finish(cloud.tail(lane, tensors), flow.rows)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("option", [2, 4])
def test_a_raw_split_is_the_model(option, rows):
    plan = make_plan()
    x = torch.randn(rows, 1, 4, 4)
    output, confidence = through(plan, option, x)
    assert torch.equal(output, whole(plan, x))
    assert confidence == pytest.approx(float(whole(plan, x).softmax(1).amax(1).min()))


def test_an_int8_split_is_close_to_the_model():
    plan = make_plan()
    x = torch.randn(4, 1, 4, 4)
    output, _ = through(plan, 3, x)
    assert not torch.equal(output, whole(plan, x))
    torch.testing.assert_close(output, whole(plan, x), atol=0.05, rtol=0.05)


def test_head_segments_run_once_a_request_in_any_order():
    plan = make_plan()
    edge = plan.edge("d" * 64)
    flow = edge.open(torch.randn(2, 1, 4, 4))
    for stage in [
        Stage(StageKind.ENCODE, 3),
        Stage(StageKind.EXIT, 0),
        Stage(StageKind.ENCODE, 2),
        Stage(StageKind.ENCODE, 4),
        Stage(StageKind.EXIT, 0),
    ]:
        edge.run(flow, stage)
    assert [plan.segments[i].runs for i in range(3)] == [1, 1, 0]
    edge.run(edge.open(torch.randn(1, 1, 4, 4)), Stage(StageKind.EXIT, 0))
    assert [plan.segments[i].runs for i in range(3)] == [2, 1, 0]


def test_exit_and_local_answer_here_with_the_least_confidence_of_the_rows():
    plan = make_plan()
    edge = plan.edge("d" * 64)
    x = torch.randn(6, 1, 4, 4)
    flow = edge.open(x)
    local = edge.run(flow, Stage(StageKind.LOCAL))
    assert torch.equal(local.output, plan.local.segment.layer(x))
    assert local.confidence == pytest.approx(float(local.output.softmax(1).amax(1).min()))
    exit_ = edge.run(flow, Stage(StageKind.EXIT, 0))
    assert exit_.output.shape == (6, 3)
    assert exit_.head_s > 0
    assert exit_.payload is None


def test_a_calibration_is_what_the_confidence_comes_from():
    plan = make_plan()
    plan.exits[0].scale = Calibration(1.0, (0.0, 1.0), (0.25, 0.25 + 1e-9), rows=10)
    outcome = plan.edge("d" * 64).run(
        plan.edge("d" * 64).open(torch.randn(2, 1, 4, 4)), Stage(StageKind.EXIT, 0)
    )
    assert outcome.confidence == pytest.approx(0.25)


@pytest.mark.parametrize(
    "bad", [torch.zeros(1, 1, 4, 5), torch.zeros(4, 4), torch.zeros(1, 1, 4, 4).double(), [1, 2], "x"]
)
def test_inputs_that_do_not_fit_are_refused(bad):
    with pytest.raises(CodecError):
        make_plan().edge("d" * 64).open(bad)


def test_an_input_with_nan_is_refused_and_not_answered_by_an_exit():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 2, 1] = math.nan
    with pytest.raises(CodecError, match="input holds NaN"):
        make_plan().edge("d" * 64).open(x)


def test_a_model_of_one_row_refuses_several():
    plan = make_plan()
    plan.batchable = False
    with pytest.raises(CodecError, match="exactly 1 row"):
        plan.edge("d" * 64).open(torch.zeros(2, 1, 4, 4))


def test_an_output_that_names_logits_keeps_its_names_at_an_exit():
    plan = make_plan(output={"logits": torch.zeros(1)})
    x = torch.randn(2, 1, 4, 4)
    edge = plan.edge("d" * 64)
    output, confidence = through(plan, 2, x)
    assert torch.equal(output["logits"], whole(plan, x))
    assert confidence > 0
    assert set(edge.run(edge.open(x), Stage(StageKind.EXIT, 0)).output) == {"logits"}


def test_no_confidence_for_what_is_no_classifier():
    plan = make_plan(output={"boxes": torch.zeros(1)})
    output, confidence = through(plan, 2, torch.randn(2, 1, 4, 4))
    assert set(output) == {"boxes"}
    assert math.isnan(confidence)


def test_the_cloud_refuses_lanes_and_payloads_that_are_not_its_own():
    plan = make_plan()
    edge, cloud = plan.edge("d" * 64), plan.cloud("d" * 64)
    other = plan.edge("e" * 64).lane(2)
    assert other not in cloud.lanes
    assert {edge.lane(i) for i in (2, 3, 4)} == set(cloud.lanes)
    with pytest.raises(CodecError):
        cloud.decode(other, memoryview(b""), 1)
    data = bytearray(edge.run(edge.open(torch.randn(1, 1, 4, 4)), Stage(StageKind.ENCODE, 2)).payload.data)
    data[-1] ^= 1
    with pytest.raises(CodecError):
        cloud.decode(edge.lane(2), memoryview(bytes(data)), 1)


def test_a_codec_and_its_twin_have_one_id_and_share_nothing():
    codec = make_plan().codecs[2]
    codec.calibrate([(torch.randn(8, 8),)])
    other = twin(codec)
    assert other is not codec
    assert other.id == codec.id
