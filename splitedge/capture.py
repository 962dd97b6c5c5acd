"""Model to a flat graph of functional ATen calls, through `torch.export`.

What comes out (`Captured`) is normalised so that the rest of the partition need not know how export
writes things: no in-place calls, no wrapped sub-graphs, no dropout, no aliases, no dead code; results of
calls that give several tensors follow their producer at once.
"""

from __future__ import annotations

import operator
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from splitedge.errors import PartitionError
from splitedge.ops import RANDOM_IN_TRAINING, name_of
from splitedge.structure import Tree, as_call, describe, restore

Dynamic = bool | Literal["auto"]
WAY_OUT = "change the model, or divide it by hand with deploy(head=..., tail=...)"
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent)
aten = torch.ops.aten


@dataclass(slots=True)
class Captured:
    """A model as one graph.

    Attributes:
        graph: placeholders for the input tensors, `get_attr` for weights (target: the module path of the
            tensor), calls, and one output tuple. Every node has `meta["val"]`.
        weights: by target, the model's own tensors (not copies).
        parameters: which of them are parameters.
        inputs, outputs: how the flat tensors nest.
        batch: the symbol of the batch size, None when the graph is fixed to the example's.
        rows: rows of the example.
        reason: why the batch size is fixed; empty when it is not.
    """

    graph: fx.Graph
    weights: dict[str, torch.Tensor]
    parameters: frozenset[str]
    inputs: Tree
    outputs: Tree
    batch: sympy.Symbol | None
    rows: int
    reason: str


class _Flat(nn.Module):
    """The model on flat tensors; remembers how its output nests."""

    def __init__(self, model: nn.Module, tree: Tree, seen: list[Tree]) -> None:
        super().__init__()
        self.model = model
        self._tree = tree
        self._seen = seen

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = as_call(restore(self._tree, tensors))
        tree, flat = describe(self.model(*args, **kwargs), "the model's output")
        self._seen.append(tree)
        return tuple(flat)


def capture_graph(model: nn.Module, example_inputs: Any, dynamic_batch: Dynamic) -> Captured:
    """Export `model` and normalise its graph, for every batch size unless `dynamic_batch` is False.

    Raises:
        FixedBatch: the model works for one batch size only.
        PartitionError: the model fails on the example, can not be exported, or is not a fixed function
            of its inputs; the message names the construct and the way out.
    """
    tree, tensors = describe(example_inputs, "example_inputs")
    if not tensors:
        raise PartitionError("example_inputs hold no tensor; a model that is cut takes at least one")
    rows, batched = _batch(tensors)
    if dynamic_batch is False:
        return _capture(model, tree, tensors, batched, rows, dynamic=False, reason="dynamic_batch=False")
    if not any(batched):
        raise PartitionError("no example input has a batch dimension (dimension 0); pass dynamic_batch=False")
    return _capture(model, tree, tensors, batched, rows, dynamic=True, reason="")


class FixedBatch(PartitionError):
    """The model works for one batch size only."""


def _batch(tensors: Sequence[torch.Tensor]) -> tuple[int, list[bool]]:
    """The batch size that most inputs agree on in dimension 0 (the first one's on a tie), and who has it."""
    sizes = [t.shape[0] if t.dim() else None for t in tensors]
    counts = Counter(n for n in sizes if n is not None)
    rows = counts.most_common(1)[0][0] if counts else 1
    return rows, [n == rows for n in sizes]


def repeated(
    tensors: Sequence[torch.Tensor], batched: Sequence[bool], rows: int, to: int
) -> list[torch.Tensor]:
    """The example with `to` rows, rows repeated in turn."""
    if rows == to:
        return list(tensors)
    index = torch.arange(to) % rows
    return [t[index.to(t.device)] if b else t for t, b in zip(tensors, batched, strict=True)]


def _capture(
    model: nn.Module,
    tree: Tree,
    tensors: Sequence[torch.Tensor],
    batched: Sequence[bool],
    rows: int,
    *,
    dynamic: bool,
    reason: str,
) -> Captured:
    example = repeated(tensors, batched, rows, 2) if dynamic and rows == 1 else list(tensors)
    with evaluating(model):
        args, kwargs = as_call(restore(tree, example))
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise PartitionError(f"the model fails on the example inputs: {_first_line(error)}") from error
        seen: list[Tree] = []
        flat = _Flat(model, tree, seen)
        program = _export(flat, example, batched, dynamic)
    lowered = _lower(program)
    batch = _symbol(lowered, batched) if dynamic else None
    return Captured(*lowered, inputs=tree, outputs=seen[-1], batch=batch, rows=rows, reason=reason)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode without gradients; its training flags as they were afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # export warns about its own ways with modules (an LSTM's flat weights, say); errors still raise
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, mode in modes:
            module.training = mode


# Exporting and explaining why it failed -----------------------------------------------------------


