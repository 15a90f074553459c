"""Files that are there whole or not at all, whenever the program is killed."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

# Of what is being written. In front, as a suffix often says what a file is.
PARTIAL = "partial-"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to, which takes its place once it is
    written.

    Raises:
      OSError: When it cannot be written; names `path`, which stays as it was.
    """
    partial = path.with_name(PARTIAL + path.name)
    try:
        yield partial
        if path.is_dir():
            # A folder that has something in it cannot be replaced.
            path.replace(path.with_name(f"{PARTIAL}old-{path.name}"))
        partial.replace(path)
        _remove(path.with_name(f"{PARTIAL}old-{path.name}"))
    except OSError as error:
        # Of a full disk half of it would take the last room.
        _remove(partial)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write(path: Path, text: str) -> None:
    """Writes a text file. See `replacing` for what is raised."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8")


def sweep(folder: Path) -> None:
    """Removes what a killed program had begun to write in a folder."""
    for found in sorted(folder.rglob(PARTIAL + "*"), reverse=True):
        _remove(found)


def _remove(path: Path) -> None:
    """Removes a file or a folder, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
