"""The interactions: who, what, when, and how it was liked."""

import dataclasses
import logging

import polars as pl

from tfrec_attn.data import checks, columns, feedback, rejects
from tfrec_attn.data.readers import RawTable
from tfrec_attn.data.schema import FeedbackSchema, InteractionSchema

logger = logging.getLogger(__name__)


def read_interactions(
    raw: RawTable, schema: InteractionSchema, known_items: pl.Series | None
) -> checks.Checked:
    """The rows that keep all rules: user and item (ids), time, feedback, weight.

    Args:
      raw: The table as it stands in its files.
      schema: Resolved: user and item are not None.
      known_items: Ids that an interaction may have; None does not look.
    """
    named = _named_columns(schema)
    checks.require(raw, dict(named.values()))
    with checks.naming(raw):
        converted = {
            part: _convert(part, raw.frame[name], schema, known_items)
            for part, (name, _) in named.items()
        }
    bad, found = checks.check(
        raw, [(named[part][0], its) for part, its in converted.items()]
    )
    if "time" not in named:
        logger.warning("%s: no time column; the order of the file is time", raw.name)
    frame = pl.DataFrame(
        _constants(raw.frame.height) | {part: its.values for part, its in converted.items()}
    ).select("user", "item", "time", "feedback", "weight")
    kept, every = frame.filter(~bad), pl.concat(found)
    logger.info(
        "%s: %d rows kept, %d bad", raw.name, kept.height, rejects.count_rows(every)
    )
    again = kept.height - kept.n_unique(["user", "item", "time"])
    if again:
        logger.info(
            "%s: %d row(s) repeat user, item and time; all are kept", raw.name, again
        )
    return checks.Checked(kept, every)


def _convert(
    part: str, series: pl.Series, schema: InteractionSchema, known_items: pl.Series | None
) -> columns.Column:
    if part == "user":
        return columns.identifier(series)
    if part == "item":
        return _known_item(series, known_items)
    if part == "time":
        return _required(columns.time(series))
    if part == "weight":
        return _weight(series)
    return feedback.label(series, schema.feedback or FeedbackSchema())


def _named_columns(schema: InteractionSchema) -> dict[str, tuple[str, str]]:
    """Column and the setting that names it, for each part that has a column."""
    labels = schema.feedback.column if schema.feedback else None
    parts = {
        "user": (schema.user, "interactions.user"),
        "item": (schema.item, "interactions.item"),
        "time": (schema.time, "interactions.time"),
        "feedback": (labels, "interactions.feedback.column"),
        "weight": (schema.weight, "interactions.weight"),
    }
    return {part: (name, setting) for part, (name, setting) in parts.items() if name}


def _constants(height: int) -> dict[str, pl.Series]:
    """What stands for parts that have no column."""
    return {
        # From 1, because 0 stands for an unknown time where the model is served.
        "time": pl.int_range(1, height + 1, dtype=pl.Int64, eager=True),
        "feedback": pl.repeat(feedback.LIKE, height, dtype=pl.Int8, eager=True),
        "weight": pl.repeat(1.0, height, dtype=pl.Float32, eager=True),
    }


def _known_item(series: pl.Series, known: pl.Series | None) -> columns.Column:
    """Item ids; with the rule that they are among `known` if that is given."""
    ids = columns.identifier(series)
    if known is None:
        return ids
    unknown = ~ids.values.is_in(known.implode()).fill_null(True)
    return dataclasses.replace(
        ids, faults=(*ids.faults, ("is no id of an item that was kept", unknown))
    )


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
