"""Codecs as a user asks for them: by name, with or without options, or by nobody (a default)."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from splitedge.codec import GROUP, Codec, TensorSpec, make_codec
from splitedge.errors import CodecError, ConfigError
from splitedge.learning import LearnedCodec, learned
from splitedge.registry import lookup

#: `"bottleneck"`, `"bottleneck:channels=4,bits=3"`, or `("bottleneck", {"channels": 4, "bits": 3})`.
CodecLike = str | tuple[str, Mapping[str, Any]]


#: Between two options; a comma inside brackets belongs to a list.
_COMMA = re.compile(r",(?![^\[]*\])")


class Default(str):
    """A codec's name that nobody asked for: where it can not work, another may stand in, with a note."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """A codec that was asked for.

    Attributes:
        name: of the codec.
        options: of the codec, JSON-able.
        default: whether nobody asked for it.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    default: bool = False

    @property
    def learned(self) -> type[LearnedCodec] | None:
        """The class of a learned codec; None for one that needs no training."""
        return learned(self.name)

    def make(self, specs: Sequence[TensorSpec]) -> Codec:
        """A codec that needs no training.

        Raises:
            CodecError: it can not work on these tensors, or not with these options.
        """
        return make_codec(self.name, specs, **self.options)

    def check(self, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec]) -> None:
        """Whether the codec can stand at a cut.

        Raises:
            CodecError: no; says why.
        """
        found = self.learned
        if found is None:
            self.make(cut)
        else:
            found.check(reads, cut, **self.options)

    def __str__(self) -> str:
        told = ",".join(f"{key}={json.dumps(value)}" for key, value in self.options.items())
        return f"{self.name}:{told}" if told else self.name


def choose(wanted: CodecLike) -> Choice:
    """Read what a user asked for. Values behind `=` are JSON (`4`, `0.5`, `true`, `[1,2]`), or plain text.

    Raises:
        UnknownName: no such codec.
        ConfigError: an option that the codec does not have, or text that is no `name:key=value,...`.
    """
    if isinstance(wanted, str):
        name, _, text = wanted.partition(":")
        choice = Choice(name, _options(wanted, text), isinstance(wanted, Default))
    else:
        choice = Choice(wanted[0], dict(wanted[1]))
    _check_names(choice)
    return choice


def _options(wanted: str, text: str) -> dict[str, Any]:
    found = {}
    for part in filter(None, _COMMA.split(text)):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"codec '{wanted}': expected name:key=value,key=value, got '{part}'")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_names(choice: Choice) -> None:
    """A misspelt option is refused here, where the nearest name can be told."""
    known = _known(choice)
    if known is None:
        return  # the codec checks them itself
    for option in choice.options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"codec '{choice.name}' has no option '{option}'.{hint} ({there})")


def _known(choice: Choice) -> list[str] | None:
    """Names of the options a codec takes; None where it does not say."""
    kind, found = lookup(GROUP, choice.name), choice.learned
    if found is not None and found.options is not None:
        return [option.name for option in dataclasses.fields(found.options)]
    parameters = inspect.signature(kind.check if found else kind).parameters.values()
    fixed = {"self", "cls", "reads", "cut", "gives"}
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in fixed]
    return None if not known and any(p.kind is p.VAR_KEYWORD for p in parameters) else known


def fits(choice: Choice, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec]) -> bool:
    """Whether the codec can stand at a cut."""
    try:
        choice.check(reads, cut)
    except CodecError:
        return False
    return True
