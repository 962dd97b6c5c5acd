"""How the pictures of a report look: colours that colour-blind readers can tell apart, two themes, labels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from splitedge.errors import MissingExtra

#: Okabe and Ito, "Color Universal Design" (2008), without their black and yellow.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
#: One colour for each end a request can come to, dark to light from device to cloud; no answer is hatched.
END_COLOURS = {
    "local": "#0072B2",
    "exit": "#56B4E9",
    "nothing": "#CC79A7",
    "split": "#E69F00",
    "cloud": "#D55E00",
    "assist": "#009E73",
    "error": "#888888",
}
WIDTH = 5.6  # inches: text of 9 points stays readable when a phone shrinks it to its width
DPI = 160


@dataclass(frozen=True, slots=True)
class Theme:
    """Ink and paper."""

    name: str
    ink: str
    faint: str
    paper: str


LIGHT = Theme("light", "#1b1f24", "#c9ced6", "#ffffff")
DARK = Theme("dark", "#e6e9ee", "#444b57", "#14171c")


@contextmanager
def canvas(theme: Theme, height: float) -> Iterator[Any]:
    """A figure of `WIDTH` by `height` inches in the theme's colours.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("sim", "a report") from error
    style: Any = {
        "font.size": 9.0,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.5,
        "text.parse_math": False,  # a file called $x$ is no formula
        "axes.formatter.use_mathtext": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), theme.faint),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.paper),
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def png(figure: Any) -> bytes:
    """The figure as a PNG."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script the font lacks
        figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()


def shorten(name: str, most: int = 22) -> str:
    """A name of at most so many characters, cut in the middle."""
    clean = "".join(c if c.isprintable() else "?" for c in name)
    if len(clean) <= most:
        return clean
    head = most // 2
    return f"{clean[:head]}…{clean[len(clean) - (most - head - 1) :]}"


def spread_out(at: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move numbers apart so that neighbours differ by `gap`, within [low, high] if they fit."""
    order = sorted(range(len(at)), key=lambda i: at[i])
    placed = [at[i] for i in order]
    for k in range(1, len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + gap)
    if placed and placed[-1] > high:
        placed[-1] = high
        for k in range(len(placed) - 2, -1, -1):
            placed[k] = min(placed[k], placed[k + 1] - gap)
    result = [0.0] * len(at)
    for k, i in enumerate(order):
        result[i] = max(placed[k], low) if len(at) == 1 else placed[k]
    return result


@dataclass(frozen=True, slots=True)
class Label:
    """What is written beside the right edge of an axis for a point of it; `x` None is the edge itself."""

    y: float
    text: str
    colour: str
    x: float | None = None


def label_beside(axis: Any, labels: Sequence[Label]) -> None:
    """Write labels beside the right edge, apart from each other, each with a thin line to its point."""
    low, high = axis.get_ylim()
    step = (high - low) * min(0.09, 1.0 / max(1, len(labels)))
    heights = spread_out([label.y for label in labels], step, low, high)
    edge = axis.get_yaxis_transform()
    for label, height in zip(labels, heights, strict=True):
        inside = label.x is not None
        axis.annotate(
            label.text,
            xy=(label.x if inside else 1.0, label.y),
            xytext=(1.04, height),
            xycoords="data" if inside else edge,
            textcoords=edge,
            va="center",
            fontsize=8.5,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": label.colour,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 5 if inside else 0,
            },
        )
