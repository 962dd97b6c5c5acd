"""A program on disk: the same answers after loading, and nothing but BundleError for anything else."""

from __future__ import annotations

import contextlib
import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from splitedge.errors import BundleError
from splitedge.ops import resolve
from splitedge.partition import capture
from splitedge.program import Program


@cache
def program() -> Program:
    """Weights, buffers, a tensor made on the device, sizes, several outputs."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
            self.norm = nn.BatchNorm2d(2)
            self.lstm = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = torch.relu(self.norm(self.conv(x)))
            y = y.masked_fill(y > 2, float("inf")).clamp(max=1.0)
            states, _ = self.lstm(y.reshape(x.shape[0], -1, 4))
            positions = torch.arange(states.shape[1], device=x.device, dtype=torch.float32)
            return torch.einsum("btd,t->bd", states, positions), x.mean((1, 2, 3)).to(torch.float16)

    torch.manual_seed(0)
    return capture(Model().eval(), torch.randn(1, 1, 4, 4)).segments([])[0]


def document() -> dict[str, Any]:
    return json.loads(program().to_bytes()[0])


def loaded(graph: Any) -> Program:
    return Program.from_bytes(json.dumps(graph).encode(), program().to_bytes()[1])


def test_a_loaded_program_gives_the_same_answers(tmp_path: Path) -> None:
    program().save(tmp_path / "layer1.0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layer1.0.json", "layer1.0.safetensors"]
    again = Program.load(tmp_path / "layer1.0")
    for rows in (1, 3):
        x = torch.randn(rows, 1, 4, 4)
        for a, b in zip(program()(x), again(x), strict=True):
            assert torch.equal(a, b)
    assert again.to_bytes() == program().to_bytes()
    assert again.parameter_count() == program().parameter_count() > 0
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("build", [zoo.MobileNet, zoo.Inception, zoo.DenseNet])
def test_segments_of_models_survive_the_disk(build: type[nn.Module], tmp_path: Path) -> None:
    graph = capture(build().eval(), torch.randn(1, 3, 32, 32))
    cuts = graph.cuts()
    x = torch.randn(2, 3, 32, 32)
    tensors: tuple[torch.Tensor, ...] = (x,)
    for i, segment in enumerate(graph.segments([cuts[len(cuts) // 3], cuts[2 * len(cuts) // 3]])):
        segment.save(tmp_path / f"segment{i}")
        tensors = Program.load(tmp_path / f"segment{i}")(*tensors)
    assert torch.equal(tensors[0], graph.segments([])[0](x)[0])


def test_what_it_makes_follows_the_device_of_its_inputs() -> None:
    moved = copy.deepcopy(program()).to("meta")
    outputs = moved(torch.empty(2, 1, 4, 4, device="meta"))
    assert {t.device.type for t in outputs} == {"meta"}


def test_the_number_of_inputs_is_checked() -> None:
    with pytest.raises(TypeError, match="takes 1 tensors, got 2"):
        program()(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(
    "op",
    [
        "aten.from_file.default",
        "aten.save.default",
        "aten.empty.memory_format",
        "aten.as_strided.default",
        "aten.relu_.default",
        "aten.relu.out",
        "aten.rand.default",
        "aten.set_.source_Storage",
        "aten.__class__.default",
        "aten._foobar.default",
        "prims.device_put.default",
        "os.system",
        "builtins.eval",
        "operator.attrgetter",
        "torch.load",
        "aten.relu.default.__globals__",
        "",
    ],
)
def test_an_operator_that_is_not_allowed_is_named(op: str) -> None:
    graph = document()
    graph["nodes"][0]["op"] = op
    with pytest.raises(BundleError, match="operator"):
        loaded(graph)


def test_operators_that_models_use_are_allowed() -> None:
    for op in (
        "aten.conv2d.default",
        "aten.linear.default",
        "aten.add.Tensor",
        "aten.lstm.input",
        "operator.mul",
    ):
        assert callable(resolve(op))


def edit(path: list[Any], value: Any) -> dict[str, Any]:
    graph = document()
    at = graph
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return graph


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], 2),
        (["format"], True),
        (["nodes"], {}),
        (["nodes", 0, "name"], "x = __import__('os')"),
        (["nodes", 0, "name"], "import"),
        (["nodes", 0, "name"], "self"),
        (["weights", 0, "name"], "forward"),
        (["nodes", 1, "name"], "conv2d"),
        (["nodes", 0, "args", 0], {"node": "later"}),
        (["nodes", 0, "args", 0], {"node": "add", "x": 1}),
        (["nodes", 0, "args", 0], {"device": "cuda:0"}),
        (["nodes", 0, "args", 0], {"dtype": "float31"}),
        (["nodes", 0, "args", 0], {"dtype": ["float32"]}),
        (["nodes", 0, "args", 0], "/etc/passwd"),
        (["nodes", 0, "args", 0], 2**63),
        (["nodes", 0, "args", 0], [[[[[[[[[[[1]]]]]]]]]]]),
        (["nodes", 0, "kwargs"], {"a b": 1}),
        (["nodes", 0, "kwargs"], []),
        (["nodes", 11, "args"], [None, 0]),
        (["nodes", 11, "args"], [{"node": "lstm"}, "0"]),
        (["nodes", 11, "args"], [[1], 0]),
        (["nodes", 11, "kwargs"], {"a": 1}),
        (["nodes", 0, "extra"], 1),
        (["outputs", 0], "nowhere"),
        (["outputs", 0], None),
        (["inputs", 0], "1x"),
        (["inputs"], []),
        (["device"], 1),
        (["weights", 0, "shape"], [1]),
        (["weights", 0, "dtype"], "float16"),
        (["weights", 0, "name"], "other"),
        (["weights", 0, "parameter"], "yes"),
        (["weights"], []),
        (["unknown"], 1),
    ],
)
def test_a_changed_field_is_refused(path: list[Any], value: Any) -> None:
    with pytest.raises(BundleError):
        loaded(edit(path, value))


@pytest.mark.parametrize("name", ["self", "torch", "inf", "None", "print"])
def test_a_name_that_the_generated_code_uses_is_reserved(name: str) -> None:
    graph, weights = program().to_bytes()
    renamed = graph.replace(f'"{program().input_names[0]}"'.encode(), f'"{name}"'.encode())
    with pytest.raises(BundleError, match="reserved"):
        Program.from_bytes(renamed, weights)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_document_ends_in_anything_but_a_program_or_a_bundle_error(data: st.DataObject) -> None:
    graph: Any = document()
    at, path = graph, []
    while isinstance(at, dict | list) and at and (not path or data.draw(st.booleans())):
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        path.append(key)
        at = at[key]
    with contextlib.suppress(BundleError):
        loaded(edit(path, data.draw(json_values)))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_end_in_anything_but_a_bundle_error(raw: bytes) -> None:
    graph, weights = program().to_bytes()
    for pair in ((raw, weights), (graph, raw)):
        with pytest.raises(BundleError):
            Program.from_bytes(*pair)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_truncated_weights_are_refused(data: st.DataObject) -> None:
    graph, weights = program().to_bytes()
    with pytest.raises(BundleError):
        Program.from_bytes(graph, weights[: data.draw(st.integers(0, len(weights) - 1))])


def test_missing_files_and_foreign_weights_are_named(tmp_path: Path) -> None:
    program().save(tmp_path / "p")
    tensors = load_file(tmp_path / "p.safetensors")
    save_file({**tensors, "extra": torch.zeros(1)}, tmp_path / "p.safetensors")
    with pytest.raises(BundleError, match="extra"):
        Program.load(tmp_path / "p")
    (tmp_path / "p.safetensors").unlink()
    with pytest.raises(BundleError, match="missing"):
        Program.load(tmp_path / "p")


def test_deep_json_is_refused() -> None:
    with pytest.raises(BundleError):
        Program.from_bytes(b"[" * 200_000, program().to_bytes()[1])
