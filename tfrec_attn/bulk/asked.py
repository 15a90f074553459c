"""Rows of a users table as what a request says of a user, checked.

The rules are those of the tables that train: an id is text or a whole number, a time
seconds, milliseconds or ISO 8601, a missing value null or empty.
"""

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import polars as pl

from tfrec_attn.data import checks, columns
from tfrec_attn.data.columns import Column
from tfrec_attn.data.readers import RawTable
from tfrec_attn.labels import LABELS

SEPARATOR = "|"
# Of a request, beside the user's id and profile; see docs/serving.md.
IDS, LABELLED, TIMES, TIME = (
    ("history", "exclude", "candidates"),
    "history_feedback",
    "history_time",
    "time",
)
# Of a request to a version whose export had index.filters or index.diversity.
CONDITIONS, BOOST_BY, DIVERSITY = ("require", "forbid", "boost"), "boost_by", "diversity"
RULES = (*CONDITIONS, BOOST_BY, DIVERSITY)
NAMES = (*IDS, LABELLED, TIMES, TIME)
_LIST = pl.List(pl.String)
SCHEMA: dict[str, Any] = {
    "file": pl.String,
    "line": pl.Int64,
    "user_id": pl.String,
    **dict.fromkeys((*IDS, LABELLED), _LIST),
    TIMES: pl.List(pl.Int64),
    TIME: pl.Int64,
    **dict.fromkeys(CONDITIONS, _LIST),
    BOOST_BY: pl.List(pl.Float64),
    DIVERSITY: pl.Float64,
}


class Reading(NamedTuple):
    """How a users table is read.

    Attributes:
      user: Its column of ids.
      profile: Columns of the users that the model reads.
      times: Those of them that are times.
      wanted: The columns to take; None takes all.
      rules: Those of `RULES` that the version reads.
    """

    user: str
    profile: Collection[str]
    times: Collection[str] = ()
    wanted: Collection[str] | None = None
    rules: Collection[str] = ()

    def taken(self, raw: RawTable) -> list[str]:
        """The columns of a table that say something of its users.

        Raises:
          ValueError: One of them is missing, or is nothing that the model reads.
        """
        there = raw.frame.columns
        if missing := [
            one for one in (self.user, *(self.wanted or ())) if one not in there
        ]:
            raise ValueError(
                f"{raw.name}: no column {missing[0]!r}. Its columns are: "
                f"{', '.join(there)}. --user-column names the one with the ids."
            )
        named = there if self.wanted is None else self.wanted
        taken = [one for one in named if one != self.user]
        known = [*NAMES, *self.rules, *self.profile]
        if unread := [one for one in taken if one not in known]:
            raise ValueError(
                f"{raw.name}: column {unread[0]!r} is nothing that the model reads, which "
                f"is {', '.join(known)}. Name the columns to take, or none, by --columns."
            )
        return taken


def read(raw: RawTable, reading: Reading) -> checks.Checked:
    """The rows that keep all rules: `SCHEMA`, and a string for each column of the profile,
    `user_age` of `age`.

    Args:
      raw: The table, or a block of it.
      reading: How.
    """
    taken = reading.taken(raw)
    with checks.naming(raw):
        found = {reading.user: columns.identifier(raw.frame[reading.user])}
        found |= {name: _read(name, raw.frame[name], reading.times) for name in taken}
    lengths = _unequal(found)
    bad, rejected = checks.check(raw, [*found.items(), *lengths])
    frame = pl.DataFrame(
        [raw.place["file"].cast(pl.String), raw.place["line"]]
        + [_named(name, one.values, reading) for name, one in found.items()]
    )
    missing = [
        pl.lit(None, t).alias(n) for n, t in SCHEMA.items() if n not in frame.columns
    ]
    frame = frame.with_columns(missing)
    profile = sorted(set(frame.columns) - set(SCHEMA))
    kept = frame.filter(~bad).select(*SCHEMA, *profile)
    return checks.Checked(kept, pl.concat(rejected))


def _named(name: str, values: pl.Series, reading: Reading) -> pl.Series:
    if name == reading.user:
        return values.alias("user_id")
    return values.alias(name if name in SCHEMA else f"user_{name}")


