"""What every codec's state holds: its name, the version of its format, and the specs it was made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from splitedge.codec import CodecState, TensorSpec
from splitedge.errors import CodecError


def config_of(name: str, version: int, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The part of `CodecState.config` that all codecs share."""
    return {
        "codec": name,
        "version": version,
        "reads": [[list(spec.shape), spec.dtype, spec.batch_dim] for spec in specs],
    }


def check_config(state: CodecState, name: str, version: int, specs: Sequence[TensorSpec]) -> None:
    """Refuse a state that another codec, version or cut left.

    Raises:
        CodecError: says what differs.
    """
    found = state.config
    if found.get("codec") != name:
        raise CodecError(f"state of codec '{found.get('codec')}' given to '{name}'")
    if found.get("version") != version:
        raise CodecError(
            f"codec '{name}': state of version {found.get('version')}, this release reads {version}; "
            "save the deployment again"
        )
    if found.get("reads") != config_of(name, version, specs)["reads"]:
        raise CodecError(
            f"codec '{name}' was saved for tensors {found.get('reads')}, this cut has "
            f"{', '.join(map(str, specs))}; calibrate again or pick the cut it was made for"
        )
