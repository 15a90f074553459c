"""One column of a table to its canonical form, by kind, with the rows that break a rule.

Missing are: null, an empty or blank string, a NaN; in ids, numbers and times also the words
in which other programs write a missing value ("nan", "None", "NULL", "<NA>", "NaT").
"""

import dataclasses
from typing import Any

import numpy as np
import polars as pl

_MISSING = ("nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT")
_NO_NUMBER = (*_MISSING, "NA", "N/A", "n/a")

# Below 1e11 a number is seconds (to the year 5138); each finer unit is a thousandfold.
_UNITS = (("seconds", 1e11, 1e3), ("milliseconds", 1e14, 1.0))
_FINER_UNITS = (("microseconds", 1e17, 1e-3), ("nanoseconds", np.inf, 1e-6))
_ISO = (
    r"^(\d{4}-\d{2}-\d{2})"
    r"(?:[T ](\d{2}:\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?"
    r" ?(Z|z|UTC|[+-]\d{2}(?::?\d{2})?)?)?$"
)
_WHOLE_FLOAT = r"^-?\d+\.0+$"
NO_TIME = "is not seconds, milliseconds or ISO 8601"
_OTHER_UNIT = "has another unit than most of the column, which is {}"
_NO_ID = "is no id: an id must not be empty or nan"
_1980 = 315_532_800_000


@dataclasses.dataclass(frozen=True)
class Column:
    """A converted column.

    Attributes:
      values: Canonical; null where missing or bad.
      faults: (rule, True where it is broken) for each rule that is checked.
      notes: What the user should know although no row is bad.
    """

    values: pl.Series
    faults: tuple[tuple[str, pl.Series], ...] = ()
    notes: tuple[str, ...] = ()


def as_text(series: pl.Series) -> pl.Series:
    """Canonical strings: a whole float has no ".0", a list is joined with ", "."""
    kind = series.dtype
    if kind == pl.String:
        return series
    if kind.is_float():
        # float32 goes by its shortest decimals, not by those of the nearest float64.
        whole = (series == series.round()) & (series.abs() < 2**63)
        digits = series.set(~whole.fill_null(False), None).cast(pl.Int64).cast(pl.String)
        return digits.fill_null(series.fill_nan(None).cast(pl.String))
    if isinstance(kind, (pl.List, pl.Array)) and not kind.inner.is_nested():
        return _strings(series).list.join(", ")
    if kind.is_nested() or kind in (pl.Binary, pl.Object):
        raise ValueError(
            f"column {series.name!r} holds {kind}, which is no text, id or category."
        )
    return series.cast(pl.String)


def identifier(series: pl.Series, whole: bool | None = None) -> Column:
    """Ids as strings: 42, "42" and 42.0 are the same id, "007" is another than 7.

    Args:
      series: A column, or some rows of it.
      whole: Of some rows, what `all_whole` says of the column.

    Raises:
      ValueError: When the column is no id, or these rows are not what `whole` says.
    """
    if series.dtype.is_nested():
        raise ValueError(
            f"column {series.name!r} holds {series.dtype}; an id is text or a whole number."
        )
    if series.dtype.is_integer():
        return Column(series.cast(pl.String), ((_NO_ID, series.is_null()),))
    text = as_text(series)
    ids = text.str.strip_chars()
    missing = ids.is_null() | ids.is_in(["", *_MISSING])
    faults = [(_NO_ID, missing)]
    if series.dtype.is_float():
        fits = (series == series.round()) & (series.abs() < 2**53)
        broken = ~missing & ~fits.fill_null(False)
        faults.append(("is no id: a number must be whole and below 2^53", broken))
        missing |= broken
    elif series.dtype == pl.String and whole is not False:
        known = ids.filter(~missing)
        if _all_whole_floats(known):
            # A column of whole numbers with gaps, as pandas writes it.
            ids = ids.str.replace(r"\.0+$", "")
        elif whole and len(known):
            other = known.filter(~known.str.contains(_WHOLE_FLOAT))[0]
            raise ValueError(
                f"column {series.name!r} begins with ids such as 42.0, which stand for 42, "
                f"and has {other!r} further down: write all of them in one way."
            )
    spaced = (~missing & (text.str.strip_chars() != text)).sum()
    notes = (f"{spaced} id(s) lost the spaces around them",) if spaced else ()
    return Column(ids.set(missing, None), tuple(faults), notes)


def number_id(series: pl.Series) -> Column:
    """As `identifier`, of whole numbers: Int64 in place of their digits."""
    return Column(series.cast(pl.Int64), ((_NO_ID, series.is_null()),))


def all_whole(series: pl.Series) -> bool:
    """Whether ids are written as floats, and all of them are whole."""
    if series.dtype != pl.String:
        return False
    ids = series.str.strip_chars()
    return _all_whole_floats(ids.filter(~(ids.is_null() | ids.is_in(["", *_MISSING]))))


