"""What a search may set: a TOML file of settings and their values.

"model.dim" = [32, 64]
"train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
"""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# With another fold, or another figure on it, trials could not be compared.
FIXED = ("data", "schema", "split")
FIXED_FIELDS = ("examples.positives", "train.monitor", "train.validation_queries")
_RANGE = {"low", "high", "log", "step"}


class Space:
    """The values of each setting.

    Args:
      values: By `section.field`, a list of values, or a range: `low`, `high`, and as
        wanted `log` or `step`.

    Raises:
      ValueError: One of them is none, or of a setting that a search must leave.
    """

    def __init__(self, values: Mapping[str, Any]):
        if not values:
            raise ValueError("A space names at least one setting: it is empty.")
        self.values = dict(values)
        for name, value in self.values.items():
            _check(name, value)

    @classmethod
    def read(cls, path: Path) -> "Space":
        """From a file; see `Space` for what is raised, beside OSError."""
        try:
            return cls(_flat(tomllib.loads(path.read_text("utf-8"))))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not TOML: {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def most(self, name: str) -> Any | None:
        """The largest value of a setting; None where it is not searched."""
        value = self.values.get(name)
        return value["high"] if isinstance(value, dict) else value and max(value)

    def suggest(self, trial: Any) -> list[str]:
        """What an Optuna trial takes, as overrides of a config."""
        return [f"{n}={json.dumps(_of(trial, n, v))}" for n, v in self.values.items()]

    def each_alone(self) -> list[str]:
        """An override a setting, with the first of its values."""
        first = lambda value: value[0] if isinstance(value, list) else value["low"]
        return [f"{name}={json.dumps(first(v))}" for name, v in self.values.items()]


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """`section.field` to a list or a range, however the file nests them."""
    if not isinstance(settings, dict) or (settings and set(settings) <= _RANGE):
        return {name: settings}
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{name}.{key}" if name else key)
    return found


def _check(name: str, value: Any) -> None:
    if name.partition(".")[0] in FIXED or name in FIXED_FIELDS:
        raise ValueError(
            f"{name} is no setting to search: trials are compared on one validation fold, "
            f"by one metric. Fixed are {', '.join((*FIXED, *FIXED_FIELDS))}."
        )
    if isinstance(value, list):
        if not value or any(isinstance(one, (list, dict)) for one in value):
            raise ValueError(f"{name} takes a list of plain values: received {value!r}.")
        return
    if not isinstance(value, dict):
        raise ValueError(
            f"{name} takes a list of values, or a range such as {{ low = 1, high = 4 }}: "
            f"received {value!r}."
        )
    number = lambda one: isinstance(one, int | float) and not isinstance(one, bool)
    low: Any = value.get("low")
    high: Any = value.get("high")
    log = value.get("log", False)
    if not (number(low) and number(high) and low < high):
        raise ValueError(f"{name} needs low < high, both numbers: received {value!r}.")
    if log and (low <= 0 or "step" in value):
        raise ValueError(f"{name}: log needs low > 0 and no step: received {value!r}.")
    if "step" in value and not (number(value["step"]) and value["step"] > 0):
        raise ValueError(f"{name} needs step > 0: received {value!r}.")


def _of(trial: Any, name: str, value: Any) -> Any:
    if isinstance(value, list):
        return trial.suggest_categorical(name, value)
    whole = all(isinstance(one, int) for one in (value["low"], value["high"]))
    if whole and isinstance(value.get("step", 1), int):
        step = {"step": value["step"]} if "step" in value else {}
        log = value.get("log", False)
        return trial.suggest_int(name, value["low"], value["high"], log=log, **step)
    return trial.suggest_float(
        name,
        value["low"],
        value["high"],
        log=value.get("log", False),
        step=value.get("step"),
    )