def _export(
    flat: _Flat, example: Sequence[torch.Tensor], batched: Sequence[bool], dynamic: bool
) -> torch.export.ExportedProgram:
    dim = torch.export.Dim("batch")
    shapes = {"tensors": tuple({0: dim} if b else None for b in batched)} if dynamic else None
    try:
        program = torch.export.export(flat, tuple(example), dynamic_shapes=shapes, strict=False)
        if _needs_functionalising(program.graph_module):
            program = program.run_decompositions({})
    except PartitionError:
        raise
    except Exception as error:
        raise _explained(error, dynamic) from error
    return program


def _explained(error: Exception, dynamic: bool) -> PartitionError:
    text = str(error)
    kind = type(error).__name__
    where = _user_line(error)
    if "data-dependent" in text or "DataDependent" in kind or "unbacked" in text:
        what = "a branch, a loop or a shape that depends on the values of a tensor"
    elif "Constraints violated" in text or "ConstraintViolation" in kind or "specialized" in text:
        what = f"a batch size that the model fixes ({_first_line(error, 'specialized', 'constant', 'batch')})"
        return FixedBatch(
            f"the model can not be captured for every batch size: {what}{where}; {WAY_OUT}, or pass "
            "dynamic_batch=False to keep the example's"
        )
    else:
        what = f"{kind}: {_first_line(error)}"
    return PartitionError(f"the model can not be captured: {what}{where}; {WAY_OUT}")


def _first_line(error: BaseException, *wanted: str) -> str:
    """The first line of a message, or the first with one of the words wanted."""
    lines = [line.strip(" -\t") for line in str(error).splitlines() if line.strip()]
    for word in wanted:
        for line in lines:
            if word in line:
                return line[:300]
    return lines[0][:300] if lines else type(error).__name__


