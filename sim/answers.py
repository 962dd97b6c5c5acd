"""An evaluation as the simulator asks it: what one option says to one row."""

from __future__ import annotations

import math

import numpy as np

from splitedge.errors import ConfigError
from splitedge.evaluation import Evaluation


class Answers:
    """Confidence, bytes and correctness by option and row, as Python numbers.

    Args:
        evaluation: of all options of a deployment.

    Raises:
        ConfigError: it has no rows, lacks the option table or the bytes of a remote option, or holds a
            confidence that is none.

    Attributes:
        confidence, correct: by option, then row.
        bytes_down: of a reply, by option.
        index: of each option, by its name.
        features: cheap numbers of each row's input; None where the evaluation holds none.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        _check(evaluation)
        table = evaluation.table
        self.confidence: list[list[float]] = evaluation.confidence.tolist()
        self.correct: list[list[bool]] = evaluation.correct.tolist()
        self.bytes_down = [round(option.bytes_down) for option in table]
        self.index = {option.name: i for i, option in enumerate(table)}
        found = evaluation.features
        self.features = None if found is None else [tuple(row) for row in found.tolist()]
        self._gated = [option.gate is not None for option in table]
        self._nbytes: list[list[int]] = [
            np.rint(evaluation.nbytes[i]).astype(np.int64).tolist() if option.remote else []
            for i, option in enumerate(table)
        ]

    def encoded(self, option: int, row: int) -> tuple[float, int]:
        """What the encoder of an option gives: the confidence of its filter, NaN where the payload is to be
        sent, and the framed bytes of the message.
        """
        nbytes = self._nbytes[option][row]
        if nbytes or not self._gated[option]:
            return math.nan, nbytes
        return self.confidence[option][row], 0


def _check(evaluation: Evaluation) -> None:
    table = evaluation.table
    again = "evaluate the deployment again with this version: `deployment.evaluate(data).save(path)`"
    if not table:
        raise ConfigError(f"the evaluation has no option table; {again}")
    if not len(evaluation.labels):
        raise ConfigError(f"the evaluation has no rows; {again}")
    if len({option.name for option in table}) != len(table):
        raise ConfigError("two options of the evaluation have the same name")
    for i, option in enumerate(table):
        sure = evaluation.confidence[i]
        if np.any((sure < 0.0) | (sure > 1.0)):
            raise ConfigError(f"the evaluation has a confidence outside [0, 1] for {option.name}")
        nbytes = evaluation.nbytes[i]
        least = 0.0 if option.gate is not None else 1.0
        if option.remote and not np.all((nbytes >= least) & np.isfinite(nbytes)):
            raise ConfigError(
                f"the evaluation does not know the bytes of {option.name} for every row; "
                "evaluate with sizes=True"
            )
