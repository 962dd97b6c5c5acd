"""Whether the engine and the simulator run as machine code, and whether that is of the sources beside it.

`SPLITEDGE_COMPILE=1 pip install .` compiles them (setup.py); without it they are plain Python. The same .py
files are behind both.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from splitedge.errors import ConfigError

_SAYS = "machine_code.json"


def compiled() -> tuple[str, ...]:
    """Modules of this package that are loaded as machine code, by name; empty where it is plain Python."""
    return tuple(
        sorted(
            name
            for name, module in sys.modules.items()
            if name.startswith("splitedge.")
            and Path(getattr(module, "__file__", None) or "").suffix in (".so", ".pyd")
        )
    )


def runs_as() -> str:
    """`plain Python`, or how many modules are machine code, in words."""
    count = len(compiled())
    return f"machine code ({count} modules) and Python" if count else "plain Python"


def check_machine_code(package: Path) -> None:
    """Refuse machine code of other sources than those beside it: it would run in their place.

    Args:
        package: folder of the package. Nothing is read where it was not compiled.

    Raises:
        ConfigError: a module was edited, or is missing, since it was compiled.
    """
    says = package / _SAYS
    if not says.exists():
        return
    for path, digest in json.loads(says.read_text()).items():
        source = package.parent / path
        if not source.exists() or hashlib.sha256(source.read_bytes()).hexdigest() != digest:
            raise ConfigError(
                f"{source} is not the text that was compiled, and the machine code beside it would run in "
                "its place; install again, with SPLITEDGE_COMPILE=1 for machine code or without it"
            )
