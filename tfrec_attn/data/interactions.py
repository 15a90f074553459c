"""The interactions: who, what, when, and how it was liked."""

import dataclasses
import logging
from typing import cast

import numpy as np
import polars as pl

from tfrec_attn.data import checks, columns, feedback, rejects
from tfrec_attn.data.readers import RawTable
from tfrec_attn.data.schema import FeedbackSchema, InteractionSchema

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Whole:
    """What a whole column decides for each of its rows, where only some rows are read.

    Attributes:
      user, item: See `columns.all_whole`.
      unit: See `columns.unit_of`.
      numbers: Whether the ids of all users are whole numbers, and may stay such.
      first: Number of the first row, where the order of the file is time.
    """

    user: bool | None = None
    item: bool | None = None
    unit: str | None = None
    numbers: bool = False
    # From 1, because 0 stands for an unknown time where the model is served.
    first: int = 1

    @classmethod
    def of(cls, raw: RawTable, schema: InteractionSchema) -> "Whole":
        """As some rows say, a good part of the table.

        Raises:
          ValueError: When a column that the schema names is not there.
        """
        checks.require(raw, dict(_named_columns(schema).values()))
        frame = raw.frame
        return cls(
            columns.all_whole(frame[schema.user or ""]),
            columns.all_whole(frame[schema.item or ""]),
            columns.unit_of(frame[schema.time])
            if schema.time and not schema.time_format
            else None,
        )


def read_interactions(
    raw: RawTable, schema: InteractionSchema, known_items: pl.Series | None
) -> checks.Checked:
    """The rows that keep all rules: user and item (ids), time, feedback, weight.

    Args:
      raw: The table as it stands in its files.
      schema: Resolved: user and item are not None.
      known_items: Ids that an interaction may have; None does not look.
    """
    found = checked(raw, schema, known_items)
    kept, every = found.frame, found.rejects
    logger.info(
        "%s: %d rows kept, %d bad", raw.name, kept.height, rejects.count_rows(every)
    )
    again = kept.height - kept.n_unique(["user", "item", "time"])
    if again:
        logger.info(
            "%s: %d row(s) repeat user, item and time; all are kept", raw.name, again
        )
    return found


def checked(
    raw: RawTable,
    schema: InteractionSchema,
    known_items: pl.Series | pl.DataFrame | None,
    whole: Whole | None = None,
) -> checks.Checked:
    """As `read_interactions`; of some rows of a table, where `whole` is given.

    A frame of `item` (ids, or numbers where the column has such) and their `row` gives the
    rows of items in place of their ids.
    """
    whole = whole or Whole()
    named = _named_columns(schema)
    checks.require(raw, dict(named.values()))
    with checks.naming(raw):
        converted = {
            part: _convert(part, raw.frame[name], schema, known_items, whole)
            for part, (name, _) in named.items()
        }
    bad, found = checks.check(
        raw, [(named[part][0], its) for part, its in converted.items()]
    )
    if "time" not in named and raw.frame.height:
        logger.warning("%s: no time column; the order of the file is time", raw.name)
    frame = pl.DataFrame(
        _constants(raw.frame.height, whole.first)
        | {part: its.values for part, its in converted.items()}
    ).select("user", "item", "time", "feedback", "weight")
    return checks.Checked(frame.filter(~bad), pl.concat(found))


def _convert(
    part: str,
    series: pl.Series,
    schema: InteractionSchema,
    known_items: pl.Series | pl.DataFrame | None,
    whole: Whole,
) -> columns.Column:
    if part == "user":
        if whole.numbers:
            return columns.number_id(series)
        return columns.identifier(series, whole.user)
    if part == "item":
        if isinstance(known_items, pl.DataFrame):
            numbers = known_items["item"].dtype.is_integer()
            ids = columns.number_id(series) if numbers else None
            return _row_of_item(ids or columns.identifier(series, whole.item), known_items)
        return _known_item(columns.identifier(series, whole.item), known_items)
    if part == "time":
        return _required(_time(series, schema, whole))
    if part == "weight":
        return _weight(series)
    return feedback.label(series, schema.feedback or FeedbackSchema())


def _time(series: pl.Series, schema: InteractionSchema, whole: Whole) -> columns.Column:
    if schema.time_format:
        return columns.time_as(series, schema.time_format)
    found = columns.time(series, whole.unit)
    way_out = "; schema.interactions.time_format is for times that are written otherwise"
    told = {columns.NO_TIME: columns.NO_TIME + way_out}
    faults = tuple((told.get(rule, rule), bad) for rule, bad in found.faults)
    return dataclasses.replace(found, faults=faults)


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


def _constants(height: int, first: int) -> dict[str, pl.Series]:
    """What stands for parts that have no column."""
    return {
        "time": pl.int_range(first, first + height, dtype=pl.Int64, eager=True),
        "feedback": pl.repeat(feedback.LIKE, height, dtype=pl.Int8, eager=True),
        "weight": pl.repeat(1.0, height, dtype=pl.Float32, eager=True),
    }


_UNKNOWN = "is no id of an item that was kept"


def _row_of_item(ids: columns.Column, known: pl.DataFrame) -> columns.Column:
    """Rows of items, of ids that are among the known ones."""
    row = _rows(ids.values, known)
    unknown = row.is_null() & ids.values.is_not_null()
    return columns.Column(row, (*ids.faults, (_UNKNOWN, unknown)), ids.notes)


def _rows(ids: pl.Series, known: pl.DataFrame) -> pl.Series:
    """Of each id the row, null where there is none."""
    numbers = known["item"]
    if numbers.dtype.is_integer() and len(known):
        low, high = cast(int, numbers.min()), cast(int, numbers.max())
        if high - low < 8 * len(known):
            # Numbers that stand close are places in a table.
            table = np.full(high - low + 2, -1, np.int32)
            table[numbers.to_numpy() - low] = known["row"].to_numpy()
            place = (ids - low).fill_null(high - low + 1).clip(-1, high - low + 1)
            found = pl.Series("row", table[place.to_numpy()])
            return found.set(found < 0, None)
    both = pl.DataFrame({"item": ids}).join(
        known, on="item", how="left", maintain_order="left"
    )
    return both["row"]


def _known_item(ids: columns.Column, known: pl.Series | None) -> columns.Column:
    """Item ids; with the rule that they are among `known` if that is given."""
    if known is None:
        return ids
    unknown = ~ids.values.is_in(known.implode()).fill_null(True)
    return dataclasses.replace(ids, faults=(*ids.faults, (_UNKNOWN, unknown)))


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
