"""What a deployment answers with."""

from __future__ import annotations

from dataclasses import dataclass

from splitedge.llm.modes import Mode


@dataclass(frozen=True)
class Text:
    """An answer, with what it took. Seconds, bytes as framed, joules as modelled; NaN where not known.

    Attributes:
        text: without the prompt.
        ids: of the text. sources: where each came from: `local`, `exit:0`, `draft` (the device's, found
            right by the cloud), `cloud`.
        finish: `stop` or `length`.
        mode: it was written in. why: how that was chosen, one readable sentence.
        degraded: whether it is not by the mode wanted, all of it. reason: why.
        asks: messages to the cloud that waited for an answer. cloud_tokens: chosen by the cloud.
        proposed, accepted: drafts.
        ttft_s: to the first token. tpot_s: for each further one, on average. total_s: all.
    """

    text: str
    ids: tuple[int, ...]
    sources: tuple[str, ...]
    finish: str
    mode: Mode
    why: str
    degraded: bool
    reason: str
    asks: int
    cloud_tokens: int
    proposed: int
    accepted: int
    bytes_up: int
    bytes_down: int
    energy_j: float
    ttft_s: float
    tpot_s: float
    total_s: float
    prompt_tokens: int
