"""The JSON of a program: write a graph, and read one back with every field checked."""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import fx, nn

from splitedge.codec import DTYPE_NAMES, DTYPES
from splitedge.errors import BundleError
from splitedge.ops import name_of, resolve

FORMAT = 1
MAX_GRAPH_BYTES = 64 * 2**20
MAX_NODES = 200_000
MAX_DEPTH = 8
#: Name of the placeholder for the device on which a graph makes tensors of its own.
DEVICE = "device_"

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_TEXT = re.compile(r"[A-Za-z0-9_,. >-]{0,200}")  # einsum equations, rounding and padding modes
_LAYOUTS = {"strided": torch.strided}
_MEMORY_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}


def _dtype_name(dtype: torch.dtype) -> str:
    name = DTYPE_NAMES.get(dtype)
    if name is None:
        raise BundleError(f"tensors of {dtype} can not be stored; known: {', '.join(DTYPES)}")
    return name


# Writing ------------------------------------------------------------------------------------------


def write(
    graph: fx.Graph, parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor]
) -> tuple[bytes, bytes]:
    """The graph as JSON and the weights as safetensors.

    Raises:
        BundleError: the graph or a weight holds something that can not be stored; the message names it.
    """
    tensors = {n: t.detach().cpu().clone().contiguous() for n, t in {**parameters, **buffers}.items()}
    names = [node.name for node in graph.nodes if node.op == "placeholder"]
    document = {
        "format": FORMAT,
        "weights": [
            {
                "name": name,
                "dtype": _dtype_name(tensor.dtype),
                "shape": list(tensor.shape),
                "parameter": name in parameters,
            }
            for name, tensor in tensors.items()
        ],
        "device": DEVICE in names,
        "inputs": [name for name in names if name not in tensors and name != DEVICE],
        "nodes": [_node_to_json(n) for n in graph.nodes if n.op == "call_function"],
        "outputs": _outputs(graph),
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode(), save_tensors(tensors)


def _outputs(graph: fx.Graph) -> list[str]:
    (result,) = graph.output_node().args
    return [node.name for node in result if isinstance(node, fx.Node)]  # type: ignore[union-attr]


def _node_to_json(node: fx.Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": name_of(node.target),
        "args": [_argument_to_json(a, node) for a in node.args],
        "kwargs": {k: _argument_to_json(v, node) for k, v in node.kwargs.items()},
    }


def _argument_to_json(value: Any, node: fx.Node) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, torch.dtype):
        return {"dtype": _dtype_name(value)}
    if isinstance(value, list | tuple):
        return [_argument_to_json(v, node) for v in value]
    for key, table in (("layout", _LAYOUTS), ("memory_format", _MEMORY_FORMATS)):
        for name, known in table.items():
            if value is known:
                return {key: name}
    raise BundleError(
        f"node '{node.name}' ({node.target}) has the argument {value!r}, which can not be stored"
    )


# Reading ------------------------------------------------------------------------------------------


Weights = dict[str, torch.Tensor]


def read(graph: bytes, weights: bytes) -> tuple[fx.Graph, Weights, Weights]:
    """The graph, its parameters and its buffers from what `write` gave.

    Raises:
        BundleError: anything is not as `write` makes it.
    """
    if len(graph) > MAX_GRAPH_BYTES:
        raise BundleError(f"a graph has at most {MAX_GRAPH_BYTES} bytes, got {len(graph)}")
    try:
        document = json.loads(graph)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"the graph is not JSON: {error}") from error
    return _Reader(document, weights).read()


