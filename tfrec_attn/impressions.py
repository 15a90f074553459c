"""`python -m tfrec_attn.impressions`: a request log and the shop's events as interactions.

What was answered and not taken within a window of time becomes `ignore`; histories that
requests brought become events. The table is in the columns of `[schema.interactions]`, for
`tfrec_attn.train --from`.
"""

import argparse
import json
import logging
import math
import sys
from pathlib import Path

import polars as pl

from tfrec_attn import atomic
from tfrec_attn.data import (
    columns,
    feedback,
    impressions,
    interactions,
    readers,
    rejects,
    request_logs,
)
from tfrec_attn.data.schema import EntitySchema, InteractionSchema, Schema
from tfrec_attn.labels import LABELS
from tfrec_attn.settings import config as config_lib
from tfrec_attn.user_keys import UserKey

NAME = "tfrec_attn.impressions"
_HOUR = 3_600_000


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__)
    add = parser.add_argument
    add("--log", type=Path, required=True, help="folder of serve --log-requests")
    add("--interactions", required=True, help="the shop's events, until today")
    add(
        "--config",
        type=Path,
        required=True,
        help="TOML with [schema.interactions], as config.toml of a run",
    )
    add("--out", type=Path, required=True, help="file to write: .parquet or .csv")
    add("--items", help="table of items; what is of others is left out")
    add(
        "--window",
        type=float,
        default=24.0,
        help="hours in which what was shown can be taken (default: 24)",
    )
    add("--shown", type=int, help="items of an answer that were shown (default: all)")
    add("--bad-rows", choices=("stop", "set-aside"), default="stop", help="of the events")
    add("--key-file", type=Path, help="of the key that the log's users are hashed by")
    return parser


def run(args: argparse.Namespace) -> dict[str, int]:
    """Writes the table; returns what is in it, counted.

    Raises:
      ValueError: A flag, the config, the log or the events are not as they must be.
      OSError: A file cannot be read or written.
    """
    _check(args)
    config = config_lib.load(args.config)
    tables = config.schema_ or Schema()
    schema = tables.interactions
    _require(schema, args.config)
    log = request_logs.read(args.log, args.shown)
    events, bad = _events(args.interactions, schema, args.bad_rows)
    shown, told = _named(log, events, args.key_file)
    rows = len(shown) + len(told)
    if args.items:
        known = pl.col("item").is_in(_ids(args.items, tables.items).implode())
        shown, told = shown.filter(known), told.filter(known)
    unknown = rows - len(shown) - len(told)
    told = impressions.events_told(told, events)
    one = pl.lit(1.0, pl.Float32).alias("weight")
    every = pl.concat([events, told.with_columns(one)])
    window, until = round(args.window * _HOUR), events["time"].to_numpy().max()
    seen = impressions.showings(shown, every, window, until)
    # Not known before its window is over: no earlier history may have it.
    ignored = seen.filter(outcome="ignored").select(
        "user",
        "item",
        pl.lit("ignore").alias("label"),
        pl.col("settled").alias("time"),
        one,
    )
    table = pl.concat([every, ignored]).sort("time", maintain_order=True)
    _write(_in_schema(table, schema), args.out)
    outcomes = dict(seen["outcome"].value_counts().iter_rows())
    return {
        **log.counts,
        "bad_rows": bad,
        "of_unknown_items": unknown,
        "events": len(events),
        "events_told": len(told),
        **{name: outcomes.get(name, 0) for name in ("taken", "open", "ignored")},
    }


def _check(args: argparse.Namespace) -> None:
    if args.out.suffix not in (".parquet", ".csv"):
        raise ValueError(f"--out ends in .parquet or .csv: received {args.out}.")
    if not (math.isfinite(args.window) and args.window > 0):
        raise ValueError(f"--window is a positive number of hours: received {args.window}.")
    if args.shown is not None and args.shown < 1:
        raise ValueError(f"--shown is at least 1: received {args.shown}.")


def _require(schema: InteractionSchema, path: Path) -> None:
    rules = schema.feedback and schema.feedback.column and schema.feedback.labels
    parts = {"user": schema.user, "item": schema.item, "time": schema.time}
    missing = [name for name, column in (parts | {"feedback": rules}).items() if not column]
    if missing:
        raise ValueError(
            f"{path} needs schema.interactions.{missing[0]}, which is open or none. Use "
            "config.toml of a run of such tables: its schema is complete. An `ignore` "
            "needs a time, and a feedback column with a rule for it."
        )


def _events(
    path: str, schema: InteractionSchema, bad_rows: str
) -> tuple[pl.DataFrame, int]:
    """The shop's events, and how many rows were no events."""
    raw = readers.read(path, schema.file)
    checked = interactions.read_interactions(raw, schema, None)
    if len(checked.rejects) and bad_rows == "stop":
        raise ValueError(rejects.message(checked.rejects, None))
    if checked.frame.is_empty():
        raise ValueError(f"{path}: no row is left.")
    names = dict(enumerate(LABELS))
    label = pl.col("feedback").replace_strict(names, return_dtype=pl.String)
    events = checked.frame.select("user", "item", label.alias("label"), "time", "weight")
    return events, rejects.count_rows(checked.rejects)


def _named(log: request_logs.Requests, events: pl.DataFrame, key_file: Path | None):
    """`shown` and `told`; users of the shop that are hashed have its own ids again."""
    if log.key is None:
        return log.shown, log.told
    key = UserKey.read(key_file)
    if key.name != log.key:
        raise ValueError(
            f"The log's users are hashed by the key named {log.key}: received one named "
            f"{key.name}. Give the file that the server was given."
        )
    ids = {key.hash(user): user for user in events["user"].unique()}
    return tuple(
        table.with_columns(pl.col("user").replace(ids)) for table in (log.shown, log.told)
    )


def _ids(path: str, schema: EntitySchema) -> pl.Series:
    raw = readers.read(path, schema.file)
    if schema.id not in raw.frame.columns:
        raise ValueError(
            f"{path}: no column {schema.id!r} (schema.items.id). Its columns are: "
            f"{', '.join(raw.frame.columns)}."
        )
    return columns.identifier(raw.frame[schema.id]).values


def _in_schema(table: pl.DataFrame, schema: InteractionSchema) -> pl.DataFrame:
    assert schema.feedback is not None  # see `_require`
    labels = table["label"].unique()
    values = {label: feedback.value_of(label, schema.feedback) for label in labels}
    named = {
        schema.user: "user",
        schema.item: "item",
        schema.time: "time",
        schema.feedback.column: "label",
        schema.weight: "weight",
    }
    table = table.with_columns(pl.col("label").replace(values))
    return table.select(pl.col(part).alias(name) for name, part in named.items() if name)


def _write(table: pl.DataFrame, path: Path) -> None:
    """Whole or not at all: a reader never sees half of it."""
    with atomic.replacing(path) as partial:
        if path.suffix == ".csv":
            table.write_csv(partial)
        else:
            table.write_parquet(partial)


def main(argv: list[str] | None = None) -> int:
    """Prints the counts as JSON; 2 if there is no table."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        counts = run(args)
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
