"""Taps: values inside a program that a student is taught to reproduce, besides the program's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx, nn

from splitedge.codec import DTYPES, Tensors, TensorSpec
from splitedge.program import Program

#: A tap has at least this many values a row: what is left behind a global pooling is the answer already.
LEAST_VALUES = 128


class Tapped(nn.Module):
    """A copy of a program that also gives the values at its taps, its weights ready to be trained.

    Args:
        program: with one or several inputs.
        specs: of its inputs.
        most: taps at most, spread evenly over the program.
    """

    def __init__(self, program: Program, specs: Sequence[TensorSpec], most: int = 3) -> None:
        super().__init__()
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        graph.graph_copy(program.graph, copies)
        chosen = taps_of(program, specs, most)
        self.taps = tuple(node.name for node in chosen)
        self.outputs = len(_results(program.graph))
        graph.output(tuple(copies[node] for node in [*_results(program.graph), *chosen]))
        self.program = Program(
            graph,
            {name: p.detach().clone() for name, p in program.named_parameters()},
            {name: b.detach().clone() for name, b in program.named_buffers()},
        ).requires_grad_()

    def forward(self, *tensors: torch.Tensor) -> tuple[Tensors, Tensors]:
        """The program's flat outputs, and the values at its taps in order."""
        found = self.program(*tensors)
        return found[: self.outputs], found[self.outputs :]


def taps_of(program: Program, specs: Sequence[TensorSpec], most: int) -> list[fx.Node]:
    """Calls behind which one float value alone carries everything (the ends of blocks), evenly spread."""
    shapes = _shapes(program, specs)
    found = [
        node
        for node in _narrow(program)
        if (value := shapes.get(node.name)) is not None
        and value.is_floating_point()
        and value[:1].numel() >= LEAST_VALUES
    ]
    if len(found) <= most:
        return found
    return [found[(i + 1) * len(found) // most - 1] for i in range(most)]


def _results(graph: fx.Graph) -> list[fx.Node]:
    (out,) = (node for node in graph.nodes if node.op == "output")
    return list(out.all_input_nodes) if not isinstance(out.args[0], tuple | list) else list(out.args[0])


def _narrow(program: Program) -> list[fx.Node]:
    """Calls behind which one value alone is still needed, outputs left out."""
    graph = program.graph
    position = {node: i for i, node in enumerate(graph.nodes)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in position}
    fed = {node for node in graph.nodes if node.op == "placeholder" and node.name in program.input_names}
    live, found, results = set(fed), [], set(_results(graph))
    for node in graph.nodes:
        if node.op != "call_function" or not any(arg in fed for arg in node.all_input_nodes):
            continue
        fed.add(node)
        live = {n for n in (*live, node) if last_use[n] > position[node]}
        if live == {node} and node not in results:
            found.append(node)
    return found


class _Recorder(fx.Interpreter):
    """Keeps what every call gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.seen[n.name] = value
        return value


def _shapes(program: Program, specs: Sequence[TensorSpec]) -> dict[str, torch.Tensor]:
    """A value of every call, from one row of zeros."""
    inputs = [torch.zeros(spec.shape, dtype=DTYPES[spec.dtype]) for spec in specs]
    recorder = _Recorder(fx.GraphModule(nn.Module(), program.graph))
    with torch.no_grad():
        recorder.run(*program.arguments(*inputs))
    return recorder.seen
