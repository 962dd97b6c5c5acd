"""What coding a latent costs without its convolutions: quantiser, range coder, header and CRC.

A CIFAR latent (4 x 8 x 8 at 2 bits, 8 x 8 x 8 at 4 bits) through `Codec.encode` and `Codec.decode`, and a
latent of 72,600 symbols (24 x 55 x 55 at 4 bits, the shape of the published bottlenecks at 224 x 224)
beside CompressAI's coder, where that is importable, with the same symbols and the same tables. It is in no
list of dependencies, since installing it replaces torch: for the comparison install it and splitedge into
an environment of their own. It takes lists of Python integers: its models make them from tensors and back,
and so do the figures that a goal is set for, as ours go from array to array; beside them stand those with
the lists made before the clock starts. Ours encode what they decoded once more, to check it. All take
turns; medians.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, ClassVar, Self

import numpy as np
import torch
from common import Report, arguments, console, readable, show_machine
from rich.table import Table

from splitedge.codec import Codec, CodecState, Tensors, TensorSpec
from splitedge.codecs.range_coder import RangeCoder
from splitedge.codecs.tables import PRECISION_BITS, Tables
from splitedge.codecs.uniform import Uniform

SMALL = {"256 symbols of 2 bits": (4, 64, 4), "512 symbols of 4 bits": (8, 64, 16)}
LARGE = (24, 55 * 55, 16)
HALF_RANGE = 2.5

F32 = np.ndarray[Any, np.dtype[np.float32]]


class Latent(Codec):
    """A learned codec without its networks: a float32 latent in, the quantised one out."""

    name: ClassVar[str] = "latent"

    def __init__(self, channels: int, inner: int, symbols: int) -> None:
        super().__init__([TensorSpec((1, channels, inner), "float32")])
        step = np.full(channels, 2 * HALF_RANGE / (symbols - 1), np.float32)
        self.quantiser = Uniform(np.full(channels, -HALF_RANGE, np.float32), step, symbols - 1)
        sample = self.quantiser.codes(latent(channels, inner * 50, seed=1))
        self.coder = RangeCoder(Tables.of(sample, symbols), inner)

    @property
    def levels(self) -> tuple[str, ...]:
        return ("all",)

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        return self.coder.encode(self.quantiser.codes(tensors[0].numpy()))

    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        return (torch.from_numpy(self.quantiser.values(self.coder.decode(body, rows))),)

    def max_body(self, level: int, rows: int) -> int:
        return self.coder.max_bytes(rows)

    def state(self) -> CodecState:
        return CodecState({"codec": self.name}, self.coder.tables.tensors())

    @classmethod
    def from_state(
        cls, state: CodecState, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None
    ) -> Self:
        raise NotImplementedError("lives in a benchmark only")


def latent(channels: int, inner: int, seed: int) -> F32:
    """A normal latent, (1, channels, inner), its channels of different spread as trained ones are."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0.2, 1.2, channels)[:, None]
    return (rng.standard_normal((1, channels, inner)) * spread).astype(np.float32)


