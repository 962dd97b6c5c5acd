"""Questions with which of two real models answered right; read for `llm_routing.py`.

Only what a device would know goes into features: the text of the question, and, for a cascade, how long the
device's own answer was. Labels and the cloud's answers are for teaching and judging alone.
"""

from __future__ import annotations

import csv
import gzip
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitedge.llm.router_fit import parts_of, stem

FOLDS = 5
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Questions:
    """Questions answered by a device's model and a cloud's.

    Attributes:
        name: of the set and pair.
        texts: of the questions.
        edge, cloud: quality of each answer in [0, 1], (n,).
        part: 0 to 4, the same for questions that are alike, (n,).
        answer: characters of the device's answer, (n,); None where not known.
        topic: known to nobody when routing; for a reference only.
        dropped: rows left out, as repeated or as known to have been trained on.
    """

    name: str
    texts: tuple[str, ...]
    edge: Floats
    cloud: Floats
    part: npt.NDArray[np.int64]
    answer: Floats | None
    topic: tuple[str, ...]
    dropped: int

    def __len__(self) -> int:
        return len(self.texts)


def load(data: Path) -> list[Questions]:
    """All sets in a data directory that has them."""
    folder = data / "routing"
    gsm8k = _rows(folder / "routellm" / "gsm8k.csv.gz")
    clean = [row for row in gsm8k if row["contaminated"] == "0"]
    pairs = _rows(folder / "openai_gsm8k_6b_175b" / "gsm8k_6b_175b.csv.gz")
    mt_bench = _two_turns(_rows(folder / "routellm" / "mt_bench.csv.gz"))
    return [
        _made("MMLU, Mixtral 8x7B and GPT-4", _rows(folder / "routellm" / "mmlu.csv.gz"), "weak", "strong"),
        _made("GSM8K, Mixtral 8x7B and GPT-4", clean, "weak", "strong", dropped=len(gsm8k) - len(clean)),
        _made("GSM8K, 6B and 175B, with verifiers", pairs, "6b_verification", "175b_verification"),
        _made("GSM8K, 6B and 175B, fine-tuned", pairs, "6b_finetuning", "175b_finetuning"),
        mt_bench,
    ]


def leaks(questions: Questions) -> dict[str, int]:
    """What would make a test easier than it is: counts that must be 0."""
    seen: dict[str, int] = {}
    across = 0
    for text, part in zip(questions.texts, questions.part.tolist(), strict=True):
        across += seen.setdefault(stem(text), part) != part
    marked = sum(bool(re.search(r"Answer:\s*[A-D]\b|####", text)) for text in questions.texts)
    return {"alike in two parts": across, "answer within the text": marked}


def _made(name: str, rows: list[dict[str, str]], edge: str, cloud: str, dropped: int = 0) -> Questions:
    kept: dict[str, dict[str, str]] = {}
    for row in rows:
        kept.setdefault(" ".join(row["prompt"].split()).lower(), row)
    texts = tuple(row["prompt"] for row in kept.values())
    known = f"{edge}_chars" in rows[0]
    return Questions(
        name,
        texts,
        np.array([float(row[f"{edge}_correct"]) for row in kept.values()]),
        np.array([float(row[f"{cloud}_correct"]) for row in kept.values()]),
        parts_of(texts, FOLDS),
        np.array([float(row[f"{edge}_chars"]) for row in kept.values()]) if known else None,
        tuple(row.get("domain", "") for row in kept.values()),
        dropped + len(rows) - len(kept),
    )


def _two_turns(rows: list[dict[str, str]]) -> Questions:
    """MT-bench: a judge's mean score of two turns, divided by 10; 80 questions."""
    scores: dict[str, dict[str, list[float]]] = {}
    about: dict[str, dict[str, str]] = {}
    for row in rows:
        which = "cloud" if row["model"].startswith("gpt-4") else "edge"
        scores.setdefault(row["question_id"], {}).setdefault(which, []).append(float(row["score"]) / 10.0)
        about[row["question_id"]] = row
    texts = tuple(row["prompt_turn1"] for row in about.values())
    edge, cloud = (np.array([np.mean(scores[q][which]) for q in about]) for which in ("edge", "cloud"))
    topics = tuple(row["category"] for row in about.values())
    return Questions(
        "MT-bench, Mixtral 8x7B and GPT-4", texts, edge, cloud, parts_of(texts, FOLDS), None, topics, 0
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
