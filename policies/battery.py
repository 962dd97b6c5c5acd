"""A battery that runs low shifts the objective from accuracy to joules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitedge.errors import PolicyError
from splitedge.policy import where

LOW, LOW_TOLERANCE = 0.20, 0.05
CRITICAL, CRITICAL_TOLERANCE = 0.05, 0.20


@dataclass(frozen=True, slots=True)
class Battery:
    """How much accuracy is given up for joules, by what is left in the battery.

    At `low` charge and below, options within `low_tolerance` of the best accuracy are equals, and the one of
    least joules wins; at `critical` charge and below, within `critical_tolerance`: whatever is still
    acceptable, for the least joules. A tolerance that is wider anyway stays. A charge of NaN is a device on
    mains: nothing shifts. The charge is what the battery says; a shift comes and goes with it.

    Args:
        policy: whose settings these are, for messages.
        low, critical: fractions of charge, in [0, 1].
        low_tolerance, critical_tolerance: of accuracy, in [0, 1].
    """

    policy: str
    low: float = LOW
    low_tolerance: float = LOW_TOLERANCE
    critical: float = CRITICAL
    critical_tolerance: float = CRITICAL_TOLERANCE

    def __post_init__(self) -> None:
        for name in ("low", "low_tolerance", "critical", "critical_tolerance"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise PolicyError(f"policy '{self.policy}': '{name}' must be in [0, 1], got {value}")

    def tolerance(self, usual: float, charge: Any) -> Any:
        """The tolerance of accuracy at a charge; a float, or of the charge's shape (N,)."""
        is_low, is_critical = charge <= self.low, charge <= self.critical
        if is_low is False and is_critical is False:
            return usual
        low, critical = max(usual, self.low_tolerance), max(usual, self.critical_tolerance)
        return where(is_critical, critical, where(is_low, low, usual))

    def is_critical(self, charge: Any) -> Any:
        """Whether the charge is at `critical` or below."""
        return charge <= self.critical

    def reason(self, usual: float, charge: float) -> str:
        """What the battery changes, as the end of a sentence; empty where it changes nothing."""
        tolerance = self.tolerance(usual, charge)
        if not tolerance > usual:
            return ""
        state = "critically low" if self.is_critical(charge) else "low"
        points = f"up to {100 * tolerance:.3g} points of accuracy are given up for joules"
        return f"; the battery is {state} at {charge:.0%}, so {points}"
