"""The recorded uplinks of `traces/CORE.txt`, each with a round-trip time and a downlink of its kind.

An uplink and its RTT were mostly recorded apart: they are paired by carrier, radio and movement, not by time.
`prepare` writes both ways as CSV with the RTT beside the capacity, as the simulator and the pacer read them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from splitedge.sim.formats import read_trace
from splitedge.sim.traces import BIN_S, Trace

RTT = {
    # longest fitting beginning of an uplink's id -> recording of RTT, or milliseconds where none is at hand
    "mahimahi/ATT-LTE": "pam2025_rtt/drive2_atnt_1.rtt",
    "mahimahi/TMobile-LTE": "pam2025_rtt/drive2_tmobile_1.rtt",
    "mahimahi/Verizon-LTE": "pam2025_rtt/drive2_verizon_1.rtt",
    "mahimahi/TMobile-UMTS": 100.0,
    "mahimahi/Verizon-EVDO": 100.0,
    "nuwins_mmwave_uplink/driving_5g": "nuwins_mmwave_uplink/driving_5g_ping_run1.rtt",
    "nuwins_mmwave_uplink/driving_lte": "nuwins_mmwave_uplink/driving_lte_ping_run1.rtt",
    "nuwins_mmwave_uplink/walking_5g": "nuwins_mmwave_uplink/walking_5g_away_run2.rtt",
    "nuwins_mmwave_uplink/walking_lte": "nuwins_mmwave_uplink/walking_lte_away_run2.rtt",
    "nuwins_mmwave_uplink/static_5g": "nuwins_mmwave_uplink/static_5g_toward_p2_run1.rtt",
    "nuwins_mmwave_uplink/static_lte": "nuwins_mmwave_uplink/static_lte_toward_p2_run3.rtt",
    "satcell_starlink/": "fjordlink_starlink/2024-12-12-12-07-46.rtt",
    "starlink_autobahn/": "fjordlink_starlink/2024-12-12-12-07-46.rtt",
    "solis_wifi/": 10.0,
}


@dataclass(frozen=True, slots=True)
class Uplink:
    """One recorded uplink.

    Attributes:
        name: its id in CORE.txt.
        source: who recorded it: what is tuned on one source is reported on the others.
        technology: of the radio, as MANIFEST.csv says.
        rtt: a recording's id, or milliseconds that are assumed.
    """

    name: str
    source: str
    technology: str
    rtt: str | float


@dataclass(frozen=True, slots=True)
class Ready:
    """Both ways of a channel on disk, and how long the recording is."""

    uplink: Uplink
    up: Path
    down: Path
    seconds: float


def uplinks(traces: Path) -> list[Uplink]:
    """All uplinks of CORE.txt, in its order."""
    with (traces / "MANIFEST.csv").open(encoding="utf-8") as file:
        technology = {row["id"]: row["tech"] for row in csv.DictReader(file)}
    names = (traces / "CORE.txt").read_text(encoding="utf-8").split()
    return [
        Uplink(name, name.partition("/")[0], technology[name], _rtt_of(name))
        for name in names
        if name.endswith((".up", ".updown"))
    ]


def prepare(uplink: Uplink, traces: Path, folder: Path) -> Ready:
    """Write the two directions into `folder`; what is there already is taken."""
    stem = uplink.name.replace("/", "-").removesuffix(".up").removesuffix(".updown")
    up, down = folder / f"{stem}.up.csv", folder / f"{stem}.down.csv"
    sent = read_trace(traces / f"{uplink.name}.csv")
    if not down.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rtt = uplink.rtt if isinstance(uplink.rtt, float) else read_trace(traces / f"{uplink.rtt}.csv")
        back = traces / f"{uplink.name.removesuffix('.up')}.down.csv"
        _write(up, sent, "up", rtt)
        # Where no downlink was recorded the uplink's capacity stands for both ways: an outage is one of both.
        _write(down, read_trace(back) if back.exists() else sent, "down", rtt)
    return Ready(uplink, up, down, sent.duration_s)


def _rtt_of(name: str) -> str | float:
    return RTT[max((key for key in RTT if name.startswith(key)), key=len)]


def _write(path: Path, trace: Trace, way: str, rtt: float | Trace) -> None:
    curve = trace.capacity("up" if way == "up" or trace.down is None else "down")
    count = max(2, round(curve.period_s / BIN_S))
    edges = np.linspace(0.0, curve.period_s, count + 1)
    bits = np.array([curve.bits_by(t) for t in edges.tolist()])
    mbps = np.diff(bits) / np.diff(edges) / 1e6
    lines = ["t_s,mbps,rtt_ms"]
    for t, rate in zip(edges[:-1].tolist(), mbps.tolist(), strict=True):
        delay = rtt if isinstance(rtt, float) else 1e3 * rtt.rtt.at(t) if rtt.rtt is not None else 0.0
        lines.append(f"{t:.3f},{max(0.0, rate):.6g},{delay:.4g}")
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
