"""Whose a folder is: what a command that goes on in it has to know."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import filelock

AS_BEGUN = "Go on with what it was begun with, or name another folder by --out."


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list]:
    """What is not the same: by name what it was, and what it is; None where it is not."""
    return {
        name: [was.get(name), now.get(name)]
        for name in dict.fromkeys([*was, *now])
        if was.get(name) != now.get(name)
    }


def require_same(
    was: Mapping[str, Any], now: Mapping[str, Any], what: str, way_out: str
) -> None:
    """Checks that a folder is gone on with as it was begun.

    Raises:
      ValueError: Says `what` is wrong, all that differs, and the way out.
    """
    lines = [
        f"  {name}: was {a!r}, is {b!r}" for name, (a, b) in differences(was, now).items()
    ]
    if lines:
        raise ValueError("\n".join([f"{what}:", *lines, way_out]))


def alone(folder: Path) -> AbstractContextManager:
    """Holds a folder, for one process at a time.

    Raises:
      ValueError: When another process holds it.
    """
    try:
        return filelock.FileLock(folder / "_lock").acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"Another process is at work in {folder}: wait for its end, or name another "
            "folder by --out."
        ) from None
