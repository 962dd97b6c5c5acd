"""Edge-cloud inference: cut a model, put a codec on the cut, decide per request where to compute.

What is named here is the public face; everything else is reached through the room that owns it. Names
that need torch are loaded when they are first used, so that `import splitedge` is quick.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitedge.errors import (
    AuthenticationError,
    BundleError,
    CloudBusy,
    CloudFailed,
    CloudUnavailable,
    CodecError,
    ConfigError,
    DeadlineExceeded,
    EdgeFailed,
    LinkDown,
    LinkError,
    MissingExtra,
    PartitionError,
    PolicyError,
    RecordError,
    Rejected,
    RequestCancelled,
    RequestError,
    SimulationError,
    SplitedgeError,
    TraceError,
    UnknownName,
    WireError,
)
from splitedge.machine_code import check_machine_code
from splitedge.policy import Route
from splitedge.version import VERSION as __version__

if TYPE_CHECKING:
    from splitedge.assemble import deploy
    from splitedge.deployment import Deployment, load
    from splitedge.evaluation import Evaluation
    from splitedge.filtering import Filter
    from splitedge.fitting import FitReport
    from splitedge.llm.deployment import LanguageDeployment
    from splitedge.result import Result

check_machine_code(Path(__file__).parent)

_LAZY = {
    "Deployment": "splitedge.deployment",
    "Evaluation": "splitedge.evaluation",
    "Filter": "splitedge.filtering",
    "FitReport": "splitedge.fitting",
    "LanguageDeployment": "splitedge.llm.deployment",
    "Result": "splitedge.result",
    "deploy": "splitedge.assemble",
    "load": "splitedge.deployment",
}

__all__ = [
    "AuthenticationError",
    "BundleError",
    "CloudBusy",
    "CloudFailed",
    "CloudUnavailable",
    "CodecError",
    "ConfigError",
    "DeadlineExceeded",
    "Deployment",
    "EdgeFailed",
    "Evaluation",
    "Filter",
    "FitReport",
    "LanguageDeployment",
    "LinkDown",
    "LinkError",
    "MissingExtra",
    "PartitionError",
    "PolicyError",
    "RecordError",
    "Rejected",
    "RequestCancelled",
    "RequestError",
    "Result",
    "Route",
    "SimulationError",
    "SplitedgeError",
    "TraceError",
    "UnknownName",
    "WireError",
    "__version__",
    "deploy",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'splitedge' has no attribute '{name}'")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
