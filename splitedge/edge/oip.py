"""The Open Inference Protocol, version 2: its JSON and binary tensors to ours and back. No I/O.

Specification: github.com/kserve/open-inference-protocol, `inference_rest.md`, and the binary tensor data
extension (`Inference-Header-Content-Length`, `binary_data_size`, `binary_data_output`). A body is read
with every name, shape, dtype and length checked before a tensor is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from splitedge.codec import DTYPE_NAMES, DTYPES, Tensors, TensorSpec
from splitedge.errors import SplitedgeError
from splitedge.policy import Route
from splitedge.result import Result

MAX_JSON = 4 * 2**20
MAX_DIMS = 16
HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ("binary_tensor_data", "splitedge_route", "splitedge_deadline_ms")
ROUTES = {"auto": None, **{r.value: r for r in (Route.LOCAL, Route.EXIT, Route.SPLIT, Route.CLOUD)}}

DATATYPES: Mapping[str, str] = {
    "float32": "FP32",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float64": "FP64",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}


class RequestInvalid(SplitedgeError):
    """A client's request breaks the protocol or does not fit the model; `status` is the HTTP code."""

    def __init__(self, message: str, status: int = 400) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Port:
    """One tensor that goes in or comes out, under the name clients use."""

    name: str
    spec: TensorSpec

    def metadata(self) -> dict[str, Any]:
        """As the model's metadata lists it; -1 for the dimension that grows with the batch."""
        shape = [-1 if i == self.spec.batch_dim else n for i, n in enumerate(self.spec.shape)]
        return {"name": self.name, "datatype": DATATYPES[self.spec.dtype], "shape": shape}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a client asks for.

    Attributes:
        id: the client's own, echoed.
        tensors: flat inputs, in the model's order.
        deadline_s: seconds from now, None for none.
        route: the route to force, None for the policy's choice.
        outputs: names wanted, with whether as binary; empty for all.
        binary: whether outputs are binary where not said otherwise.
    """

    id: str
    tensors: Tensors
    deadline_s: float | None
    route: Route | None
    outputs: Mapping[str, bool]
    binary: bool


# Names ----------------------------------------------------------------------------------------------


def named_tensors(value: Any, word: str) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a nested value with names: `word` and a number by position, or the keys."""
    if isinstance(value, torch.Tensor):
        return [(f"{word}0", value)]
    return list(_walk(value, word, ""))


def _walk(value: Any, word: str, at: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield at, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, word, f"{at}.{key}" if at else str(key))
    elif isinstance(value, tuple | list):
        for i, inner in enumerate(value):
            yield from _walk(inner, word, f"{at}.{i}" if at else f"{word}{i}")


def ports(value: Any, specs: Sequence[TensorSpec], word: str) -> tuple[Port, ...]:
    """Names for flat tensors `specs`, from a value of their structure.

    Where the structure hides some of them, all are named by position.
    """
    names = [name for name, _ in named_tensors(value, word)]
    if len(names) != len(specs):
        names = [f"{word}{i}" for i in range(len(specs))]
    return tuple(Port(name, spec) for name, spec in zip(names, specs, strict=True))


def blank(specs: Sequence[TensorSpec]) -> Tensors:
    """One row of zeros."""
    return tuple(torch.zeros(spec.shape, dtype=DTYPES[spec.dtype]) for spec in specs)


# Requests -------------------------------------------------------------------------------------------


