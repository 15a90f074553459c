"""Rows that break a rule: what is kept of them, and how the user is told."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

REJECTS = {
    "file": pl.String,
    "line": pl.Int64,
    "column": pl.String,
    "value": pl.String,
    "rule": pl.String,
}
_SHOWN = 10
_EACH = 3
_LONGEST = 200


def empty() -> pl.DataFrame:
    return pl.DataFrame(schema=REJECTS)


def reject(
    place: pl.DataFrame,
    bad: pl.Series,
    column: str,
    values: pl.Series,
    rule: str | pl.Series,
) -> pl.DataFrame:
    """One reject for each True in `bad`.

    Args:
      place: `file` and `line` of every row.
      bad: Which rows break the rule.
      column: Where the value stands; "" for the row as a whole.
      values: As they stand in the file, one for each row.
      rule: What the row breaks, as the rest of a sentence about the value; one for all
        rows, or one for each.
    """
    if not bad.any():
        return empty()
    shown = ["" if value is None else _short(str(value)) for value in values.filter(bad)]
    return place.filter(bad).select(
        pl.col("file").cast(pl.String),
        pl.col("line").cast(pl.Int64),
        pl.lit(column).alias("column"),
        pl.Series("value", shown, dtype=pl.String),
        (pl.lit(rule) if isinstance(rule, str) else rule.filter(bad)).alias("rule"),
    )


def from_lines(path: Path, faults: Sequence[tuple[int, str, str]]) -> pl.DataFrame:
    """Rejects of whole lines: (line, text, rule)."""
    rows = [(str(path), line, "", _short(text), rule) for line, text, rule in faults]
    return pl.DataFrame(rows, schema=REJECTS, orient="row")


def count_rows(rejects: pl.DataFrame) -> int:
    """Rows set aside; a row that breaks two rules counts once."""
    return rejects.select("file", "line").n_unique() if rejects.height else 0


def counts(rejects: pl.DataFrame) -> list[str]:
    """A line for each rule that was broken, the most often broken ones first."""
    by = rejects.group_by("file", "column", "rule", maintain_order=True).len()
    return [
        f"{file}: {count} row(s)" + (f", column {column!r}" if column else "") + f": {rule}"
        for file, column, rule, count in by.sort("len", descending=True).rows()
    ]


def message(rejects: pl.DataFrame, written_to: Path | None) -> str:
    """The error that names the first bad rows and says how to go on."""
    lines = [f"{count_rows(rejects)} row(s) of the tables break a rule:"]
    # Of each rule some: the one that tells what is wrong may be rare.
    place = pl.int_range(pl.len()).over("file", "column", "rule")
    shown = rejects if rejects.height <= _SHOWN else rejects.filter(place < _EACH)
    for file, line, column, value, rule in shown.head(_SHOWN).rows():
        where = f"{file}:{line}" + (f", column {column!r}" if column else "")
        lines.append(f"  {where}: {value!r} {rule}")
    if rejects.height > _SHOWN:
        every = counts(rejects)
        lines += ["In all:", *(f"  {line}" for line in every[:_SHOWN])]
        if len(every) > _SHOWN:
            lines.append(f"  … and {len(every) - _SHOWN} more rules")
    if written_to:
        lines.append(f"All are listed in {written_to}.")
    lines.append(
        "Correct the rows or the schema, or go on without these rows: --bad-rows set-aside."
    )
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
