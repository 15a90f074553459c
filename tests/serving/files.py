"""Where the files are, and how they are read."""

from pathlib import Path
from typing import Any

import yaml

SERVING = Path(__file__).parents[2] / "serving"
COMPOSE = SERVING / "compose.yaml"
ENVOY = SERVING / "envoy.yaml"
IMAGE = "tensorflow/serving:2.20.0"
MODEL = "movielens"


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def document(path: Path) -> Any:
    """The one document of a YAML file."""
    (found,) = documents(path)
    return found


def flags(command: list[str]) -> dict[str, str]:
    """`--name=value` by name."""
    return dict(flag.removeprefix("--").split("=", 1) for flag in command)
