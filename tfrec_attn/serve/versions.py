"""The version folders of a model, and which of them a policy asks for."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tensorflow_serving.config import file_system_storage_path_source_pb2

_SourceConfig = file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig
_LARGEST = 2**63 - 1
LATEST: Any = _SourceConfig.ServableVersionPolicy()


def versions(base_path: pathlib.Path) -> dict[int, pathlib.Path]:
    """The version folders; one without its saved_model file is still being written."""
    if not base_path.is_dir():
        return {}
    # Of 001 and 1 the latter counts.
    return {
        int(path.name): path
        for path in sorted(base_path.iterdir())
        if re.fullmatch("[0-9]{1,30}", path.name)
        and int(path.name) <= _LARGEST
        and any((path / f"saved_model.{end}").is_file() for end in ("pb", "pbtxt"))
    }


def chosen(
    found: Mapping[int, pathlib.Path], policy: Any = LATEST
) -> dict[int, pathlib.Path]:
    """The versions to serve: the latest one, the latest few, all, or the listed ones.

    Args:
      found: The version folders.
      policy: A `ServableVersionPolicy`.

    Source: tensorflow/serving `sources/storage_path/file_system_storage_path_source.cc`.
    """
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return dict(found)
    if choice == "specific":
        return {
            number: found[number] for number in policy.specific.versions if number in found
        }
    count = max(policy.latest.num_versions, 1)
    return {number: found[number] for number in sorted(found)[-count:]}


def missing(found: Mapping[int, pathlib.Path], policy: Any) -> list[int]:
    """The versions that a `specific` policy lists and that are not there."""
    return sorted(set(policy.specific.versions) - set(found))


def last_change(path: pathlib.Path) -> float:
    """When the newest file under a folder was written."""
    return max((file.lstat().st_mtime for file in path.rglob("*")), default=0.0)