def _all_whole_floats(text: pl.Series) -> bool:
    return bool(len(text) and text.str.contains(_WHOLE_FLOAT).all())


def number(series: pl.Series) -> Column:
    """Float64, null where missing."""
    values, readable = _float(series)
    unreadable = ~readable
    infinite = values.is_infinite().fill_null(False)
    return Column(
        values.set(infinite, None),
        (("is not a number", unreadable), ("is infinite", infinite)),
    )


def _float(series: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Numbers (null where missing or unreadable) and whether each could be read."""
    kind = series.dtype
    if kind.is_numeric() or kind in (pl.Boolean, pl.Null):
        readable = pl.repeat(True, len(series), eager=True)
        return series.cast(pl.Float64).fill_nan(None), readable
    if kind in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    elif kind != pl.String:
        raise ValueError(f"column {series.name!r} holds {kind}, which is no number.")
    text = series.str.strip_chars()
    missing = text.is_null() | text.is_in(["", *_NO_NUMBER])
    values = text.set(missing, None).cast(pl.Float64, strict=False)
    # "NAN" and the like: a cast may know more spellings of a missing value.
    return values.fill_nan(None), missing | values.is_not_null()


def time_as(series: pl.Series, pattern: str) -> Column:
    """As `time`, of texts that are written by a pattern of `strptime`."""
    if series.dtype == pl.Date or isinstance(series.dtype, pl.Datetime):
        return time(series)
    text = as_text(series).str.strip_chars().replace("", None)
    millis = text.str.to_datetime(pattern, time_unit="ms", strict=False).dt.epoch("ms")
    wrong = text.is_not_null() & millis.is_null()
    return Column(millis, ((f"is not written as {pattern}", wrong),))


def time(series: pl.Series, unit_of_most: str | None = None) -> Column:
    """Int64 milliseconds since 1970, null where missing.

    A number's unit follows from its size (below 1e11 seconds, below 1e14 milliseconds, then
    micro- and nanoseconds). All rows must have the unit of the majority. ISO 8601 without a
    zone is UTC.

    Args:
      series: A column, or some rows of it.
      unit_of_most: Of some rows, what `unit_of` says of the column.
    """
    kind = series.dtype
    if kind == pl.Date:
        return Column(series.cast(pl.Datetime("ms")).dt.epoch("ms"))
    if isinstance(kind, pl.Datetime):
        return Column(series.dt.epoch("ms"))
    if kind.is_integer() and unit_of_most in (known := _ranges()):
        return _of_unit(series, unit_of_most, *known[unit_of_most])
    millis, unit, readable, infinite, zoneless = _moments(series)
    notes = []
    if zoneless:
        notes.append(f"{zoneless} time(s) have no zone and are read as UTC")
    main = unit_of_most or _most_common(unit) or "missing"
    mixed = (unit != main).fill_null(False)
    millis = millis.set(mixed, None)
    if main != "ISO 8601":
        notes += _early(millis, main)
    return Column(
        millis,
        (
            (NO_TIME, ~readable),
            ("is infinite", infinite),
            (_OTHER_UNIT.format(main), mixed),
        ),
        tuple(notes),
    )


def _early(millis: pl.Series, unit: str) -> list[str]:
    early = (millis.abs() < _1980).sum()
    if not early:
        return []
    return [
        f"{early} time(s), read as {unit} since 1970, lie before 1980: their order is "
        "kept, their distances may be wrong"
    ]


def _ranges() -> dict[str, tuple[float, float, float]]:
    """Of each unit the least number, the one above the largest, and a unit's ms."""
    every = _UNITS + _FINER_UNITS
    lower = [-1.0, *(upper for _, upper, _ in every)]
    return {
        name: (low, upper, factor)
        for low, (name, upper, factor) in zip(lower, every, strict=False)
    }


def _of_unit(
    series: pl.Series, unit: str, low: float, upper: float, factor: float
) -> Column:
    """Whole numbers of a known unit: the same without asking for the unit of each."""
    size = series.abs()
    other = ~((size >= low) & (size < upper)).fill_null(True)
    millis = (series.cast(pl.Float64) * factor).round().cast(pl.Int64, strict=False)
    millis = millis.set(other, None) if other.any() else millis
    faults = ((_OTHER_UNIT.format(unit), other),)
    return Column(millis.alias(series.name), faults, tuple(_early(millis, unit)))


def unit_of(series: pl.Series) -> str | None:
    """The unit of most times of a column; None where there is none to choose."""
    if series.dtype == pl.Date or isinstance(series.dtype, pl.Datetime):
        return None
    return _most_common(_moments(series)[1])


def _moments(series: pl.Series):
    """Milliseconds, units, which rows are readable and which infinite, and how many times
    have no zone."""
    values, readable = _float(series)
    infinite = values.is_infinite().fill_null(False)
    unit, millis = _from_number(values.set(infinite, None))
    zoneless = 0
    if not readable.all():
        iso, zoneless = _from_iso(series.set(readable, None))
        unit = unit.set(iso.is_not_null(), "ISO 8601")
        millis = iso.fill_null(millis)
        readable |= iso.is_not_null()
    return millis, unit, readable, infinite, zoneless


