"""Named kinds of devices: how much slower than the machine of the profile they are, and what they draw.

The factors are ratios of latencies that one and the same README states for one network on several
processors (FastestDet, 352 x 352 pixels, ncnn, github.com/dog-qiuqiu/FastestDet; stated there, not measured
again here). **Assumed**: that the machine of the profile computes like the i7-8700 of that table, and that
other networks slow down by the same factor. Profile on the device itself where that matters.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """A kind of device.

    Attributes:
        slower: its seconds over those of the machine of the profile.
        power: name of its power profile.
        source: where the factor comes from, and what is assumed.
    """

    slower: float
    power: str
    source: str


CLASSES: dict[str, DeviceClass] = {
    "profiled": DeviceClass(1.0, "none", "the machine that the deployment was measured on"),
    "phone-2017": DeviceClass(
        32.3 / 4.5,
        "phone-lte",
        "Snapdragon 835, one core: 32.3 ms against 4.5 ms on an i7-8700; power as in 'phone-lte'",
    ),
    "phone-2017-4": DeviceClass(
        16.2 / 4.5,
        "phone-lte",
        "Snapdragon 835, four cores: 16.2 ms against 4.5 ms on one core of an i7-8700; power likewise",
    ),
    "board-a55": DeviceClass(
        70.6 / 4.5,
        "none",
        "Radxa Rock 3A (RK3568, Cortex-A55 at 2.0 GHz), one core: 70.6 ms against 4.5 ms on an i7-8700; its "
        "power was not measured, so nothing is charged",
    ),
    "board-a55-4": DeviceClass(
        23.5 / 4.5,
        "none",
        "the same board, four cores: 23.5 ms against 4.5 ms on one core of an i7-8700; nothing is charged",
    ),
}
