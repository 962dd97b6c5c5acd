"""Divide a model: capture it as a graph, find where it can be cut, make head and tail.

    graph = capture(model, example_inputs)
    head, tail = graph.split(graph.cut("layer2"))
    tail(*head(x))  # equals model(x)

A cut is a division along the graph's topological order, one for each place where the set of tensors that
cross changes. `best_cut` also finds divisions that are no prefix of that order. docs/partition.md says
what crosses and what does not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn

from splitedge.capture import Dynamic, capture_graph, evaluating, repeated
from splitedge.codec import Tensors, TensorSpec
from splitedge.errors import PartitionError
from splitedge.extract import extract
from splitedge.mincut import LatencyModel, Value, cheapest
from splitedge.program import Program
from splitedge.structure import Structure, as_call, describe, restore
from splitedge.values import Values

Place = Literal["SPLIT", "LOCAL", "CLOUD"]


@dataclass(frozen=True, slots=True)
class Crossing:
    """One tensor that crosses a cut."""

    name: str
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where the model may be divided.

    Attributes:
        name: unique in the graph: the module path for the last cut after that module, "path@node" for
            cuts inside it, "local" and "cloud" for the two ends.
        position: computing calls before the cut.
        module_path: the last module before it; empty where the model itself made the last call.
        tensors: what crosses, in the order in which the tail takes it.
        bytes: their bytes, uncompressed, at batch size 1.
        head_flops, tail_flops: operations at batch size 1; a multiply-add counts as two.
        head_params, tail_params: parameters each side holds (shared ones count on both).
        place: SPLIT; LOCAL when all runs on the edge (nothing crosses), CLOUD when the inputs cross.
    """

    name: str
    position: int
    module_path: str
    tensors: tuple[Crossing, ...]
    bytes: int
    head_flops: int
    tail_flops: int
    head_params: int
    tail_params: int
    place: Place = "SPLIT"

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Specs of the tensors that cross, as a codec takes them."""
        return tuple(t.spec for t in self.tensors)

    def __str__(self) -> str:
        crossing = " + ".join(str(t.spec) for t in self.tensors) or "nothing"
        return f"{self.name}: {crossing} = {self.bytes} B"


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One computing call: its name, operator, module path and FLOPs at batch size 1."""

    name: str
    op: str
    module_path: str
    flops: int