def read_request(body: bytes, header_length: str | None, inputs: Sequence[Port]) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: whole, already within the server's cap.
        header_length: value of the `Inference-Header-Content-Length` header, None where it is missing.
        inputs: what the model takes.

    Raises:
        RequestInvalid: with what is wrong, where, and what is expected.
    """
    view = memoryview(body)
    size = _header_size(header_length, len(body))
    fields = _json(bytes(view[:size]))
    parameters = _object(fields.get("parameters", {}), "parameters")
    tensors = _inputs(fields.get("inputs"), view[size:], inputs)
    binary = parameters.get("binary_data_output", False) is True
    request_id = fields.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > 256:
        raise RequestInvalid("'id' must be a string of at most 256 characters")
    return InferRequest(
        request_id,
        tensors,
        _deadline(parameters.get("splitedge_deadline_ms")),
        _route(parameters.get("splitedge_route", "auto")),
        _outputs(fields.get("outputs", []), binary),
        binary,
    )


def _header_size(text: str | None, body: int) -> int:
    if text is None:
        size = body
    elif not (text.isascii() and text.isdigit() and len(text) < 12) or int(text) > body:
        raise RequestInvalid(f"{HEADER_LENGTH} is '{text[:20]}'; the body has {body} bytes")
    else:
        size = int(text)
    if size > MAX_JSON:
        raise RequestInvalid(
            f"{size} bytes of JSON; at most {MAX_JSON} are read: send tensors as binary data", 413
        )
    return size


def _json(text: bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(text), "the body")
    except (ValueError, RecursionError) as error:
        raise RequestInvalid(f"the body is not JSON: {str(error)[:100]}") from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestInvalid(f"{what} must be a JSON object")
    return value


def _deadline(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise RequestInvalid("'splitedge_deadline_ms' must be a number of milliseconds above 0")
    return value / 1000


def _route(value: Any) -> Route | None:
    if not isinstance(value, str) or value not in ROUTES:
        raise RequestInvalid(f"'splitedge_route' must be one of {', '.join(ROUTES)}")
    return ROUTES[value]


def _outputs(value: Any, binary: bool) -> dict[str, bool]:
    if not isinstance(value, list) or len(value) > 256:
        raise RequestInvalid("'outputs' must be a list of at most 256 objects")
    wanted: dict[str, bool] = {}
    for item in value:
        name = _object(item, "an output").get("name")
        if not isinstance(name, str):
            raise RequestInvalid("an output needs a 'name'")
        parameters = _object(item.get("parameters", {}), f"parameters of output '{name[:64]}'")
        wanted[name] = parameters.get("binary_data", binary) is True
    return wanted


def _inputs(value: Any, binary: memoryview, want: Sequence[Port]) -> Tensors:
    names = [port.name for port in want]
    if not isinstance(value, list) or len(value) != len(want):
        raise RequestInvalid(f"'inputs' must be a list of {len(want)}: {', '.join(names)}")
    by_name: dict[str, torch.Tensor] = {}
    at = 0
    for item in value:
        name = _object(item, "an input").get("name")
        port = next((p for p in want if p.name == name), None)
        if port is None or name in by_name:
            raise RequestInvalid(f"no input '{str(name)[:64]}' or twice; the model takes {', '.join(names)}")
        shape = _shape(item, port)
        parameters = _object(item.get("parameters", {}), f"parameters of input '{port.name}'")
        size = parameters.get("binary_data_size")
        if size is None:
            by_name[port.name] = _from_json(item.get("data"), shape, port)
        else:
            by_name[port.name] = _from_binary(binary[at:], size, shape, port)
            at += size
    if at != binary.nbytes:
        raise RequestInvalid(f"{binary.nbytes} bytes of binary data; the inputs account for {at}")
    return tuple(by_name[name] for name in names)


def _shape(item: dict[str, Any], port: Port) -> tuple[int, ...]:
    """The declared shape, checked against the model's."""
    spec, shape = port.spec, item.get("shape")
    expected = f"input '{port.name}' must be {port.metadata()}"
    if item.get("datatype") != DATATYPES[spec.dtype]:
        raise RequestInvalid(f"{expected}, got datatype {str(item.get('datatype'))[:20]}")
    if not isinstance(shape, list) or len(shape) != len(spec.shape):
        raise RequestInvalid(f"{expected}, got shape {str(shape)[:100]}")
    if not all(type(n) is int and 1 <= n < 2**40 for n in shape):
        raise RequestInvalid(f"{expected}, got shape {str(shape)[:100]}")
    rows = 1 if spec.batch_dim is None else shape[spec.batch_dim] // spec.shape[spec.batch_dim]
    if rows < 1 or tuple(shape) != spec.shape_at(rows):
        raise RequestInvalid(f"{expected}, got shape {str(shape)[:100]}")
    return tuple(shape)


def _from_binary(data: memoryview, size: Any, shape: tuple[int, ...], port: Port) -> torch.Tensor:
    dtype = DTYPES[port.spec.dtype]
    needs = math.prod(shape) * dtype.itemsize
    if type(size) is not int or size != needs or size > data.nbytes:
        raise RequestInvalid(
            f"input '{port.name}' of shape {list(shape)} has {needs} bytes; 'binary_data_size' says "
            f"{str(size)[:20]} and {data.nbytes} are left in the body"
        )
    if dtype is torch.bool and size and max(data[:size]) > 1:
        raise RequestInvalid(f"input '{port.name}': a BOOL is a byte of 0 or 1")
    return torch.frombuffer(bytearray(data[:size]), dtype=dtype).view(shape)


