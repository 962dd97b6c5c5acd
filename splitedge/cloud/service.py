"""How long batches take, learnt from those that ran."""

from __future__ import annotations

from typing import Final

FORGET: Final = 0.05


class ServiceTime:
    """Seconds of a batch as a + b * rows, fitted by exponentially weighted least squares; and whether
    batches are so quick that a thread of their own does not pay.
    """

    __slots__ = ("_cpu_peak", "_rows", "_rows2", "_seconds", "_slant", "_usual", "runs")

    def __init__(self) -> None:
        self.runs = 0
        self._cpu_peak = self._usual = 0.0
        self._rows = self._rows2 = self._seconds = self._slant = 0.0

    def observe(self, rows: int, seconds: float, cpu_s: float | None = None) -> None:
        """Take one run: seconds of the clock, and of the processor (the same where not given)."""
        keep = 1.0 - max(FORGET, 1.0 / (self.runs + 1))
        self._rows = keep * self._rows + (1 - keep) * rows
        self._rows2 = keep * self._rows2 + (1 - keep) * rows * rows
        self._seconds = keep * self._seconds + (1 - keep) * seconds
        self._slant = keep * self._slant + (1 - keep) * rows * seconds
        cpu_s = seconds if cpu_s is None else cpu_s
        self._cpu_peak = max(cpu_s, 0.75 * self._cpu_peak + 0.25 * cpu_s)
        self._usual = 0.9 * self._usual + 0.1 * seconds if self.runs else seconds
        self.runs += 1

    def quick(self, below_s: float) -> bool:
        """Whether runs take less than `below_s`.

        The peak that decides follows a slower run at once and a faster one slowly. It is of processor
        time: what else the machine did meanwhile must not make a quick lane look slow. A tail that waits
        for something, a device say, uses little of it; hence the second condition.
        """
        return self.runs > 0 and self._cpu_peak < below_s and self._usual < 3.0 * below_s

    def predict(self, rows: float) -> float:
        """Seconds of a batch of `rows`; 0 before the first run."""
        per_run, per_row = self.line()
        return per_run + per_row * rows

    def line(self) -> tuple[float, float]:
        """Seconds of a run by itself, and of each row more; neither is negative."""
        if not self.runs:
            return 0.0, 0.0
        spread = self._rows2 - self._rows * self._rows
        if spread < 0.01 * self._rows2:  # runs of one size: charge the rows, which errs on the careful side
            return 0.0, self._seconds / self._rows
        per_row = max(0.0, (self._slant - self._rows * self._seconds) / spread)
        per_run = self._seconds - per_row * self._rows
        if per_run < 0.0:
            return 0.0, self._seconds / self._rows
        return per_run, per_row
