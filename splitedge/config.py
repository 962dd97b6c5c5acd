"""Settings from one TOML file, `SPLITEDGE_*` variables and the command line, in rising precedence.

The file has a table for each room (`[edge]`, `[cloud]`, `[engine]`, `[link]`); a variable is
`SPLITEDGE_SECTION__KEY`. Unknown keys are refused with the nearest name, wherever they come from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from splitedge.cloud.settings import ServerSettings
from splitedge.edge.settings import EdgeSettings
from splitedge.errors import ConfigError
from splitedge.estimate import EstimatorSettings
from splitedge.settings import EngineSettings
from splitedge.validating import read_toml, refuse_unknown, unknown

DEFAULT_FILE = Path("splitedge.toml")
PREFIX = "SPLITEDGE_"


class Settings(BaseSettings):
    """All settings: one section a room."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid")

    edge: EdgeSettings = Field(default_factory=EdgeSettings)
    cloud: ServerSettings = Field(default_factory=ServerSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    link: EstimatorSettings = Field(default_factory=EstimatorSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` merged; it reads file and variables itself to name them in errors."""
        return (init_settings,)


def load_settings(
    file: Path | str | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None
) -> Settings:
    """Read and check all settings.

    Args:
        file: a TOML file; None reads `splitedge.toml` of the working directory if there is one.
        overrides: values by section and key, as from the command line; None values are skipped.

    Raises:
        ConfigError: a missing or unreadable file, an unknown key, a value of the wrong type.
    """
    path = Path(file) if file is not None else DEFAULT_FILE
    from_file = read_toml(path) if file is not None or path.exists() else {}
    refuse_unknown(from_file, Settings, str(path))
    variables = _variables()
    refuse_unknown(variables, Settings, "environment")
    given = {
        section: {key: value for key, value in values.items() if value is not None}
        for section, values in (overrides or {}).items()
    }
    merged = _merge(_merge(from_file, variables), given)
    try:
        return Settings(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting {where} = {first['input']!r}: {first['msg']}") from None


def _variables() -> dict[str, Any]:
    for name in os.environ:
        section = name.removeprefix(PREFIX).split("__")[0].lower()
        if name.startswith(PREFIX) and "__" in name and section not in Settings.model_fields:
            raise ConfigError(unknown(section, Settings, f"variable {name}"))
    return EnvSettingsSource(Settings)()


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`, table by table."""
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
