"""Time a model's pieces on this device: seconds of head and tail at every cut.

What is measured is each segment between two neighbouring cuts, in one pass after another over the whole
chain, so that all cuts together cost no more than `warmup + repeats` runs of the model. Head and tail at a
cut are sums of segments of the same pass; medians and 95th percentiles are taken over passes.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from splitedge.capture import repeated
from splitedge.codec import Tensors
from splitedge.errors import BundleError, PartitionError
from splitedge.partition import Cut, Graph

SCHEMA = 1
SHOW_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class CutTimes:
    """One cut on one device, at the profile's number of rows. Seconds: median and 95th percentile.

    `segment_s` is the piece between the cut before and this one. Bytes, FLOPs and parameters are those of
    the `Cut` (batch size 1); zero where plain segments were profiled, whose cuts are not known.
    """

    name: str
    head_s: float
    head_p95_s: float
    tail_s: float
    tail_p95_s: float
    segment_s: float
    segment_p95_s: float
    bytes: int
    head_flops: int
    tail_flops: int
    head_params: int
    tail_params: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What a model costs on a device.

    Attributes:
        device: processor or accelerator in words.
        threads: intra-op threads of the measurement.
        rows: batch size.
        warmup, repeats: passes thrown away, passes measured.
        total_s, total_p95_s: the whole model, as the sum of its segments.
        flops, params: of the whole model.
        cuts: in the model's order.
    """

    device: str
    threads: int
    rows: int
    warmup: int
    repeats: int
    total_s: float
    total_p95_s: float
    flops: int
    params: int
    cuts: tuple[CutTimes, ...]

    def cut(self, name: str) -> CutTimes:
        """The times of one cut.

        Raises:
            PartitionError: the cut was not profiled.
        """
        for times in self.cuts:
            if times.name == name:
                return times
        raise PartitionError(
            f"cut '{name}' was not profiled; profiled: {', '.join(c.name for c in self.cuts)}"
        )

    def scaled(self, flops_ratio: float, device: str = "") -> Profile:
        """This profile on a device of `flops_ratio` times the FLOP/s: every time divided by the ratio.

        A first guess for a device at hand only on paper: memory bandwidth and call overheads do not scale
        with FLOP/s. `device` names it.
        """
        if not flops_ratio > 0:
            raise ValueError(f"flops_ratio must be positive, got {flops_ratio}")
        times = [f.name for f in fields(CutTimes) if f.name.endswith("_s")]
        return replace(
            self,
            device=device or f"{self.device} scaled by {flops_ratio:g}",
            total_s=self.total_s / flops_ratio,
            total_p95_s=self.total_p95_s / flops_ratio,
            cuts=tuple(replace(c, **{t: getattr(c, t) / flops_ratio for t in times}) for c in self.cuts),
        )

    def to_json(self) -> str:
        """As a JSON document."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Profile:
        """Read what `to_json` gave.

        Raises:
            BundleError: the document is no profile, or of another schema.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"the profile is not JSON: {error}") from error
        if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
            raise BundleError(f"not a profile of schema {SCHEMA}")
        cuts = data.get("cuts")
        if not isinstance(cuts, list):
            raise BundleError("the cuts of a profile are a list")
        data["cuts"] = tuple(_read(CutTimes, c) for c in cuts)
        found: Profile = _read(cls, data)
        return found


def _read(kind: type[Any], data: Any) -> Any:
    """A dataclass of strings and non-negative numbers from plain data, every field checked."""
    wanted = {f.name: str(f.type) for f in fields(kind)}
    if not isinstance(data, dict) or set(data) != set(wanted):
        raise BundleError(f"a {kind.__name__} has the fields {', '.join(wanted)}")
    for name, type_ in wanted.items():
        value = data[name]
        if type_ == "str":
            good = isinstance(value, str)
        elif type_ == "int":
            good = type(value) is int and value >= 0
        elif type_ == "float":
            good = type(value) in (int, float) and 0 <= value < float("inf")
        else:
            good = isinstance(value, tuple)
        if not good:
            raise BundleError(f"{kind.__name__}.{name} of a profile is {value!r:.60}")
    return kind(**data)


