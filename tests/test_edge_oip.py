"""The Open Inference Protocol's bodies: whatever comes in ends as a request or a told error."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.codec import DTYPES, TensorSpec
from splitedge.edge import oip
from splitedge.edge.oip import Port, RequestInvalid, named_tensors, ports, read_request, write_response
from splitedge.policy import Route
from splitedge.record import Record
from splitedge.result import Result

PORTS = (Port("a", TensorSpec((1, 3), "float32")), Port("b", TensorSpec((2, 1), "int64", 1)))


def result(output):
    return Result.of(output, Record(1, 0.0, route="local", option="local", latency_s=0.01))


def binary_request(tensors, ports):
    inputs, parts = [], []
    for port, tensor in zip(ports, tensors, strict=True):
        parts.append(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        inputs.append(
            {
                "name": port.name,
                "shape": list(tensor.shape),
                "datatype": oip.DATATYPES[port.spec.dtype],
                "parameters": {"binary_data_size": len(parts[-1])},
            }
        )
    head = json.dumps({"inputs": inputs}).encode()
    return b"".join([head, *parts]), str(len(head))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_goes_in_and_out_as_binary(dtype):
    port = (Port("input0", TensorSpec((1, 4), dtype)),)
    x = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 1]]).to(DTYPES[dtype])
    asked = read_request(*binary_request([x], port), port)
    assert asked.tensors[0].dtype == x.dtype
    assert torch.equal(asked.tensors[0], x)
    asked = oip.InferRequest("", (x,), None, None, {"output0": True}, False)
    body, cut = write_response(asked, result(x), "m", "1")
    data = body[cut:]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=x.dtype).view(2, 4), x)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_goes_in_and_out_as_json(dtype):
    port = (Port("input0", TensorSpec((1, 4), dtype)),)
    x = torch.tensor([[0, 1, 1, 0]]).to(DTYPES[dtype])
    item = {"name": "input0", "shape": [1, 4], "datatype": oip.DATATYPES[dtype], "data": x.tolist()}
    asked = read_request(json.dumps({"inputs": [item]}).encode(), None, port)
    assert torch.equal(asked.tensors[0], x)
    body, cut = write_response(asked, result(x), "m", "1")
    assert cut is None
    assert json.loads(body)["outputs"][0]["data"] == x.flatten().tolist()


def test_inputs_come_in_any_order_and_rows_along_any_dimension():
    a, b = torch.randn(5, 3), torch.arange(10).view(2, 5)
    body, length = binary_request([b, a], PORTS[::-1])
    got_a, got_b = read_request(body, length, PORTS).tensors
    assert torch.equal(got_a, a)
    assert torch.equal(got_b, b)


@pytest.mark.parametrize("cut", [1, 4, 11, -1])
def test_binary_data_that_does_not_add_up_is_refused(cut):
    body, length = binary_request([torch.randn(1, 3), torch.arange(2).view(2, 1)], PORTS)
    with pytest.raises(RequestInvalid, match="bytes"):
        read_request(body[:-cut] if cut > 0 else body + b"x", length, PORTS)


def test_integers_out_of_range_and_bytes_that_are_no_bool_are_refused():
    for dtype, data in (("uint8", [256]), ("int8", [-129]), ("int64", [2**63]), ("bool", [1])):
        port = (Port("input0", TensorSpec((1,), dtype)),)
        item = {"name": "input0", "shape": [1], "datatype": oip.DATATYPES[dtype], "data": data}
        with pytest.raises(RequestInvalid):
            read_request(json.dumps({"inputs": [item]}).encode(), None, port)
    port = (Port("input0", TensorSpec((1,), "bool")),)
    with pytest.raises(RequestInvalid, match="0 or 1"):
        read_request(*binary_request([torch.tensor([2], dtype=torch.uint8)], port), port)


def test_numbers_json_has_no_word_for_become_null():
    asked = oip.InferRequest("", (), None, None, {}, False)
    body, _ = write_response(asked, result(torch.tensor([[1.0, math.nan, math.inf]])), "m", "1")
    assert json.loads(body)["outputs"][0]["data"] == [1.0, None, None]


def test_parameters_become_a_deadline_and_a_route():
    port = PORTS[:1]
    item = {"name": "a", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    parameters = {"splitedge_deadline_ms": 250, "splitedge_route": "cloud", "other": 1}
    asked = read_request(json.dumps({"inputs": [item], "parameters": parameters}).encode(), None, port)
    assert (asked.deadline_s, asked.route) == (0.25, Route.CLOUD)


def test_outputs_are_named_by_position_or_by_their_keys():
    x = torch.zeros(1)
    assert [n for n, _ in named_tensors(x, "output")] == ["output0"]
    assert [n for n, _ in named_tensors((x, [x, x]), "output")] == ["output0", "output1.0", "output1.1"]
    assert [n for n, _ in named_tensors({"logits": x, "more": (x, 3)}, "output")] == ["logits", "more.0"]
    specs = (TensorSpec((1,), "float32"),) * 2
    assert [p.name for p in ports({"y": x, "z": x}, specs, "output")] == ["y", "z"]
    assert [p.name for p in ports({"y": x}, specs, "output")] == ["output0", "output1"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "b", "c"]) | JSON,
        "shape": st.lists(st.integers(-2, 4), max_size=3) | JSON,
        "datatype": st.sampled_from(["FP32", "INT64", "BOOL"]) | JSON,
        "data": st.lists(st.integers(-4, 4), max_size=8) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-9, 99) | JSON}),
    },
)
BODY = st.fixed_dictionaries(
    {},
    optional={
        "inputs": st.lists(ITEM, max_size=3) | JSON,
        "outputs": st.lists(JSON, max_size=3) | JSON,
        "parameters": st.fixed_dictionaries(
            {}, optional={"splitedge_deadline_ms": JSON, "splitedge_route": JSON, "binary_data_output": JSON}
        )
        | JSON,
        "id": JSON,
    },
)


@settings(max_examples=300)
@given(BODY, st.binary(max_size=40), st.booleans())
def test_structured_nonsense_ends_as_a_request_or_a_told_error(body, tail, with_length):
    text = json.dumps(body).encode()
    length = str(len(text)) if with_length else None
    try:
        asked = read_request(text + (tail if with_length else b""), length, PORTS)
    except RequestInvalid as error:
        assert str(error)
        assert error.status in (400, 413)
    else:
        assert [t.dtype for t in asked.tensors] == [torch.float32, torch.int64]


@settings(max_examples=200)
@given(st.binary(max_size=200), st.none() | st.text(max_size=12))
def test_bytes_end_as_a_told_error(body, length):
    with pytest.raises(RequestInvalid):
        read_request(body, length, PORTS)
