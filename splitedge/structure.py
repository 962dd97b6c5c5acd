"""The shape of a model's inputs and outputs: nested containers flattened to tensors and put back.

A `Structure` is plain data (JSON-able), so an edge or a cloud that holds no model code can still take a
caller's inputs apart and give back what the model would have given.
"""

from __future__ import annotations

import keyword
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch

from splitedge.codec import DTYPES, Tensors, TensorSpec, rows_of
from splitedge.errors import BundleError, CodecError, PartitionError

Kind = Literal["tensor", "const", "tuple", "list", "dict", "namedtuple", "output"]
Key = str | int

OUTPUT_MODULE = "transformers.modeling_outputs"
MAX_DEPTH = 32
MAX_NODES = 10_000
_KEYED = ("dict", "namedtuple", "output")


@dataclass(frozen=True, slots=True)
class Tree:
    """One node of a structure.

    Attributes:
        kind: `tensor` is a leaf; `const` a value fixed at capture; the others are containers.
        items: children of a container.
        keys: names of the children of a `dict`, `namedtuple` or `output`.
        name: class name of a `namedtuple` or of an `output` (a class of `transformers.modeling_outputs`).
        value: of a `const`.
    """

    kind: Kind
    items: tuple[Tree, ...] = ()
    keys: tuple[Key, ...] = ()
    name: str = ""
    value: bool | int | float | str | None = None


LEAF = Tree("tensor")


def describe(value: Any, where: str = "output") -> tuple[Tree, list[torch.Tensor]]:
    """The tree of `value` and its tensors in order.

    Raises:
        PartitionError: `value` holds something that is neither a tensor, a plain constant nor a known
            container; the message says where and of what type.
    """
    tensors: list[torch.Tensor] = []
    return _describe(value, where, tensors), tensors


def _describe(value: Any, where: str, tensors: list[torch.Tensor]) -> Tree:
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return LEAF
    if value is None or type(value) in (bool, int, float, str):
        return Tree("const", value=value)
    if isinstance(value, Mapping):
        return _describe_mapping(value, where, tensors)
    if isinstance(value, tuple | list):
        items = tuple(_describe(v, f"{where}[{i}]", tensors) for i, v in enumerate(value))
        fields = getattr(value, "_fields", None)
        if fields is not None:
            return Tree("namedtuple", items, tuple(fields), name=type(value).__name__)
        return Tree("tuple" if isinstance(value, tuple) else "list", items)
    raise PartitionError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a model that is cut takes and "
        "gives tensors, numbers, strings, None and tuples, lists and dicts of them. Wrap the model in a "
        "module that does (for a transformers model: use_cache=False), or deploy(head=..., tail=...)"
    )


def _describe_mapping(value: Mapping[Any, Any], where: str, tensors: list[torch.Tensor]) -> Tree:
    for key in value:
        if type(key) not in (str, int):
            raise PartitionError(f"{where} has the key {key!r}; keys are strings or whole numbers")
    items = tuple(_describe(v, f"{where}[{k!r}]", tensors) for k, v in value.items())
    kind: Kind = "output" if _output_class(type(value).__name__) is type(value) else "dict"
    return Tree(kind, items, tuple(value), name=type(value).__name__ if kind == "output" else "")


def _output_class(name: str) -> type | None:
    """The ModelOutput class of that name, None where transformers is not installed or has none."""
    try:
        module = import_module(OUTPUT_MODULE)
    except ImportError:
        return None
    found = vars(module).get(name)
    base = vars(module).get("ModelOutput")
    if isinstance(found, type) and isinstance(base, type) and issubclass(found, base):
        return found
    return None