def timed(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each work; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return {name: median(found) for name, found in seconds.items()}


def small(report: Report, rounds: int) -> None:
    """CIFAR latents through the whole codec."""
    table = Table("latent", "bytes, header in", "encode", "decode", "both", title="whole codec, batch 1")
    for name, shape in SMALL.items():
        codec = Latent(*shape)
        z = torch.from_numpy(latent(*shape[:2], seed=2))
        payload = codec.encode([z])

        def encode(codec: Latent = codec, z: torch.Tensor = z) -> object:
            return codec.encode([z])

        def decode(codec: Latent = codec, data: bytes = payload.data) -> object:
            return codec.decode(data)

        took = timed({"encode": encode, "decode": decode}, rounds)
        both = took["encode"] + took["decode"]
        report.add(f"{name}: payload", payload.nbytes, "B")
        report.add(f"{name}: encode", took["encode"], "s")
        report.add(f"{name}: decode", took["decode"], "s")
        report.add(f"{name}: encode and decode", both, "s", at_most=150e-6)
        times = (readable(s, "s") for s in (took["encode"], took["decode"], both))
        table.add_row(name, str(payload.nbytes), *times)
    console.print(table)


def large(report: Report, rounds: int) -> None:
    """A large latent: the coder alone, ours and theirs."""
    channels, inner, _ = LARGE
    codec = Latent(*LARGE)
    codes = codec.quantiser.codes(latent(channels, inner, seed=2))
    coder = codec.coder
    body = coder.encode(codes)
    ideal = float(coder.tables.bits(codes).sum()) / 8
    works: dict[str, Callable[[], object]] = {
        "splitedge encode": lambda: coder.encode(codes),
        "splitedge decode": lambda: coder.decode(body, 1),
    }
    sizes = {"splitedge": len(body)}
    missing = importlib.util.find_spec("compressai") is None
    if not missing:
        theirs, sizes["compressai"] = compressai_works(coder.tables, codes)
        works |= theirs
    took = timed(works, rounds)
    table = Table("coder", "bytes", "encode", "decode", title=f"{codes.size:,} symbols, coder alone")
    for name, nbytes in sizes.items():
        for more in ("", ", from tensors") if name == "compressai" else ("",):
            times = (readable(took[f"{name} {verb}{more}"], "s") for verb in ("encode", "decode"))
            table.add_row(name + more, f"{nbytes:,}", *times)
    console.print(table)
    report.add("72,600 symbols: bytes over ideal", len(body) / ideal, "ratio")
    for verb in ("encode", "decode"):
        ours = took[f"splitedge {verb}"]
        report.add(f"72,600 symbols: {verb}", ours, "s")
        if missing:
            continue
        lists, tensors = took[f"compressai {verb}"], took[f"compressai {verb}, from tensors"]
        report.add(f"72,600 symbols: compressai {verb}", lists, "s")
        report.add(f"72,600 symbols: compressai {verb}, from tensors", tensors, "s")
        report.add(f"{verb}: compressai from tensors over splitedge", tensors / ours, "ratio", at_least=5.0)
        report.add(f"{verb}: compressai with lists ready over splitedge", lists / ours, "ratio")
    if missing:
        report.notes.append("beside CompressAI: not measured, it is not installed (see the top of this file)")


def compressai_works(tables: Tables, codes: np.ndarray) -> tuple[dict[str, Callable[[], object]], int]:
    """Their coder on the same symbols and tables (its own precision is 16 bits), and its bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from compressai.ans import RansDecoder, RansEncoder

    channels, width = tables.frequencies.shape
    # One more entry than there are symbols: theirs always keeps an escape, of the least weight.
    cdf = np.zeros((channels, width + 2), np.int64)
    cdf[:, 1 : width + 1] = np.cumsum(tables.frequencies << (16 - PRECISION_BITS), axis=1)
    cdf[:, width] -= 1
    cdf[:, width + 1] = 1 << 16
    tables_of = cdf.tolist(), [width + 2] * channels, [0] * channels
    tensor = torch.from_numpy(codes[0].astype(np.int32))
    which = torch.arange(channels, dtype=torch.int32)[:, None].expand_as(tensor)
    symbols, indexes = tensor.reshape(-1).tolist(), which.reshape(-1).tolist()
    data = RansEncoder().encode_with_indexes(symbols, indexes, *tables_of)

    def decode(indexes: list[int]) -> list[int]:
        found: list[int] = RansDecoder().decode_with_indexes(data, indexes, *tables_of)
        return found

    if decode(indexes) != symbols:
        raise RuntimeError("CompressAI's coder did not return the symbols: the comparison would be void")
    works: dict[str, Callable[[], object]] = {
        "compressai encode": lambda: RansEncoder().encode_with_indexes(symbols, indexes, *tables_of),
        "compressai decode": lambda: decode(indexes),
        "compressai encode, from tensors": lambda: RansEncoder().encode_with_indexes(
            tensor.reshape(-1).tolist(), which.reshape(-1).tolist(), *tables_of
        ),
        "compressai decode, from tensors": lambda: torch.tensor(
            decode(which.reshape(-1).tolist()), dtype=torch.int32
        ),
    }
    return works, len(data)


def main() -> None:
    """Measure and report."""
    asked = arguments(__doc__ or "")
    torch.set_num_threads(1)
    report = Report("codec speed")
    show_machine("codec speed")
    small(report, 500 if asked.quick else 5000)
    large(report, 30 if asked.quick else 300)
    report.finish(asked.json)


if __name__ == "__main__":
    main()
