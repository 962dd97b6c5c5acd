"""The random numbers of many devices: what `workload.stream` gives, without an object for each of them.

NumPy makes a generator in some ten microseconds, most of them for the hash of its seed. Here that hash is
taken of all devices at once, and one generator is set to where a device's stream stands.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_POOL = 4  # words of `numpy.random.SeedSequence`, whose constants these are
_INIT_A, _MULT_A = 0x43B0D7E5, 0x931E8875
_INIT_B, _MULT_B = 0x8B51F9DD, 0x58F38DED
_MIX_LEFT, _MIX_RIGHT = 0xCA01F9DD, 0x4973F715
_SHIFT = np.uint32(16)
_WORD, _LONG = (1 << 32) - 1, (1 << 128) - 1
_PCG = 0x2360ED051FC65DA44385DF649FCCF645  # the multiplier of PCG64


class Streams:
    """One purpose's streams of all devices.

    Args:
        seed: of the scenario.
        devices: how many.
        purpose: see `workload.py`.
    """

    def __init__(self, seed: int, devices: int, purpose: int) -> None:
        words = _seeds(seed, devices, purpose).tolist()
        self._increment = [((c << 64 | d) << 1 | 1) & _LONG for _, _, c, d in words]
        self._state = [
            (((a << 64 | b) + step) * _PCG + step) & _LONG
            for (a, b, _, _), step in zip(words, self._increment, strict=True)
        ]
        self._kept: list[tuple[int, int]] = [(0, 0)] * devices  # half of a 64-bit number not yet used
        self._source = np.random.PCG64(0)
        self._draw = np.random.Generator(self._source)

    def resume(self, device: int) -> np.random.Generator:
        """A generator that goes on where this device's stream stands; `pause` it before the next."""
        kept, number = self._kept[device]
        self._source.state = {
            "bit_generator": "PCG64",
            "state": {"state": self._state[device], "inc": self._increment[device]},
            "has_uint32": kept,
            "uinteger": number,
        }
        return self._draw

    def pause(self, device: int) -> None:
        """Note where the stream stands."""
        found = self._source.state
        self._state[device] = found["state"]["state"]
        self._kept[device] = (found["has_uint32"], found["uinteger"])


def _seeds(seed: int, devices: int, purpose: int) -> Any:
    """`SeedSequence([seed, device, purpose]).generate_state(4, uint64)` of each device, (devices, 4)."""
    words: list[Any] = [np.uint32(word) for word in _words(seed)]
    entropy = [*words, np.arange(devices, dtype=np.uint32), np.uint32(purpose)]
    entropy = [np.broadcast_to(word, devices) for word in entropy]
    hashed = _Hash(_INIT_A, _MULT_A)
    nothing = np.zeros(devices, np.uint32)
    pool = [hashed(entropy[i] if i < len(entropy) else nothing) for i in range(_POOL)]
    for i in range(_POOL):
        for j in range(_POOL):
            if i != j:
                pool[j] = _mix(pool[j], hashed(pool[i]))
    for word in entropy[_POOL:]:
        pool = [_mix(part, hashed(word)) for part in pool]
    out = _Hash(_INIT_B, _MULT_B)
    state = np.stack([out(pool[i % _POOL]) for i in range(8)], axis=1)
    low, high = state[:, ::2].astype(np.uint64), state[:, 1::2].astype(np.uint64)
    return low | high << np.uint64(32)


def _words(number: int) -> list[int]:
    """A whole number in 32-bit words, the lowest first."""
    words = [number & _WORD]
    while number := number >> 32:
        words.append(number & _WORD)
    return words


class _Hash:
    """A hash whose constant changes with each use."""

    def __init__(self, constant: int, factor: int) -> None:
        self._constant, self._factor = constant, factor

    def __call__(self, value: Any) -> Any:
        value = value ^ np.uint32(self._constant)
        self._constant = self._constant * self._factor & _WORD
        value = value * np.uint32(self._constant)
        return value ^ value >> _SHIFT


def _mix(x: Any, y: Any) -> Any:
    mixed = np.uint32(_MIX_LEFT) * x - np.uint32(_MIX_RIGHT) * y
    return mixed ^ mixed >> _SHIFT
