"""The base of every configuration: typed, frozen, unknown keys refused with the nearest known one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from efface.errors import ConfigError, nearest

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """Base of every configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls: type[SettingsT], values: dict[str, Any], *, owner: str = "") -> SettingsT:
        """Build from plain values (command line, YAML).

        Raises:
            ConfigError: an unknown key, with the nearest known one; or a value of the wrong type or range.
        """
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(
                    f"unknown key '{key}'{f' for {owner}' if owner else ''}", None, nearest(key, cls.model_fields)
                )
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "config"
            if first["type"] == "extra_forbidden":
                known = cls._inner(first["loc"][:-1])
                raise ConfigError(f"unknown key '{key}'", None, nearest(str(first["loc"][-1]), known)) from error
            text = cls.model_fields[key].description if key in cls.model_fields else ""
            raise ConfigError(
                f"{key}={first['input']!r}",
                first["msg"].removeprefix("Value error, ").lower(),
                f"{key}: {text}" if text else None,
            ) from error

    @classmethod
    def _inner(cls, path: Sequence[int | str]) -> list[str]:
        """The keys of the settings that lie at a path below these."""
        place: Any = cls
        for part in path:
            place = place.model_fields[part].annotation
        return list(place.model_fields)
