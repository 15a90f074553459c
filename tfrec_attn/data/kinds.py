"""The kind of a feature column, from its name and its values."""

import dataclasses
import re

import polars as pl

from tfrec_attn.data import columns
from tfrec_attn.data.readers import RawTable
from tfrec_attn.data.schema import RESERVED, Kind

# Names of columns, without case and punctuation.
TIME = (
    "timestamp time ts datetime date createdat eventtime eventtimestamp timestampms "
    "unixreviewtime reviewtime invoicedate 时间戳 时间 日期"
)
TITLE = "title name headline movietitle productname itemname 标题 名称 片名 书名 商品名称"
_TEXT = (
    "description overview plot text summary body abstract content tagline subtitle caption "
    "review synopsis 简介 描述 内容 摘要"
)
# Digits in these are names of places and things, no quantities.
_CODE = re.compile(r"(zip|zipcode|postal|postcode|code|phone|sku|isbn|id)$")
# A word, or two characters of a script that writes no spaces between words.
_WORD = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]{2}"
    r"|[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]+"
)
_FILES: tuple[tuple[Kind, str], ...] = (
    ("image", r"(?i)\.(jpe?g|png|gif|webp|bmp)$"),
    ("audio", r"(?i)\.(wav|mp3|flac|ogg|opus|m4a)$"),
)
_SAMPLE = 10_000
MOST = 0.95  # A column is of a kind if so many of its values are; the others are bad rows.


def plain_name(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


@dataclasses.dataclass(frozen=True)
class Guess:
    """What the columns of a table seem to be.

    Attributes:
      features: Kinds of feature columns, in the order of the file.
      separators: Of `categories` columns where it is not `|`.
      texts: Columns for the text template, which are no features.
    """

    features: dict[str, Kind]
    separators: dict[str, str]
    texts: list[str]


def guess(raw: RawTable, taken: set[str], table: str) -> Guess:
    """Guesses for all columns but the `taken` ones; what stays unclear is left out.

    Args:
      raw: The table as it stands in its files.
      taken: Columns that have a meaning already.
      table: "items" or "users": a title or name is the text of an item only.
    """
    found = Guess({}, {}, [])
    for name in raw.frame.columns:
        series = raw.frame[name].drop_nulls().head(_SAMPLE)
        if name in taken or not len(series):
            continue
        hint = raw.hints.get(name, "")
        if _is_text(name, series, hint, table):
            found.texts.append(name)
            continue
        kind, separator = _kind(name, series, hint)
        if kind and name not in RESERVED:
            found.features[name] = kind
            if separator:
                found.separators[name] = separator
    return found


def _is_text(name: str, series: pl.Series, hint: str, table: str) -> bool:
    braces = "{" in name or "}" in name  # which no template can name
    if series.dtype != pl.String or hint.startswith("float") or braces:
        return False
    plain = plain_name(name)
    if plain.endswith(tuple(_TEXT.split())):
        return True
    if plain in TITLE.split() or plain.endswith("title"):
        return table == "items"
    words = series.str.count_matches(_WORD).mean()
    return not hint and isinstance(words, float) and words > 5 and not _listed(series, "|")


def _listed(series: pl.Series, separator: str) -> bool:
    return bool(series.str.contains(separator, literal=True).sum() > 0.05 * len(series))


def _kind(name: str, series: pl.Series, hint: str) -> tuple[Kind | None, str]:
    """The kind of a feature column, None for no use, and the separator if it is not `|`."""
    plain, dtype = plain_name(name), series.dtype
    if hint == "float_seq":
        return "embedding", ""
    if hint == "token_seq":
        return "categories", " "
    if dtype.is_temporal():
        return "time", ""
    if dtype.is_nested():
        return _nested_kind(series), ""
    if dtype == pl.Boolean:
        return "category", ""
    if not _CODE.search(plain):
        if plain in TIME.split() and _share(columns.time(series)) >= MOST:
            return "time", ""
        if _share(columns.number(series)) >= MOST:
            return "number", ""
    if dtype == pl.String:
        if _share(columns.time(series)) >= MOST and not _CODE.search(plain):
            return "time", ""
        for kind, pattern in _FILES:
            if series.str.contains(pattern).all() and not series.str.contains("://").any():
                return kind, ""
        if _listed(series, "|"):
            return "categories", ""
        if plain in {"genre", "genres", "tags", "categories"} and _listed(series, ","):
            return "categories", ","
    distinct = series.n_unique()
    if distinct <= max(20, len(series) / 2) or _CODE.search(plain):
        return "category", ""
    return None, ""


def _nested_kind(series: pl.Series) -> Kind | None:
    dtype = series.dtype
    if isinstance(dtype, pl.Array):
        return "embedding" if dtype.inner.is_numeric() else "categories"
    if not isinstance(dtype, pl.List) or dtype.inner.is_nested():
        return None
    widths = series.list.len()
    steady = widths.min() == widths.max() and widths[0] > 1
    return "embedding" if dtype.inner.is_float() and steady else "categories"


def _share(column: columns.Column) -> float:
    """The part of the rows that have a value and break no rule."""
    return 1.0 - column.values.null_count() / max(1, len(column.values))