def _from_number(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    size = values.abs()
    unit = pl.Series(values.name, [None], dtype=pl.String).new_from_index(0, len(values))
    millis = unit.cast(pl.Int64)
    lower = -1.0
    for name, upper, factor in _UNITS + _FINER_UNITS:
        here = ((size > lower) if lower < 0 else (size >= lower)) & (size < upper)
        here = here.fill_null(False)
        unit = unit.set(here, name)
        scaled = (values * factor).round().cast(pl.Int64, strict=False)
        millis = scaled.set(~here, None).fill_null(millis)
        lower = upper
    return unit, millis


def _from_iso(series: pl.Series) -> tuple[pl.Series, int]:
    """Milliseconds, null where `series` is no ISO time, and how many have no zone."""
    day, clock, second, fraction, zone = (f"g{i}" for i in range(1, 6))
    groups = series.str.strip_chars().str.extract_groups(_ISO).struct.unnest()
    groups.columns = [day, clock, second, fraction, zone]
    written = pl.concat_str(
        pl.col(day),
        pl.lit("T"),
        pl.col(clock).fill_null("00:00"),
        pl.lit(":"),
        pl.col(second).fill_null("00"),
    )
    local = written.str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False).dt.epoch("ms")
    thousandths = pl.col(fraction).str.pad_end(3, "0").str.slice(0, 3).cast(pl.Int64)
    digits = pl.col(zone).str.replace(":", "")
    minutes = (
        digits.str.slice(1, 2).cast(pl.Int64, strict=False) * 60
        + digits.str.slice(3, 2).cast(pl.Int64, strict=False).fill_null(0)
    ) * pl.when(digits.str.starts_with("-")).then(-1).otherwise(1)
    millis = local + thousandths.fill_null(0) - minutes.fill_null(0) * 60_000
    found = groups.select(
        millis.alias("ms"),
        (millis.is_not_null() & pl.col(zone).is_null()).alias("zoneless"),
    )
    return found["ms"].alias(series.name), int(found["zoneless"].sum())


def category(series: pl.Series) -> Column:
    """Strings without spaces around them, null where missing."""
    text = as_text(series).str.strip_chars()
    return Column(text.replace("", None))


path = category


def categories(series: pl.Series, separator: str = "|") -> Column:
    """Lists of distinct strings in the order of the row, empty where missing."""
    if isinstance(series.dtype, (pl.List, pl.Array)):
        lists = _strings(series)
    else:
        lists = as_text(series).str.split(separator)
    element = pl.element().str.strip_chars()
    cleaned = lists.list.eval(element.filter(element.fill_null("") != ""))
    return Column(
        cleaned.list.unique(maintain_order=True).fill_null(
            pl.Series([[]], dtype=pl.List(pl.String))
        )
    )


def _strings(series: pl.Series) -> pl.Series:
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    return series.cast(pl.List(pl.String))


def embedding(series: pl.Series) -> Column:
    """Arrays of Float32 as wide as most rows are, null where missing."""
    lists = _float_lists(series)
    width = lists.list.len().set((lists.list.len() == 0).fill_null(False), None)
    lists = lists.set(width.is_null(), None)
    common = _most_common(width)
    if common is None:
        raise ValueError(f"column {series.name!r} is an embedding, but no row has a value.")
    unreadable = lists.list.eval(pl.element().is_null()).list.any().fill_null(False)
    infinite = lists.list.eval(~pl.element().is_finite()).list.any().fill_null(False)
    wrong = (width != common).fill_null(False)
    values = lists.set(unreadable | infinite | wrong, None)
    return Column(
        values.list.to_array(common),
        (
            ("has an element that is not a number", unreadable),
            ("has an element that is infinite or nan", infinite),
            (f"is not as wide as most of the column, which is {common} wide", wrong),
        ),
    )


def _float_lists(series: pl.Series) -> pl.Series:
    kind = series.dtype
    if isinstance(kind, pl.Array):
        series, kind = series.arr.to_list(), pl.List(kind.inner)
    if kind == pl.String:
        text = series.str.replace_all(r"[\[\]()]", " ").str.replace_all(r"[\s,;|]+", " ")
        series = text.str.strip_chars().replace("", None).str.split(" ")
    elif not (isinstance(kind, pl.List) and kind.inner.is_numeric()):
        raise ValueError(
            f"column {series.name!r} holds {kind}; an embedding is a list of numbers."
        )
    return series.list.eval(pl.element().cast(pl.Float32, strict=False))


def _most_common(series: pl.Series) -> Any:
    """The most frequent value, of several the smallest; None if all are null."""
    filled = series.drop_nulls()
    return filled.mode().sort()[0] if len(filled) else None
