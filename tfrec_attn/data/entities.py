"""The items or the users: one row an id, its text and its features."""

import logging
from collections.abc import Callable

import polars as pl

from tfrec_attn.data import checks, columns, rejects, template
from tfrec_attn.data.readers import RawTable
from tfrec_attn.data.schema import EntitySchema, Kind, template_parts

logger = logging.getLogger(__name__)


def read_entities(raw: RawTable, schema: EntitySchema, table: str) -> checks.Checked:
    """The rows that keep all rules, each id once.

    Args:
      raw: The table as it stands in its files.
      schema: Resolved: nothing is None.
      table: "items" or "users", for errors.
    """
    identity, kinds = schema.id or "", schema.columns or {}
    fields = template_parts(schema.text or "")[1::2]
    checks.require(
        raw,
        dict.fromkeys(fields, f"{table}.text")
        | dict.fromkeys(kinds, f"{table}.columns")
        | {identity: f"{table}.id"},
    )
    with checks.naming(raw):
        ids = columns.identifier(raw.frame[identity])
        features = {
            name: _convert(raw.frame[name], kind, schema.separators.get(name, "|"))
            for name, kind in kinds.items()
        }
        text = _text(raw, schema, fields, features)
    bad, found = checks.check(raw, [(identity, ids), *features.items()])
    frame = pl.DataFrame({"id": ids.values, "text": text}).with_columns(
        column.values.alias(name) for name, column in features.items()
    )
    repeated = _repeats(frame.filter(~bad), raw, ~bad, identity, found)
    kept = frame.filter(~bad).filter(~repeated)
    _log_entities(raw, kept, found)
    return checks.Checked(kept, pl.concat(found))


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
    frame: pl.DataFrame,
    raw: RawTable,
    good: pl.Series,
    column: str,
    found: list[pl.DataFrame],
) -> pl.Series:
    """Rows whose id has come before; where anything else differs they are rejects."""
    repeated = ~frame["id"].is_first_distinct()
    if not repeated.any():
        return repeated
    others = [name for name in frame.columns if name != "id"]
    first = frame.filter(~repeated).select("id", pl.struct(others).alias("first"))
    again = frame.filter(repeated).select("id", pl.struct(others).alias("again"))
    pairs = again.join(first, on="id", how="left", maintain_order="left")
    other = {
        name: pl.col("again")
        .struct.field(name)
        .ne_missing(pl.col("first").struct.field(name))
        for name in others
    }
    names = [pl.when(its).then(pl.lit(name)) for name, its in other.items()]
    rules = pairs.select(
        pl.lit("is an id that an earlier row has with another ")
        + pl.concat_str(names, separator=", ", ignore_nulls=True)
    ).to_series()
    differs = pairs.select(pl.any_horizontal(*other.values())).to_series()
    place = raw.place.filter(good).filter(repeated)
    values = raw.frame[column].filter(good).filter(repeated)
    found.append(rejects.reject(place, differs, column, values, rules))
    if not differs.all():
        count = int((~differs).sum())
        logger.warning(
            "%s: %d row(s) repeat an earlier row and are left out", raw.name, count
        )
    return repeated


def _log_entities(raw: RawTable, kept: pl.DataFrame, found: list[pl.DataFrame]) -> None:
    logger.info(
        "%s: %d rows kept, %d bad",
        raw.name,
        kept.height,
        rejects.count_rows(pl.concat(found)),
    )
    empty = (kept["text"] == "").sum()
    if 0 < empty < kept.height:
        logger.warning("%s: %d row(s) have an empty text", raw.name, empty)
