"""Where a captured graph can be divided: the cuts along its order, and any other division asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx

from splitedge.codec import TensorSpec
from splitedge.errors import PartitionError
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


class CutTable:
    """The cuts of one graph. A division is known by the set of units (calls) it puts on the edge.

    Attributes:
        cuts: along the graph's order, from the input on, the two ends left out.
        index: the unit that makes a tensor.
    """

    def __init__(self, values: Values) -> None:
        self.values = values
        self.index = {v: i for i, unit in enumerate(values.units) for v in unit.values}
        self.end = len(values.units)
        self.cuts: list[Cut] = []
        self._found: dict[str, tuple[Cut, frozenset[int]]] = {}
        self._after = self._walk()

    # Asking -------------------------------------------------------------------------------------

    def tensors(self) -> list[fx.Node]:
        """Everything that could cross: the inputs and what the units make."""
        return [*self.values.inputs, *self.index]

    def users(self, node: fx.Node) -> set[int]:
        """Units that use a tensor's values; `end` stands for the model's output."""
        return {use for user in node.users if (use := self._use(user)) is not None}

    def edge_of(self, cut: Cut) -> frozenset[int]:
        """The units a cut puts on the edge.

        Raises:
            PartitionError: the cut is not one of this graph.
        """
        found = self._found.get(cut.name)
        if found is None or found[0] != cut:
            raise PartitionError(f"cut '{cut.name}' is not one of this graph{self.near(cut.name)}")
        return found[1]

    def named(self, name: str) -> Cut:
        """A cut by its name, or the one right after a module by the module's path.

        Raises:
            PartitionError: no such cut; the message has the nearest names.
        """
        if name in self._found:
            return self._found[name][0]
        last = max((i for i, u in enumerate(self.values.units) if _within(u.path, name)), default=None)
        if last is None:
            raise PartitionError(f"no cut and no module '{name}'{self.near(name)}")
        cut = self._after[last + 1]
        if cut is None:
            raise PartitionError(
                f"after module '{name}' the model can not be cut: what would cross has no fixed shape for "
                f"each row of the batch{self.near(name)}"
            )
        if cut.place == "LOCAL":
            raise PartitionError(f"after module '{name}' nothing is left to compute{self.near(name)}")
        return cut

    def near(self, name: str) -> str:
        """The end of an error message: names like this one."""
        steps = [u.path.split(".") for u in self.values.units if u.path]
        modules = (".".join(path[: i + 1]) for path in steps for i in range(len(path)))
        near = difflib.get_close_matches(name, dict.fromkeys([*modules, *self._found]), n=3, cutoff=0.4)
        return f"; nearest: {', '.join(near)}" if near else "; graph.cuts() lists them"

    def for_edge(self, edge: frozenset[int]) -> Cut:
        """The cut with these units on the edge, made and remembered if it is no prefix of the order.

        Raises:
            PartitionError: a tensor that would cross can not be sent.
        """
        if len(edge) == self.end:
            return self._found["local"][0]
        key = self.values.crossing(self._live_after(edge))
        names = tuple(n.name for n in key)
        for cut, _ in self._found.values():
            if cut.place != "LOCAL" and tuple(t.name for t in cut.tensors) == names:
                return cut
        if not self._may_cross(key):
            raise PartitionError(
                f"this division would send {', '.join(names)}, of which no batch can be made"
            )
        return self._make("+".join(names), edge, key)

    # Building -----------------------------------------------------------------------------------

    def _walk(self) -> list[Cut | None]:
        """Go along the order; one cut for each crossing set not met before. The cut after each position."""
        seen: dict[tuple[fx.Node, ...], int] = {}
        first = [seen.setdefault(self.values.crossing(live), p) for p, live in enumerate(self._live())]
        made: dict[int, Cut | None] = {}
        for key, position in seen.items():
            if position in (0, first[self.end]) or not self._may_cross(key):
                made[position] = None
            else:
                made[position] = cut = self._make(f"{position}", frozenset(range(position)), key, keep=False)
                self.cuts.append(cut)
        self._name_cuts(made)
        whole = frozenset(range(self.end))
        made[0] = self._make("cloud", frozenset(), next(iter(seen)), place="CLOUD")
        made[first[self.end]] = self._make("local", whole, (), place="LOCAL")
        return [made[p] for p in first]

    def _name_cuts(self, made: dict[int, Cut | None]) -> None:
        """Give the last cut after a module its path as name, the others path@node."""
        last = {cut.module_path: cut.position for cut in self.cuts}
        for i, cut in enumerate(self.cuts):
            path, unit = cut.module_path, self.values.units[cut.position - 1]
            bare = path and last[path] == cut.position
            self.cuts[i] = named = replace(cut, name=path if bare else f"{path}@{unit.node.name}")
            self._found[named.name] = (named, frozenset(range(cut.position)))
            made[cut.position] = named

    def _live(self) -> Iterator[list[fx.Node]]:
        """For each position the tensors given or made before it that something after it uses."""
        last = {n: max(self.users(n), default=-1) for n in self.tensors()}
        born = [list(self.values.inputs), *(list(u.values) for u in self.values.units)]
        live: list[fx.Node] = []
        for position in range(self.end + 1):
            live = [n for n in [*live, *born[position]] if last[n] >= position]
            yield live

    def _live_after(self, edge: frozenset[int]) -> list[fx.Node]:
        made = [n for n in self.tensors() if n not in self.index or self.index[n] in edge]
        return [n for n in made if self.users(n) - edge]

    def _use(self, user: fx.Node) -> int | None:
        """The unit a call belongs to, `end` for the model's output, None for one that only reads a size."""
        if user.op == "output":
            return self.end
        if self.values.is_free(user):
            return None
        return next(self.index[v] for v in (user, *user.users) if v in self.index)

    def _may_cross(self, key: Sequence[fx.Node]) -> bool:
        specs = [self.values.spec(n) for n in key]
        batched = any(s is not None and s.batch_dim is not None for s in specs)
        return bool(specs) and None not in specs and (batched or self.values.captured.batch is None)

    def _make(
        self,
        name: str,
        edge: frozenset[int],
        key: Sequence[fx.Node],
        *,
        place: Place = "SPLIT",
        keep: bool = True,
    ) -> Cut:
        units = self.values.units
        head = [units[i] for i in sorted(edge)]
        tail = [u for i, u in enumerate(units) if i not in edge]
        tensors = tuple(Crossing(n.name, s) for n in key if (s := self.values.spec(n)) is not None)
        cut = Cut(
            name=name,
            position=len(head),
            module_path=head[-1].path if head else "",
            tensors=tensors,
            bytes=sum(t.spec.nbytes() for t in tensors),
            head_flops=sum(u.flops for u in head),
            tail_flops=sum(u.flops for u in tail),
            head_params=self.parameters(w for u in head for w in u.weights),
            tail_params=self.parameters(w for u in tail for w in u.weights),
            place=place,
        )
        if keep:
            self._found[name] = (cut, edge)
        return cut

    def parameters(self, targets: Iterable[str]) -> int:
        """Elements of the parameters among some weights."""
        captured = self.values.captured
        return sum(captured.weights[t].numel() for t in set(targets) & captured.parameters)


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")
