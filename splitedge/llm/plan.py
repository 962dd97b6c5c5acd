"""Which mode, and how many drafts: predicted from what was measured of link, device, cloud and models.

Across a wide link, streaming pays the round trip once and speculation every round; what wins is arithmetic.
As in speculative decoding (Leviathan et al., ICML 2023) a round of k drafts is expected to bring
E[n] = 1 + S(1) + ... + S(k) tokens, where S(i) is the probability that the first i drafts are all accepted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from splitedge.errors import ConfigError
from splitedge.llm.modes import MAX_DRAFTS, Mode

#: Framed bytes of an ask and of a tell beside tokens, with CURVE.
ASK_BYTES, TELL_BYTES = 95.0, 75.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured, or is assumed. Seconds, bytes, bits/s, joules.

    Attributes:
        rtt_s: round trip without transmission.
        up_bps, down_bps: goodput.
        draft_s: one token by the device's draft or local model.
        head_s: one token by the device's head (split, exit); inf where there is none.
        decode_s: one token by the cloud, alone.
        verify_slope: how much a pass grows with each draft, as a part of `decode_s`.
        prefill_s: one prompt token by the cloud.
        local_prefill_s: one prompt token by the device.
        survival: probability that the first i drafts are all accepted, i = 1, 2, ...; longer ones go on by
            the last ratio.
        calls: share of tokens for which `exit` and `assist` ask the cloud.
        disagreement: of each lossy mode: share of tokens that the cloud would have chosen otherwise.
        state_bytes: of a token's hidden state as sent; 4 where ids are.
        compute_w: watts of the device's compute above idle.
        j_per_bit_up, j_per_bit_down: of the radio.
        queue_s: waited in the cloud, each time.
    """

    rtt_s: float
    up_bps: float
    down_bps: float
    decode_s: float
    prefill_s: float
    draft_s: float = math.inf
    head_s: float = math.inf
    verify_slope: float = 0.03
    local_prefill_s: float = 0.0
    survival: tuple[float, ...] = (0.7,)
    calls: float = 0.5
    disagreement: tuple[tuple[Mode, float], ...] = ()
    state_bytes: float = 4.0
    compute_w: float = 0.0
    j_per_bit_up: float = 0.0
    j_per_bit_down: float = 0.0
    queue_s: float = 0.0

    def __post_init__(self) -> None:
        if not (self.up_bps > 0 and self.down_bps > 0 and self.rtt_s >= 0 and self.decode_s > 0):
            raise ConfigError("rates and the cloud's time must be above 0, the round trip 0 or more")

    def survives(self, i: int) -> float:
        """S(i): probability that the first i drafts are all accepted."""
        if i <= len(self.survival):
            return self.survival[i - 1]
        last = self.survival[-1]
        ratio = last / self.survival[-2] if len(self.survival) > 1 and self.survival[-2] > 0 else last
        return last * ratio ** (i - len(self.survival))

    def expected(self, drafts: int) -> float:
        """E[n]: tokens that a round brings, the cloud's own included."""
        return 1.0 + sum(self.survives(i) for i in range(1, drafts + 1))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a way of writing a text is predicted to take.

    Attributes:
        mode, drafts: the way; drafts is 0 but for `spec`.
        ttft_s: to the first token. tpot_s: for each further one. total_s: for all.
        cloud_passes: of the cloud's model over one token or several.
        bytes_up, bytes_down: framed.
        joules: of the device, idle not counted.
        disagreement: share of tokens that the cloud would have chosen otherwise; 0 for lossless modes.
    """

    mode: Mode
    drafts: int
    ttft_s: float
    tpot_s: float
    total_s: float
    cloud_passes: float
    bytes_up: float
    bytes_down: float
    joules: float
    disagreement: float = 0.0


def forecast(costs: Costs, mode: Mode, prompt: int, tokens: int, drafts: int = 4) -> Forecast:
    """Predict one way.

    Args:
        costs: see there.
        mode: the way.
        prompt: tokens of the prompt.
        tokens: of the answer, at least 1.
        drafts: a round (`spec`).
    """
    c = costs
    lost = dict(c.disagreement).get(mode, 0.0 if mode.lossless else 1.0)
    if mode is Mode.LOCAL:
        first = prompt * c.local_prefill_s + c.draft_s
        busy = first + (tokens - 1) * c.draft_s
        return _made(c, mode, 0, first, c.draft_s, tokens, 0.0, 0.0, 0.0, busy, lost)
    up, down = 8.0 / c.up_bps, 8.0 / c.down_bps
    beyond = c.rtt_s + c.queue_s
    if mode is Mode.STREAM:
        sent = ASK_BYTES + 4.0 * prompt
        each = max(c.decode_s, (TELL_BYTES + 4.0) * down)
        first = sent * up + beyond + prompt * c.prefill_s + c.decode_s + (TELL_BYTES + 4.0) * down
        return _made(c, mode, 0, first, each, tokens, tokens, sent, tokens * (TELL_BYTES + 4.0), 0.0, lost)
    if mode is Mode.SPEC:
        brings = c.expected(drafts)
        verify = c.decode_s * (1.0 + c.verify_slope * drafts)
        sent, got = ASK_BYTES + 4.0 * drafts, TELL_BYTES + 4.0
        a_round = drafts * c.draft_s + sent * up + beyond + verify + got * down
        rounds = tokens / brings
        # The prompt goes ahead while the device drafts; both must be done before the first verification.
        ahead = (ASK_BYTES + 4.0 * prompt) * up + prompt * c.prefill_s
        drafting = prompt * c.local_prefill_s + drafts * c.draft_s
        first = max(ahead, drafting) + sent * up + beyond + verify + got * down
        busy = prompt * c.local_prefill_s + rounds * drafts * c.draft_s
        bytes_up = ASK_BYTES + 4.0 * prompt + rounds * sent
        each = a_round / brings
        return _made(c, mode, drafts, first, each, tokens, rounds, bytes_up, rounds * got, busy, lost)
    row = c.state_bytes
    got = TELL_BYTES + 4.0
    if mode is Mode.SPLIT:
        each = c.head_s + (ASK_BYTES + row) * up + beyond + c.decode_s + got * down
        prefill = max(prompt * c.local_prefill_s, prompt * row * up) + prompt * c.prefill_s
        bytes_up = (ASK_BYTES + row) * tokens + prompt * row
        busy = prompt * c.local_prefill_s + tokens * c.head_s
        return _made(c, mode, 0, prefill + each, each, tokens, tokens, bytes_up, got * tokens, busy, lost)
    step = c.head_s if mode is Mode.EXIT else c.draft_s
    call = ASK_BYTES * up + beyond + c.decode_s * (1.0 + c.verify_slope / max(c.calls, 1e-9)) + got * down
    each = max(step + c.calls * call, row * up)  # the upload of every token bounds it from below
    first = prompt * c.local_prefill_s + step + c.calls * (call + prompt * row * up + prompt * c.prefill_s)
    calls = c.calls * tokens
    bytes_up = row * (prompt + tokens) + ASK_BYTES * calls
    busy = prompt * c.local_prefill_s + tokens * step
    return _made(c, mode, 0, first, each, tokens, calls, bytes_up, got * calls, busy, lost)


def _made(
    c: Costs, mode: Mode, drafts: int, first: float, each: float, tokens: int, passes: float,
    up: float, down: float, busy_s: float, lost: float,
) -> Forecast:  # fmt: skip
    joules = busy_s * c.compute_w + 8.0 * (up * c.j_per_bit_up + down * c.j_per_bit_down)
    total = first + (tokens - 1) * each
    if mode is Mode.SPEC:  # a round brings several tokens at once
        total = first + max(0.0, tokens - c.expected(drafts)) * each
    return Forecast(mode, drafts, first, each, total, passes, up, down, joules, lost)


@dataclass(frozen=True, slots=True)
class Objective:
    """What is made small.

    Attributes:
        seconds_per_joule: how many seconds a joule is worth.
        seconds_per_pass: how many seconds a pass of the cloud is worth (its price).
        most_disagreement: share of tokens that may differ from the cloud's; 0 takes lossless modes only.
        low_battery: below this charge a joule is worth ten times as much, below a quarter of it a hundred.
    """

    seconds_per_joule: float = 0.0
    seconds_per_pass: float = 0.0
    most_disagreement: float = 0.0
    low_battery: float = 0.2

    def cost(self, found: Forecast, battery: float = math.nan) -> float:
        """Seconds that a forecast is worth; inf where it differs too much."""
        if found.disagreement > self.most_disagreement or not math.isfinite(found.total_s):
            return math.inf
        worth = self.seconds_per_joule
        if battery < self.low_battery:
            worth = max(worth, 0.01) * (100.0 if battery < self.low_battery / 4 else 10.0)
        return found.total_s + worth * found.joules + self.seconds_per_pass * found.cloud_passes


def best_drafts(costs: Costs, most: int = MAX_DRAFTS) -> int:
    """Drafts a round that make a token cheapest; 0 where none does."""
    if not math.isfinite(costs.draft_s):
        return 0
    best, least = 0, math.inf
    for drafts in range(1, most + 1):
        each = forecast(costs, Mode.SPEC, 1, 1000, drafts).tpot_s
        if each < least:
            best, least = drafts, each
    return best


@dataclass(frozen=True, slots=True)
class Choice:
    """The way chosen, and why.

    Attributes:
        best: its forecast.
        others: all forecasts that were weighed, the best first.
        why: one readable sentence.
    """

    best: Forecast
    others: tuple[Forecast, ...]
    why: str


def choose_mode(
    costs: Costs,
    modes: Sequence[Mode],
    prompt: int,
    tokens: int,
    *,
    objective: Objective | None = None,
    battery: float = math.nan,
    up: bool = True,
    most_drafts: int = 16,
) -> Choice:
    """Weigh the modes that a deployment has.

    Args:
        costs: as measured.
        modes: that can be had.
        prompt, tokens: lengths.
        objective: what is made small; total time where nobody says.
        battery: fraction of charge, NaN on mains.
        up: whether the cloud is in reach; without it only `local` is.
        most_drafts: of `spec`.

    Raises:
        ConfigError: no mode is left.
    """
    aim = objective if objective is not None else Objective()
    usable = [m for m in modes if up or m is Mode.LOCAL]
    if not usable:
        raise ConfigError("the cloud is out of reach and the device has no model to go on by")
    found = []
    for mode in usable:
        counts: Sequence[int] = range(1, most_drafts + 1) if mode is Mode.SPEC else (0,)
        tried = [forecast(costs, mode, prompt, tokens, count) for count in counts]
        found.append(min(tried, key=lambda f: aim.cost(f, battery)))
    if not up:
        aim = replace(aim, most_disagreement=1.0)
    ranked = sorted(found, key=lambda f: (aim.cost(f, battery), f.total_s))
    best = ranked[0]
    if aim.cost(best, battery) == math.inf:
        least = min(ranked, key=lambda f: f.disagreement)
        raise ConfigError(
            f"no mode differs from the cloud in at most {aim.most_disagreement:.1%} of tokens; "
            f"{least.mode} does in {least.disagreement:.1%}"
        )
    return Choice(best, tuple(ranked), _why(costs, best, ranked, battery, up))


def _why(costs: Costs, best: Forecast, ranked: Sequence[Forecast], battery: float, up: bool) -> str:
    name = f"{best.mode} with {best.drafts} drafts a round" if best.drafts else f"{best.mode}"
    if not up:
        return f"{name}: the cloud is out of reach"
    link = f"RTT {1e3 * costs.rtt_s:.0f} ms, {costs.up_bps / 1e6:.2f} Mbit/s up"
    said = f"{name} is predicted to take {best.total_s:.2f} s ({link})"
    if len(ranked) > 1 and math.isfinite(ranked[1].total_s):
        second = ranked[1]
        said += f", {second.mode} {second.total_s:.2f} s"
    if battery == battery:
        said += f"; battery at {battery:.0%}"
    return said


def break_even_rtt(costs: Costs, drafts: int) -> float:
    """RTT in seconds below which `spec` writes a token faster than `cloud_stream`; negative for never.

    Both cost the same where k t_d + R + t_v(k) + transmission = E[n] t_c.
    """
    spec = forecast(replace(costs, rtt_s=0.0), Mode.SPEC, 1, 1000, drafts).tpot_s
    stream = forecast(costs, Mode.STREAM, 1, 1000).tpot_s
    return (stream - spec) * costs.expected(drafts)