def _from_json(data: Any, shape: tuple[int, ...], port: Port) -> torch.Tensor:
    count = math.prod(shape)
    values: list[Any] = []
    if not isinstance(data, list):
        raise RequestInvalid(f"input '{port.name}' needs 'data' (a list) or 'binary_data_size'")
    _flatten(data, values, count, port.name, 0)
    if len(values) != count:
        raise RequestInvalid(f"input '{port.name}': {len(values)} values for shape {list(shape)}")
    dtype = DTYPES[port.spec.dtype]
    if dtype is torch.bool:
        if not all(type(v) is bool for v in values):
            raise RequestInvalid(f"input '{port.name}': BOOL data are true and false")
    elif not all(type(v) is int or (type(v) is float and dtype.is_floating_point) for v in values):
        raise RequestInvalid(f"input '{port.name}' holds something that is no {DATATYPES[port.spec.dtype]}")
    elif not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise RequestInvalid(f"input '{port.name}': values must be in {limits.min} to {limits.max}")
    try:
        return torch.tensor(values, dtype=dtype).view(shape)
    except (OverflowError, RuntimeError) as error:
        raise RequestInvalid(f"input '{port.name}': {str(error)[:100]}") from None


def _flatten(data: list[Any], values: list[Any], most: int, name: str, depth: int) -> None:
    if depth > MAX_DIMS:
        raise RequestInvalid(f"input '{name}': lists nest deeper than {MAX_DIMS}")
    for item in data:
        if isinstance(item, list):
            _flatten(item, values, most, name, depth + 1)
        elif len(values) >= most:
            raise RequestInvalid(f"input '{name}' holds more than the {most} values of its shape")
        else:
            values.append(item)


# Responses ------------------------------------------------------------------------------------------


def write_response(
    request: InferRequest, result: Result, model: str, version: str
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part where binary data follow (else None).

    JSON has no word for NaN and infinities: they become null there; ask for binary to get them.

    Raises:
        RequestInvalid: an output was asked for that this answer does not have.
    """
    tensors = dict(named_tensors(result.output, "output"))
    unknown = [name for name in request.outputs if name not in tensors]
    if unknown:
        raise RequestInvalid(f"no output '{unknown[0][:64]}'; this answer has {', '.join(tensors)}")
    wanted = request.outputs or dict.fromkeys(tensors, request.binary)
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, binary in wanted.items():
        tensor = tensors[name].detach().cpu().contiguous()
        item: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[DTYPE_NAMES[tensor.dtype]],
            "shape": list(tensor.shape),
        }
        if binary:
            parts.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            item["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            item["data"] = _finite(tensor)
        outputs.append(item)
    head: dict[str, Any] = {
        "model_name": model,
        "model_version": version,
        "parameters": response_parameters(result),
        "outputs": outputs,
    }
    if request.id:
        head["id"] = request.id
    text = json.dumps(head, allow_nan=False).encode()
    return b"".join([text, *parts]), len(text) if parts else None


def response_parameters(result: Result) -> dict[str, Any]:
    """What this product adds to an answer: the route, why, and what it cost."""
    return {
        "splitedge_route": result.route.value,
        "splitedge_option": result.option,
        "splitedge_reason": result.reason,
        "splitedge_degraded": result.degraded,
        "splitedge_confidence": None if math.isnan(result.confidence) else round(result.confidence, 6),
        "splitedge_latency_ms": round(result.timing.total * 1000, 3),
        "splitedge_bytes_up": result.bytes_up,
        "splitedge_bytes_down": result.bytes_down,
        "splitedge_joules": None if math.isnan(result.energy_j) else result.energy_j,
    }


def _finite(tensor: torch.Tensor) -> list[Any]:
    values: list[Any] = tensor.reshape(-1).tolist()
    if tensor.dtype.is_floating_point and not bool(np.isfinite(tensor.double().numpy()).all()):
        return [v if math.isfinite(v) else None for v in values]
    return values
