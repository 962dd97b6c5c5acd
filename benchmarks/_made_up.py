"""A made-up deployment of a local model, an exit and a split behind that exit, for benchmarks without one."""

from __future__ import annotations

import numpy as np

from splitedge.evaluation import Evaluation
from splitedge.policy import Option, Route

OPTIONS = (
    Option(Route.LOCAL, accuracy=0.80, accuracy_measured=True, edge_s=0.040, edge_s_q95=0.050),
    Option(Route.EXIT, exit=0, accuracy=0.70, accuracy_measured=True, edge_s=0.005, edge_s_q95=0.006),
    Option(
        Route.SPLIT, cut="layer2", codec="int8", accuracy=0.93, accuracy_measured=True, edge_s=0.010,
        edge_s_q95=0.012, cloud_s=0.006, cloud_s_q95=0.009, bytes_up=4000, bytes_up_q95=4400, bytes_down=120,
    ),
)  # fmt: skip
ROWS = 1000


def evaluation() -> Evaluation:
    """Answers drawn so that each option is right as often as it says, surer where it is right more often."""
    draw = np.random.default_rng(0)
    accuracy = np.array([option.accuracy for option in OPTIONS])[:, None]
    sure = draw.beta(9 * accuracy, 9 * (1 - accuracy), (len(OPTIONS), ROWS))
    nbytes = np.array([option.bytes_up for option in OPTIONS])[:, None] * np.ones((1, ROWS))
    names = tuple(option.name for option in OPTIONS)
    return Evaluation(names, draw.random(sure.shape) < sure, sure, nbytes, np.zeros(ROWS, np.int64), OPTIONS)


ANSWERS = evaluation()
