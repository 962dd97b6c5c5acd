"""A piece of a model as plain ATen calls, stored as JSON and safetensors and run without any model code.

Why not `torch.export.save`: in torch 2.13 its loader falls back to `torch.load(weights_only=False)`
(`torch/_export/serde/serialize.py:441`, `torch/export/pt2_archive/_package.py:892,950`), which unpickles,
and gives strings of the file to `sympy.sympify` (`serialize.py:2412`), which evaluates them.

Here a graph is a list of calls by name; names are looked up in an allow-list (`ops.py`), arguments are
JSON values, weights are safetensors (`program_json.py`). Nothing read from a file is evaluated or unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import fx, nn

from splitedge.codec import Tensors
from splitedge.errors import BundleError
from splitedge.program_json import DEVICE, MAX_GRAPH_BYTES, read, write


class Program(nn.Module):
    """Flat tensors in, a flat tuple of tensors out.

    The graph's placeholders are, in order: the parameters, the buffers, `device_` where the graph makes
    tensors of its own (it is the device of the first input, so that the program follows its inputs),
    and the inputs. Parameters do not require gradients until `requires_grad_()` is called. Move a program
    with `.to(device)` like any module.

    Args:
        graph: calls of operators that `ops.resolve` allows, with the placeholders above.
        parameters: by placeholder name.
        buffers: by placeholder name.
    """

    def __init__(
        self, graph: fx.Graph, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__()
        for name, tensor in parameters.items():
            trainable = tensor.is_floating_point() or tensor.is_complex()
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
            if not trainable:
                raise BundleError(f"parameter '{name}' is {tensor.dtype}; parameters are floating point")
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)
        names = [node.name for node in graph.nodes if node.op == "placeholder"]
        weights = [*parameters, *buffers]
        if names[: len(weights)] != weights:
            raise BundleError("the placeholders of a program begin with its parameters, then its buffers")
        self._follows_device = DEVICE in names
        self.input_names = tuple(names[len(weights) + self._follows_device :])
        self._run = fx.GraphModule(nn.Module(), graph)

    @property
    def graph(self) -> fx.Graph:
        """The calls; do not change it."""
        return self._run.graph

    def forward(self, *inputs: torch.Tensor) -> Tensors:
        """Run the program.

        Raises:
            TypeError: not as many tensors as `input_names`.
        """
        out: Tensors = self._run(*self.arguments(*inputs))
        return out

    def arguments(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        """Values of the graph's placeholders for these inputs.

        Raises:
            TypeError: not as many tensors as `input_names`.
        """
        if len(inputs) != len(self.input_names):
            raise TypeError(f"this program takes {len(self.input_names)} tensors, got {len(inputs)}")
        device = (inputs[0].device,) if self._follows_device else ()
        return (*self._parameters.values(), *self._buffers.values(), *device, *inputs)

    def copy(self, outputs: Sequence[int] | None = None) -> Program:
        """A program with weights of its own that gives some of the outputs, by default all.

        Calls and weights that only the others need are left out.
        """
        weights = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        graph = fx.Graph()
        given = graph.graph_copy(self.graph, {})
        assert isinstance(given, tuple | list)  # a program gives a flat tuple
        graph.output(tuple(given if outputs is None else [given[i] for i in outputs]))
        graph.eliminate_dead_code(
            lambda node: node.op == "output" or (node.op == "placeholder" and node.name not in weights)
        )
        kept = {node.name for node in graph.nodes if node.op == "placeholder"}
        copied = {name: tensor.detach().clone() for name, tensor in weights.items() if name in kept}
        parameters = {name: copied[name] for name, _ in self.named_parameters() if name in kept}
        return Program(graph, parameters, {k: v for k, v in copied.items() if k not in parameters})

    def parameter_count(self) -> int:
        """Number of parameters (buffers are not counted)."""
        return sum(p.numel() for p in self.parameters())

    # On disk ------------------------------------------------------------------------------------

    def save(self, path_stem: str | Path) -> None:
        """Write `<path_stem>.json` and `<path_stem>.safetensors`.

        Raises:
            BundleError: the graph holds something that can not be stored; the message names it.
        """
        graph, weights = self.to_bytes()
        _beside(path_stem, ".json").write_bytes(graph)
        _beside(path_stem, ".safetensors").write_bytes(weights)

    @classmethod
    def load(cls, path_stem: str | Path) -> Self:
        """Read what `save` wrote, on the CPU.

        Raises:
            BundleError: a file is missing, damaged, or names an operator that is not allowed.
        """
        graph_path, weights_path = _beside(path_stem, ".json"), _beside(path_stem, ".safetensors")
        for path in (graph_path, weights_path):
            if not path.is_file():
                raise BundleError(f"{path} is missing")
        if graph_path.stat().st_size > MAX_GRAPH_BYTES:
            raise BundleError(f"{graph_path} is larger than {MAX_GRAPH_BYTES} bytes")
        try:
            return cls.from_bytes(graph_path.read_bytes(), weights_path.read_bytes())
        except BundleError as error:
            raise BundleError(f"{graph_path}: {error}") from error

    def to_bytes(self) -> tuple[bytes, bytes]:
        """The contents of the two files: graph (JSON) and weights (safetensors).

        Raises:
            BundleError: the graph holds something that can not be stored.
        """
        return write(self.graph, dict(self.named_parameters()), dict(self.named_buffers()))

    @classmethod
    def from_bytes(cls, graph: bytes, weights: bytes) -> Self:
        """Make a program from the contents of its two files.

        Raises:
            BundleError: anything is not as `to_bytes` makes it.
        """
        return cls(*read(graph, weights))


def _beside(path_stem: str | Path, suffix: str) -> Path:
    path = Path(path_stem)
    return path.with_name(path.name + suffix)  # with_suffix would cut "layer1.0" to "layer1"
