"""What a language deployment did on real prompts, position by position, with what it took.

Everything is teacher-forced: each position is judged behind the cloud's own text. For drafts this is exact,
since a draft counts only behind drafts that were right. For modes that keep a device's own tokens (`exit`,
`assist`, `local`) it says how each token would be judged, not where a text would drift to.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError, RecordError
from splitedge.llm.modes import Mode
from splitedge.llm.plan import Costs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LOCAL, SPLIT = "local", "split"
#: Prefix of the deciders that are exits: `exit:0` is the first one.
EXIT = "exit:"
_SCHEMA = "splitedge.language-evaluation/1"
_ARRAYS = {
    "prompt_lengths": "i", "lengths": "i", "prompts": "i", "tokens": "i", "said": "i", "confidence": "f",
    "seconds": "f", "thresholds": "f", "passes": "f",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class LanguageEvaluation:
    """One column a position of an answer, one line a decider (what chooses tokens beside the cloud's model).

    Attributes:
        deciders: `local` (the small model), `exit:0`, `exit:1`, ... (by each exit alone), `split` (the tail
            behind a lossy payload); those that the deployment has.
        prompt_lengths, lengths: tokens of each prompt and of its answer, int (texts,).
        prompts: ids of all prompts, one after the other, int (sum of `prompt_lengths`,).
        tokens: ids that the cloud's model wrote, likewise, int (positions,).
        said: what each decider chose at each position, int (deciders, positions).
        confidence: its calibrated confidence, float (deciders, positions); NaN where it has none.
        seconds: what it took the device, float (deciders, positions); NaN where nothing was measured.
        thresholds: confidence from which each is trusted, float (deciders,); NaN for never.
        passes: measured passes of the cloud, float (passes, 3): contexts, tokens of each, seconds.
        local_prefill_s: seconds a prompt token takes the small model; NaN where there is none.
        head_prefill_s: likewise of the head; NaN where there is none.
        row_bytes: bytes of a token as sent: 4 for ids, else those of a hidden state.
        greedy: whether tokens were the most likely ones.
    """

    deciders: tuple[str, ...]
    prompt_lengths: Ints
    lengths: Ints
    prompts: Ints
    tokens: Ints
    said: Ints
    confidence: Floats
    seconds: Floats
    thresholds: Floats
    passes: Floats
    local_prefill_s: float
    head_prefill_s: float
    row_bytes: int
    greedy: bool

    def __post_init__(self) -> None:
        texts, positions = len(self.prompt_lengths), len(self.tokens)
        shape = len(self.deciders), positions
        whole = (
            texts > 0
            and self.lengths.shape == (texts,)
            and bool((self.lengths >= 1).all() and (self.prompt_lengths >= 1).all())
            and int(self.lengths.sum()) == positions
            and int(self.prompt_lengths.sum()) == len(self.prompts)
            and self.said.shape == self.confidence.shape == self.seconds.shape == shape
            and self.thresholds.shape == (shape[0],)
            and self.passes.ndim == 2
            and self.passes.shape[1] == 3
            and bool(np.isfinite(self.passes).all() and (self.passes > 0).all())
            and len(self.passes) >= 3
            and self.row_bytes >= 1
        )
        if not whole:
            raise RecordError("the arrays of this evaluation do not agree with each other")

    def __len__(self) -> int:
        return len(self.lengths)

    def line(self, decider: str) -> int:
        """Which line a decider has.

        Raises:
            ConfigError: there is none of that name.
        """
        if decider not in self.deciders:
            have = ", ".join(self.deciders) or "none"
            raise ConfigError(f"no decider '{decider}' was evaluated; there are {have}")
        return self.deciders.index(decider)

    @property
    def exits(self) -> tuple[int, ...]:
        """Lines of the exits, the first exit first."""
        return tuple(i for i, name in enumerate(self.deciders) if name.startswith(EXIT))

    @property
    def starts(self) -> Ints:
        """Position at which each answer begins, int (texts,)."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)

    def agrees(self, decider: str) -> npt.NDArray[np.bool_]:
        """Where a decider chose the cloud's token, bool (positions,)."""
        same: npt.NDArray[np.bool_] = self.said[self.line(decider)] == self.tokens
        return same

    def agreement(self, decider: str) -> float:
        """Share of positions at which it did."""
        return float(self.agrees(decider).mean())

    def survival(self, decider: str = LOCAL, most: int = 16) -> tuple[float, ...]:
        """S(i): share of places from which the first i drafts are all right, i = 1 to `most`.

        Only places count that have so many positions before the end of their text.
        """
        same = self.agrees(decider)
        runs = np.zeros(len(same) + 1, np.int64)
        left = np.zeros(len(same), np.int64)
        ends = np.cumsum(self.lengths)
        for end, length in zip(ends.tolist(), self.lengths.tolist(), strict=True):
            for at in range(end - 1, end - length - 1, -1):
                following = runs[at + 1] if at + 1 < end else 0
                runs[at] = following + 1 if same[at] else 0
                left[at] = end - at
        found: list[float] = []
        for i in range(1, most + 1):
            usable = left >= i
            if not usable.any():
                break
            share = float((runs[:-1][usable] >= i).mean())
            found.append(min(share, found[-1]) if found else share)
        return tuple(found)

    def pass_s(self, contexts: int, tokens: int) -> float:
        """Seconds of a pass of the cloud over `tokens` tokens of `contexts` contexts in all.

        A plane fitted to the measured passes (least squares of the relative error), never below the fastest.
        """
        fixed, each, row = self._plane()
        return max(float(self.passes[:, 2].min()), fixed + each * contexts + row * tokens)

    def _plane(self) -> tuple[float, float, float]:
        known = self.__dict__.get("_fitted")
        if known is None:
            from scipy.optimize import nnls

            contexts, seconds = self.passes[:, 0], self.passes[:, 2]
            rows = np.stack([np.ones_like(contexts), contexts, contexts * self.passes[:, 1]], axis=1)
            found = nnls(rows / seconds[:, None], np.ones_like(seconds))[0]
            known = float(found[0]), float(found[1]), float(found[2])
            object.__setattr__(self, "_fitted", known)
        return known

    def exit_curve(self, thresholds: dict[int, float] | None = None) -> tuple[float, float, Floats]:
        """What `exit` does at thresholds: (share of tokens the cloud is asked for, agreement of the text's
        tokens with the cloud's, share taken at each exit float (exits,)).

        Args:
            thresholds: by number of the exit; missing is never. None for the calibrated ones.

        Raises:
            ConfigError: no exit was evaluated.
        """
        lines = self.exits
        if not lines:
            raise ConfigError("no exit was evaluated: deploy(..., exits=[...]) and fit() first")
        open_ = np.ones(len(self.tokens), bool)
        right = np.zeros(len(self.tokens), bool)
        taken = []
        for number, line in enumerate(lines):
            least = self.thresholds[line] if thresholds is None else thresholds.get(number, np.inf)
            here = open_ & (self.confidence[line] >= least)
            right |= here & (self.said[line] == self.tokens)
            taken.append(float(here.mean()))
            open_ &= ~here
        return float(open_.mean()), float((right | open_).mean()), np.array(taken)

    def into(self, costs: Costs) -> Costs:
        """The same costs with what this evaluation knows better: survival of drafts, how a pass grows, the
        share of calls, and how often lossy modes differ from the cloud.
        """
        alone = self.pass_s(1, 1)
        found = replace(
            costs,
            verify_slope=(self.pass_s(1, 9) - alone) / (8 * alone),
            prefill_s=costs.decode_s / alone * (self.pass_s(1, 65) - alone) / 64,
            state_bytes=float(self.row_bytes),
        )
        wrong: dict[Mode, float] = {}
        if LOCAL in self.deciders:
            found = replace(found, survival=self.survival(), local_prefill_s=self.local_prefill_s)
            wrong[Mode.LOCAL] = 1.0 - self.agreement(LOCAL)
        elif self.exits:
            wrong[Mode.LOCAL] = 1.0 - self.agreement(self.deciders[self.exits[-1]])
        if self.exits:
            calls, agreement, _ = self.exit_curve()
            found = replace(found, calls=calls)
            wrong[Mode.EXIT] = 1.0 - agreement
        if SPLIT in self.deciders:
            wrong[Mode.SPLIT] = 1.0 - self.agreement(SPLIT)
        return replace(found, disagreement=tuple(wrong.items()))

    def save(self, path: Path | str) -> None:
        """Write all arrays to an `.npz` (no pickle inside)."""
        np.savez_compressed(
            path,
            schema=np.array(_SCHEMA),
            deciders=np.array(self.deciders, dtype="U16"),
            scalars=np.array([self.local_prefill_s, self.head_prefill_s, self.row_bytes, self.greedy], float),
            **{name: getattr(self, name) for name in _ARRAYS},
        )

    @classmethod
    def load(cls, path: Path | str) -> LanguageEvaluation:
        """Read what `save` wrote.

        Raises:
            RecordError: the file is missing, damaged or something else.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as data:
                if str(data["schema"]) != _SCHEMA:
                    raise ValueError(f"schema '{data['schema']}', wanted '{_SCHEMA}'")
                local, head, row, greedy = (float(x) for x in data["scalars"])
                arrays: dict[str, Any] = {
                    name: _typed(data[name], kind, name) for name, kind in _ARRAYS.items()
                }
                names = tuple(str(name) for name in data["deciders"])
            return cls(
                deciders=names, local_prefill_s=local, head_prefill_s=head, row_bytes=int(row),
                greedy=bool(greedy), **arrays,
            )  # fmt: skip
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise RecordError(f"{path} is no evaluation of a language model: {error}") from error
        except RecordError as error:
            raise RecordError(f"{path}: {error}") from error

    def __str__(self) -> str:
        lines = ["decider   agreement  S(1) S(2) S(4) S(8)        ms a token"]
        for i, name in enumerate(self.deciders):
            survives = self.survival(name, 8)
            shown = " ".join(f"{survives[k - 1]:.2f}" for k in (1, 2, 4, 8) if k <= len(survives))
            seconds = self.seconds[i][np.isfinite(self.seconds[i])]
            ms = f"{1e3 * float(np.median(seconds)):.2f}" if seconds.size else "-"
            lines.append(f"{name:<9} {self.agreement(name):>9.1%}  {shown:<20} {ms:>10}")
        lines.append(
            f"{len(self)} texts, {len(self.tokens)} tokens; a pass of the cloud over one token takes "
            f"{1e3 * self.pass_s(1, 1):.2f} ms, over 9 {1e3 * self.pass_s(1, 9):.2f} ms, over one each of 8 "
            f"contexts {1e3 * self.pass_s(8, 8):.2f} ms"
        )
        return "\n".join(lines)


def _typed(array: npt.NDArray[np.generic], kind: str, name: str) -> npt.NDArray[np.generic]:
    if array.dtype.kind != kind:
        raise ValueError(f"'{name}' is of the type {array.dtype}")
    return array.astype(np.int64 if kind == "i" else np.float64)
