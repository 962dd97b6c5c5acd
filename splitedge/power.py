"""What a request costs the device in joules, modelled from measured slopes; batteries and meters.

Every figure of a record is *modelled*: seconds and bits that were counted, times a profile's watts and
joules per bit. A meter (`RaplMeter`, a battery) measures the whole device and is reported beside it,
never mixed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from splitedge.errors import ConfigError, UnknownName


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Marginal cost of computing and of the radio on one device.

    Attributes:
        name: of the profile.
        compute_w: watts above idle while the device computes.
        idle_w: watts of the idle device. Counted apart (`idle_joules`), never in a request's energy.
        j_per_bit_up, j_per_bit_down: joules a transferred bit adds.
        tail_w, tail_s: after its last transfer the radio stays awake for `tail_s` seconds at `tail_w`
            watts above sleep. A transfer inside that time only prolongs it.
        source: where each figure comes from, and which are assumed.
    """

    name: str = "none"
    compute_w: float = 0.0
    idle_w: float = 0.0
    j_per_bit_up: float = 0.0
    j_per_bit_down: float = 0.0
    tail_w: float = 0.0
    tail_s: float = 0.0
    source: str = "nothing is charged"

    def __post_init__(self) -> None:
        for field in ("compute_w", "idle_w", "j_per_bit_up", "j_per_bit_down", "tail_w", "tail_s"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0.0):
                raise ConfigError(
                    f"power profile '{self.name}': {field} must be finite and >= 0, got {value}"
                )

    def joules(self, compute_s: float, bytes_up: float, bytes_down: float) -> float:
        """Joules of compute and of moved bits, without the radio's tail (see `tail_joules`)."""
        bits = bytes_up * self.j_per_bit_up + bytes_down * self.j_per_bit_down
        return compute_s * self.compute_w + 8.0 * bits

    def tail_joules(self, gap_s: float) -> float:
        """Joules of the radio's tail that one more transfer causes.

        Args:
            gap_s: seconds since the transfer before it (inf for the first). A radio that slept pays a
                whole tail; one still awake pays for the seconds by which the tail is prolonged.
        """
        if gap_s < 0.0:
            gap_s = 0.0
        return self.tail_w * (gap_s if gap_s < self.tail_s else self.tail_s)

    def idle_joules(self, seconds: float) -> float:
        """Joules the device would have spent in that time anyway."""
        return self.idle_w * seconds


_SIGCOMM = (
    "measured: slope of a least-squares fit of whole-phone power over iPerf rate, data of Narayanan et al., "
    "'A Variegated Look at 5G in the Wild', SIGCOMM 2021 (Monsoon monitor, Verizon, Minneapolis; {fit}). "
)
_PHONE = (
    "assumed: {compute} W of compute above idle and 1.0 W idle (a phone's big cores), "
    "a tail of {tail_w} W after a transfer"
)


_TAIL = (
    "measured: a radio left alone sleeps after {tail_s} s (RTT over idle interval, same data, {where}: the "
    "first round trip then takes over 1 s). "
)


def _phone(name: str, up_mw: float, down_mw: float, tail: tuple[float, float, str], fit: str) -> PowerModel:
    """A phone whose radio costs `up_mw` and `down_mw` milliwatts a Mbit/s: 1 mW/(Mbit/s) is 1 nJ/bit."""
    tail_w, tail_s, where = tail
    return PowerModel(
        name=name,
        compute_w=2.5,
        idle_w=1.0,
        j_per_bit_up=up_mw * 1e-9,
        j_per_bit_down=down_mw * 1e-9,
        tail_w=tail_w,
        tail_s=tail_s,
        source=_SIGCOMM.format(fit=fit)
        + _TAIL.format(tail_s=tail_s, where=where)
        + _PHONE.format(compute=2.5, tail_w=tail_w),
    )


_LTE_TAIL = (0.6, 10.1, "Verizon 4G")
_LOW_TAIL = (0.6, 10.2, "Verizon 5G NSA low band")
_MMWAVE_TAIL = (1.0, 10.2, "low band; assumed to hold for mmWave")

PROFILES: dict[str, PowerModel] = {
    model.name: model
    for model in (
        PowerModel(),
        _phone("phone-lte", 76.68, 11.54, _LTE_TAIL, "up r=0.74, 663 rows; down r=0.64, 1,071 rows"),
        _phone("phone-5g-low", 32.17, 11.54, _LOW_TAIL, "up r=0.74, 255 rows; down r=0.69, 408 rows"),
        _phone("phone-5g-mmwave", 8.88, 1.73, _MMWAVE_TAIL, "up r=0.92, 1,020 rows; down r=0.94, 1,632 rows"),
        PowerModel(
            name="jetson-orin-nano",
            compute_w=9.1,
            idle_w=5.0,
            j_per_bit_up=76.68e-9,
            j_per_bit_down=11.54e-9,
            tail_w=0.6,
            tail_s=10.1,
            source=(
                "measured: 14.1 W while YOLOv8n runs in TensorRT FP16 at MAXN_SUPER (tegrastats, "
                "hokwangchoi/jetson-orin-nano-benchmarks, 2026-04-14). assumed: 5.0 W of it is idle, which "
                "leaves 9.1 W above idle; the radio is an LTE modem that costs as much as in 'phone-lte'"
            ),
        ),
    )
}


def power_profile(name: str) -> PowerModel:
    """A named profile.

    Raises:
        UnknownName: there is none of that name; the message lists those there are.
    """
    if name not in PROFILES:
        raise UnknownName(f"no power profile '{name}'; there are {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


class BatteryMeter(Protocol):
    """Tells the charge of the device's battery."""

    def fraction(self) -> float:
        """Charge in [0, 1]; NaN on mains or where there is no battery."""
        ...


class SystemBattery:
    """The battery the operating system reports (through psutil)."""

    def fraction(self) -> float:
        """Charge in [0, 1]; NaN on mains or where there is no battery."""
        read = getattr(psutil, "sensors_battery", None)  # missing on some platforms
        state = read() if read is not None else None
        if state is None or state.power_plugged:
            return math.nan
        return min(1.0, max(0.0, float(state.percent) / 100.0))


class EnergyMeter(Protocol):
    """Measures joules that the device, or a part of it, has spent."""

    def joules(self) -> float:
        """Joules since the meter was made; NaN where it can not be read."""
        ...


class RaplMeter:
    """Intel/AMD RAPL counters of the processor packages, read from `/sys/class/powercap`.

    Measures the package, idle power and other processes included. Reading usually needs root.
    """

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        self._zones = [zone for zone in sorted(root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        self._last = [_read_uj(zone / "energy_uj") for zone in self._zones]
        self._span = [_read_uj(zone / "max_energy_range_uj") for zone in self._zones]
        self._total_uj = 0

    @property
    def available(self) -> bool:
        """Whether there is a counter and it may be read."""
        return bool(self._zones) and None not in self._last

    def joules(self) -> float:
        """Joules since the meter was made. Call more often than the counter wraps (minutes)."""
        if not self.available:
            return math.nan
        for i, zone in enumerate(self._zones):
            value, last = _read_uj(zone / "energy_uj"), self._last[i]
            if value is None or last is None:
                return math.nan
            step = value - last
            self._total_uj += step if step >= 0 else step + (self._span[i] or 0)
            self._last[i] = value
        return self._total_uj / 1e6


def _read_uj(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
