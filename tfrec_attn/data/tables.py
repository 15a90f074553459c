"""The items, users and interactions tables, every row of them checked.

A row either keeps every rule or is a reject with its file, line, column, value and rule;
rejects stop the run or are set aside. What is decided without rejecting a row (repeated rows,
users that the users table lacks, empty texts, …) is counted in the log.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import polars as pl

from tfrec_attn.data import columns, feedback, inference, readers, rejects, template
from tfrec_attn.data.readers import RawTable
from tfrec_attn.data.schema import (
    EntitySchema,
    InteractionSchema,
    Kind,
    Schema,
    template_parts,
)

BadRows = Literal["stop", "set-aside"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tables:
    """Tables that keep every rule of the schema.

    Attributes:
      items: `id` String, unique; `text` String, "" where nothing is known; then a column for
        each feature, by kind: category, image, audio String; categories List(String), never
        null; number Float64; time Int64 milliseconds; embedding Array(Float32, width). Null
        where missing.
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


@dataclasses.dataclass(frozen=True)
class _Checked:
    """Rows that keep the rules, and what became of the others."""

    frame: pl.DataFrame
    rejects: pl.DataFrame
    set_aside: pl.Series  # ids of the rejected rows


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
    schema = schema or Schema()
    raw_items = readers.read(items, schema.items.file)
    raw_users = readers.read(users, (schema.users or EntitySchema()).file) if users else None
    raw_events = readers.read(interactions, schema.interactions.file)
    _require_rows(filter(None, (raw_items, raw_users, raw_events)))
    schema = inference.resolve(schema, raw_items, raw_users, raw_events)
    logger.info(
        "What the columns mean (copy into the config to correct it):\n%s", schema.to_toml()
    )

    known_items = _entities(raw_items, schema.items, "items")
    known_users = _entities(raw_users, schema.users, "users") if raw_users else _no_users()
    events = _interactions(
        raw_events, schema.interactions, known_items, follow_up=bad_rows == "set-aside"
    )
    all_rejects = pl.concat([known_items.rejects, known_users.rejects, events.rejects])
    _settle(all_rejects, bad_rows, Path(rejects_path) if rejects_path else None)
    for raw, kept in ((raw_items, known_items), (raw_events, events)):
        if kept.frame.is_empty():
            raise ValueError(f"{raw.name}: no row is left. {rejects.message(all_rejects, None)}")
    all_users = _add_users(known_users.frame, events.frame["user"])
    return Tables(
        items=known_items.frame,
        users=all_users,
        interactions=_to_rows(events.frame, known_items.frame, all_users),
        schema=schema,
        rejects=all_rejects,
    )


def _require_rows(tables: Iterable[RawTable]) -> None:
    for raw in tables:
        if raw.frame.is_empty() and raw.rejects.is_empty():
            raise ValueError(f"{raw.name}: the table has no rows.")


def _require(raw: RawTable, wanted: dict[str, str]) -> None:
    """Checks that columns exist; `wanted` says for each which setting names it."""
    for name, setting in wanted.items():
        if name not in raw.frame.columns:
            raise ValueError(
                f"{raw.name}: no column {name!r} (schema.{setting}). "
                f"Its columns are: {', '.join(raw.frame.columns)}."
            )