def profile(
    graph_or_segments: Graph | Sequence[nn.Module],
    example_inputs: Any,
    *,
    cuts: Sequence[Cut] | Sequence[str] | None = None,
    warmup: int = 3,
    repeats: int = 20,
    threads: int | None = None,
    rows: int = 1,
    budget_s: float = 5.0,
) -> Profile:
    """Measure seconds at every cut on this device.

    Args:
        graph_or_segments: a captured graph, or segments that each take the tensors the one before gives.
        example_inputs: as given to `capture`; for segments the flat input tensors.
        cuts: which cuts, in order. None: all of the graph. For segments, the names of the borders.
        warmup: passes thrown away.
        repeats: passes measured; fewer (at least 3) when they would take longer than `budget_s`.
        threads: intra-op threads; None keeps what is set.
        rows: batch size (a graph of dynamic batch only; others run the example's).
        budget_s: about how long all measuring may take.

    Raises:
        PartitionError: the number of cuts does not fit the segments, or a cut is not of the graph.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    if isinstance(graph_or_segments, Graph):
        graph = graph_or_segments
        chosen = graph.cuts() if cuts is None else [graph.cut(c) if isinstance(c, str) else c for c in cuts]
        segments: Sequence[nn.Module] = graph.segments(chosen, copy=False)
        inputs, rows = _rows_of(graph, example_inputs, rows)
        meta = [(c.name, c.bytes, c.head_flops, c.tail_flops, c.head_params, c.tail_params) for c in chosen]
        flops, params = graph.total_flops, graph.total_params
    else:
        segments = list(graph_or_segments)
        inputs = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
        rows = inputs[0].shape[0] if inputs[0].dim() else 1
        meta = [(c if isinstance(c, str) else c.name, 0, 0, 0, 0, 0) for c in cuts or ()]
        flops, params = 0, sum(p.numel() for s in segments for p in s.parameters())
    if len(meta) + 1 != len(segments):
        raise PartitionError(
            f"{len(segments)} segments have {len(segments) - 1} borders, got {len(meta)} cuts"
        )
    with _threads(threads) as used:
        times = _measure(segments, inputs, warmup, repeats, budget_s)
    return _table(times, meta, inputs[0].device, used, rows, warmup, flops, params)


def _rows_of(graph: Graph, example_inputs: Any, rows: int) -> tuple[Tensors, int]:
    tensors = graph.input_structure.flatten(example_inputs)
    have = graph.input_structure.rows(tensors)
    if not graph.dynamic_batch:
        return tensors, graph.example_rows
    batched = [s.batch_dim is not None for s in graph.input_structure.specs]
    return tuple(repeated(tensors, batched, have, rows)), rows


@contextmanager
def _threads(threads: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _measure(
    segments: Sequence[nn.Module], inputs: Tensors, warmup: int, repeats: int, budget_s: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds of each segment in each measured pass, shape (passes, segments)."""
    with torch.inference_mode():
        first = _pass(segments, inputs).sum()  # the very first pass also allocates: never counted
        one = min(first, _pass(segments, inputs).sum())
        repeats = min(repeats, max(3, int(budget_s / max(one, 1e-9)) - warmup))
        shown = one * (warmup + repeats) > SHOW_AFTER_S
        with Progress(console=Console(stderr=True), transient=True, disable=not shown) as bar:
            task = bar.add_task("profiling", total=warmup + repeats)
            passes = []
            for i in range(warmup + repeats):
                seconds = _pass(segments, inputs)
                bar.advance(task)
                if i >= warmup:
                    passes.append(seconds)
    return np.stack(passes)


def _pass(segments: Sequence[nn.Module], inputs: Tensors) -> np.ndarray[Any, np.dtype[np.float64]]:
    cuda = inputs[0].device.type == "cuda"
    seconds = np.empty(len(segments))
    tensors = inputs
    for i, segment in enumerate(segments):
        start = time.perf_counter()
        tensors = segment(*tensors)
        if cuda:
            torch.cuda.synchronize()
        seconds[i] = time.perf_counter() - start
        if isinstance(tensors, torch.Tensor):
            tensors = (tensors,)
    return seconds


def _table(
    times: np.ndarray[Any, np.dtype[np.float64]],
    meta: Sequence[tuple[str, int, int, int, int, int]],
    device: torch.device,
    threads: int,
    rows: int,
    warmup: int,
    flops: int,
    params: int,
) -> Profile:
    totals = times.sum(1)
    heads = times.cumsum(1)[:, :-1]
    tails = totals[:, None] - heads

    def quantiles(x: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
        return float(np.median(x)), float(np.quantile(x, 0.95))

    cuts = []
    for i, (name, *sizes) in enumerate(meta):
        head, tail, segment = quantiles(heads[:, i]), quantiles(tails[:, i]), quantiles(times[:, i])
        cuts.append(CutTimes(name, *head, *tail, *segment, *sizes))
    return Profile(
        device=device_name(device),
        threads=threads,
        rows=rows,
        warmup=warmup,
        repeats=len(times),
        total_s=quantiles(totals)[0],
        total_p95_s=quantiles(totals)[1],
        flops=flops,
        params=params,
        cuts=tuple(cuts),
    )


def device_name(device: torch.device) -> str:
    """The device in words: the accelerator's name, or the processor's."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model", "Hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or device.type