def _read(name: str, series: pl.Series, times: Collection[str]) -> Column:
    if name == TIME:
        return columns.time(series)
    if name == TIMES:
        return _each(series, columns.time, pl.Int64())
    if name == LABELLED:
        return _each(series, _label, pl.String())
    if name in IDS:
        return _each(series, columns.identifier, pl.String())
    if name in CONDITIONS:
        return _each(_whole(series), _condition, pl.String())
    if name == BOOST_BY:
        return _each(series, _present, pl.Float64())
    if name == DIVERSITY:
        return _share(series)
    if name in times:
        moment = columns.time(series)
        text = moment.values.cast(pl.String).fill_null("")
        return Column(text, moment.faults, moment.notes)
    return _cell(series)


def _label(series: pl.Series) -> Column:
    text = columns.as_text(series).str.strip_chars().fill_null("")
    rule = f"is none of the labels {', '.join(LABELS)}"
    return Column(text, ((rule, ~text.is_in(["", *LABELS])),))


def _whole(series: pl.Series) -> pl.Series:
    """Lists; a text is one condition, as `|` stands between the values of one."""
    if isinstance(series.dtype, (pl.List, pl.Array)):
        return series
    text = pl.DataFrame({"text": columns.as_text(series).str.strip_chars()})
    return text.select(pl.when(pl.col("text") != "").then(pl.concat_list("text")))["text"]


def _condition(series: pl.Series) -> Column:
    text = columns.as_text(series).str.strip_chars()
    return Column(text, (("is no condition", text.fill_null("") == ""),))


def _present(series: pl.Series) -> Column:
    found = columns.number(series)
    missing = ("must not be missing", found.values.is_null())
    return Column(found.values, (*found.faults, missing))


def _share(series: pl.Series) -> Column:
    found = columns.number(series)
    outside = ~found.values.is_between(0, 1).fill_null(True)
    return Column(found.values, (*found.faults, ("must be from 0 to 1", outside)))


def _cell(series: pl.Series) -> Column:
    """As the model reads a column of a user: one string, "" where missing."""
    kind = series.dtype
    if isinstance(kind, (pl.List, pl.Array)):
        between = " " if kind.inner.is_float() else SEPARATOR
        values = _list(series).cast(_LIST).list.join(between)
    elif isinstance(kind, (pl.Date, pl.Datetime)):
        values = columns.time(series).values.cast(pl.String)
    else:
        values = columns.as_text(series)
    return Column(values.fill_null("").str.strip_chars())


def _each(
    series: pl.Series, convert: Callable[[pl.Series], Column], kind: pl.DataType
) -> Column:
    """Lists, each of whose elements is converted; null where missing."""
    series = _list(series)
    named = pl.DataFrame({"row": range(len(series)), "value": series})
    flat = named.filter(pl.col("value").list.len() > 0).explode("value")
    found = convert(flat["value"])
    whole = pl.DataFrame({"row": flat["row"], "value": found.values.cast(kind)})
    lists = whole.group_by("row", maintain_order=True).agg("value")
    values = named.select("row").join(lists, on="row", how="left", maintain_order="left")
    broken = lambda fault: named["row"].is_in(flat["row"].filter(fault).unique().implode())
    faults = tuple((rule, broken(fault)) for rule, fault in found.faults)
    return Column(values["value"], faults, found.notes)


def _list(series: pl.Series) -> pl.Series:
    if isinstance(series.dtype, pl.Array):
        return series.arr.to_list()
    if isinstance(series.dtype, pl.List):
        return series
    return columns.as_text(series).str.split(SEPARATOR)


def _unequal(found: dict[str, Column]) -> Iterator[tuple[str, Column]]:
    """The rules of the lists that are as long as another one."""

    def length(name: str):
        return found[name].values.list.len().fill_null(0) if name in found else 0

    def differs(name: str, other: str, what: str, wrong) -> tuple[str, Column]:
        rule = f"must have one entry for each {what} of {other}"
        return name, Column(found[name].values, ((rule, wrong),))

    for name in (LABELLED, TIMES):
        if name in found:
            given = length(name) != 0
            wrong = given & (length(name) != length("history"))
            yield differs(name, "history", "item", wrong)
    boost = CONDITIONS[-1]
    for name, other, what in ((BOOST_BY, boost, "condition"), (boost, BOOST_BY, "number")):
        if name in found:
            yield differs(name, other, what, length(name) != length(other))
