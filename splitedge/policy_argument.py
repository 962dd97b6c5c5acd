"""What stands behind the colon of a policy's name: `0.02`, or `0.02,hold=2`, or `tolerance=0.02,low=0.3`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

from splitedge.errors import PolicyError

_WORDS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


def read_argument(kind: type[Any], argument: str | None, *, main: str | None = None) -> dict[str, Any]:
    """Keyword arguments for a policy's constructor, by the names and defaults it declares.

    A key is a parameter of `kind.__init__` whose default is a number, a text or a truth value; its value is
    read as that type. A comma inside round brackets belongs to a value: `ensemble:(energy:0.05,v=20),hold=2`.

    Args:
        kind: class of the policy, with its `name`.
        argument: text behind the colon; None or empty for none.
        main: the parameter that a value without a key sets; None where there is none.

    Raises:
        PolicyError: an unknown key, a key given twice, or a value of the wrong type. Ranges are the
            constructor's to check.
    """
    known = {
        name: type(parameter.default)
        for name, parameter in inspect.signature(kind).parameters.items()
        if isinstance(parameter.default, bool | int | float | str)
    }
    found: dict[str, Any] = {}
    for place, part in enumerate(_parts(kind.name, argument or "")):
        key, value = _key_of(part)
        if not key and place == 0 and main is not None:
            key = main
        if key not in known:
            raise PolicyError(_unknown(kind.name, key, part, list(known), main))
        if key in found:
            raise PolicyError(f"policy '{kind.name}': '{key}' is given twice in '{argument}'")
        found[key] = _value(kind.name, key, value, known[key])
    return found


def _parts(policy: str, argument: str) -> Iterator[str]:
    """The text between commas that stand outside of brackets."""
    depth, begin = 0, 0
    for at, sign in enumerate(argument):
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            break
        if sign == "," and depth == 0:
            yield argument[begin:at]
            begin = at + 1
    if depth:
        raise PolicyError(f"policy '{policy}': the brackets in '{argument}' do not match")
    if argument:
        yield argument[begin:]


def _key_of(part: str) -> tuple[str, str]:
    """`key=value` in two; an empty key where the part is a value alone."""
    key, equals, value = part.partition("=")
    if equals and key.strip().isidentifier():
        return key.strip(), value.strip()
    return "", part.strip()


def _value(policy: str, key: str, text: str, kind: type[Any]) -> Any:
    if kind is str:
        return text[1:-1] if text.startswith("(") and text.endswith(")") else text
    if kind is bool:
        if text.lower() not in _WORDS:
            raise PolicyError(f"policy '{policy}' takes true or false for '{key}'; got '{text}'")
        return _WORDS[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise PolicyError(f"policy '{policy}' takes {what} for '{key}'; got '{text}'") from error


def _unknown(policy: str, key: str, part: str, known: list[str], main: str | None) -> str:
    there = f"It takes {', '.join(known)}" if known else "It takes no argument"
    if main is not None:
        there += f" (a first value without a key is '{main}')"
    if not key:
        return f"policy '{policy}': expected key=value, got '{part}'. {there}"
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"policy '{policy}' has no '{key}'.{hint} {there}"
