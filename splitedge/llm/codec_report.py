"""All codecs of hidden states side by side, on text that none of them learned from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from splitedge.llm.bottleneck_training import BottleneckSchedule, train_bottleneck
from splitedge.llm.codec_quality import CodecQuality, plain_of, quality, states_of, through
from splitedge.llm.exits import beginning_of, written_texts
from splitedge.llm.halves import split_language_model
from splitedge.llm.state_codecs import STATE_CODECS, Int4States, state_codec


def codec_table(
    model: nn.Module,
    cuts: Sequence[int],
    sizes: Sequence[int] | None = None,
    texts: int = 512,
    length: int = 128,
    epochs: int = 4,
    seed: int = 0,
) -> list[tuple[int, CodecQuality]]:
    """Each cut's codecs: fp32 to int4, then for each size plain integers and a bottleneck of as many bytes.

    Args:
        model: see `splitedge.llm.anatomy.anatomy_of`.
        cuts: blocks before each.
        sizes: bytes of a bottleneck's row; int4's where not given.
        texts, length: the model writes to learn from; a quarter as many to judge by.
        epochs, seed: of training.

    Raises:
        ConfigError: a size can not be had.
    """
    found: list[tuple[int, CodecQuality]] = []
    for cut in cuts:
        head, tail, anatomy = split_language_model(model, cut)
        hidden = anatomy.hidden
        size = min(length, anatomy.context)
        other = written_texts(
            head, tail, anatomy, max(4, texts // 4), size, seed + 500, beginning_of(anatomy)
        )
        ways = []
        for name in STATE_CODECS:
            plain = state_codec(name, hidden)
            ways.append((name, plain.width, through(plain)))
        for width in sizes or [Int4States(hidden).width]:
            name, taken, change = plain_of(width, hidden)
            if name != "int4-g16":
                ways.append((name, taken, change))
            plan = BottleneckSchedule(texts=texts, length=length, epochs=epochs, seed=seed)
            made, _ = train_bottleneck(head, tail, anatomy, width, schedule=plan)
            ways.append(("bottleneck", made.width, through(made)))
        found += [(cut, row) for row in quality(tail, states_of(head, other).float(), ways)]
    return found
