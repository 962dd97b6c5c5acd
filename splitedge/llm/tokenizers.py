"""Tokenizers that a bundle can hold: the fast ones of `transformers`, and two of our own for small models.

A tokenizer is asked for `encode(text) -> ids` and `decode(ids) -> text` and nothing else; any object with
these two can be deployed. A bundle holds no code, so what it holds must be data: `tokenizer.json` (the
`tokenizers` library's own file) and a few names beside it, or the alphabet of one of these classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from splitedge.errors import BundleError, ConfigError, MissingExtra, Rejected

MAX_FILE = 256 << 20
_TRIAL = 'Once upon a time, 3 naïve cats (äöü, 你好) said:\n\t"it\'s 42!" '
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of `transformers` have it."""

    def encode(self, text: str) -> list[int]:
        """Text to ids."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Ids to text."""
        ...


class ByteTokenizer:
    """One id for each byte of UTF-8, for models without a tokenizer of their own: ids 0 to 255."""

    def encode(self, text: str) -> list[int]:
        """Text to ids."""
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        """Ids to text; what is no UTF-8, or no byte, becomes U+FFFD."""
        return b"".join(bytes([i]) if 0 <= i < 256 else b"\xff" for i in ids).decode(errors="replace")


class CharTokenizer:
    """One id for each character of an alphabet, in its order.

    Args:
        alphabet: characters, each once.

    Raises:
        ConfigError: it is empty or has one twice.
    """

    def __init__(self, alphabet: str) -> None:
        if not alphabet or len(set(alphabet)) < len(alphabet):
            raise ConfigError("an alphabet has at least one character, and each once")
        self.alphabet = alphabet
        self._ids = {char: i for i, char in enumerate(alphabet)}

    def encode(self, text: str) -> list[int]:
        """Text to ids.

        Raises:
            Rejected: a character is not in the alphabet.
        """
        try:
            return [self._ids[char] for char in text]
        except KeyError as error:
            raise Rejected(f"the model's alphabet of {len(self.alphabet)} lacks {error.args[0]!r}") from None

    def decode(self, ids: list[int]) -> str:
        """Ids to text; what is not in the alphabet becomes U+FFFD."""
        known = len(self.alphabet)
        return "".join(self.alphabet[i] if 0 <= i < known else "\N{REPLACEMENT CHARACTER}" for i in ids)


class NoTokenizer:
    """In place of one, where a half of a bundle has none: the cloud's needs none."""

    def encode(self, text: str) -> list[int]:
        """Refuses."""
        raise ConfigError("the cloud's half of a bundle has no tokenizer; load it with side='edge' or 'both'")

    def decode(self, ids: list[int]) -> str:
        """Refuses."""
        return self.encode("")  # type: ignore[return-value]


class TokenizerEntry(BaseModel):
    """A tokenizer in a bundle's manifest.

    Attributes:
        kind: `fast` (`edge/tokenizer.json`), `bytes`, or `chars`.
        alphabet: of `chars`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["fast", "bytes", "chars"]
    alphabet: str = ""


class _Config(BaseModel):
    """`tokenizer-config.json`: what `tokenizer.json` does not say."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bos_token: str | None = None
    eos_token: str | None = None
    unk_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None
    clean_up_tokenization_spaces: bool = False


def tokenizer_files(tokenizer: Any) -> tuple[TokenizerEntry, Mapping[str, str]]:
    """What a bundle holds of a tokenizer: its entry, and its files by name.

    Raises:
        BundleError: it is of no kind that a bundle can hold; the message says what can be done.
    """
    if isinstance(tokenizer, ByteTokenizer):
        return TokenizerEntry(kind="bytes"), {}
    if isinstance(tokenizer, CharTokenizer):
        return TokenizerEntry(kind="chars", alphabet=tokenizer.alphabet), {}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BundleError(
            f"a bundle can not hold a {type(tokenizer).__name__}: it holds no code. Give a fast tokenizer of "
            "transformers (PreTrainedTokenizerFast(tokenizer_object=...) makes one of anything that the "
            "tokenizers library can express), or splitedge.llm.tokenizers.ByteTokenizer or CharTokenizer"
        )
    template = getattr(tokenizer, "chat_template", None)
    names = {name: _text(getattr(tokenizer, name, None)) for name in _NAMES}
    config = _Config(
        **names,
        chat_template=template if isinstance(template, str) else None,
        clean_up_tokenization_spaces=bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
    )
    text = backend.to_str()
    again = _fast(text, config)
    ids = list(tokenizer.encode(_TRIAL))
    if list(again.encode(_TRIAL)) != ids or again.decode(ids) != tokenizer.decode(ids):
        raise BundleError(
            f"the {type(tokenizer).__name__} does more than its tokenizer.json says: a trial text gives "
            "other ids when it is read back. Give the model's fast tokenizer (AutoTokenizer, use_fast=True)"
        )
    return TokenizerEntry(kind="fast"), {
        "tokenizer.json": text,
        "tokenizer-config.json": config.model_dump_json(indent=1),
    }


def _text(token: object) -> str | None:
    return None if token is None else str(token)


def load_tokenizer(entry: TokenizerEntry, folder: Path) -> Tokenizer:
    """The tokenizer of an entry, its files in `folder`.

    Raises:
        BundleError: a file is none.
        MissingExtra: `transformers` is not installed.
    """
    if entry.kind == "bytes":
        return ByteTokenizer()
    if entry.kind == "chars":
        try:
            return CharTokenizer(entry.alphabet)
        except ConfigError as error:
            raise BundleError(f"'manifest.json': {error}") from None
    try:
        config = _Config.model_validate_json((folder / "tokenizer-config.json").read_bytes())
        made: Tokenizer = _fast((folder / "tokenizer.json").read_text(), config)
    except MissingExtra:
        raise
    except (ValidationError, OSError, ValueError, json.JSONDecodeError) as error:
        raise BundleError(f"'edge/tokenizer.json' can not be read: {error}") from None
    except Exception as error:  # the tokenizers library raises plain Exception
        raise BundleError(f"'edge/tokenizer.json' is no tokenizer: {error}") from None
    return made


def _fast(text: str, config: _Config) -> Any:
    try:
        from tokenizers import Tokenizer as Backend
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise MissingExtra("llm", "a bundle's tokenizer") from None
    given = {name: value for name in _NAMES if (value := getattr(config, name)) is not None}
    made = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Backend.from_str(text),
        clean_up_tokenization_spaces=config.clean_up_tokenization_spaces,
        **given,
    )
    if config.chat_template is not None:
        made.chat_template = config.chat_template
    return made


def plain_ids(tokenizer: Any, text: str) -> list[int] | None:
    """Ids of a text without anything put before or behind it; None where the tokenizer has none for it."""
    try:
        if hasattr(tokenizer, "backend_tokenizer"):
            return list(tokenizer.encode(text, add_special_tokens=False))
        return list(tokenizer.encode(text))
    except Rejected:
        return None


def plain_text(tokenizer: Any, ids: list[int]) -> str:
    """Text of ids without special tokens."""
    if hasattr(tokenizer, "backend_tokenizer"):
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    return str(tokenizer.decode(ids))
