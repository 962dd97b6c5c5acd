"""What a simulation of a language model gives: one row a text, and the numbers it comes to."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitedge.errors import RecordError
from splitedge.sim.simulation import Column

#: Columns of every run. Seconds, bytes, joules; NaN where it did not happen.
TEXT_COLUMNS = (
    "device", "row", "t_s", "mode", "drafts", "why", "prompt_tokens", "tokens", "ttft_s", "tpot_s",
    "total_s", "asks", "cloud_tokens", "cloud_passes", "proposed", "accepted", "bytes_up", "bytes_down",
    "energy_j", "agreement", "degraded", "error", "rtt_s", "goodput_bps",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TextScore:
    """What a run comes to.

    Attributes:
        texts: how many. failed: share that was not completed.
        ttft_s, ttft_p95_s: to the first token, mean and 95th percentile of completed texts.
        tpot_s: for each further one, over all tokens. total_s: of a text, mean.
        cloud_tokens, cloud_passes: of a token of text: how many the cloud chose, and passes over its context
            that ended in a word (a prompt that is sent ahead is in none).
        bytes_up, bytes_down, joules: of a token of text; joules are modelled, idle not counted.
        agreement: share of tokens that the cloud would have chosen too.
        modes: texts by mode.
    """

    texts: int
    failed: float
    ttft_s: float
    ttft_p95_s: float
    tpot_s: float
    total_s: float
    cloud_tokens: float
    cloud_passes: float
    bytes_up: float
    bytes_down: float
    joules: float
    agreement: float
    modes: dict[str, int]


@dataclass(frozen=True, eq=False)
class TextSimulation:
    """One simulated run.

    Attributes:
        mode: asked for. trace: where the uplink's capacity comes from. seed: of the run.
        seconds: simulated. cloud_busy_s: of the cloud's passes; cloud_passes: how many, over all contexts.
        columns: one array (texts,) for each of `TEXT_COLUMNS`, in the order in which texts ended; `row` is
            which text of the evaluation it was.
    """

    mode: str
    trace: str
    seed: int
    seconds: float
    cloud_busy_s: float
    cloud_passes: int
    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        missing = [name for name in TEXT_COLUMNS if name not in self.columns]
        if missing:
            raise RecordError(f"a simulation without the columns {', '.join(missing)}")

    def __len__(self) -> int:
        return len(self.columns["t_s"])

    def __getitem__(self, name: str) -> Column:
        """A column by its name."""
        if name not in self.columns:
            raise RecordError(f"no column '{name}'; there are {', '.join(self.columns)}")
        return self.columns[name]

    def score(self) -> TextScore:
        """Count it all up."""
        whole = self["error"] == ""
        tokens = self["tokens"].astype(float)
        total = max(float(tokens.sum()), 1.0)
        more = float(np.maximum(tokens[whole] - 1, 0).sum())
        behind = float((self["total_s"][whole].astype(float) - self["ttft_s"][whole].astype(float)).sum())
        modes, counts = np.unique(self["mode"], return_counts=True)
        ttft = self["ttft_s"][whole].astype(float)

        def of_a_token(name: str) -> float:
            return float(self[name].astype(float).sum()) / total

        return TextScore(
            texts=len(self),
            failed=float(1.0 - whole.mean()),
            ttft_s=float(ttft.mean()) if ttft.size else np.nan,
            ttft_p95_s=float(np.quantile(ttft, 0.95)) if ttft.size else np.nan,
            tpot_s=behind / more if more else np.nan,
            total_s=float(self["total_s"][whole].astype(float).mean()) if ttft.size else np.nan,
            cloud_tokens=of_a_token("cloud_tokens"),
            cloud_passes=of_a_token("cloud_passes"),
            bytes_up=of_a_token("bytes_up"),
            bytes_down=of_a_token("bytes_down"),
            joules=of_a_token("energy_j"),
            agreement=float((self["agreement"].astype(float) * tokens).sum()) / total,
            modes={str(m): int(n) for m, n in zip(modes, counts, strict=True)},
        )

    def save(self, path: Path) -> None:
        """Write all rows as CSV."""
        with path.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(TEXT_COLUMNS)
            out.writerows(zip(*(self[name].tolist() for name in TEXT_COLUMNS), strict=True))
