"""What is known of each value of a captured graph: its spec, its cost, and whether it need ever cross a cut.

Three kinds of value never cross, because the other side can make them itself at no price: whole numbers
derived from the batch size, tensors that depend on no input (constants, positions, masks of ones), and
views (or casts) of a tensor that is no larger than the view.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from splitedge.capture import Captured
from splitedge.codec import DTYPE_NAMES, TensorSpec
from splitedge.flops import flops
from splitedge.lower import base_name, module_path, output_nodes

_PROBES = (1, 2, 3, 5, 8)

_VIEW_NAMES = """
    reshape flatten unflatten transpose permute t numpy_T movedim swapaxes squeeze unsqueeze expand
    broadcast_to select slice narrow split split_with_sizes chunk tensor_split unbind contiguous clone to
    _to_copy
"""
#: Calls with one tensor argument that rename, select or cast and compute nothing.
_VIEWS = frozenset(_VIEW_NAMES.split())


@dataclass(frozen=True, slots=True)
class Unit:
    """One call that computes something from an input, with the tensors it gives.

    Attributes:
        node: the call.
        values: the node itself, or the getitems of a call that gives several tensors.
        flops: at batch size 1.
        path: path of the module that made the call.
        weights: targets of the weights it uses, directly or through constants.
    """

    node: fx.Node
    values: tuple[fx.Node, ...]
    flops: int
    path: str
    weights: frozenset[str]


class Values:
    """Analysis of one captured graph; computed once, asked often."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.inputs = [n for n in captured.graph.nodes if n.op == "placeholder"]
        self.outputs: list[fx.Node] = output_nodes(captured.graph)
        self._free: dict[fx.Node, bool] = {}
        self._weights: dict[fx.Node, frozenset[str]] = {}
        self._specs: dict[fx.Node, TensorSpec | None] = {}
        self._roots: dict[fx.Node, fx.Node] = {}
        for node in captured.graph.nodes:
            if node.op != "output":
                self._learn(node)
        self.units = [self._unit(n) for n in captured.graph.nodes if self._computes(n)]
        self.order = {n: i for i, n in enumerate(captured.graph.nodes)}

    # One node -----------------------------------------------------------------------------------

    def is_number(self, node: fx.Node) -> bool:
        """Whether the node is a number derived from sizes, not a tensor."""
        return not isinstance(node.meta.get("val"), torch.Tensor | tuple | list)

    def is_free(self, node: fx.Node) -> bool:
        """Whether either side can make the value by itself."""
        return self._free[node]

    def spec(self, node: fx.Node) -> TensorSpec | None:
        """Shape, dtype and batch dimension; None for a value that can not be sent."""
        if node not in self._specs:
            self._specs[node] = self._make_spec(node.meta["val"])
        return self._specs[node]

    def nbytes(self, node: fx.Node) -> float:
        """Bytes at batch size 1, infinite for a value that can not be sent."""
        spec = self.spec(node)
        return math.inf if spec is None else spec.nbytes()

    def affine(self, value: Any) -> tuple[int, int] | None:
        """(a, b) when a size is a * batch + b, else None."""
        if isinstance(value, int):
            return 0, int(value)
        at = [self.size_at(value, n) for n in _PROBES]
        if None in at:
            return None
        a = at[1] - at[0]  # type: ignore[operator]
        b = at[0] - a  # type: ignore[operator]
        return (a, b) if all(a * n + b == v for n, v in zip(_PROBES, at, strict=True)) else None

    def size_at(self, value: Any, rows: int) -> int | None:
        """A size at a batch of `rows`; None when it depends on anything else."""
        if isinstance(value, int):
            return int(value)
        if self.captured.batch is None or not isinstance(value, torch.SymInt):
            return None
        result = value.node.expr.subs({self.captured.batch: rows})
        return int(result) if result.is_number else None

    def shape(self, value: torch.Tensor) -> tuple[int, ...]:
        """The shape at batch size 1; sizes that depend on the data count as 1."""
        return tuple(self.size_at(n, 1) or 0 for n in value.shape)

    def view_of(self, node: fx.Node) -> fx.Node | None:
        """The tensor a node is a view or a cast of, None for any other call."""
        call = node.args[0] if node.target is operator.getitem else node
        if not isinstance(call, fx.Node) or call.op != "call_function" or base_name(call) not in _VIEWS:
            return None
        tensors = [n for n in call.all_input_nodes if not self.is_number(n)]
        return tensors[0] if len(tensors) == 1 and not self.is_free(tensors[0]) else None

    def root(self, node: fx.Node) -> fx.Node:
        """What to send instead of `node`: the furthest tensor it is a view of that is no larger."""
        if node not in self._roots:
            best, at = node, self.view_of(node)
            while at is not None:
                if self.nbytes(at) <= self.nbytes(best):
                    best = at
                at = self.view_of(at)
            self._roots[node] = best
        return self._roots[node]

    # Sets of nodes ------------------------------------------------------------------------------

    def crossing(self, live: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
        """The fewest tensors to send so that the other side has all of `live`, in graph order."""
        chosen = {self.root(n) for n in live if not self.is_free(n)}
        while True:
            smaller = self._merge_views(self._drop_views(chosen))
            if smaller == chosen:
                return tuple(sorted(chosen, key=self.order.__getitem__))
            chosen = smaller

    def _drop_views(self, chosen: set[fx.Node]) -> set[fx.Node]:
        """Without the views of tensors that are sent anyway."""
        kept = set()
        for node in chosen:
            base = self.view_of(node)
            while base is not None and base not in chosen:
                base = self.view_of(base)
            if base is None:
                kept.add(node)
        return kept

    def _merge_views(self, chosen: set[fx.Node]) -> set[fx.Node]:
        """With a tensor in place of several views of it that are together no smaller (q, k and v, say)."""
        bases: dict[fx.Node, list[fx.Node]] = {}
        for node in chosen:
            base = self.view_of(node)
            if base is not None:
                bases.setdefault(base, []).append(node)
        for base, views in bases.items():
            if self.nbytes(base) <= sum(self.nbytes(v) for v in views):
                return (chosen - set(views)) | {self.root(base)}
        return chosen

    def weights_of(self, node: fx.Node) -> frozenset[str]:
        """Weights that a value needs without any unit: its own, if it is a weight or made of weights."""
        return self._weights[node] if self.is_free(node) else frozenset()

    # Construction -------------------------------------------------------------------------------

    def _learn(self, node: fx.Node) -> None:
        needs = node.all_input_nodes
        own = frozenset({str(node.target)} if node.op == "get_attr" else ())
        number = self.is_number(node)
        self._free[node] = node.op != "placeholder" and (number or all(self._free[n] for n in needs))
        self._weights[node] = (
            own.union(*(self._weights[n] for n in needs if self._free[n])) if not number else own
        )

    def _computes(self, node: fx.Node) -> bool:
        if node.op != "call_function" or self.is_free(node):
            return False
        source = node.args[0] if node.target is operator.getitem else None
        return not (isinstance(source, fx.Node) and isinstance(source.meta.get("val"), tuple | list))

    def _unit(self, node: fx.Node) -> Unit:
        several = isinstance(node.meta["val"], tuple | list)
        values = tuple(n for n in node.users if n.target is operator.getitem) if several else (node,)
        return Unit(node, values, self._flops(node), module_path(node), self._weights[node])

    def _flops(self, node: fx.Node) -> int:
        def shape(value: Any) -> Any:
            if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor):
                return self.shape(value.meta["val"])
            if isinstance(value, list | tuple):
                return [s for v in value if isinstance(s := shape(v), tuple)] or None
            return None

        val = node.meta["val"]
        given = [v for v in (val if isinstance(val, tuple | list) else [val]) if isinstance(v, torch.Tensor)]
        shapes = [shape(a) for a in node.args]
        return flops(base_name(node), node.args, shapes, [self.shape(v) for v in given])

    def _make_spec(self, value: Any) -> TensorSpec | None:
        dtype = DTYPE_NAMES.get(value.dtype) if isinstance(value, torch.Tensor) else None
        if dtype is None or value.layout is not torch.strided:
            return None
        forms = [self.affine(n) for n in value.shape]
        shape: list[int] = []
        batched: list[int] = []
        for d, form in enumerate(forms):
            if form is None or (form[0] and form[1]):
                return None
            shape.append(form[0] or form[1])
            batched += [d] if form[0] else []
        if len(batched) > 1:
            return None
        return TensorSpec(tuple(shape), dtype, batched[0] if batched else None)


def users_of(values: Sequence[fx.Node]) -> set[fx.Node]:
    """All calls that take one of the values."""
    return {user for value in values for user in value.users}
