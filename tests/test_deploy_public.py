"""The public face: its names, that they load, and that importing it is cheap."""

import subprocess
import sys

import pytest

import splitedge
from splitedge import errors

FACE = {
    "Deployment",
    "Evaluation",
    "Filter",
    "FitReport",
    "LanguageDeployment",
    "Result",
    "Route",
    "__version__",
    "deploy",
    "load",
}


def test_the_public_names_are_these_and_the_errors():
    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(splitedge.__all__) == FACE | raised
    assert len(splitedge.__all__) == len(set(splitedge.__all__))


@pytest.mark.parametrize("name", sorted(FACE))
def test_every_public_name_loads(name):
    assert getattr(splitedge, name) is getattr(splitedge, name)
    assert name in dir(splitedge)


def test_names_there_are_not_say_so():
    with pytest.raises(AttributeError, match="no attribute 'deplyo'"):
        _ = splitedge.deplyo


def test_public_functions_stay_functions_whatever_is_imported():
    code = "import splitedge, splitedge.assemble, splitedge.deployment; assert callable(splitedge.deploy)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_the_face_does_not_import_torch():
    code = "import sys, splitedge; splitedge.Route; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