def _settle(all_rejects: pl.DataFrame, bad_rows: BadRows, path: Path | None) -> None:
    """Writes the rejects and stops or goes on."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        all_rejects.write_csv(path)
    if all_rejects.is_empty():
        logger.info("bad rows: none")
    elif bad_rows == "stop":
        raise ValueError(rejects.message(all_rejects, path))
    else:
        counts = all_rejects.group_by("file", "column", "rule", maintain_order=True).len()
        logger.warning("bad rows, set aside: %d", rejects.count_rows(all_rejects))
        for file, column, rule, count in counts.rows():
            logger.warning("  %s: %d row(s), column %r: %s", file, count, column, rule)


def _check(
    raw: RawTable, converted: dict[str, columns.Column]
) -> tuple[pl.Series, list[pl.DataFrame]]:
    """Which rows break a rule, and the rejects."""
    bad = pl.repeat(False, raw.frame.height, eager=True)
    found = [raw.rejects]
    for name, column in converted.items():
        for note in column.notes:
            logger.warning("%s, column %r: %s", raw.name, name, note)
        for rule, broken in column.faults:
            bad |= broken
            found.append(rejects.reject(raw.place, broken, name, raw.frame[name], rule))
    return bad, found


def _convert(series: pl.Series, kind: Kind, separator: str) -> columns.Column:
    if kind == "categories":
        return columns.categories(series, separator)
    kinds: dict[str, Callable[[pl.Series], columns.Column]] = {
        "category": columns.category,
        "number": columns.number,
        "time": columns.time,
        "embedding": columns.embedding,
        "image": columns.path,
        "audio": columns.path,
    }
    return kinds[kind](series)


def _entities(raw: RawTable, schema: EntitySchema | None, table: str) -> _Checked:
    """Items or users: the rows that keep all rules, each id once."""
    assert schema is not None and schema.id and schema.columns is not None  # resolved
    fields = template_parts(schema.text or "")[1::2]
    _require(
        raw,
        {schema.id: f"{table}.id"}
        | dict.fromkeys(schema.columns, f"{table}.columns")
        | dict.fromkeys(fields, f"{table}.text"),
    )
    ids = columns.identifier(raw.frame[schema.id])
    features = {
        name: _convert(raw.frame[name], kind, schema.separators.get(name, "|"))
        for name, kind in schema.columns.items()
    }
    # A column may be both the id and a feature: its faults are those of the id then.
    bad, found = _check(raw, {**features, schema.id: ids})
    frame = pl.DataFrame(
        {
            "id": ids.values,
            "text": _text(raw, schema, fields, features),
            **{name: column.values for name, column in features.items()},
        }
    )
    repeated = _repeats(frame.filter(~bad), raw, ~bad, schema.id, found)
    kept = frame.filter(~bad).filter(~repeated)
    _log_entities(raw, kept, int((~bad).sum()), found)
    lost = frame["id"].filter(bad).drop_nulls()
    return _Checked(kept, pl.concat(found), lost.filter(~lost.is_in(kept["id"].implode())))


def _text(
    raw: RawTable,
    schema: EntitySchema,
    fields: list[str],
    features: dict[str, columns.Column],
) -> pl.Series:
    # In a text numbers and lists stand in their canonical form, all else as it is written.
    canonical = {"number", "categories"}
    kinds = schema.columns or {}
    strings = {
        name: columns.as_text(
            features[name].values if kinds.get(name) in canonical else raw.frame[name]
        )
        for name in fields
    }
    return template.fill(schema.text or "", strings, raw.frame.height)


def _repeats(
    frame: pl.DataFrame, raw: RawTable, good: pl.Series, column: str, found: list[pl.DataFrame]
) -> pl.Series:
    """Rows whose id has come before; where anything else differs they are rejects."""
    repeated = ~frame["id"].is_first_distinct()
    if not repeated.any():
        return repeated
    others = [name for name in frame.columns if name != "id"]
    first = frame.filter(~repeated).select("id", pl.struct(others).alias("first"))
    again = frame.filter(repeated).select("id", pl.struct(others).alias("again"))
    pairs = again.join(first, on="id", how="left", maintain_order="left")
    same = [
        pl.col("again").struct.field(name).eq_missing(pl.col("first").struct.field(name))
        for name in others
    ]
    differs = pairs.select(~pl.all_horizontal(same)).to_series()
    place = raw.place.filter(good).filter(repeated)
    values = raw.frame[column].filter(good).filter(repeated)
    rule = "is an id that an earlier row has with other values"
    found.append(rejects.reject(place, differs, column, values, rule))
    if not differs.all():
        count = int((~differs).sum())
        logger.warning("%s: %d row(s) repeat an earlier row and are left out", raw.name, count)
    return repeated


def _log_entities(
    raw: RawTable, kept: pl.DataFrame, good: int, found: list[pl.DataFrame]
) -> None:
    logger.info(
        "%s: %d rows kept, %d bad", raw.name, kept.height, rejects.count_rows(pl.concat(found))
    )
    empty = (kept["text"] == "").sum()
    if 0 < empty < kept.height:
        logger.warning("%s: %d row(s) have an empty text", raw.name, empty)


def _no_users() -> _Checked:
    frame = pl.DataFrame(schema={"id": pl.String, "text": pl.String})
    return _Checked(frame, rejects.empty(), frame["id"])


def _interactions(
    raw: RawTable, schema: InteractionSchema, items: _Checked, follow_up: bool
) -> _Checked:
    """Interactions by ids. Rows of rejected items are rejects only with `follow_up`."""
    assert schema.user and schema.item  # resolved
    labels = schema.feedback
    wanted = {schema.user: "interactions.user", schema.item: "interactions.item"}
    if schema.time:
        wanted[schema.time] = "interactions.time"
    if labels and labels.column:
        wanted[labels.column] = "interactions.feedback.column"
    if schema.weight:
        wanted[schema.weight] = "interactions.weight"
    _require(raw, wanted)
    height = raw.frame.height
    parts = {
        "user": (schema.user, columns.identifier(raw.frame[schema.user])),
        "item": (schema.item, _known_item(raw.frame[schema.item], items, follow_up)),
    }
    constant = {"feedback": pl.repeat(feedback.LIKE, height, dtype=pl.Int8, eager=True)}
    constant["weight"] = pl.repeat(1.0, height, dtype=pl.Float32, eager=True)
    if schema.time:
        parts["time"] = (schema.time, _required(columns.time(raw.frame[schema.time])))
    else:
        logger.warning("%s: no time column; the order of the file is time", raw.name)
        # From 1, because 0 stands for an unknown time where the model is served.
        constant["time"] = pl.int_range(1, height + 1, dtype=pl.Int64, eager=True)
    if labels and labels.column:
        parts["feedback"] = (labels.column, feedback.label(raw.frame[labels.column], labels))
    if schema.weight:
        parts["weight"] = (schema.weight, _weight(raw.frame[schema.weight]))
    bad, found = pl.repeat(False, height, eager=True), [raw.rejects]
    for name, column in parts.values():
        its_bad, its_rejects = _check(raw, {name: column})
        bad, found = bad | its_bad, found + its_rejects[1:]
    values = constant | {name: column.values for name, (_, column) in parts.items()}
    order = ("user", "item", "time", "feedback", "weight")
    frame = pl.DataFrame({name: values[name] for name in order})
    kept = frame.filter(~bad)
    every = pl.concat(found)
    logger.info("%s: %d rows kept, %d bad", raw.name, kept.height, rejects.count_rows(every))
    again = kept.height - kept.n_unique(["user", "item", "time"])
    if again:
        logger.info("%s: %d row(s) repeat user, item and time; all are kept", raw.name, again)
    return _Checked(kept, every, kept["user"].clear())


def _known_item(series: pl.Series, items: _Checked, follow_up: bool) -> columns.Column:
    ids = columns.identifier(series)
    unknown = ~ids.values.is_in(items.frame["id"].implode()).fill_null(True)
    lost = unknown & ids.values.is_in(items.set_aside.implode()).fill_null(False)
    faults = [*ids.faults, ("is no id of the items table", unknown & ~lost)]
    if follow_up:
        faults.append(("is the id of an item that was set aside", lost))
    return columns.Column(ids.values, tuple(faults), ids.notes)


def _required(column: columns.Column) -> columns.Column:
    """Adds the rule that a value must be there."""
    missing = column.values.is_null()
    for _, broken in column.faults:
        missing &= ~broken
    return dataclasses.replace(column, faults=(*column.faults, ("is missing", missing)))


def _weight(series: pl.Series) -> columns.Column:
    column = _required(columns.number(series))
    negative = (column.values < 0).fill_null(False)
    faults = (*column.faults, ("is a negative weight", negative))
    return dataclasses.replace(column, values=column.values.cast(pl.Float32), faults=faults)


def _add_users(users: pl.DataFrame, seen: pl.Series) -> pl.DataFrame:
    """Appends users that only the interactions know, in order of appearance."""
    ids = seen.unique(maintain_order=True)
    new = ids.filter(~ids.is_in(users["id"].implode()))
    if len(new) and users.height:
        logger.warning("%d user(s) of the interactions have no row in the users table", len(new))
    added = pl.DataFrame({"id": new}).with_columns(pl.lit("").alias("text"))
    both = pl.concat([users, added], how="diagonal")
    lists = [name for name, kind in both.schema.items() if kind == pl.List(pl.String)]
    empty = pl.lit([], dtype=pl.List(pl.String))
    return both.with_columns(pl.col(name).fill_null(empty) for name in lists)


def _to_rows(events: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame) -> pl.DataFrame:
    """Replaces ids by the rows that they have in their tables."""
    for name, table in (("user", users), ("item", items)):
        rows = pl.DataFrame(
            {name: table["id"], "row": pl.int_range(table.height, dtype=pl.Int32, eager=True)}
        )
        events = events.join(rows, on=name, how="left", maintain_order="left")
        events = events.with_columns(pl.col("row").alias(name)).drop("row")
    return events
