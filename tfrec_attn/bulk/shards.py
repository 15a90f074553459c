"""The folder of a bulk scoring: what is asked for, shard by shard, and what is answered.

    part-00000.parquet …   answers; a shard is complete or absent
    _manifest.json         what they are answers to
    _users/part-00000 …    the checked users of the shards that are still open
    _rejects.csv           rows of the users table that break a rule, where set aside

Names that begin with "_" are passed over by what reads a folder of Parquet.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tfrec_attn import atomic, claims

MANIFEST, USERS = "_manifest.json", "_users"


class Shards:
    """The shards of one folder.

    Args:
      out: The folder.
    """

    def __init__(self, out: Path):
        self.out = out

    def answers(self, number: int) -> Path:
        """The file with the answers of a shard."""
        return self.out / f"part-{number:05}.parquet"

    def users(self, number: int) -> Path:
        """The file with the users of a shard."""
        return self.out / USERS / f"part-{number:05}.parquet"

    def manifest(self) -> dict[str, Any] | None:
        """What the folder holds answers to; None where it holds none."""
        path = self.out / MANIFEST
        begun = path.exists() and any(self.out.glob("part-*.parquet"))
        return json.loads(path.read_text("utf-8")) if begun else None

    def claim(self, asked: dict[str, Any]) -> None:
        """Makes the folder, or checks that it is of the same question.

        Args:
          asked: Of which version, of which users, and how.

        Raises:
          ValueError: The folder is of another question, or holds something else.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out names a folder: {self.out} is a file.")
        if was := self.manifest():
            known = {name: was.get(name) for name in asked}
            what = f"{self.out} holds answers to another question"
            claims.require_same(known, asked, what, claims.AS_BEGUN)
        elif any(self.out.glob("part-*.parquet")):
            raise ValueError(
                f"{self.out} holds Parquet files without {MANIFEST}, so not of this "
                "command: name another folder by --out."
            )
        (self.out / USERS).mkdir(parents=True, exist_ok=True)

    def begin(self, manifest: dict[str, Any]) -> None:
        """Says what the answers that follow are answers to."""
        atomic.write(self.out / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    def open(self, count: int) -> list[int]:
        """The shards without answers."""
        return [number for number in range(count) if not self.answers(number).exists()]

    def ready(self, numbers: list[int]) -> bool:
        """Whether the users of these shards are there."""
        return all(self.users(number).exists() for number in numbers)

    def close(self) -> None:
        """Removes the users, once all is answered."""
        shutil.rmtree(self.out / USERS, ignore_errors=True)

    def summary(self, count: int) -> dict[str, int]:
        """What stands in the answers, counted."""
        table = pl.scan_parquet([self.answers(number) for number in range(count)])
        of_items = pl.col("item_id").list.len()
        counted = table.select(
            users=pl.len(),
            unknown_users=(~pl.col("known_user")).sum(),
            users_without_items=(of_items == 0).sum(),
            items=of_items.sum(),
            unknown_items_in_histories=pl.col("unknown_history").sum(),
        )
        return {"shards": count, **counted.collect().row(0, named=True)}


def write(frame: pl.DataFrame, path: Path) -> None:
    """A file beside, renamed: a reader never sees half of it, nor does another process
    that writes the same shard."""
    partial = path.with_name(f"_{path.name}.{os.getpid()}.partial")
    frame.write_parquet(partial)
    partial.replace(path)


def regrouped(frames: Iterator[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    """The same rows, `size` at a time; the last ones may be fewer."""
    kept = pl.DataFrame()
    for frame in frames:
        kept = pl.concat([kept, frame], how="diagonal") if kept.height else frame
        while kept.height >= size:
            yield kept.head(size)
            kept = kept.slice(size)
    if kept.height:
        yield kept
