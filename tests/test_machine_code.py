"""Machine code of the engine and the simulator: it is of the sources beside it, and changes no row."""

import ast
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from splitedge.errors import ConfigError
from splitedge.machine_code import check_machine_code

ROOT = Path(__file__).parent.parent
ROOMS = {"splitedge/codecs": "codecs", "splitedge/policies": "policies", "splitedge/sim": "sim"}

SIMULATES = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from _sim_speed_model import evaluation, scenario
from splitedge.machine_code import runs_as
from splitedge.sim.exact import run_exact
from splitedge.sim.synth import lte_like
trace, digest = lte_like(120, 1), hashlib.sha256()
for policy in ("deadline", "latency", "mpc"):
    done = run_exact(scenario(policy, 2, 300, "exact"), evaluation(), trace, trace)
    for name in sorted(done.columns):
        digest.update(repr(done.columns[name].tolist()).encode())
print(digest.hexdigest(), runs_as().split(" (")[0])
"""


def package(folder: Path) -> Path:
    """A compiled package of one module, as a wheel lays it out."""
    inner = folder / "splitedge"
    inner.mkdir()
    (inner / "engine.py").write_text("A = 1\n")
    digest = hashlib.sha256(b"A = 1\n").hexdigest()
    (inner / "machine_code.json").write_text(json.dumps({"splitedge/engine.py": digest}))
    return inner


def test_machine_code_of_its_sources_is_taken(tmp_path):
    check_machine_code(package(tmp_path))


@pytest.mark.parametrize(
    "change", [lambda p: p.write_text("A = 2\n"), Path.unlink], ids=["edited", "missing"]
)
def test_machine_code_of_other_sources_is_refused(tmp_path, change):
    inner = package(tmp_path)
    change(inner / "engine.py")
    with pytest.raises(ConfigError, match=r"engine\.py is not the text that was compiled"):
        check_machine_code(inner)


def test_every_module_that_is_compiled_exists():
    tree = ast.parse((ROOT / "setup.py").read_text())
    named = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    count = 0
    for line in named["MODULES"].strip().splitlines():
        folder, names = (part.strip() for part in line.split(":"))
        for name in names.split():
            assert (ROOT / ROOMS.get(folder, folder) / f"{name}.py").exists(), (folder, name)
            count += 1
    assert count > 20


def compiler() -> bool:
    """Whether C can be compiled for this Python here."""
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return (
        headers and any(map(shutil.which, ("cc", "gcc", "clang"))) and bool(importlib.util.find_spec("mypyc"))
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not compiler(), reason="no C compiler, no Python.h or no mypyc here")
def test_machine_code_simulates_every_row_as_python_does(tmp_path):
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    asked = os.environ | {"SPLITEDGE_COMPILE": "1"}
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, env=asked, check=True)
    wheel = next(tmp_path.glob("*.whl"))
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)

    def simulated(where: str = "") -> list[str]:
        command = [sys.executable, "-c", SIMULATES, str(ROOT / "benchmarks")]
        env = os.environ | {"PYTHONPATH": where}
        done = subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.split(maxsplit=1)

    plain, compiled = simulated(), simulated(str(site))
    assert (plain[1].strip(), compiled[1].strip()) == ("plain Python", "machine code")
    assert plain[0] == compiled[0]


@pytest.mark.slow
@pytest.mark.skipif(not compiler(), reason="no C compiler, no Python.h or no mypyc here")
def test_an_editable_installation_is_not_compiled(tmp_path):
    pip = [sys.executable, "-m", "pip", "-q", "install", "--no-build-isolation", "--no-deps"]
    command = [*pip, "--target", str(tmp_path), "-e", str(ROOT)]
    done = subprocess.run(
        command, env=os.environ | {"SPLITEDGE_COMPILE": "1"}, capture_output=True, text=True
    )
    assert done.returncode
    assert "SPLITEDGE_COMPILE=1 makes no editable installation" in done.stdout + done.stderr
