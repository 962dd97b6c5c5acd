"""Loops over arrays as machine code where numba is installed (the extra `sim`), as plain Python where not.

The very same lines run both ways, so both give the same answer; without numba a loop is about a hundred
times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

try:
    import numba
except ImportError:
    numba = None

#: Whether `compiled` compiles.
COMPILES: bool = numba is not None


def compiled(function: F) -> F:
    """Compile a function of numbers, arrays, record arrays and named tuples of them at its first call; the
    result is kept on disk beside the file, where that is writable.
    """
    if numba is None:
        return function
    try:
        made: F = numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep it in: compile in each process
        made = numba.njit(error_model="numpy")(function)
    return made
