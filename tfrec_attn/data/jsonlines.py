"""JSON, one object a line."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from tfrec_attn.data.delimited import NOT_UTF8, Fault, Parsed


def parse(data: bytes, foreign: dict[int, str]) -> Parsed:
    """Parses UTF-8 lines that end in "\\n"; arguments and result as `delimited.parse`.

    A column that holds numbers and strings becomes strings; one that holds lists and single
    values becomes lists.
    """
    frame = None if foreign else _polars(data)
    lines = _filled_lines(data)
    if frame is None or frame.height != len(lines):
        return _careful(data, foreign)
    return frame.with_columns(pl.col(pl.String).replace("", None)), pl.Series(lines), []


def _polars(data: bytes) -> pl.DataFrame | None:
    try:
        frame = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except pl.exceptions.PolarsError:
        return None
    # Where a list meets a single value, polars gives the list's JSON text as a string.
    strings = [column for column in frame if column.dtype == pl.String]
    nested = any(column.str.contains(r"^[\[{]").any() for column in strings)
    return None if nested else frame


def _filled_lines(data: bytes) -> np.ndarray:
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    return np.flatnonzero(np.diff(ends, prepend=-1) > 1) + 1


def _careful(data: bytes, foreign: dict[int, str]) -> Parsed:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    faults: list[Fault] = []
    for number, line in enumerate(data.decode().split("\n"), 1):
        if not line.strip():
            continue
        if number in foreign:
            faults.append((number, foreign[number], NOT_UTF8))
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.append((number, line, f"is not JSON: {error}"))
            continue
        if isinstance(row, dict):
            rows.append(row)
            lines.append(number)
        else:
            faults.append((number, line, "is not a JSON object"))
    names = dict.fromkeys(name for row in rows for name in row)
    frame = pl.DataFrame([_column(name, [row.get(name) for row in rows]) for name in names])
    return frame, pl.Series("line", lines, dtype=pl.Int64), faults


def _column(name: str, values: list[Any]) -> pl.Series:
    filled = [value for value in values if value is not None]
    if any(isinstance(value, list) for value in filled):
        lists = [
            value if isinstance(value, list) or value is None else [value]
            for value in values
        ]
        inner = _one_type([one for row in lists for one in row or [] if one is not None])
        cast = [
            row and [one if one is None else inner(one) for one in row] for row in lists
        ]
        return pl.Series(name, cast, strict=False)
    one = _one_type(filled)
    return pl.Series(
        name, [None if value in (None, "") else one(value) for value in values]
    )


def _one_type(values: list[Any]) -> Callable[[Any], Any]:
    """How to make all of `values` one type: as it is, float, or text."""
    types = {type(value) for value in values}
    if len(types) == 1 and types <= {bool, str}:
        return lambda value: value
    if types == {int}:
        large = any(abs(value) >= 2**63 for value in values)
        return str if large else lambda value: value
    if types <= {int, float}:
        return float
    return lambda value: value if isinstance(value, str) else json.dumps(value)
