"""What an earlier training knew: its ids, columns and events, kept for the next one."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tfrec_attn import atomic
from tfrec_attn.data import catalog
from tfrec_attn.data.catalog import Column
from tfrec_attn.data.tables import Tables

# Of a run: ids by row, and its events. Of a run that went on: the events before it.
ROWS, EVENTS, OLD = "rows.json", "events.parquet", "old_events.parquet"


@dataclasses.dataclass(frozen=True)
class Past:
    """What an earlier training knew, by which later tables are read.

    Attributes:
      columns: Of items and of users, as they were learned.
      ids: Of items and of users, by row.
      old: `user`, `item` ids and `time` of events that are never held out; None where all
        may be.
      grows: Whether new values of categories are added to the vocabularies.
      until: The last moment that it knows, by which old events are told where they were not
        kept one by one; None where there is no clock, or nothing grows.
    """

    columns: tuple[Mapping[str, Column], Mapping[str, Column]]
    ids: tuple[list[str], list[str]]
    old: pl.DataFrame | None
    grows: bool
    until: int | None = None

    @classmethod
    def of(cls, run: Path, *, grows: bool = False) -> "Past":
        """Of a run: to read its own tables, or with `grows` those of the next."""
        columns = json.loads((run / "columns.json").read_text("utf-8"))
        rows: dict[str, Any] = {"items": [], "users": []}
        if (run / ROWS).exists():
            rows = json.loads((run / ROWS).read_text("utf-8"))
        kept = run / (EVENTS if grows else OLD)
        old = pl.read_parquet(kept) if kept.exists() else None
        until = rows.get("until")
        # None of them may be left in the tables.
        if old is not None and len(old):
            until = int(old["time"].to_numpy().max()) or None
        return cls(
            columns=(
                catalog.from_json(columns["items"]),
                catalog.from_json(columns["users"]),
            ),
            ids=(rows["items"], rows["users"]),
            old=old,
            grows=grows,
            until=until if grows else None,
        )

    @property
    def mark(self) -> dict[str, Any]:
        """What tells it from another: a folder that was prepared for one is not for it."""
        ids = hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()
        return {"until": self.until, "ids": ids}

    def require(self, name: str, ids: pl.Series) -> None:
        """Checks that `items` or `users` with weights are all there.

        Raises:
          ValueError: When one is missing from tables that are to be gone on with.
        """
        missing = sorted(set(self._of(name)) - set(ids))
        if missing and self.grows:
            raise ValueError(
                f"The tables lack {len(missing)} of the {name} that the model knows, "
                f"as {missing[0]!r}: its weights belong to them. Put them back, though "
                "they are offered no more (a request's `exclude` leaves items out), or "
                "train anew."
            )

    def order(self, name: str, ids: pl.Series) -> np.ndarray:
        """Of `items` or `users` of a table the rows, old ones first and where they were."""
        place = {value: row for row, value in enumerate(self._of(name))}
        return np.argsort([place.get(value, len(place)) for value in ids], kind="stable")

    def numbers(self, name: str, ids) -> np.ndarray:
        """Which weights, from 1 on, those of a table have; new ones have the next."""
        place = {value: row for row, value in enumerate(self._of(name), 1)}
        new = itertools.count(len(place) + 1)
        return np.array([place.get(one) or next(new) for one in ids], np.int32)

    def _of(self, name: str) -> list[str]:
        return self.ids[("items", "users").index(name)]

    def ordered(self, tables: Tables, *, user_id: bool) -> Tables:
        """Tables with the rows of old items and users where they were, new ones behind.

        Args:
          tables: As they were read.
          user_id: Whether users have weights of their own, and items always.

        Raises:
          ValueError: When one with weights is missing from tables that are to be gone on
            with.
        """
        weighted = {"items": True, "users": user_id}
        found: dict[str, Any] = {}
        events = tables.interactions
        for name in ("items", "users"):
            table = getattr(tables, name)
            if weighted[name]:
                self.require(name, table["id"])
            order = self.order(name, table["id"])
            row = np.empty(len(order), np.int32)
            row[order] = np.arange(len(order))
            found[name] = table[order]
            column = name.removesuffix("s")
            events = events.with_columns(pl.Series(column, row[events[column].to_numpy()]))
        return dataclasses.replace(tables, interactions=events, **found)

    def is_old(self, tables: Tables) -> np.ndarray | None:
        """`[interactions]` bool, None where none is.

        Raises:
          ValueError: When all are.
        """
        events = identified(tables).with_row_index("row")
        if (found := self.had(events)) is None:
            return None
        old = np.zeros(len(events), bool)
        old[found["row"].to_numpy()] = True
        if old.all():
            raise ValueError(
                f"None of the {len(old)} interactions is new to the model: there is "
                "nothing to go on with. Name tables that have later events too."
            )
        return old

    def had(self, events: pl.DataFrame) -> pl.DataFrame | None:
        """Of events as `identified` those that it had; None where it had none."""
        if self.old is not None:
            on = ["user", "item", "time"]
            return events.join(self.old.unique(), on=on, how="semi", nulls_equal=True)
        if self.until is not None:
            return events.filter(pl.col("time") <= self.until)
        return None

    def read(self, place: int, table: pl.DataFrame, kinds: Mapping[str, str]):
        """The catalog of items (0) or users (1).

        Raises:
          ValueError: When the columns are others.
        """
        learned = self.columns[place]
        if not self.grows:
            return catalog.make(table, kinds, learned)
        fresh = catalog.make(table, kinds).columns
        name = ("items", "users")[place]
        for column in sorted(fresh.keys() ^ learned.keys()):
            here, there = ("lack", "has") if column in learned else ("have", "lacks")
            raise ValueError(
                f"The {name} {here} the column {column!r}, which the model {there}: its "
                "weights belong to its columns. Name the same ones, or train anew."
            )
        return catalog.make(
            table, kinds, {name: _grown(learned[name], fresh[name]) for name in learned}
        )


def _grown(learned: Column, fresh: Column) -> Column:
    known = set(learned.vocabulary)
    new = tuple(value for value in fresh.vocabulary if value not in known)
    return dataclasses.replace(learned, vocabulary=learned.vocabulary + new)


def identified(tables: Tables) -> pl.DataFrame:
    """What tells the events of tables apart whatever their order: `user`, `item` ids and
    `time`; 0 where there is no clock."""
    events = tables.interactions
    ids = lambda table, rows: table["id"].gather(events[rows])
    clock = bool(tables.schema.interactions.time)
    return pl.DataFrame(
        {
            "user": ids(tables.users, "user"),
            "item": ids(tables.items, "item"),
            "time": events["time"]
            if clock
            else pl.zeros(len(events), pl.Int64, eager=True),
        }
    )


def keep(tables: Tables, past: Past | None, out: Path) -> None:
    """Writes what a later run needs to go on from this one, and what this one needs of the
    run before it."""
    (out / OLD).unlink(missing_ok=True)
    events = identified(tables)
    kept = {EVENTS: events}
    # Not of those who have left since.
    if past is not None and (old := past.had(events)) is not None:
        kept[OLD] = old
    for name, table in kept.items():
        with atomic.replacing(out / name) as partial:
            table.write_parquet(partial)
    rows = {name: getattr(tables, name)["id"].to_list() for name in ("items", "users")}
    atomic.write(out / ROWS, json.dumps(rows))


def keep_rows(prepared, out: Path) -> None:
    """As `keep`, of a run on a prepared folder: of its events the last moment.

    Args:
      prepared: What the run stands on.
      out: Its folder.
    """
    for name in (EVENTS, OLD):
        (out / name).unlink(missing_ok=True)
    users = prepared.users.ids
    if prepared.past:
        users = users[np.argsort(prepared.past.numbers("users", users), kind="stable")]
    rows = {
        "items": prepared.items.ids.tolist(),
        "users": users.tolist(),
        "until": prepared.kept.until,
    }
    atomic.write(out / ROWS, json.dumps(rows))
