"""Which models to serve: the ModelServerConfig, from a file or for one folder, checked.

Source: tensorflow/serving `g3doc/serving_config.md`; rules and their words are those of
`model_servers/server_core.cc`.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import TypeAlias

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

Config: TypeAlias = model_server_config_pb2.ModelServerConfig
Entry: TypeAlias = model_server_config_pb2.ModelConfig
PLATFORM = "tensorflow"


def single(name: str, base_path: pathlib.Path) -> Config:
    """The configuration of one model, of which the latest version is served."""
    config = Config()
    config.model_config_list.config.add(
        name=name, base_path=str(base_path.resolve()), model_platform=PLATFORM
    )
    return config


def read(path: pathlib.Path) -> Config:
    """Reads a file in protobuf's text format.

    Raises:
      OSError: It cannot be read.
      ValueError: It breaks a rule; names file, line and rule.
    """
    try:
        text = path.read_text("utf-8")
        config = text_format.Parse(text, Config())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error.reason}.") from None
    except text_format.ParseError as error:
        # Behind "line:column : " stands the reason.
        reason = str(error).partition(" : ")[2] or str(error)
        raise ValueError(
            f"Error parsing text-format {Config.DESCRIPTOR.full_name}: "
            f"{path}:{error.GetLine()}:{error.GetColumn()}: {reason}"
        ) from None
    for index, fault in faults(config):
        raise ValueError(f"{path}{_line_of(text, index)}: {fault}")
    return config


def faults(config: Config) -> Iterator[tuple[int | None, str]]:
    """What breaks a rule: the index of the model in the list, and a text for the caller."""
    kind = config.WhichOneof("config")
    if kind != "model_config_list":
        yield (
            None,
            (
                f"{kind or 'An empty configuration'} is not served: list models in a "
                "model_config_list"
            ),
        )
    names: set[str] = set()
    for index, entry in enumerate(config.model_config_list.config):
        fault = _fault(entry, names)
        if fault:
            yield index, fault
        names.add(entry.name)


def _fault(entry: Entry, names: set[str]) -> str | None:
    if not entry.name:
        return f"A model needs a name; this one has base_path {entry.base_path!r}"
    if entry.name in names:
        return f"Illegal to list model {entry.name} multiple times in config list"
    if "://" in entry.base_path:
        return (
            f"Expected model {entry.name} to have a local folder; got "
            f"base_path()={entry.base_path}"
        )
    if not pathlib.PurePath(entry.base_path).is_absolute():
        return (
            f"Expected model {entry.name} to have an absolute path or URI; got "
            f"base_path()={entry.base_path}"
        )
    if entry.HasField("logging_config"):
        return f"logging_config of model {entry.name} is not served: leave it out"
    return _platform_fault(entry)


def _platform_fault(entry: Entry) -> str | None:
    field = "ModelServerConfig::model_type"
    if entry.model_type and entry.model_platform:
        return (
            f"Illegal setting both {field} (deprecated) and "
            f"ModelServerConfig::model_platform, model name is {entry.name}"
        )
    if entry.model_type not in (0, model_server_config_pb2.TENSORFLOW):
        return f"{field} choice {entry.model_type} not supported."
    if not entry.model_type and not entry.model_platform:
        return (
            f"Illegal setting neither {field} (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {entry.name}"
        )
    if entry.model_platform not in ("", PLATFORM):
        return (
            f"Model {entry.name} requests unsupported platform {entry.model_platform}; "
            f'supported is "{PLATFORM}"'
        )
    return None


def _line_of(text: str, index: int | None) -> str:
    """`:line` of a model in the list, as far as it can be told."""
    bare = re.sub(r"#.*", lambda comment: " " * len(comment[0]), text)
    starts = [match.start() for match in re.finditer(r"\bconfig\s*:?\s*[{<]", bare)]
    if index is None or index >= len(starts):
        return ""
    return f":{text.count(chr(10), 0, starts[index]) + 1}"
