"""What the records say of device and cloud around each request, so that another policy meets the same.

Seconds of an option are the deployment's own, times how much slower than its profile that option was in the
records, times how much slower than usual the device was around that request. So another policy meets the
same busy minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitedge.evaluation import Evaluation
from splitedge.policy import Option, Route
from splitedge.power import PROFILES, PowerModel, power_profile
from splitedge.sim.replay_records import NONE, Bools, Floats, Recorded

#: An option seen this often in the records has figures of its own.
ENOUGH = 5
_TOLERANCE = 1e-6  # relative, of joules that a power profile must reproduce
_LIMITS = (0.02, 50.0)  # of a slowdown: outside of it a record says nothing of the stage


@dataclass(frozen=True, eq=False)
class Conditions:
    """Device and cloud around each of n requests, for m options.

    Attributes:
        edge_s: seconds on the device up to the answer or payload by each option, (m, n).
        cloud_s: seconds of decode and tail, (m, n).
        queue_s: seconds of waiting in the cloud around each request, (n,).
        hand_s: seconds that the shell takes for handing over one stage, (n,).
        more_up: framed bytes of one row in the records less those of the evaluation, (m,).
        bytes_down: framed bytes of a reply for one row, (m,).
        ran: whether the option answered requests in the records, (m,).
        power: charges joules.
        power_known: whether it reproduces the joules of the records.
    """

    edge_s: Floats
    cloud_s: Floats
    queue_s: Floats
    hand_s: Floats
    more_up: Floats
    bytes_down: Floats
    ran: Bools
    power: PowerModel
    power_known: bool


def conditions(recorded: Recorded, evaluation: Evaluation, power: str | None = None) -> Conditions:
    """Take the conditions from the records.

    Args:
        recorded: the requests.
        evaluation: of the deployment, with its option table.
        power: name of a power profile; None finds the one that reproduces the records' joules.

    Raises:
        UnknownName: there is no such profile.
    """
    options = evaluation.table
    table, decided = recorded.table, recorded.decided
    plain = (decided.error == "") & ~decided.degraded & (decided.option != NONE)
    remote = np.array([option.remote for option in options])
    by_cloud = plain & remote[decided.option] & (table["tail_s"] + table["decode_s"] > 0.0)
    computed = table["head_s"] + table["encode_s"]
    expected, told = _expected(recorded, options, plain, computed)
    device, device_pace = _paces(recorded, told, computed, expected, len(options))
    cloud_row = np.array([option.cloud_s for option in options])
    cloud: Floats = np.asarray(cloud_row[decided.option] * recorded.rows, float)
    server, server_pace = _paces(recorded, by_cloud, table["decode_s"] + table["tail_s"], cloud, len(options))
    rows = recorded.rows[None, :]
    edge_s = np.array([option.edge_s for option in options])[:, None] * rows * device[:, None] * device_pace
    cloud_s = np.array([option.cloud_s for option in options])[:, None] * rows * server[:, None] * server_pace
    found, known = _power(recorded, power)
    up, down = _bytes(recorded, evaluation, plain)
    return Conditions(
        edge_s=edge_s,
        cloud_s=cloud_s,
        queue_s=nearest(recorded.t_s, by_cloud, table["queue_s"], 0.0),
        hand_s=_hand_over(recorded, plain),
        more_up=up,
        bytes_down=down,
        ran=np.bincount(decided.option[plain], minlength=len(options)) >= ENOUGH,
        power=found,
        power_known=known,
    )


def nearest(t_s: Floats, valid: Bools, values: Floats, default: float) -> Floats:
    """For each request the value of the request nearest in time for which there is one, (n,)."""
    at = np.flatnonzero(valid)
    if not at.size:
        return np.full(len(t_s), default)
    times = t_s[at]
    after = np.clip(np.searchsorted(times, t_s), 0, len(at) - 1)
    before = np.maximum(after - 1, 0)
    near = np.where(np.abs(times[before] - t_s) <= np.abs(times[after] - t_s), before, after)
    # A request of its own is nearer than another at the same moment.
    return np.where(valid, values, np.asarray(values[at[near]], float))


def _expected(
    recorded: Recorded, options: tuple[Option, ...], plain: Bools, computed: Floats
) -> tuple[Floats, Bools]:
    """Profiled seconds of what the device computed for each request, and for which it can be told, (n,) each.

    A request that the cloud answered may have had its fall-back computed meanwhile; the records do not say
    so. Of both readings the one is taken whose slowdown is nearer to that of the other requests. One that
    fell back after it was sent computed both for sure.
    """
    decided, rows = recorded.decided, recorded.rows
    edge = np.array([o.edge_s for o in options])
    remote = np.array([o.remote for o in options])
    found: Floats = np.asarray(edge[decided.option] * rows, float)
    fell = decided.degraded & (recorded.table["attempts"] >= 1) & remote[decided.target]
    fell &= (decided.option != NONE) & ~remote[decided.option]
    both = np.array([[_together(one, other) for other in options] for one in options])
    found[fell] = both[decided.target[fell], decided.option[fell]] * rows[fell]
    sure = (fell | (plain & ~remote[decided.option])) & (found > 0.0)
    for i in np.unique(decided.option[plain & remote[decided.option]]).tolist():
        mine = np.flatnonzero(plain & (decided.option == i) & (computed > 0.0))
        if not mine.size or edge[i] <= 0.0:
            continue
        slower = computed[mine] / found[mine]
        usual = np.median(computed[sure] / found[sure]) if sure.sum() >= ENOUGH else np.quantile(slower, 0.2)
        readings = np.array([edge[i], *both[i, ~remote]])
        off = np.abs(np.log(computed[mine] / rows[mine])[:, None] - np.log(usual * readings)[None, :])
        found[mine] = readings[np.argmin(off, axis=1)] * rows[mine]
    return found, (plain | fell) & (found > 0.0)


def _together(option: Option, fallback: Option) -> float:
    """Seconds of an option and a fall-back; an exit of the same head goes on from where that is."""
    if option.route is Route.SPLIT and fallback.route is Route.EXIT:
        return max(option.edge_s, fallback.edge_s)
    return option.edge_s + fallback.edge_s


def _paces(
    recorded: Recorded, valid: Bools, seconds: Floats, expected: Floats, count: int
) -> tuple[Floats, Floats]:
    """How much slower than its profile each option was (m,), and than that each moment (n,)."""
    ratio = np.divide(seconds, expected, out=np.full(len(recorded), np.nan), where=expected > 0.0)
    valid = valid & (ratio > _LIMITS[0]) & (ratio < _LIMITS[1])
    whole = float(np.median(ratio[valid])) if valid.any() else 1.0
    usual = np.full(count, whole)
    for i in range(count):
        mine = ratio[valid & (recorded.decided.option == i)]
        if len(mine) >= ENOUGH:
            usual[i] = np.median(mine)
    relative = ratio / usual[recorded.decided.option]
    return usual, nearest(recorded.t_s, valid, relative, 1.0)


def _hand_over(recorded: Recorded, valid: Bools) -> Floats:
    """Seconds a stage around each request which none of its parts accounts for: the shell's hand-overs, (n,).

    From requests that were alone; the others' rest holds their waiting for the device.
    """
    table = recorded.table
    parts = ("head_s", "encode_s", "uplink_s", "queue_s", "decode_s", "tail_s", "downlink_s")
    rest = table["latency_s"] - sum(table[name] for name in parts)
    alone = valid & recorded.isolated & (table["attempts"] <= 1) & (rest >= 0.0)
    stages = np.where(recorded.decided.planned == recorded.decided.option, 1.0, 2.0)
    return nearest(recorded.t_s, alone, rest / stages, 0.0)


def _bytes(recorded: Recorded, evaluation: Evaluation, plain: Bools) -> tuple[Floats, Floats]:
    """Framed bytes that the records have more than the evaluation for one row up, and all of them down, (m,).

    How messages are framed and encrypted is the same for every option, so options that were not recorded get
    the difference of those that were.
    """
    options, table, option = evaluation.table, recorded.table, recorded.decided.option
    up, down = np.full(len(options), np.nan), np.array([o.bytes_down for o in options])
    down_more = np.full(len(options), np.nan)
    for i, one in enumerate(options):
        mine = plain & (option == i) & (table["attempts"] == 1)
        if not one.remote or mine.sum() < ENOUGH:
            continue
        sizes = payload_bytes(evaluation, i)
        usual = float(sizes[sizes > 0.0].mean()) if (sizes > 0.0).any() else 0.0
        up[i] = float((table["bytes_up"][mine] / recorded.rows[mine]).mean()) - usual
        down_more[i] = float(np.median(table["bytes_down"][mine] / recorded.rows[mine])) - down[i]
    for more in (up, down_more):
        more[np.isnan(more)] = np.nanmedian(more) if np.isfinite(more).any() else 0.0
    return up, down + down_more


def payload_bytes(evaluation: Evaluation, option: int) -> Floats:
    """Framed bytes of each row of the evaluation by an option, (rows,); its mean where not measured."""
    return np.where(
        np.isnan(evaluation.nbytes[option]), evaluation.table[option].bytes_up, evaluation.nbytes[option]
    )


def _power(recorded: Recorded, name: str | None) -> tuple[PowerModel, bool]:
    if name is not None:
        return power_profile(name), True
    table = recorded.table
    quiet = (table["bytes_up"] == 0) & (table["bytes_down"] == 0)
    compute = table["head_s"] + table["encode_s"]
    for model in PROFILES.values():
        least = compute * model.compute_w + 8.0 * (
            table["bytes_up"] * model.j_per_bit_up + table["bytes_down"] * model.j_per_bit_down
        )
        most = least + np.where(
            quiet, 0.0, 2.0 * model.tail_w * model.tail_s * np.maximum(1, table["attempts"])
        )
        joules, slack = table["energy_j"], _TOLERANCE * np.maximum(least, 1e-9)
        if np.all(joules >= least - slack) and np.all(joules <= most + slack):
            return model, True
    return PowerModel(), False
