"""The typed configuration of a run: one TOML file, then `section.field=value` overrides."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic

from tfrec_attn.settings.sections import Config

__all__ = ["Config", "changed", "flat", "load", "paths", "validate"]


def load(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    without: Iterable[str] = (),
) -> Config:
    """Reads a TOML file, but for the sections `without`, then applies
    `section.field=value` overrides in order.

    Raises:
      ValueError: On TOML that does not parse, an unknown setting or a value that breaks
        its rule; the message names the setting, the rule and the value.
      OSError: When the file cannot be read.
    """
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            settings = tomllib.loads(Path(path).read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not TOML: {error}") from error
    for section in without:
        settings.pop(section, None)
    for override in overrides:
        _apply(settings, override)
    return validate(settings)


def paths(config: Config) -> tuple[Any, Any, Any]:
    """The files of items, users and interactions; None where there are none."""
    data = config.data
    if data.prepared:
        return paths(load(Path(data.prepared) / "config.toml"))
    if not data.source:
        return data.items, data.users, data.interactions
    from tfrec_attn.data import sources

    folder = sources.movielens_100k()
    return folder / "items.csv", folder / "users.csv", folder / "interactions.csv"


def changed(config: Config, overrides: Iterable[str], section: str) -> Config:
    """A config with some settings of one section replaced.

    Raises:
      ValueError: On a setting of another section, and as of `load`.
    """
    settings = config.model_dump(by_alias=True, mode="json")
    for override in overrides:
        if not override.strip().startswith(f"{section}."):
            raise ValueError(
                f"Only settings of [{section}] can still be changed, the others are of the "
                f"training. Received: {override!r}."
            )
        _apply(settings, override)
    return validate(settings)


def validate(settings: Mapping[str, Any]) -> Config:
    """Checks plain settings; see `load` for what is raised."""
    try:
        return Config.model_validate(settings)
    except pydantic.ValidationError as error:
        raise ValueError("\n".join(_explain(e) for e in error.errors())) from None


def flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Plain nested settings as one level, `section.field` to value."""
    if not isinstance(settings, dict):
        return {name: settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{name}.{key}" if name else key)
    return found


def _apply(settings: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *sections, field = name.strip().split(".")
    if not equals or not sections or not field:
        raise ValueError(f"An override reads section.field=value: got {override!r}.")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise ValueError(f"{name}: {section} is a value, it has no fields.")
    settings[field] = _value(text.strip())


def _value(text: str) -> Any:
    """A TOML value where the text is one, the text itself elsewhere: neither words nor
    those of a list need quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if plain := re.fullmatch(r"\[([^\[\]{}\"']*)\]", text.strip()):
            return [_value(word.strip()) for word in plain[1].split(",") if word.strip()]
        return text


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known(error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"Unknown setting {place}; known here: {', '.join(known)}.{hint}"
    message = error["msg"].removeprefix("Value error, ")
    received = "" if isinstance(error["input"], dict) else f" Received: {error['input']!r}."
    where = f"Setting {place}: " if place else ""
    return f"{where}{message.rstrip('.')}.{received}"


def _known(location: Iterable[Any]) -> list[str]:
    model: Any = Config
    for part in location:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if part not in fields:
            return []
        kinds = [fields[part].annotation, *getattr(fields[part].annotation, "__args__", ())]
        models = [k for k in kinds if hasattr(k, "model_fields")]
        if not models:
            return []
        model = models[0]
    return [field.alias or name for name, field in model.model_fields.items()]
