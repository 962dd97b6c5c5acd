"""Compiles the engine and the simulator to machine code where SPLITEDGE_COMPILE=1 says so; else does nothing.

    SPLITEDGE_COMPILE=1 pip install .

mypyc (part of mypy) translates the very same .py files; a C compiler is needed. The wheel holds both, and
`splitedge/machine_code.json` says of which text the machine code is: `splitedge.machine_code` refuses other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

#: Not here: classes that third parties derive from or that are copied and pickled frozen (`policy`, `option`,
#: `battery`, `power`), pydantic models, and what takes whatever equals a float (`events`) or arrays
#: where it says float (`record`).
MODULES = """
    splitedge: breaker compute engine estimate outcome paths predict remote request sender
    splitedge: settling timers
    splitedge/cloud: admission batcher service
    splitedge/policies: in_time scout terms worth_most
    splitedge/sim: answers cloud connection curves device edge exact link rows_out shell
"""

TRANSLATOR = "mypy>=2.4"  # brings mypyc

#: What is not compiled and has no part in the arithmetic is not looked into.
MYPY = """
[mypy]
python_version = 3.11
follow_imports = silent
cache_dir = {cache}
[mypy-torch.*,pydantic.*,sklearn.*,scipy.*,sympy.*,msgpack.*,zmq.*,matplotlib.*,numba.*,transformers.*,psutil.*,constriction.*]
follow_imports = skip
ignore_missing_imports = True
[mypy-joblib.*,zstandard.*,aiohttp.*,safetensors.*,typer.*,rich.*,prometheus_client.*,PIL.*,pandas.*]
follow_imports = skip
ignore_missing_imports = True
"""


def sources() -> list[str]:
    """The files that are compiled, as they lie in a wheel."""
    lines = (line.split(":") for line in MODULES.strip().splitlines())
    return [f"{folder.strip()}/{name}.py" for folder, names in lines for name in names.split()]


def compile_in(folder: Path) -> None:
    """Put the machine code of `sources()` beside them, and say of which text it is."""
    try:
        from mypyc.build import mypycify
    except ImportError:
        raise SystemExit(f"SPLITEDGE_COMPILE=1 needs mypyc: pip install '{TRANSLATOR}'") from None
    for old in folder.rglob("*.*"):  # of an earlier build in the same folder
        if old.suffix in (".so", ".pyd"):
            old.unlink()
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(folder):
        config = Path(scratch, "mypy.ini")
        config.write_text(MYPY.format(cache=Path(scratch, "cache")))
        extensions = mypycify(
            ["--config-file", str(config), *sources()],
            opt_level="2",
            target_dir=str(Path(scratch, "c")),
            group_name="splitedge",
        )
        build = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
        build.build_lib, build.build_temp = ".", scratch
        build.ensure_finalized()
        build.run()
        text = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in sources()}
        Path("splitedge", "machine_code.json").write_text(json.dumps(text, indent=1))


class CompiledBuild(build_py):
    """Modules first, then their machine code beside them."""

    def run(self) -> None:
        """Build."""
        super().run()
        compile_in(Path(self.build_lib).resolve())


class NoEditable(editable_wheel):
    """Machine code beside sources that are edited would run in place of what was edited."""

    def run(self) -> None:
        """Refuse."""
        raise SystemExit("SPLITEDGE_COMPILE=1 makes no editable installation: leave out -e, or the variable")


class CompiledDistribution(Distribution):
    """For one platform, though no extension is named before the modules are in place."""

    def has_ext_modules(self) -> bool:
        """Yes."""
        return True


if os.environ.get("SPLITEDGE_COMPILE", "0") in ("", "0"):
    setup()
else:
    setup(
        cmdclass={"build_py": CompiledBuild, "editable_wheel": NoEditable},
        distclass=CompiledDistribution,
        setup_requires=[TRANSLATOR, "numpy>=1.26"],
    )
