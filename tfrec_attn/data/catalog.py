"""Every feature of every item (or user) once, as arrays indexed by row.

Texts stay strings here: whoever has the tokenizer turns them into tokens. Letters: N rows,
w values of a `categories` column.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import polars as pl

KNOTS = 16
MILLISECONDS_PER_YEAR = 365.25 * 86_400_000

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Column:
    """How one feature column is read, and what was learned from the table about it.

    Attributes:
      kind: `category`, `categories`, `number`, `time` or `embedding`.
      vocabulary: Of the two category kinds; value i has index i + 1, 0 is missing or
        unknown.
      knots: Of `number` and `time`: increasing quantiles of the table's values.
      width: Of `embedding`, values of a vector.
    """

    kind: str
    vocabulary: tuple[str, ...] = ()
    knots: tuple[float, ...] = ()
    width: int = 0


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Attributes:
    ids: `[N]` str, unique.
    texts: `[N]` str, "" where there is none.
    columns: What each feature column is, by name.
    features: One array a column, by name: `category` `[N]` int32, `categories` `[N, w]`
      int32 padded with 0, `number` and `time` `[N]` float32 with NaN where missing,
      `embedding` `[N, width]` float32, zero where missing.
    """

    ids: np.ndarray
    texts: np.ndarray
    columns: Mapping[str, Column]
    features: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


def make(
    table: pl.DataFrame,
    kinds: Mapping[str, str],
    columns: Mapping[str, Column] | None = None,
) -> Catalog:
    """Turns a checked table into arrays.

    Args:
      table: `id`, `text` and the columns that `kinds` names.
      kinds: Column name to kind; one without an encoder yet is passed over with a
        warning.
      columns: What was learned from an earlier table, to read this one the same way;
        learned from this table by default.

    Raises:
      ValueError: When no row is left, or an embedding's width is not the learned one.
    """
    if not len(table):
        raise ValueError("The table has no rows: nothing can be learned from it.")
    for name, kind in kinds.items():
        if kind not in _LEARN:
            logger.warning("column %r is not used: kind %r has no encoder yet", name, kind)
    kinds = {name: kind for name, kind in kinds.items() if kind in _LEARN}
    columns = columns or {name: _LEARN[kind](table[name]) for name, kind in kinds.items()}
    return Catalog(
        ids=np.asarray(table["id"].to_list(), object),
        texts=np.asarray(table["text"].to_list(), object),
        columns=columns,
        features={name: _READ[c.kind](table[name], c, name) for name, c in columns.items()},
    )


def unknown(table: pl.DataFrame, columns: Mapping[str, Column]) -> dict[str, list[str]]:
    """The values of a checked table that the learned vocabularies lack, sorted, by column;
    `make` reads them as missing."""
    found = {}
    for name, column in columns.items():
        if column.kind in ("category", "categories"):
            values = table[name]
            if column.kind == "categories":
                values = values.explode(empty_as_null=True)
            found[name] = sorted({v for v in values if v} - set(column.vocabulary))
    return {name: values for name, values in found.items() if values}


def to_json(columns: Mapping[str, Column]) -> dict[str, Any]:
    """Plain values that `from_json` reads back equal."""
    return {name: dataclasses.asdict(column) for name, column in columns.items()}


def from_json(plain: Mapping[str, Any]) -> dict[str, Column]:
    """The inverse of `to_json`."""
    tuples: Any = lambda fields: {
        k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
    }
    return {name: Column(**tuples(dict(fields))) for name, fields in plain.items()}


def _learn_category(column: pl.Series) -> Column:
    values = column.drop_nulls().unique().sort()
    return Column("category", vocabulary=tuple(v for v in values if v))


def _learn_categories(column: pl.Series) -> Column:
    return dataclasses.replace(
        _learn_category(column.explode(empty_as_null=True)), kind="categories"
    )


def _learn_number(column: pl.Series) -> Column:
    values = column.cast(pl.Float64).drop_nulls().drop_nans().to_numpy()
    if not len(values):
        return Column("number", knots=(0.0, 1.0))
    knots = np.unique(np.quantile(values, np.linspace(0, 1, KNOTS)).astype(np.float32))
    if len(knots) == 1:
        knots = np.append(knots, np.nextafter(knots, np.float32(np.inf)) + 1)
    return Column("number", knots=tuple(float(k) for k in knots))


def _learn_time(column: pl.Series) -> Column:
    return dataclasses.replace(_learn_number(column / MILLISECONDS_PER_YEAR), kind="time")


def _learn_embedding(column: pl.Series) -> Column:
    return Column("embedding", width=_width(column))


def _width(column: pl.Series) -> int:
    """Of a column of vectors, which checked tables hold as arrays of one width."""
    return cast(pl.Array, column.dtype).shape[0]


def _read_category(column: pl.Series, learned: Column, name: str) -> np.ndarray:
    index = {value: i + 1 for i, value in enumerate(learned.vocabulary)}
    return np.asarray([index.get(v, 0) for v in column.to_list()], np.int32)


def _read_categories(column: pl.Series, learned: Column, name: str) -> np.ndarray:
    index = {value: i + 1 for i, value in enumerate(learned.vocabulary)}
    rows = [[index[v] for v in row or () if v in index] for row in column.to_list()]
    out = np.zeros((len(rows), max(1, max(map(len, rows)))), np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _read_number(column: pl.Series, learned: Column, name: str) -> np.ndarray:
    return column.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(np.float32)


def _read_time(column: pl.Series, learned: Column, name: str) -> np.ndarray:
    return _read_number(column / MILLISECONDS_PER_YEAR, learned, name)


def _read_embedding(column: pl.Series, learned: Column, name: str) -> np.ndarray:
    width = _width(column)
    if width != learned.width:
        raise ValueError(
            f"Column {name}: vectors of {learned.width} values are needed, "
            f"as in training. Received: {width}."
        )
    missing = pl.lit(np.zeros(width, np.float32).tolist(), column.dtype)
    return column.to_frame().select(pl.col(column.name).fill_null(missing))[:, 0].to_numpy()


_LEARN = {
    "category": _learn_category,
    "categories": _learn_categories,
    "number": _learn_number,
    "time": _learn_time,
    "embedding": _learn_embedding,
}
_READ = {
    "category": _read_category,
    "categories": _read_categories,
    "number": _read_number,
    "time": _read_time,
    "embedding": _read_embedding,
}
