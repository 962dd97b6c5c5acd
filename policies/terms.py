"""What policies read of every option for every decision, laid out once for a deployment's table of them."""

from __future__ import annotations

from typing import NamedTuple

from splitedge.policy import Option

#: Place in the table, option, mean and 95th percentile of its seconds on the device, accuracy.
Local = tuple[int, Option, float, float, float]
#: The same, then mean and 95th percentile of seconds in the cloud, mean and 95th percentile of bytes up, and
#: bytes down.
Remote = tuple[int, Option, float, float, float, float, float, float, float, float]

_MOST = 16


class Terms(NamedTuple):
    """A table of options as numbers.

    Attributes:
        local: those that need no cloud, in order of the table.
        remote: the others, likewise.
        exits: the first option of each exit's number.
    """

    local: tuple[Local, ...]
    remote: tuple[Remote, ...]
    exits: dict[int, Option]


#: The last tables asked for, by identity; each entry holds its table, so that an identity is not used again.
_known: dict[int, tuple[tuple[Option, ...], Terms]] = {}


def terms_of(options: tuple[Option, ...]) -> Terms:
    """The numbers of a table. A process has few tables, which are not changed: they are laid out once."""
    found = _known.get(id(options))
    if found is not None and found[0] is options:
        return found[1]
    terms = _lay_out(options)
    if len(_known) >= _MOST:
        _known.clear()
    _known[id(options)] = options, terms
    return terms


def _lay_out(options: tuple[Option, ...]) -> Terms:
    local: list[Local] = []
    remote: list[Remote] = []
    exits: dict[int, Option] = {}
    for i, o in enumerate(options):
        if o.exit is not None:
            exits.setdefault(o.exit, o)
        if o.remote:
            cloud = o.cloud_s, o.cloud_s_q95
            sizes = o.bytes_up, o.bytes_up_q95, o.bytes_down
            remote.append((i, o, o.edge_s, o.edge_s_q95, o.accuracy, *cloud, *sizes))
        else:
            local.append((i, o, o.edge_s, o.edge_s_q95, o.accuracy))
    return Terms(tuple(local), tuple(remote), exits)