class _Reader:
    """Checks a graph document field by field and builds the fx graph from it."""

    def __init__(self, document: Any, weights: bytes) -> None:
        fields = {"format", "weights", "device", "inputs", "nodes", "outputs"}
        if not isinstance(document, dict) or set(document) != fields:
            raise BundleError(f"a graph has the fields {sorted(fields)}")
        if document["format"] != FORMAT or type(document["format"]) is not int:
            raise BundleError(f"graph format {document['format']!r:.40}; this version reads format {FORMAT}")
        for name in ("weights", "inputs", "nodes", "outputs"):
            if not isinstance(document[name], list) or len(document[name]) > MAX_NODES:
                raise BundleError(f"'{name}' of a graph is a list of at most {MAX_NODES}")
        if type(document["device"]) is not bool:
            raise BundleError("'device' of a graph is true or false")
        self.document = document
        self.raw = weights
        self.graph = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}

    def read(self) -> tuple[fx.Graph, Weights, Weights]:
        parameters, buffers = self._weights()
        placeholders = [*parameters, *buffers]
        placeholders += [DEVICE] if self.document["device"] else []
        for name in [*placeholders, *self.document["inputs"]]:
            self._define(name, self.graph.placeholder(self._fresh(name)))
        if self.document["device"] and not self.document["inputs"]:
            raise BundleError("a graph that makes tensors needs an input to take its device from")
        for entry in self.document["nodes"]:
            self._call(entry)
        self.graph.output(tuple(self._reference(name) for name in self.document["outputs"]))
        return self.graph, parameters, buffers

    def _weights(self) -> tuple[Weights, Weights]:
        try:
            tensors = load_tensors(self.raw)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise BundleError(f"the weights are not a safetensors file: {error}") from error
        parameters: Weights = {}
        buffers: Weights = {}
        for entry in self.document["weights"]:
            name, parameter, tensor = self._weight(entry, tensors)
            if buffers and parameter:
                raise BundleError(f"parameter '{name}' is listed after a buffer")
            (parameters if parameter else buffers)[name] = tensor
        if tensors:
            raise BundleError(f"the weights hold '{min(tensors):.80}', which the graph does not name")
        return parameters, buffers

    def _weight(self, entry: Any, tensors: dict[str, torch.Tensor]) -> tuple[str, bool, torch.Tensor]:
        if not isinstance(entry, dict) or set(entry) != {"name", "dtype", "shape", "parameter"}:
            raise BundleError("a weight has the fields name, dtype, shape and parameter")
        name, parameter = entry["name"], entry["parameter"]
        if hasattr(nn.Module, self._fresh(name)) or name == "_run":  # it becomes an attribute of the module
            raise BundleError(f"weight '{name}' has a name that a module reserves")
        tensor = tensors.pop(name, None)
        if tensor is None:
            raise BundleError(f"weight '{name}' is missing from the weights file, or named twice")
        declared = (entry["dtype"], entry["shape"])
        if declared != (DTYPE_NAMES.get(tensor.dtype), list(tensor.shape)) or type(parameter) is not bool:
            raise BundleError(
                f"weight '{name}' is {tensor.dtype}{list(tensor.shape)}, declared {declared!r:.120}"
            )
        if parameter and not tensor.is_floating_point():
            raise BundleError(f"parameter '{name}' is {tensor.dtype}; parameters are floating point")
        return name, parameter, tensor

    def _fresh(self, name: Any) -> str:
        """`name`, checked to be a new identifier that the generated code may use as it stands."""
        valid = isinstance(name, str) and _IDENTIFIER.fullmatch(name) and not keyword.iskeyword(name)
        if not valid or name in self.nodes or name == "self":
            raise BundleError(f"node name {name!r:.80} is not a name, is reserved, or is used twice")
        return str(name)

    def _define(self, name: str, node: fx.Node) -> None:
        if node.name != name:  # fx renames what would hide a name that the generated code uses
            raise BundleError(f"node name '{name}' is reserved")
        self.nodes[name] = node

    def _reference(self, name: Any) -> fx.Node:
        node = self.nodes.get(name) if isinstance(name, str) else None
        if node is None:
            raise BundleError(f"a node refers to {name!r:.80}, which is not defined before it")
        return node

    def _call(self, entry: Any) -> None:
        if not isinstance(entry, dict) or set(entry) != {"name", "op", "args", "kwargs"}:
            raise BundleError("a node has the fields name, op, args and kwargs")
        name, op, args, kwargs = self._fresh(entry["name"]), entry["op"], entry["args"], entry["kwargs"]
        if not isinstance(op, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
            raise BundleError(f"node '{name}': op is a string, args a list, kwargs an object")
        for key in kwargs:
            if not _IDENTIFIER.fullmatch(key) or keyword.iskeyword(key):
                raise BundleError(f"node '{name}' has the argument name {key!r:.80}")
        target = resolve(op)
        read_args = tuple(self._argument(a, name, 0) for a in args)
        read_kwargs = {k: self._argument(v, name, 0) for k, v in kwargs.items()}
        if not op.startswith(("aten.", "prims.")) and not _is_arithmetic(op, read_args, read_kwargs):
            raise BundleError(f"node '{name}': {op} takes one or two numbers, getitem a node and a number")
        self._define(name, self.graph.create_node("call_function", target, read_args, read_kwargs, name))

    def _argument(self, value: Any, name: str, depth: int) -> Any:
        if value is None or type(value) in (bool, float):
            return value
        if type(value) is int and -(2**63) <= value < 2**63:
            return value
        if isinstance(value, str) and _TEXT.fullmatch(value):
            return value
        if isinstance(value, list) and depth < MAX_DEPTH:
            return [self._argument(v, name, depth + 1) for v in value]
        if isinstance(value, dict) and len(value) == 1:
            return self._tagged(*next(iter(value.items())), name)
        raise BundleError(f"node '{name}' has the argument {value!r:.80}, which is not allowed")

    def _tagged(self, tag: str, value: Any, name: str) -> Any:
        if tag == "node":
            return self._reference(value)
        tables: dict[str, Mapping[str, Any]] = {
            "dtype": DTYPES,
            "layout": _LAYOUTS,
            "memory_format": _MEMORY_FORMATS,
            "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
        }
        if tag not in tables or not isinstance(value, str) or value not in tables[tag]:
            raise BundleError(
                f"node '{name}' has the argument {tag!r:.40}: {value!r:.80}, which is not allowed"
            )
        return tables[tag][value]


def _is_arithmetic(op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the arguments are nodes and whole numbers, which is all that arithmetic on sizes takes."""
    plain = all(isinstance(a, fx.Node) or type(a) is int for a in args)
    if op == "operator.getitem":
        return (
            plain and not kwargs and len(args) == 2 and isinstance(args[0], fx.Node) and type(args[1]) is int
        )
    return plain and not kwargs and len(args) == (1 if op == "operator.neg" else 2)
