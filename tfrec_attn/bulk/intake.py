"""A users table to the users of each shard, in a pass that holds one shard in memory."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from tfrec_attn.bulk import asked, shards
from tfrec_attn.bulk.shards import Shards
from tfrec_attn.data import blocks, readers, rejects
from tfrec_attn.data.schema import FileFormat


def digest(table: Path) -> str:
    """sha256 over a file, or the files of a folder.

    Raises:
      FileNotFoundError: There is none.
    """
    readers.require(table)
    total = hashlib.sha256()
    for file in sorted(table.iterdir()) if table.is_dir() else [table]:
        if file.is_file():
            with file.open("rb") as content:
                total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def split(
    table: Path, reading: asked.Reading, folder: Shards, size: int, *, set_aside: bool
) -> tuple[int, int]:
    """Writes the users of each shard, `size` rows of the table at a time.

    A user may stand in one row only, since a row is an answer.

    Args:
      table: A file, or a folder of them.
      reading: How it is read.
      folder: Where the shards go.
      size: Rows of a shard.
      set_aside: Whether rows that break a rule go to `_rejects.csv`; else they are an
        error.

    Returns:
      The number of shards, and of rows that were set aside.

    Raises:
      ValueError: A row breaks a rule, or none is left.
    """
    found: list[pl.DataFrame] = []
    hashes, count = [], 0
    for number, part in enumerate(
        shards.regrouped(_checked(table, reading, size, found), size)
    ):
        hashes.append(part["user_id"].hash().to_numpy())
        shards.write(part, folder.users(number))
        count = number + 1
    for number, again in _repeated(folder, hashes):
        part = pl.read_parquet(folder.users(number))
        rule = "is the id of an earlier row: name a user once"
        found.append(
            rejects.reject(
                part.select("file", "line"), again, reading.user, part["user_id"], rule
            )
        )
        shards.write(part.filter(~again), folder.users(number))
    bad = pl.concat(found) if found else rejects.empty()
    if bad.height and not set_aside:
        raise ValueError(rejects.message(bad, None))
    if bad.height:
        bad.write_csv(folder.out / "_rejects.csv")
    if not count:
        raise ValueError(f"{table}: no user is left to answer.")
    return count, rejects.count_rows(bad)


def _checked(
    table: Path, reading: asked.Reading, size: int, found: list[pl.DataFrame]
) -> Iterator[pl.DataFrame]:
    """The rows that keep the rules; the others are added to `found`."""
    for raw in blocks.tables(table, FileFormat(), size):
        checked = asked.read(raw, reading)
        if checked.rejects.height:
            found.append(checked.rejects)
        yield checked.frame


def _repeated(folder: Shards, hashes: list[np.ndarray]) -> Iterator[tuple[int, pl.Series]]:
    """The shards with a user of an earlier row, and which rows these are.

    A hash is 8 bytes a user; only users whose hash comes twice are looked at by name.
    """
    if not hashes:
        return
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    doubtful = values[counts > 1]
    seen: set[str] = set()
    for number, of in enumerate(hashes):
        if not np.isin(of, doubtful).any():
            continue
        names = pl.read_parquet(folder.users(number), columns=["user_id"])["user_id"]
        again = []
        for name, maybe in zip(names, np.isin(of, doubtful), strict=True):
            again.append(bool(maybe) and name in seen)
            if maybe:
                seen.add(name)
        if any(again):
            yield number, pl.Series(again)
