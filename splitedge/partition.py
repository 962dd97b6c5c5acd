"""Divide a model: capture it as a graph, find where it can be cut, make head and tail.

    graph = capture(model, example_inputs)
    head, tail = graph.split(graph.cut("layer2"))
    tail(*head(x))  # equals model(x)

A cut is a division along the graph's topological order, one for each place where the set of tensors that
cross changes. `best_cut` also finds divisions that are no prefix of that order. docs/partition.md says
what crosses and what does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn

from splitedge.capture import Captured, Dynamic, FixedBatch, capture_graph
from splitedge.codec import Tensors, TensorSpec
from splitedge.cuts import Crossing, Cut, CutTable, NodeInfo
from splitedge.errors import PartitionError
from splitedge.extract import extract
from splitedge.lower import WAY_OUT
from splitedge.mincut import LatencyModel, Value, cheapest
from splitedge.program import Program
from splitedge.structure import Structure
from splitedge.values import Values
from splitedge.verify import rows_are_independent, verify

__all__ = ["Crossing", "Cut", "Graph", "LatencyModel", "NodeInfo", "capture"]


def capture(model: nn.Module, example_inputs: Any, *, dynamic_batch: Dynamic = True) -> Graph:
    """Capture a model for cutting.

    The model is exported in eval mode (its training flags are put back) and keeps its weights; head and
    tail get copies. The captured program is compared with the model on the example before it is given
    out, at one and at three rows where the batch is dynamic.

    Args:
        model: any module that `torch.export` takes.
        example_inputs: a tensor (the only argument), a tuple or list (positional) or a dict (keyword
            arguments); tensors may be nested, everything else is a constant of the capture.
        dynamic_batch: True lets every batch size run: dimension 0 of each input that has the common
            batch size. False keeps the example's. "auto" keeps the example's only when the model fixes
            it, and says why in `Graph.fixed_batch_reason`.

    Raises:
        PartitionError: the model can not be captured; the message names the construct and the way out.
    """
    try:
        return _verified(model, example_inputs, capture_graph(model, example_inputs, dynamic_batch))
    except FixedBatch as error:
        if dynamic_batch != "auto":
            raise
        fixed = capture_graph(model, example_inputs, False)
        fixed.reason = str(error)
        return _verified(model, example_inputs, fixed)


def _verified(model: nn.Module, example_inputs: Any, captured: Captured) -> Graph:
    graph = Graph(Values(captured))
    graph.verify(model, example_inputs)
    return graph


class Graph:
    """A captured model: where it can be cut, and its pieces. Make one with `capture`.

    Attributes:
        dynamic_batch: whether any batch size runs.
        fixed_batch_reason: why not; empty when it does.
        rows_independent: whether a row's answer does not depend on the other rows of its batch (tried on
            the example). Only then may rows of several requests run as one batch.
        input_structure, output_structure: how the flat tensors of the model nest, and their specs.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._table = CutTable(values)
        captured = values.captured
        self.dynamic_batch = captured.batch is not None
        self.fixed_batch_reason = captured.reason
        self.rows_independent = False
        self.input_structure = Structure(captured.inputs, self._specs(values.inputs, "input"))
        self.output_structure = Structure(captured.outputs, self._specs(values.outputs, "output"))

    def _specs(self, nodes: Iterable[fx.Node], what: str) -> tuple[TensorSpec, ...]:
        specs = []
        for i, node in enumerate(nodes):
            spec = self._values.spec(node)
            if spec is None:
                value = node.meta["val"]
                raise PartitionError(
                    f"{what} {i} of the model ('{node.name}') is {value.dtype}{tuple(value.shape)}, which is "
                    f"neither so much for each row of the batch nor independent of it; {WAY_OUT}"
                )
            specs.append(spec)
        return tuple(specs)

    def verify(self, model: nn.Module, example_inputs: Any) -> None:
        """Compare the captured program with the model on the example; sets `rows_independent`.

        Raises:
            PartitionError: they differ; the model does something that capture can not see.
        """
        (program,) = self.segments([], copy=False)
        captured, inputs = self._values.captured, self.input_structure
        verify(model, program, captured, inputs, example_inputs)
        self.rows_independent = rows_are_independent(
            program, captured, inputs, self.output_structure, example_inputs
        )

    # Listing ------------------------------------------------------------------------------------

    @property
    def nodes(self) -> tuple[NodeInfo, ...]:
        """The computing calls in order."""
        return tuple(NodeInfo(u.node.name, str(u.node.target), u.path, u.flops) for u in self._values.units)

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs of each computing call at batch size 1, by name."""
        return {u.node.name: u.flops for u in self._values.units}

    @property
    def total_flops(self) -> int:
        """FLOPs of the whole model at batch size 1."""
        return sum(u.flops for u in self._values.units)

    @property
    def total_params(self) -> int:
        """Parameters of the whole model that its output depends on."""
        return self._table.parameters(self._values.captured.parameters)

    @property
    def example_rows(self) -> int:
        """Rows of the example inputs."""
        return self._values.captured.rows

    def cuts(self) -> list[Cut]:
        """All cuts along the graph's order, from the input on; the two ends are not among them."""
        return list(self._table.cuts)

    def cut(self, name: str) -> Cut:
        """A cut by its name, or the one right after a module by the module's path.

        Raises:
            PartitionError: no such cut; the message has the nearest names.
        """
        return self._table.named(name)

    # Dividing -----------------------------------------------------------------------------------

    def split(self, cut: Cut) -> tuple[nn.Module, nn.Module]:
        """Head and tail, each with its own copy of the weights it uses.

        The head takes what the model takes and returns a tuple; the tail takes the tensors of that tuple
        and returns what the model returns, structure included. Both can be exported again.

        Raises:
            PartitionError: the cut is not one of this graph, or leaves nothing for the tail.
        """
        head, tail = self.segments([cut])
        return _Head(head, self.input_structure), _Tail(tail, self.output_structure)

    def segments(self, cuts: Sequence[Cut], *, copy: bool = True) -> list[Program]:
        """Divide at several cuts, in order: `len(cuts) + 1` programs.

        The first takes the flat input tensors (`input_structure.flatten`), each gives a flat tuple that
        the next takes, the last the flat output tensors (`output_structure.unflatten`).

        Args:
            cuts: in the graph's order, each after the one before.
            copy: whether the programs get their own weights; without, they share the model's memory.

        Raises:
            PartitionError: a cut is not one of this graph, they are not in order, or one is "local".
        """
        edges = [self._table.edge_of(cut) for cut in cuts]
        for (a, edge_a), (b, edge_b) in itertools.pairwise(zip(cuts, edges, strict=True)):
            if not edge_a < edge_b:
                raise PartitionError(f"cut '{b.name}' does not come after cut '{a.name}'")
        nodes = {n.name: n for n in self._table.tensors()}
        borders = [self._values.inputs]
        for cut in cuts:
            if cut.place == "LOCAL":
                raise PartitionError(
                    "'local' is no place to divide at, nothing crosses it; segments([]) is the model"
                )
            borders.append([nodes[t.name] for t in cut.tensors])
        borders.append(self._values.outputs)
        return [extract(self._values, a, b, copy=copy) for a, b in itertools.pairwise(borders)]

    def nested(self, cuts: Sequence[Cut]) -> bool:
        """Whether `segments` can divide at all of these, in their order.

        Raises:
            PartitionError: a cut is not one of this graph.
        """
        edges = [self._table.edge_of(cut) for cut in cuts]
        return all(a < b for a, b in itertools.pairwise(edges))

    # Choosing -----------------------------------------------------------------------------------

    def best_cut(self, model: LatencyModel) -> Cut:
        """The division of least latency over the whole graph, by minimum cut.

        It may be any set of calls that is closed under "needs", not only a prefix of the order. Its
        `place` says whether it is a split, all on the edge or all in the cloud.

        Raises:
            PartitionError: the model lacks a node of this graph.
        """
        cut = self._table.for_edge(self._cheapest(model))
        local = self._table.named("local")
        return local if self.latency(local, model) <= self.latency(cut, model) else cut

    def latency(self, cut: Cut, model: LatencyModel) -> float:
        """Seconds that a latency model predicts for a cut: edge, transfer, cloud and the fixed part."""
        edge = self._table.edge_of(cut)
        names = [u.node.name for u in self._values.units]
        seconds = sum(model.edge_s[n] if i in edge else model.cloud_s[n] for i, n in enumerate(names))
        return (
            seconds if cut.place == "LOCAL" else seconds + model.fixed_s + 8 * cut.bytes / model.goodput_bps
        )

    def _cheapest(self, model: LatencyModel) -> frozenset[int]:
        """Units on the edge in the division of least latency, the fixed part left out."""
        table, names = self._table, [u.node.name for u in self._values.units]
        missing = [n for n in names if n not in model.edge_s or n not in model.cloud_s]
        if missing:
            raise PartitionError(
                f"the latency model has no seconds for node '{missing[0]}'; graph.nodes lists all"
            )
        users: dict[fx.Node, set[int]] = {}
        network = []
        for node in table.tensors():
            root = self._values.root(node)
            users.setdefault(root, set()).update(table.users(node))
            if root is not node:  # nothing is paid for it, but it runs before its users all the same
                network.append(Value(table.index[node], tuple(sorted(table.users(node))), 0.0))
        for node, uses in users.items():
            producer = table.index.get(node, -1)
            send_s = 8 * self._values.nbytes(node) / model.goodput_bps
            network.append(Value(producer, tuple(sorted(uses - {producer})), send_s))
        edge_s = [*(model.edge_s[n] for n in names), 0.0]  # the last one is the model's output: it is on
        cloud_s = [*(model.cloud_s[n] for n in names), 0.0]  # the edge when nothing is in the cloud
        edge = cheapest(edge_s, cloud_s, network)
        return frozenset(range(table.end)) if table.end in edge else edge


class _Head(nn.Module):
    """The program of a head behind the model's own way of taking arguments."""

    def __init__(self, program: Program, structure: Structure) -> None:
        super().__init__()
        self.program = program
        self._structure = structure

    def forward(self, *args: Any, **kwargs: Any) -> Tensors:
        out: Tensors = self.program(*self._structure.flatten_call(args, kwargs))
        return out


class _Tail(nn.Module):
    """The program of a tail with the model's own output structure."""

    def __init__(self, program: Program, structure: Structure) -> None:
        super().__init__()
        self.program = program
        self._structure = structure

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self._structure.unflatten(self.program(*tensors))
