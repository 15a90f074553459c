"""The items, users and interactions tables, every row of them checked.

A row either keeps every rule or is a reject with its file, line, column, value and rule;
rejects stop the run or are set aside. What is decided without rejecting a row (repeated
rows, users that the users table lacks, empty texts, …) is counted in the log.
"""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import polars as pl

from tfrec_attn.data import checks, inference, readers, rejects
from tfrec_attn.data.entities import read_entities
from tfrec_attn.data.interactions import read_interactions
from tfrec_attn.data.readers import RawTable
from tfrec_attn.data.schema import EntitySchema, Schema

BadRows = Literal["stop", "set-aside"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tables:
    """Tables that keep every rule of the schema.

    Attributes:
      items: `id` String, unique; `text` String, "" where nothing is known; then a column
        for each feature, by kind: category, image, audio String; categories List(String),
        never null; number Float64; time Int64 milliseconds; embedding Array(Float32,
        width). Null where missing.
      users: The same for users. Those that only the interactions know come last, without
        text and features.
      interactions: `user` and `item` Int32 rows of the tables above, `time` Int64
        milliseconds, `feedback` Int8 index into LABELS, `weight` Float32; in file order.
      schema: With everything that was inferred.
      rejects: file, line, column, value, rule; one for each rule that a row breaks.
    """

    items: pl.DataFrame
    users: pl.DataFrame
    interactions: pl.DataFrame
    schema: Schema
    rejects: pl.DataFrame


def read_tables(
    items: str | Path,
    users: str | Path | None,
    interactions: str | Path,
    schema: Schema | None = None,
    bad_rows: BadRows = "stop",
    rejects_path: str | Path | None = None,
) -> Tables:
    """Reads and checks the three tables.

    Args:
      items: A file or a folder of shards: CSV, TSV, JSONL or Parquet, also gzipped.
      users: The same; None takes the users of the interactions.
      interactions: The same.
      schema: What the columns mean. What it leaves open is inferred and logged.
      bad_rows: Whether rows that break a rule stop the run or are set aside.
      rejects_path: CSV file for the bad rows, written in both cases.

    Raises:
      ValueError: A file or a column is not as it must be, or with "stop" a row is not.
      FileNotFoundError: There is no such file.
    """
    if bad_rows not in ("stop", "set-aside"):
        raise ValueError(f'bad_rows is "stop" or "set-aside": got {bad_rows!r}.')
    raw_events = readers.read(interactions, (schema or Schema()).interactions.file)
    schema, known_items, known_users = read_both(items, users, raw_events, schema)
    # A run that stops names causes, not the unknown ids that follow from rejected items.
    whole = bad_rows == "set-aside" or known_items.rejects.is_empty()
    events = read_interactions(
        raw_events, schema.interactions, known_items.frame["id"] if whole else None
    )
    all_rejects = pl.concat([known_items.rejects, known_users.rejects, events.rejects])
    settle(all_rejects, bad_rows, Path(rejects_path) if rejects_path else None)
    for name, kept in ((items, known_items), (interactions, events)):
        require_left(str(name), kept.frame.height, all_rejects)
    all_users = add_users(known_users.frame, events.frame["user"])
    return Tables(
        items=known_items.frame,
        users=all_users,
        interactions=_to_rows(events.frame, known_items.frame, all_users),
        schema=schema,
        rejects=all_rejects,
    )


def read_both(
    items: str | Path,
    users: str | Path | None,
    raw_events: RawTable,
    schema: Schema | None = None,
) -> tuple[Schema, checks.Checked, checks.Checked]:
    """Reads items and users, and resolves the schema.

    Args:
      items, users, schema: See `read_tables`, also for what is raised.
      raw_events: Interactions, as many as tell what their columns mean.

    Returns:
      The schema, and the rows of items and users, good and bad.
    """
    schema = schema or Schema()
    raw_items = readers.read(items, schema.items.file)
    users_format = (schema.users or EntitySchema()).file
    raw_users = readers.read(users, users_format) if users else None
    _require_rows(raw for raw in (raw_items, raw_users, raw_events) if raw)
    schema = inference.resolve(schema, raw_items, raw_users, raw_events)
    logger.info(
        "What the columns mean (copy into the config to correct it):\n%s", schema.to_toml()
    )
    known_items = read_entities(raw_items, schema.items, "items")
    known_users = _no_users()
    if raw_users and schema.users:
        known_users = read_entities(raw_users, schema.users, "users")
    return schema, known_items, known_users


def require_left(name: str, rows: int, all_rejects: pl.DataFrame) -> None:
    """Checks that a table has a row that keeps all rules."""
    if not rows:
        left = rejects.message(all_rejects, None)
        raise ValueError(f"{name}: no row is left. {left}")


def read_items(
    path: str | Path, schema: Schema, bad_rows: BadRows = "stop"
) -> pl.DataFrame:
    """Reads and checks an items table alone, by the resolved schema of an earlier one.

    Args:
      path, bad_rows: See `read_tables`, also for what is raised.
      schema: As `Tables` has it.
    """
    raw = readers.read(path, schema.items.file)
    _require_rows([raw])
    found = read_entities(raw, schema.items, "items")
    settle(found.rejects, bad_rows, None)
    require_left(raw.name, found.frame.height, found.rejects)
    return found.frame


def _require_rows(tables: Iterable[RawTable]) -> None:
    for raw in tables:
        if raw.frame.is_empty() and raw.rejects.is_empty():
            raise ValueError(f"{raw.name}: the table has no rows.")


def settle(all_rejects: pl.DataFrame, bad_rows: BadRows, path: Path | None) -> None:
    """Writes the rejects and stops or goes on."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        all_rejects.write_csv(path)
    if all_rejects.is_empty():
        logger.info("bad rows: none")
    elif bad_rows == "stop":
        raise ValueError(rejects.message(all_rejects, path))
    else:
        logger.warning("bad rows, set aside: %d", rejects.count_rows(all_rejects))
        for line in rejects.counts(all_rejects):
            logger.warning("  %s", line)


def _no_users() -> checks.Checked:
    frame = pl.DataFrame(schema={"id": pl.String, "text": pl.String})
    return checks.Checked(frame, rejects.empty())


def add_users(users: pl.DataFrame, seen: pl.Series) -> pl.DataFrame:
    """Appends users that only the interactions know, in order of appearance in `seen`."""
    ids = seen.unique(maintain_order=True)
    new = ids.filter(~ids.is_in(users["id"].implode()))
    if len(new) and users.height:
        logger.warning(
            "%d user(s) of the interactions have no row in the users table", len(new)
        )
    added = pl.DataFrame({"id": new}).with_columns(pl.lit("").alias("text"))
    both = pl.concat([users, added], how="diagonal")
    lists = [name for name, kind in both.schema.items() if kind == pl.List(pl.String)]
    empty = pl.lit([], dtype=pl.List(pl.String))
    return both.with_columns(pl.col(name).fill_null(empty) for name in lists)


def _to_rows(
    events: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame
) -> pl.DataFrame:
    """Replaces ids by the rows that they have in their tables."""
    for name, table in (("user", users), ("item", items)):
        rows = pl.DataFrame(
            {
                name: table["id"],
                "row": pl.int_range(table.height, dtype=pl.Int32, eager=True),
            }
        )
        events = events.join(rows, on=name, how="left", maintain_order="left")
        events = events.with_columns(pl.col("row").alias(name)).drop("row")
    return events
