"""Rewrite what `torch.export` gives into one flat graph of functional ATen calls.

No in-place calls, no wrapped sub-graphs, no dropout, no aliases, no dead code; results of calls that give
several tensors follow their producer at once. What a program may not hold is refused here, by name.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind, OutputKind

from splitedge.errors import PartitionError
from splitedge.ops import RANDOM_IN_TRAINING, name_of

WAY_OUT = "change the model, or divide it by hand with deploy(head=..., tail=...)"
aten = torch.ops.aten


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


def needs_functionalising(module: fx.GraphModule) -> bool:
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


def lower(
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
