"""Public data sets written as the three tables that `data.tables` reads.

MovieLens-100K comes in two forms with the same facts: GroupLens's own files and RecBole's.
Both give the same bytes here. What that took: GroupLens writes Latin-1, one flag a genre
and `Toy Story (1995)` as the title; RecBole writes UTF-8, genres separated by spaces, and
the year in its own column, whatever stands in the last parentheses. An item without a
release year has an empty one, and "unknown" is no genre. Titles keep their articles as
printed (`Usual Suspects, The`).
"""

import csv
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import filelock

from tfrec_attn import assets
from tfrec_attn.origins import MOVIELENS, files_of

ITEMS = ("item_id", "title", "year", "genres")
USERS = ("user_id", "age", "gender", "occupation", "zip_code")
INTERACTIONS = ("user_id", "item_id", "rating", "timestamp")

# The order of the flags in u.item, after its first, "unknown".
GENRES = (
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)

# One title in u.item has "(V)", made for video, behind its year.
_TITLE = re.compile(r"(?P<title>.*?)\s*\((?P<year>\d{4})\)(\s*\(V\))?\s*")


# The bytes that the rules above give, by which a whole set of tables is known.
TABLES = files_of("""
items.csv 67384 e946edc1684a1bcb7b23f4fe74ec1d23b977bd595ac16db0618b05819dd148a3
users.csv 22667 f0666955a899ab27004d413eec2d92e393f5050879597e126ede637390e5a238
interactions.csv 1979206 010fac14271cf92527353173e77ddb19b9168a476d99c55c2f4bd55d93d4c205
""")


def movielens_100k() -> Path:
    """Returns a folder with items.csv, users.csv and interactions.csv of MovieLens-100K.

    Writes them from the asset the first time, which is fetched if it is not in the cache.
    Interactions keep the order of the source's file, which is the same in both forms and
    not sorted by time. Times are in seconds.

    Raises:
      OSError: The asset cannot be fetched; see `assets.fetch`.
    """
    folder = assets.cache() / "tables" / MOVIELENS
    if assets.wrong_files(folder, TABLES, checksums=False):
        asset = assets.fetch(MOVIELENS)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f".{MOVIELENS}.lock")):
            # Another process may have written them while this one waited.
            if assets.wrong_files(folder, TABLES, checksums=False):
                write_movielens(asset, folder)
    return folder


def write_movielens(asset: Path, folder: Path) -> None:
    """Writes the three tables from whichever form lies in `asset`; all of them or nothing.

    Args:
      asset: With u.data, u.item and u.user, or with ml-100k.inter, .item and .user.
      folder: Replaced if it exists.
    """
    read = _grouplens if (asset / "u.data").is_file() else _recbole
    tables = zip(("items.csv", "users.csv", "interactions.csv"), read(asset), strict=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        new = Path(work, "new")
        new.mkdir()
        for name, rows in tables:
            _write(new / name, rows)
        if folder.exists():
            os.rename(folder, Path(work, "old"))
        os.rename(new, folder)


def _grouplens(asset):
    items = (
        (item, *_title_year(title), _joined(flags))
        for item, title, _, _, _, *flags in _lines(asset / "u.item", "|", "latin-1")
    )
    return (
        [ITEMS, *items],
        [USERS, *_lines(asset / "u.user", "|", "ascii")],
        [INTERACTIONS, *_lines(asset / "u.data", "\t", "ascii")],
    )


def _recbole(asset):
    items = (
        (item, *_repaired(title, year), "|".join(_known(genres.split())))
        for item, title, year, genres in _lines(asset / "ml-100k.item", "\t", "utf-8")[1:]
    )
    return (
        [ITEMS, *items],
        [USERS, *_lines(asset / "ml-100k.user", "\t", "ascii")[1:]],
        [INTERACTIONS, *_lines(asset / "ml-100k.inter", "\t", "ascii")[1:]],
    )


def _title_year(text):
    found = _TITLE.fullmatch(text)
    return (found["title"], found["year"]) if found else (text, "")


def _repaired(title, year):
    if title == "unkonwn":  # RecBole's word for u.item's "unknown", in both columns
        return "unknown", ""
    return (title, year) if re.fullmatch(r"\d{4}", year) else _title_year(title)


def _joined(flags):
    unknown, *known = flags
    if len(known) != len(GENRES) or not {unknown, *known} <= {"0", "1"}:
        raise ValueError(f"u.item needs {len(GENRES) + 1} flags of 0 or 1: got {flags}.")
    return "|".join(genre for genre, flag in zip(GENRES, known, strict=True) if flag == "1")


def _known(genres: Iterable[str]) -> list[str]:
    return [genre for genre in genres if genre != "unknown"]


def _lines(path: Path, separator: str, encoding: str) -> list[list[str]]:
    # Only \n ends a line: str.splitlines would also cut at Latin-1's \x85.
    lines = path.read_text(encoding=encoding).split("\n")
    return [line.split(separator) for line in lines if line]


def _write(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
