"""Look plug-ins up by name through entry points, the same door for first and third parties."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from splitedge.errors import ConfigError, UnknownName


@cache
def _table(group: str) -> dict[str, EntryPoint]:
    table: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = table.get(point.name)
        if other is not None and other.value != point.value:
            raise ConfigError(
                f"two plug-ins register '{point.name}' in {group}: {other.value} and {point.value}; "
                "uninstall one of them or rename its entry point"
            )
        table[point.name] = point
    return table


def names(group: str) -> list[str]:
    """Names registered in an entry-point group, sorted."""
    return sorted(_table(group))


def lookup(group: str, name: str) -> Any:
    """Load what `name` stands for in an entry-point group.

    Raises:
        UnknownName: no plug-in of that name; the message lists the names there are.
    """
    table = _table(group)
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        known = ", ".join(sorted(table)) or "none (is splitedge installed? run 'pip install -e .')"
        raise UnknownName(f"no '{name}' in {group}.{hint} Registered: {known}")
    return table[name].load()
