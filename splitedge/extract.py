"""Cut a program out of a captured graph: everything needed to make some values from some others."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from splitedge.errors import PartitionError
from splitedge.program import Program
from splitedge.program_json import DEVICE
from splitedge.values import Values


def extract(values: Values, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node], *, copy: bool) -> Program:
    """The program that makes `outputs` from `inputs`.

    Constants, weights and numbers derived from the batch size are made (or held) by the program itself.

    Args:
        values: the analysed graph.
        inputs: what the program takes, in order.
        outputs: what it gives, in order.
        copy: whether the program gets weights of its own; otherwise it shares memory with the model.

    Raises:
        PartitionError: some output can not be made from these inputs.
    """
    needed = _needed(values, inputs, outputs)
    return _Extraction(values, inputs, needed, copy).program(outputs)


def _needed(values: Values, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes to copy, in graph order: ancestors of the outputs as far as the inputs, numbers left out."""
    given, seen, stack = set(inputs), set[fx.Node](), list(outputs)
    while stack:
        node = stack.pop()
        if node in seen or node in given or (values.is_number(node) and _is_affine(values, node)):
            continue
        if node.op == "placeholder":
            names = ", ".join(n.name for n in inputs)
            raise PartitionError(
                f"'{outputs[0].name}' can not be made from {names}: it needs the input '{node.name}'"
            )
        seen.add(node)
        stack.extend(node.all_input_nodes)
    return sorted(seen, key=values.order.__getitem__)


def _is_affine(values: Values, node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, int | torch.SymInt) and values.affine(value) is not None


class _Extraction:
    def __init__(self, values: Values, inputs: Sequence[fx.Node], needed: list[fx.Node], copy: bool) -> None:
        self.values = values
        self.inputs = inputs
        self.needed = needed
        self.copy = copy
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, Any] = {}
        self.taken = {node.name for node in values.order} | {DEVICE}
        self.device: fx.Node | None = None
        self.batch: fx.Node | None = None

    def program(self, outputs: Sequence[fx.Node]) -> Program:
        parameters = self._weights(parameters=True)
        buffers = self._weights(parameters=False)
        if any(_names_device(node) for node in self.needed):
            self.device = self.graph.placeholder(DEVICE)
        for node in self.inputs:
            self.copies[node] = self.graph.placeholder(node.name)
        for node in self.needed:
            if node.op == "call_function":
                self._copy(node)
        self.graph.output(tuple(self._mapped(node) for node in outputs))
        return Program(self.graph, parameters, buffers)

    def _weights(self, *, parameters: bool) -> dict[str, torch.Tensor]:
        held: dict[str, torch.Tensor] = {}
        captured = self.values.captured
        for node in self.needed:
            if node.op != "get_attr" or (str(node.target) in captured.parameters) is not parameters:
                continue
            tensor = captured.weights[str(node.target)].detach()
            place = self._placeholder(f"{'p' if parameters else 'b'}_{node.target}")
            self.copies[node] = place
            held[place.name] = tensor.clone() if self.copy else tensor
        return held

    def _placeholder(self, name: str) -> fx.Node:
        """A placeholder whose name is an identifier that no node of the model has."""
        name = re.sub(r"\W", "_", name)
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return self.graph.placeholder(name)

    def _copy(self, node: fx.Node) -> None:
        args = map_aggregate(node.args, self._mapped)
        kwargs = map_aggregate(node.kwargs, self._mapped)
        self.copies[node] = self.graph.create_node("call_function", node.target, args, kwargs, node.name)

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return self.device
        if not isinstance(value, fx.Node):
            return value
        if value not in self.copies:
            self.copies[value] = self._number(value)
        return self.copies[value]

    def _number(self, node: fx.Node) -> Any:
        """A number derived from sizes, made anew from the batch size of this program's inputs."""
        form = self.values.affine(node.meta["val"])
        if form is None:
            raise PartitionError(f"'{node.name}' is a size that the batch size alone does not give")
        scale, offset = form
        if scale == 0:
            return offset
        number = self._batch_size()
        if scale != 1:
            number = self.graph.call_function(operator.mul, (number, scale))
        if offset != 0:
            number = self.graph.call_function(operator.add, (number, offset))
        return number

    def _batch_size(self) -> fx.Node:
        if self.batch is None:
            for node in self.inputs:
                spec = self.values.spec(node)
                if spec is not None and spec.batch_dim is not None:
                    self.batch = self._rows(self.copies[node], spec.batch_dim, spec.shape[spec.batch_dim])
                    break
            else:
                names = ", ".join(n.name for n in self.inputs)
                raise PartitionError(
                    f"none of the tensors {names} has the batch dimension, which the tail needs"
                )
        return self.batch

    def _rows(self, tensor: fx.Node, dim: int, length: int) -> fx.Node:
        size = self.graph.call_function(torch.ops.aten.sym_size.int, (tensor, dim))
        return size if length == 1 else self.graph.call_function(operator.floordiv, (size, length))


def _names_device(node: fx.Node) -> bool:
    found = False

    def look(value: Any) -> Any:
        nonlocal found
        found = found or isinstance(value, torch.device)
        return value

    map_aggregate((node.args, node.kwargs), look)
    return found