def _user_line(error: BaseException) -> str:
    """Where in the user's code it happened: the deepest frame that is neither torch's nor ours."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_TORCH, _OURS, "<")) and "contextlib" not in frame.filename:
            code = f" in `{frame.line}`" if frame.line else ""
            return f"{code} ({Path(frame.filename).name}:{frame.lineno})"
    return ""


# Normalising --------------------------------------------------------------------------------------


def _schema(node: fx.Node) -> Any:
    return getattr(node.target, "_schema", None)


def base_name(node: fx.Node) -> str:
    """ "conv2d" of aten.conv2d.default; the plain name of any other function."""
    schema = _schema(node)
    return schema.name.split("::")[-1] if schema is not None else getattr(node.target, "__name__", "")


def _functional(node: fx.Node) -> Any:
    """The functional form of an in-place call whose first argument nobody else sees, else None.

    That holds when the argument was made by an operator that gives new memory and has no other user.
    """
    base, overload = base_name(node), getattr(node.target, "_overloadname", "")
    source = node.args[0]
    if not base.endswith("_") or not isinstance(source, fx.Node) or source.op != "call_function":
        return None
    schema = _schema(source)
    fresh = schema is not None and len(schema.returns) == 1 and schema.returns[0].alias_info is None
    if not fresh or len(source.users) != 1 or base_name(source) in ("reshape", "contiguous", "to", "flatten"):
        return None
    return getattr(getattr(aten, base[:-1], None), overload, None)


def _needs_functionalising(module: fx.GraphModule) -> bool:
    """Make simple in-place calls functional; whether others are left (they need export's own pass)."""
    left = False
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        for node in part.graph.nodes:
            schema = _schema(node)
            if schema is not None and schema.is_mutable:
                functional = _functional(node)
                if functional is None:
                    left = True
                else:
                    node.target = functional
    return left


def _lower(
    program: torch.export.ExportedProgram,
) -> tuple[fx.Graph, dict[str, torch.Tensor], frozenset[str]]:
    _refuse_writes(program)
    _inline(program.graph_module)
    graph = fx.Graph()
    weights: dict[str, torch.Tensor] = {}
    parameters: set[str] = set()
    copies: dict[fx.Node, fx.Node] = {}
    sources = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    shared: dict[int, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = sources[node.name]
            if spec.kind is InputKind.USER_INPUT:
                copies[node] = graph.node_copy(node)
                continue
            tensor = _weight(program, spec)
            target = shared.setdefault(id(tensor), _path(spec.target))
            weights[target] = tensor
            if spec.kind is InputKind.PARAMETER:
                parameters.add(target)
            copies[node] = graph.get_attr(target)
            copies[node].meta["val"] = node.meta["val"]
        elif node.op == "output":
            graph.output(tuple(copies[n] for n in node.args[0]))
        elif node.op == "call_function":
            copies[node] = _copy_call(graph, node, copies)
        else:
            raise PartitionError(f"the model can not be captured: it holds {node.format_node()}; {WAY_OUT}")
    _tidy(graph)
    used = {n.target for n in graph.nodes if n.op == "get_attr"}
    return graph, {k: v for k, v in weights.items() if k in used}, frozenset(parameters & used)


def _path(target: str | None) -> str:
    """A module path in the user's model: without the wrapper's name and without call numbers."""
    path = re.sub(r"@\d+", "", target or "")
    return path.removeprefix("model").removeprefix(".")


def _refuse_writes(program: torch.export.ExportedProgram) -> None:
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise PartitionError(
                f"the model writes to '{_path(spec.target)}' while it runs, so its answer would depend on "
                f"earlier requests; {WAY_OUT}"
            )


def _weight(program: torch.export.ExportedProgram, spec: Any) -> torch.Tensor:
    for table in (program.state_dict, program.constants):
        found = table.get(spec.target)
        if isinstance(found, torch.Tensor):
            return found
    raise PartitionError(f"the model holds '{spec.target}' ({spec.kind.name}), which is no tensor; {WAY_OUT}")


def _inline(module: fx.GraphModule) -> None:
    """Put the bodies of set_grad_enabled and switched-off autocast blocks in their place."""
    for part in list(module.children()):
        if isinstance(part, fx.GraphModule):
            _inline(part)
    for node in list(module.graph.nodes):
        kind = str(node.target)
        if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        if kind == "wrap_with_set_grad_enabled":
            body, args = node.args[1], node.args[2:]
        elif kind == "wrap_with_autocast" and node.args[2] is False:
            body, args = node.args[4], node.args[5:]
        else:
            raise PartitionError(f"the model can not be captured: it uses torch's '{kind}'; {WAY_OUT}")
        _splice(module, node, getattr(module, body.target), args)


def _splice(module: fx.GraphModule, node: fx.Node, body: fx.GraphModule, args: Sequence[Any]) -> None:
    values = dict(zip((n for n in body.graph.nodes if n.op == "placeholder"), args, strict=True))
    with module.graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "call_function":
                values[inner] = module.graph.node_copy(inner, lambda n: values[n])
    results = output_nodes(body.graph)
    for user in list(node.users):
        if user.target is not operator.getitem:
            raise PartitionError(f"the model can not be captured: {node.name} is used whole; {WAY_OUT}")
        user.replace_all_uses_with(values[results[int(str(user.args[1]))]])
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    module.graph.eliminate_dead_code()


#: Calls that give their first argument back at inference.
_IDENTITY = frozenset(("alias", "detach", "lift_fresh_copy", "lift_fresh", "lift"))


def _copy_call(graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    base = base_name(node)
    if base in _IDENTITY or (
        base in ("dropout", "feature_dropout", "alpha_dropout") and node.args[2] is False
    ):
        return copies[node.all_input_nodes[0]]
    copy = graph.node_copy(node, lambda n: copies[n])
    if base in ("view", "_unsafe_view"):
        copy.target = aten.reshape.default  # `view` demands strides that a decoded tensor need not have
    return copy


def _tidy(graph: fx.Graph) -> None:
    """Drop what no output needs, refuse what a program may not hold, put getitems behind their producer."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        _refuse(node)
        if isinstance(node.meta.get("val"), tuple | list):
            for user in reversed(list(node.users)):
                node.append(user)
    graph.lint()


def _refuse(node: fx.Node) -> None:
    base = base_name(node)
    place = {"scaled_dot_product_attention": 4}.get(base, 2 if base.endswith("dropout") else 6)
    if base in RANDOM_IN_TRAINING and len(node.args) > place and node.args[place]:
        raise PartitionError(
            f"the model keeps dropout on in eval mode ('{node.name}'{_origin(node)}), so its answers are "
            f"random; {WAY_OUT}"
        )
    try:
        name_of(node.target)
    except Exception as error:
        raise PartitionError(f"the model can not be cut: {error}{_origin(node)}; {WAY_OUT}") from error


def _origin(node: fx.Node) -> str:
    path = module_path(node)
    return f" in module '{path}'" if path else ""


def output_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that a graph gives, in order (a node may be given twice)."""
    (results,) = graph.output_node().args
    return [node for node in results if isinstance(node, fx.Node)]  # type: ignore[union-attr]


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made the node; empty for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack or not isinstance(stack[-1], tuple) or not str(stack[-1][0]).startswith("model"):
        return ""
    return _path(str(stack[-1][0]))


def _symbol(lowered: tuple[fx.Graph, Any, Any], batched: Sequence[bool]) -> sympy.Symbol:
    places = [n for n in lowered[0].nodes if n.op == "placeholder"]
    for node, is_batched in zip(places, batched, strict=True):
        if is_batched:
            size = node.meta["val"].shape[0]
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                return size.node.expr
            raise FixedBatch(f"the model fixes its batch size to {size}; {WAY_OUT}")
    raise PartitionError("no example input has a batch dimension")
