"""The folder that `prepare` writes and training reads: where things are, what they are.

| file | what |
|---|---|
| `prepared.json` | how it was made, sizes, parts; written last, so that it says: complete |
| `items.parquet`, `users.parquet` | the checked tables, in order of row |
| `counts.npz` | positive events by item and fold |
| `train/part-….tfrecord` | training examples; see `records` |
| `events/part-….parquet` | all events of a part's users, with their folds |
| `rejects.csv` | bad rows |

The users of a part have rows that follow one another; in its files they count from 0.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tfrec_attn import paths
from tfrec_attn.data import examples, rejects, splits
from tfrec_attn.data.partitions import FOLDS, Part
from tfrec_attn.data.schema import Schema
from tfrec_attn.data.tables import Tables

MANIFEST, VERSION = "prepared.json", 2


def shard(root: Path, number: int) -> Path:
    """The training examples of a part."""
    return root / "train" / f"part-{number:05d}.tfrecord"


def events(root: Path, number: int) -> Path:
    """All events of a part."""
    return root / "events" / f"part-{number:05d}.parquet"


def write_events(part: Part, path: Path) -> str:
    """Writes the events of a part; returns their sha256."""
    columns = {
        **{f.name: getattr(part.events, f.name) for f in dataclasses.fields(part.events)},
        "fold": part.fold,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(columns).write_parquet(path, compression="lz4")
    total = hashlib.sha256(part.users.str.join("\n").item().encode())
    for values in columns.values():
        total.update(np.ascontiguousarray(values).data)
    return total.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """A complete one.

    Attributes:
      root: The folder.
      made: What `prepared.json` holds.
    """

    root: Path
    made: dict[str, Any]

    @classmethod
    def of(cls, root: Path) -> "Folder":
        """Reads the manifest.

        Raises:
          ValueError: When the folder is not complete, or of another version.
        """
        path = root / MANIFEST
        if not root.exists():
            raise ValueError(f"{root}: no such folder{paths.looked_in(root)}.")
        if not path.exists():
            raise ValueError(
                f"{root} has no {MANIFEST}, which tfrec_attn.prepare writes last: name the "
                "folder of its --out, or run it to its end."
            )
        made = json.loads(path.read_text("utf-8"))
        if made.get("version") != VERSION:
            raise ValueError(
                f"{path}: prepared by another version of the package "
                f"({made.get('version')}, this one reads {VERSION}): prepare anew."
            )
        return cls(root, made)

    @property
    def parts(self) -> list[dict[str, Any]]:
        """Of each part its `number`, `first_user` and sums, in order of user row."""
        return self.made["parts"]

    @property
    def mark(self) -> dict[str, Any] | None:
        """Of the model that a training on it goes on from; None where it goes on from
        none."""
        return self.made.get("from")

    @property
    def until(self) -> int | None:
        """The last moment in it; None where there is no clock."""
        return self.made.get("until")

    def total(self, name: str) -> int:
        """A sum over all parts."""
        return sum(part[name] for part in self.parts)

    @functools.cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """`[I]` positive events of each item by fold."""
        with np.load(self.root / "counts.npz") as kept:
            return {name: kept[name] for name in kept}

    def learned_users(self, count: int) -> np.ndarray:
        """`[users]` bool: of so many, who has an event in training."""
        found = np.zeros(count, bool)
        for one in self.parts:
            frame = _parquet(events(self.root, one["number"]), columns=["user", "fold"])
            here = frame["user"].filter(frame["fold"] == FOLDS.index("train"))
            found[here.to_numpy() + one["first_user"]] = True
        return found

    def tables(self, *, with_events: bool) -> Tables:
        """The checked tables; `with_events` with all interactions, in file order."""
        read = lambda name: _parquet(self.root / f"{name}.parquet")
        found = rejects.empty()
        if (self.root / "rejects.csv").exists():
            found = pl.read_csv(self.root / "rejects.csv", schema=rejects.REJECTS)
        return Tables(
            items=read("items"),
            users=read("users"),
            interactions=self._all.drop("fold", "row") if with_events else _no_events(),
            schema=Schema.model_validate(self.made["schema"]),
            rejects=found,
        )

    def split(self, *, with_rows: bool) -> splits.Split:
        """The split; `with_rows` says which rows each fold has, and else it has none."""
        fold = self._all["fold"].to_numpy() if with_rows else np.zeros(0, np.uint8)
        rows = {name: np.flatnonzero(fold == i) for i, name in enumerate(FOLDS)}
        made: dict[str, Any] = {"context": np.zeros(0, np.int64), **self.made["split"]}
        return splits.Split(**rows | made)

    @functools.cached_property
    def _all(self) -> pl.DataFrame:
        frames = []
        for one in self.parts:
            frame = _parquet(events(self.root, one["number"]))
            user = (pl.col("user") + one["first_user"]).cast(pl.Int32)
            frames.append(frame.with_columns(user))
        return pl.concat(frames).sort("row") if frames else _no_events()

    def part(self, one: dict[str, Any]) -> Part:
        """All events of a part, with the rows that users have in all."""
        frame = _parquet(events(self.root, one["number"]))
        column = {name: frame[name].to_numpy() for name in frame.columns}
        column["user"] = (column["user"] + one["first_user"]).astype(np.int32)
        fold = column.pop("fold")
        return Part(pl.Series(dtype=pl.String), examples.Events(**column), fold)


def _parquet(path: Path, columns: list[str] | None = None) -> pl.DataFrame:
    try:
        return pl.read_parquet(path, columns=columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ValueError(
            f"{path}: a file of the prepared folder cannot be read: {error}. Restore it, "
            "or prepare anew."
        ) from error


def _no_events() -> pl.DataFrame:
    kinds = {
        "user": pl.Int32,
        "item": pl.Int32,
        "time": pl.Int64,
        "feedback": pl.Int8,
        "weight": pl.Float32,
    }
    return pl.DataFrame(schema=kinds)