def capture(model: nn.Module, example_inputs: Any, *, dynamic_batch: Dynamic = True) -> Graph:
    """Capture a model for cutting.

    The model is exported in eval mode (its training flags are put back) and keeps its weights; head and
    tail get copies. Captured programs are compared with the model on the example before they are given
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
    graph = Graph(Values(capture_graph(model, example_inputs, dynamic_batch)))
    graph.check(model, example_inputs)
    return graph


class Graph:
    """A captured model: where it can be cut, and its pieces. Make one with `capture`."""

    def __init__(self, values: Values) -> None:
        self._values = values
        captured = values.captured
        self.dynamic_batch = captured.batch is not None
        self.fixed_batch_reason = captured.reason
        self.input_structure = Structure(captured.inputs, self._specs(values.inputs, "input"))
        self.output_structure = Structure(captured.outputs, self._specs(values.outputs, "output"))
        self._index = {v: i for i, unit in enumerate(values.units) for v in unit.values}
        self._found: dict[str, tuple[Cut, frozenset[int]]] = {}
        self._cuts: list[Cut] = []
        self._cut_after: list[Cut | None] = []
        self._list_cuts()

    def _specs(self, nodes: Iterable[fx.Node], what: str) -> tuple[TensorSpec, ...]:
        specs = []
        for i, node in enumerate(nodes):
            spec = self._values.spec(node)
            if spec is None:
                raise PartitionError(
                    f"{what} {i} ('{node.name}') is {node.meta['val']}: neither of a fixed shape for each row of the "
                    "batch nor independent of it; change the model, or deploy(head=..., tail=...)"
                )
            specs.append(spec)
        return tuple(specs)

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
        return self._params(self._values.captured.parameters)

    @property
    def example_rows(self) -> int:
        """Rows of the example inputs."""
        return self._values.captured.rows

    def cuts(self) -> list[Cut]:
        """All cuts along the graph's order, from the input on; the two ends are not among them."""
        return list(self._cuts)

    def cut(self, name: str) -> Cut:
        """A cut by its name, or the one right after a module by the module's path.

        Raises:
            PartitionError: no such cut; the message has the nearest names.
        """
        if name in self._found:
            return self._found[name][0]
        last = max((i for i, u in enumerate(self._values.units) if _within(u.path, name)), default=None)
        if last is None:
            raise PartitionError(f"no cut and no module '{name}'{self._near(name)}")
        cut = self._cut_after[last + 1]
        if cut is None:
            raise PartitionError(
                f"after module '{name}' the model can not be cut: a tensor that would cross has no fixed shape for "
                f"each row of the batch{self._near(name)}"
            )
        if cut.place == "LOCAL":
            raise PartitionError(f"after module '{name}' nothing is left to compute{self._near(name)}")
        return cut

    def _near(self, name: str) -> str:
        known = [*self._found, *(u.path for u in self._values.units if u.path)]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        return f"; nearest: {', '.join(dict.fromkeys(near))}" if near else "; graph.cuts() lists them"

    def _list_cuts(self) -> None:
        """Walk the order once; one cut for each crossing set not seen before."""
        units, ends = self._values.units, (0, len(self._values.units))
        seen: dict[tuple[fx.Node, ...], int] = {}
        first: list[int] = []
        for position, live in enumerate(self._live()):
            key = self._values.crossing(live)
            first.append(seen.setdefault(key, position))
        sets = {position: key for key, position in seen.items()}
        last_of = {units[p - 1].path: p for p in sorted(sets) if 0 < p < ends[1] and self._may_cross(sets[p])}
        made: dict[int, Cut | None] = {}
        for position, key in sets.items():
            before = frozenset(range(position))
            if position == 0:
                made[0] = self._make("cloud", before, key, "CLOUD")
            elif first[ends[1]] == position:
                continue
            elif not self._may_cross(key):
                made[position] = None
            else:
                unit = units[position - 1]
                whole = unit.path and last_of[unit.path] == position
                name = unit.path if whole else f"{unit.path}@{unit.node.name}"
                made[position] = self._make(name, before, key)
                self._cuts.append(made[position])  # type: ignore[arg-type]
        made[first[ends[1]]] = made.get(first[ends[1]]) or self._make(
            "local", frozenset(range(ends[1])), (), "LOCAL"
        )
        self._cut_after = [made[p] for p in first]

    def _live(self) -> Iterable[list[fx.Node]]:
        """For each position the tensors made before it (or given) that something after it uses."""
        values = self._values
        last: dict[fx.Node, int] = {}
        end = len(values.units)
        for node in [*values.inputs, *self._index]:
            last[node] = max((self._use(user) for user in node.users), default=-1)
        born = [[n for n in values.inputs], *(list(u.values) for u in values.units)]
        live: list[fx.Node] = []
        for position in range(end + 1):
            live = [n for n in [*live, *born[position]] if last[n] >= position]
            yield live

    def _use(self, user: fx.Node) -> int:
        """The position of a call that uses a tensor; the end for the model's output, -1 for a size."""
        if user.op == "output":
            return len(self._values.units)
        if self._values.is_free(user):
            return -1
        return next(self._index[v] for v in (user, *user.users) if v in self._index)

    def _may_cross(self, key: Sequence[fx.Node]) -> bool:
        specs = [self._values.spec(n) for n in key]
        batched = any(s is not None and s.batch_dim is not None for s in specs)
        return bool(specs) and None not in specs and (batched or not self.dynamic_batch)

    def _make(self, name: str, edge: frozenset[int], key: Sequence[fx.Node], place: Place = "SPLIT") -> Cut:
        units = self._values.units
        head = [units[i] for i in sorted(edge)]
        tail = [u for i, u in enumerate(units) if i not in edge]
        tensors = tuple(Crossing(n.name, s) for n in key if (s := self._values.spec(n)) is not None)
        cut = Cut(
            name=name,
            position=len(head),
            module_path=head[-1].path if head else "",
            tensors=tensors,
            bytes=sum(t.spec.nbytes() for t in tensors),
            head_flops=sum(u.flops for u in head),
            tail_flops=sum(u.flops for u in tail),
            head_params=self._params(w for u in head for w in u.weights),
            tail_params=self._params(w for u in tail for w in u.weights),
            place=place,
        )
        self._found[name] = (cut, edge)
        return cut

    def _params(self, targets: Iterable[str]) -> int:
        captured = self._values.captured
        return sum(captured.weights[t].numel() for t in set(targets) & captured.parameters)

    # Dividing -----------------------------------------------------------------------------------

    def split(self, cut: Cut) -> tuple[nn.Module, nn.Module]:
        """Head and tail, each with its own copy of the weights it uses.

        The head takes what the model takes and returns a tuple; the tail takes the tensors of that tuple
        and returns what the model returns, structure included. Both can be exported again.

        Raises:
            PartitionError: the cut is not one of this graph, or leaves nothing for the tail.
        """
        if cut.place == "LOCAL":
            raise PartitionError(
                "'local' runs everything on the edge; there is no tail (graph.segments([]) is all)"
            )
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
            PartitionError: a cut is not one of this graph, or they are not in order.
        """
        for a, b in zip(cuts, cuts[1:], strict=False):
            if not self._edge_of(a) < self._edge_of(b):
                raise PartitionError(f"cut '{b.name}' does not come after cut '{a.name}'")
        nodes = {n.name: n for n in [*self._values.inputs, *self._index]}
        borders = [self._values.inputs]
        for cut in cuts:
            self._edge_of(cut)
            if cut.place == "LOCAL":
                raise PartitionError("'local' is no place to divide at: nothing crosses it")
            borders.append([nodes[t.name] for t in cut.tensors])
        borders.append(list(self._values.outputs))
        return [extract(self._values, a, b, copy=copy) for a, b in zip(borders, borders[1:], strict=False)]

    def _edge_of(self, cut: Cut) -> frozenset[int]:
        found = self._found.get(cut.name)
        if found is None or found[0] != cut:
            raise PartitionError(f"cut '{cut.name}' is not one of this graph{self._near(cut.name)}")
        return found[1]

    # Choosing -----------------------------------------------------------------------------------

    def best_cut(self, model: LatencyModel) -> Cut:
        """The division of least latency over the whole graph, by minimum cut.

        It may be any set of calls that is closed under "needs", not only a prefix of the order. Its
        `place` says whether it is a split, all on the edge or all in the cloud.

        Raises:
            PartitionError: the model lacks a node of this graph.
        """
        edge = self._cheapest(model)
        local = frozenset(range(len(self._values.units)))
        cut = self._cut_for(edge)
        if cut.place != "LOCAL" and self.latency(self._cut_for(local), model) <= self.latency(cut, model):
            return self._cut_for(local)
        return cut

    def latency(self, cut: Cut, model: LatencyModel) -> float:
        """Seconds that a latency model predicts for a cut: edge, transfer, cloud and the fixed part."""
        edge = self._edge_of(cut)
        names = [u.node.name for u in self._values.units]
        seconds = sum(model.edge_s[n] if i in edge else model.cloud_s[n] for i, n in enumerate(names))
        return (
            seconds if cut.place == "LOCAL" else seconds + model.fixed_s + 8 * cut.bytes / model.goodput_bps
        )

    def _cheapest(self, model: LatencyModel) -> frozenset[int]:
        units = self._values.units
        names = [u.node.name for u in units]
        missing = [n for n in names if n not in model.edge_s or n not in model.cloud_s]
        if missing:
            raise PartitionError(
                f"the latency model has no seconds for node '{missing[0]}' (graph.nodes lists them)"
            )
        end = len(units)  # the model's output: on the edge when nothing is in the cloud
        consumers: dict[fx.Node, set[int]] = {}
        for node in [*self._values.inputs, *self._index]:
            uses = {self._use(user) for user in node.users} - {-1}
            consumers.setdefault(self._values.root(node), set()).update(uses)
        values = []
        for node, uses in consumers.items():
            producer = self._index.get(node, -1)
            send_s = 8 * self._values.nbytes(node) / model.goodput_bps
            values.append(Value(producer, tuple(sorted(uses - {producer})), send_s))
        for node, i in self._index.items():  # views that nothing is paid for still run before their users
            if self._values.root(node) is not node:
                uses = {self._use(user) for user in node.users} - {-1}
                values.append(Value(i, tuple(sorted(uses)), 0.0))
        edge_s = [model.edge_s[n] for n in names]
        cloud_s = [model.cloud_s[n] for n in names]
        edge = cheapest([*edge_s, 0.0], [*cloud_s, 0.0], values)
        return frozenset(range(end)) if end in edge else edge

    def _cut_for(self, edge: frozenset[int]) -> Cut:
        """The cut with these calls on the edge, made and remembered if it is no prefix of the order."""
        values = self._values
        if len(edge) == len(values.units):
            return self._found["local"][0]
        made = [v for i in edge for v in values.units[i].values]
        key = values.crossing(
            n
            for n in [*values.inputs, *made]
            if any(0 <= (use := self._use(u)) and use not in edge for u in n.users)
        )
        names = tuple(n.name for n in key)
        for cut, _ in self._found.values():
            if cut.place != "LOCAL" and tuple(t.name for t in cut.tensors) == names:
                return cut
        if not self._may_cross(key):
            raise PartitionError(
                f"the cheapest division would send {', '.join(names)}, which no batch can be made of"
            )
        return self._make("+".join(names), edge, key)

    # Checking -----------------------------------------------------------------------------------

    @torch.no_grad()
    def check(self, model: nn.Module, example_inputs: Any) -> None:
        """Compare the captured program with the model on the example, at one and at three rows.

        Raises:
            PartitionError: they differ; the model does something that capture can not see.
        """
        program = self.segments([], copy=False)[0]
        captured = self._values.captured
        _, tensors = describe(example_inputs)
        batched = [spec.batch_dim is not None for spec in self.input_structure.specs]
        for rows in (1, 3) if self.dynamic_batch else (captured.rows,):
            some = repeated(tensors, batched, captured.rows, rows)
            args, kwargs = as_call(restore(captured.inputs, some))
            with evaluating(model):
                tree, expected = describe(model(*args, **kwargs))
            if tree != captured.outputs or not all(map(_agree, expected, program(*some))):
                raise PartitionError(
                    f"the captured program does not give what the model gives on {rows} of the example's rows: the model "
                    "does something that capture can not see (Python state, a branch on the batch size, random "
                    "numbers); change it, or deploy(head=..., tail=...)"
                )


def _agree(expected: torch.Tensor, got: torch.Tensor) -> bool:
    """Equal but for rounding: other batch sizes may use other kernels."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, got)
    scale = expected.abs().nan_to_num(0.0, 0.0, 0.0).amax().item() if expected.numel() else 0.0
    tolerance = 1e-4 if expected.dtype in (torch.float32, torch.float64) else 2e-2
    return torch.allclose(expected, got, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


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


__all__ = ["Crossing", "Cut", "Graph", "LatencyModel", "NodeInfo", "capture"]
