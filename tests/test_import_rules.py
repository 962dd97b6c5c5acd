"""Who may know whom: the core names no plug-in package, edge and cloud do not know each other."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("splitedge.codecs", "splitedge.policies", "splitedge.sim")
GROUND = {"splitedge.errors", "splitedge.registry"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports absolutely"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name == "splitedge" or name.startswith("splitedge.")}


def reaches(names: set[str], packages: tuple[str, ...]) -> set[str]:
    return {n for n in names if any(n == p or n.startswith(p + ".") for p in packages)}


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


@pytest.mark.parametrize("path", files("splitedge"), ids=lambda p: str(p.relative_to(ROOT)))
def test_core_imports_no_plugin(path):
    assert not reaches(imports(path), PLUGINS)


@pytest.mark.parametrize(("side", "other"), [("edge", "splitedge.cloud"), ("cloud", "splitedge.edge")])
def test_edge_and_cloud_do_not_know_each_other(side, other):
    for path in files(f"splitedge/{side}"):
        assert not reaches(imports(path), (other,)), path


#: The policy interface is three files, of which `record` is only named as a type.
POLICY = {
    "policy": {"splitedge.record", "splitedge.option", "splitedge.predict"},
    "predict": {"splitedge.option"},
}


@pytest.mark.parametrize("name", ["wire", "codec", "policy", "option", "predict", "record"])
def test_ground_floor_stands_on_errors_and_registry_only(name):
    allowed = GROUND | POLICY.get(name, set())
    known = imports(ROOT / "splitedge" / f"{name}.py")
    assert not {n for n in known if not any(n == a or n.startswith(a + ".") for a in allowed)}


@pytest.mark.parametrize("plugin", ["codecs", "policies", "sim"])
def test_plugins_do_not_know_each_other(plugin):
    others = tuple(p for p in PLUGINS if p != f"splitedge.{plugin}")
    for path in files(plugin):
        assert not reaches(imports(path), others), path


def test_engine_has_no_clock_socket_or_thread():
    tree = ast.parse((ROOT / "splitedge" / "engine.py").read_text())
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not modules & {"time", "asyncio", "threading", "socket", "zmq", "datetime", "queue"}


def test_nothing_unpickles_or_evaluates():
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for folder in ("splitedge", "codecs", "policies", "sim"):
        for path in files(folder):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    assert not {a.name.split(".")[0] for a in node.names} & forbidden, path
                elif isinstance(node, ast.ImportFrom):
                    spread = path.name == "executors.py" and node.module == "joblib"  # its own processes
                    if not (spread and {alias.name for alias in node.names} == {"Parallel", "delayed"}):
                        assert (node.module or "").split(".")[0] not in forbidden, path
                elif isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in {"eval", "exec", "torch.load", "recv_pyobj"}, (path, node.lineno)
                    assert not called.endswith(".recv_pyobj"), (path, node.lineno)
                    for keyword in node.keywords:
                        if keyword.arg == "allow_pickle":
                            assert ast.unparse(keyword.value) == "False", (path, node.lineno)


def test_importing_the_package_loads_no_plugin_and_no_heavy_extra():
    code = (
        "import sys, splitedge; "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('matplotlib', 'ray', 'transformers', 'numba')"
        " or m.startswith(('splitedge.codecs', 'splitedge.policies', 'splitedge.sim'))]; "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
