"""A `World` as compiled loops take it: one pointer, where a tuple would be copied at every call."""

from __future__ import annotations

import importlib
from typing import Any

from splitedge.sim.compiled import COMPILES
from splitedge.sim.fleet_world import World

#: Which word of numba's `MemInfo` points at what it holds: after the count, the destructor and its argument.
_DATA = 3

if COMPILES:
    types: Any = importlib.import_module("numba.core.types")
    structref: Any = importlib.import_module("numba.experimental.structref")

    class WorldType(types.StructRef):  # type: ignore[misc]  # numba is typed in part
        """What numba knows it by."""

        def preprocess_fields(self, fields: Any) -> Any:
            """Literals count as their types."""
            return tuple((name, types.unliteral(kind)) for name, kind in fields)

    def _register() -> None:
        """As `structref.register`, but a field is read without the run-time of reference counts, which loops
        do without: they borrow arrays that their caller holds. A field is set once, when it is made.
        """
        cgutils: Any = importlib.import_module("numba.core.cgutils")
        extending: Any = importlib.import_module("numba.core.extending")
        imputils: Any = importlib.import_module("numba.core.imputils")
        templates: Any = importlib.import_module("numba.core.typing.templates")
        extending.register_model(WorldType)(extending.models.StructRefModel)

        class Fields(templates.AttributeTemplate):  # type: ignore[misc]
            key = WorldType

            def generic_resolve(self, kind: Any, name: str) -> Any:
                return kind.field_dict.get(name)

        templates.infer_getattr(Fields)

        def fields(context: Any, builder: Any, kind: Any, value: Any) -> Any:
            held = cgutils.create_struct_proxy(kind)(context, builder, value=value).meminfo
            words = builder.bitcast(held, cgutils.voidptr_t.as_pointer())
            payload = builder.load(cgutils.gep(builder, words, _DATA))
            there = kind.get_data_type()
            pointer = builder.bitcast(payload, context.get_value_type(there).as_pointer())
            return cgutils.create_struct_proxy(there)(context, builder, ref=pointer)

        def read(context: Any, builder: Any, kind: Any, value: Any, name: str) -> Any:
            found = getattr(fields(context, builder, kind, value), name)
            return imputils.impl_ret_borrowed(context, builder, kind.field_dict[name], found)

        def begin(context: Any, builder: Any, signature: Any, values: Any, name: str) -> None:
            kind, given = signature.args
            value = context.cast(builder, values[1], given, kind.field_dict[name])
            context.nrt.incref(builder, given, value)
            setattr(fields(context, builder, kind, values[0]), name, value)

        extending.lower_getattr_generic(WorldType)(read)
        extending.lower_setattr_generic(WorldType)(begin)

    class WorldHandle(structref.StructRefProxy):  # type: ignore[misc]
        """What Python holds."""

        def __new__(cls, *fields: Any) -> Any:
            """Of the fields of a `World`, in order."""
            return structref.StructRefProxy.__new__(cls, *fields)

    _register()
    structref.define_proxy(WorldHandle, WorldType, list(World._fields))


def handle(world: World) -> Any:
    """The same arrays behind one pointer; `world` itself where loops are plain Python."""
    return WorldHandle(*world) if COMPILES else world