@dataclass(frozen=True, slots=True)
class Structure:
    """A tree and the spec of each of its tensors, in flat order.

    Attributes:
        tree: how the tensors nest.
        specs: shape, dtype and batch dimension of each tensor.
    """

    tree: Tree
    specs: tuple[TensorSpec, ...]

    def flatten(self, value: Any) -> Tensors:
        """The tensors of `value` in flat order.

        Containers must nest as at capture; a list does for a tuple, any mapping for a dict, dict keys
        may come in any order, and constants must be equal. Shapes are checked by `rows`.

        Raises:
            CodecError: `value` nests in another way; the message says where.
        """
        tensors: list[torch.Tensor] = []
        _flatten(self.tree, value, "input", tensors)
        return tuple(tensors)

    def unflatten(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Put flat tensors back into the structure.

        Raises:
            CodecError: not as many tensors as the structure has.
        """
        if len(tensors) != len(self.specs):
            raise CodecError(f"the structure has {len(self.specs)} tensors, got {len(tensors)}")
        return restore(self.tree, tensors)

    def rows(self, tensors: Sequence[torch.Tensor]) -> int:
        """Check flat tensors against `specs`; the rows they agree on (1 if none depends on the batch).

        Raises:
            CodecError: number, dtype, shape or rows do not agree.
        """
        return rows_of(self.specs, tensors, "the model")

    def flatten_call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensors:
        """The tensors of a call with these arguments, made as the model itself is called.

        Raises:
            CodecError: the arguments nest in another way than at capture.
        """
        if kwargs or self.tree.kind in ("dict", "output"):
            if args and not (len(args) == 1 and isinstance(args[0], Mapping) and not kwargs):
                raise CodecError("pass all arguments by position or all by keyword, as at capture")
            return self.flatten(args[0] if args else kwargs)
        one = self.tree.kind in ("tensor", "const") and len(args) == 1
        return self.flatten(args[0] if one else tuple(args))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {"tree": _tree_to_json(self.tree), "specs": [spec_to_json(s) for s in self.specs]}

    @classmethod
    def from_json(cls, data: Any) -> Structure:
        """Read what `to_json` gave.

        Raises:
            BundleError: the data is not a structure.
        """
        if (
            not isinstance(data, dict)
            or set(data) != {"tree", "specs"}
            or not isinstance(data["specs"], list)
        ):
            raise BundleError("a structure has the fields tree and specs")
        budget = [MAX_NODES]
        tree = _tree_from_json(data["tree"], 0, budget)
        specs = tuple(spec_from_json(s) for s in data["specs"])
        if _leaves(tree) != len(specs):
            raise BundleError(f"a structure of {_leaves(tree)} tensors has {len(specs)} specs")
        return cls(tree, specs)


def as_call(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor is the only argument, a tuple or list the positional ones, a mapping the keyword ones."""
    if isinstance(value, Mapping):
        return (), {str(k): v for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(value), {}
    return (value,), {}


def _flatten(tree: Tree, value: Any, where: str, tensors: list[torch.Tensor]) -> None:
    if tree.kind == "tensor":
        if not isinstance(value, torch.Tensor):
            raise CodecError(f"{where}: expected a tensor, got {type(value).__name__}")
        tensors.append(value)
    elif tree.kind == "const":
        if type(value) is not type(tree.value) or value != tree.value:
            raise CodecError(f"{where}: the model was captured with {tree.value!r} here, got {value!r}")
    elif tree.kind in ("dict", "output"):
        if not isinstance(value, Mapping) or set(value) != set(tree.keys):
            got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise CodecError(f"{where}: expected a dict with the keys {list(tree.keys)}, got {got}")
        for key, child in zip(tree.keys, tree.items, strict=True):
            _flatten(child, value[key], f"{where}[{key!r}]", tensors)
    else:
        if not isinstance(value, tuple | list) or len(value) != len(tree.items):
            got = f"{len(value)}" if isinstance(value, tuple | list) else type(value).__name__
            raise CodecError(f"{where}: expected a {tree.kind} of {len(tree.items)}, got {got}")
        for i, child in enumerate(tree.items):
            _flatten(child, value[i], f"{where}[{i}]", tensors)


def restore(tree: Tree, tensors: Sequence[torch.Tensor]) -> Any:
    """Nest flat tensors as `tree` says (no checks; `Structure.unflatten` has them)."""
    return _unflatten(tree, iter(tensors))


def _unflatten(tree: Tree, rest: Any) -> Any:
    if tree.kind == "tensor":
        return next(rest)
    if tree.kind == "const":
        return tree.value
    items = [_unflatten(child, rest) for child in tree.items]
    if tree.kind == "tuple":
        return tuple(items)
    if tree.kind == "list":
        return items
    if tree.kind == "namedtuple":
        return namedtuple(tree.name, [str(k) for k in tree.keys])(*items)
    named = dict(zip(tree.keys, items, strict=True))
    if tree.kind == "output" and (found := _output_class(tree.name)) is not None:
        return found(**{str(k): v for k, v in named.items()})
    return named


def _leaves(tree: Tree) -> int:
    return 1 if tree.kind == "tensor" else sum(_leaves(child) for child in tree.items)


# JSON ---------------------------------------------------------------------------------------------


def spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    """Plain data of a `TensorSpec`."""
    return {"shape": list(spec.shape), "dtype": spec.dtype, "batch_dim": spec.batch_dim}


def spec_from_json(data: Any) -> TensorSpec:
    """Read what `spec_to_json` gave.

    Raises:
        BundleError: the data is not a spec.
    """
    if not isinstance(data, dict) or set(data) != {"shape", "dtype", "batch_dim"}:
        raise BundleError("a tensor spec has the fields shape, dtype and batch_dim")
    shape, dtype, batch_dim = data["shape"], data["dtype"], data["batch_dim"]
    if not isinstance(shape, list) or len(shape) > 16:
        raise BundleError(f"a tensor's shape is a list of at most 16 sizes, got {shape!r:.80}")
    if any(type(n) is not int or not 0 <= n < 2**40 for n in shape):
        raise BundleError(f"a tensor's sizes are whole numbers under 2**40, got {shape!r:.80}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BundleError(f"unknown dtype {dtype!r:.80}; known: {', '.join(DTYPES)}")
    if batch_dim is not None and (type(batch_dim) is not int or not 0 <= batch_dim < len(shape)):
        raise BundleError(f"batch_dim {batch_dim!r:.80} is not a dimension of {shape}")
    return TensorSpec(tuple(shape), dtype, batch_dim)


def _tree_to_json(tree: Tree) -> dict[str, Any]:
    out: dict[str, Any] = {"kind": tree.kind}
    if tree.kind == "const":
        out["value"] = tree.value
    if tree.kind not in ("tensor", "const"):
        out["items"] = [_tree_to_json(child) for child in tree.items]
    if tree.kind in _KEYED:
        out["keys"] = list(tree.keys)
    if tree.name:
        out["name"] = tree.name
    return out


def _tree_from_json(data: Any, depth: int, budget: list[int]) -> Tree:
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise BundleError(f"a structure nests at most {MAX_DEPTH} deep and has at most {MAX_NODES} nodes")
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind == "tensor" and set(data) == {"kind"}:
        return LEAF
    if kind == "const" and set(data) == {"kind", "value"}:
        if data["value"] is not None and type(data["value"]) not in (bool, int, float, str):
            raise BundleError("a constant of a structure is a number, a string, a boolean or null")
        return Tree("const", value=data["value"])
    if kind in ("tuple", "list") and set(data) == {"kind", "items"}:
        return Tree(kind, _items_from_json(data["items"], depth, budget))
    fields = {"kind", "items", "keys"} | ({"name"} if kind != "dict" else set())
    if kind in _KEYED and set(data) == fields:
        items = _items_from_json(data["items"], depth, budget)
        return Tree(kind, items, _keys_from_json(kind, data["keys"], len(items)), _name(data.get("name", "")))
    raise BundleError(f"unknown node of a structure: {data!r:.80}")


def _items_from_json(data: Any, depth: int, budget: list[int]) -> tuple[Tree, ...]:
    if not isinstance(data, list):
        raise BundleError("the items of a structure are a list")
    return tuple(_tree_from_json(child, depth + 1, budget) for child in data)


def _keys_from_json(kind: str, data: Any, items: int) -> tuple[Key, ...]:
    if not isinstance(data, list) or len(data) != items or any(type(k) not in (str, int) for k in data):
        raise BundleError("the keys of a structure are strings or whole numbers, one for each item")
    if len(set(data)) != items:
        raise BundleError(f"a structure has the same key twice: {data!r:.80}")
    if kind != "dict":
        for key in data:
            _name(key)
            if kind == "namedtuple" and key.startswith("_"):
                raise BundleError(f"{key!r:.80} is no name of a field")
    return tuple(data)


def _name(name: Any) -> str:
    """A class or field name that may be used as an identifier; empty passes (a dict has none)."""
    if not isinstance(name, str) or (name and (not name.isidentifier() or keyword.iskeyword(name))):
        raise BundleError(f"{name!r:.80} is not a name")
    return name
