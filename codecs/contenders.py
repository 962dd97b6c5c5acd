"""Who takes part in the rate-distortion bench: one line each. Edit here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["ours", "published", "baseline"]
#: Places that every subject of the bench names in its own model: its input, three cuts in order, and the cut
#: that learned codecs reproduce.
Place = Literal["input", "early", "middle", "late", "learned"]


@dataclass(frozen=True, slots=True)
class Contender:
    """One codec of the bench. A learned one is trained, once, with the options given here.

    Attributes:
        name: unique; what `--only` takes.
        family: contenders of one family make a curve.
        codec: registered name.
        kind: ours, published (a recipe of the literature, trained in the same run) or baseline.
        cut: where it stands, or what a learned codec reproduces, while it reads the model's input.
        options: of the codec.
        quick: whether it takes part in `--quick`.
        dedicated: number of the level of family `slimmable` that this contender was made for alone; the
            difference is what serving all levels with one model costs.
    """

    name: str
    family: str
    codec: str
    kind: Kind
    cut: Place
    options: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    dedicated: int | None = None


QUALITIES = (1, 5, 10, 20, 30, 50, 70, 80, 90, 95)


def bottleneck(name: str, *, quick: bool = False, **options: Any) -> Contender:
    """One of ours."""
    return Contender(name, "bottleneck", "bottleneck", "ours", "learned", options, quick)


def recipe(name: str, family: str, codec: str, **options: Any) -> Contender:
    """A published one, at the same cut."""
    return Contender(name, family, codec, "published", "learned", options)


#: Without training. Images first: they are what a learned codec has to beat.
BASELINES = (
    Contender("webp", "webp", "webp", "baseline", "input", {"qualities": QUALITIES}, quick=True),
    Contender("jpeg", "jpeg", "jpeg", "baseline", "input", {"qualities": QUALITIES}),
    Contender("png", "png", "png", "baseline", "input", quick=True),
    *(
        Contender(f"{codec} {cut}", f"{codec} {cut}", codec, "baseline", cut, quick=cut == "late")
        for codec in ("raw", "int8", "int4", "bounded")
        for cut in ("early", "middle", "late")
    ),
)

#: Ours. One contender of `bottleneck` is one rate; the others have levels.
OURS = (
    bottleneck("bottleneck 1x2", channels=1, bits=2),
    bottleneck("bottleneck 2x2", channels=2, bits=2),
    bottleneck("bottleneck 4x2", channels=4, bits=2),
    bottleneck("bottleneck 4x3", quick=True, channels=4, bits=3),
    bottleneck("bottleneck 4x4", channels=4, bits=4),
    Contender("slimmable", "slimmable", "slimmable", "ours", "learned", quick=True),
    *(
        Contender(f"dedicated {i}", "dedicated", "slimmable", "ours", "learned", {"only": i}, dedicated=i)
        for i in range(4)
    ),
    *(
        Contender(f"entropic {n} B", "entropic", "entropic", "ours", "learned", {"nbytes": n, "channels": 8})
        for n in (31, 44, 62, 92)
    ),
    Contender("tokens", "tokens", "tokens", "ours", "learned", quick=True),
    Contender("tokens middle", "tokens middle", "tokens", "ours", "middle"),
)

#: Recipes of the literature: same data, budget and encoder place.
PUBLISHED = (
    *(recipe(f"CR+BQ {c}", "CR+BQ", "bottleneck", recipe="cr-bq", channels=c) for c in (1, 2, 4, 8)),
    *(
        recipe(f"BottleFit {c}", "BottleFit", "bottleneck", recipe="bottlefit", channels=c)
        for c in (1, 2, 4, 8)
    ),
    *(
        recipe(f"Entropic Student {beta:g}", "Entropic Student", "entropic", recipe="student", beta=beta)
        for beta in (0.1, 0.5, 1.0, 2.0)
    ),
)

CONTENDERS = (*BASELINES, *OURS, *PUBLISHED)
