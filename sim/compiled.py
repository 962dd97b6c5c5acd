"""Loops over arrays as machine code where numba is installed (the extra `sim`), as plain Python where not.

The very same lines run both ways, so both give the same answer; without numba a loop is hundreds of times
slower. Compiling takes most of a minute the first time; `SPLITEDGE_LOOPS=python` in the environment leaves it
out, for runs that are shorter than that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

numba: Any = None
if os.environ.get("SPLITEDGE_LOOPS") != "python":
    with contextlib.suppress(ImportError):
        import numba

#: Whether there is machine code.
COMPILES: bool = numba is not None and not numba.config.DISABLE_JIT


def is_kept() -> bool:
    """Whether machine code of this version is on disk, as far as can be seen from its folder."""
    return _FOLDER.is_dir()


def _folder() -> Path:
    """Where machine code is kept: named after the text of all loops, since numba itself would only see that
    a function changed, not that one it calls did.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in (Path(__file__), *sorted(here.glob("fleet_*.py"))):
        text = path.read_bytes()
        if b"splitedge.sim.compiled import" in text or path.stem in ("compiled", "fleet_world"):
            digest.update(text)
    base = here / "__pycache__"
    if not os.access(base if base.exists() else here, os.W_OK):
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "splitedge"
    return base / f"loops-{digest.hexdigest()[:16]}"


def entry(function: F) -> F:
    """Compile a function that Python calls with the handle of a `World`, at its first call; the result is
    kept on disk for the next process, where there is a folder that can be written. It should be of one line:
    in here each use of an array counts a reference, which costs more than most of what is done with it.
    """
    return _compile(function)


def inner(function: F) -> F:
    """Compile a function that only compiled ones call and that makes no arrays: neither is a wrapper made for
    Python, nor are references counted.
    """
    return _compile(function, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _compile(function: F, **options: bool) -> F:
    if numba is None:
        return function
    kept = numba.config.CACHE_DIR
    try:
        numba.config.CACHE_DIR = kept or str(_FOLDER)
        made: F = numba.njit(cache=True, error_model="numpy", **options)(function)
    except (RuntimeError, OSError):  # nowhere to keep it: compile in each process
        made = numba.njit(error_model="numpy", **options)(function)
    finally:
        numba.config.CACHE_DIR = kept
    return made


_FOLDER = _folder() if numba is not None else Path()
