"""A `World` as compiled loops take it: one pointer, where a tuple would be copied at every call."""

from __future__ import annotations

import importlib
from typing import Any

from splitedge.sim.compiled import COMPILES
from splitedge.sim.fleet_world import World

if COMPILES:
    types: Any = importlib.import_module("numba.core.types")
    structref: Any = importlib.import_module("numba.experimental.structref")

    class WorldType(types.StructRef):  # type: ignore[misc]  # numba is typed in part
        """What numba knows it by."""

        def preprocess_fields(self, fields: Any) -> Any:
            """Literals count as their types."""
            return tuple((name, types.unliteral(kind)) for name, kind in fields)

    class WorldHandle(structref.StructRefProxy):  # type: ignore[misc]
        """What Python holds."""

        def __new__(cls, *fields: Any) -> Any:
            """Of the fields of a `World`, in order."""
            return structref.StructRefProxy.__new__(cls, *fields)

    structref.register(WorldType)
    structref.define_proxy(WorldHandle, WorldType, list(World._fields))


def handle(world: World) -> Any:
    """The same arrays behind one pointer; `world` itself where loops are plain Python."""
    return WorldHandle(*world) if COMPILES else world
