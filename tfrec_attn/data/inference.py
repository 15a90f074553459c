"""A schema from the names and values of columns, for what the user has not written.

Guesses are cheap to correct: the schema is logged and stands in the run's folder, and any
line of it can be put into the config. A column whose meaning stays unclear is not used, and
the log says so.
"""

import logging
import re
from collections.abc import Sequence

import polars as pl

from tfrec_attn.data import columns
from tfrec_attn.data.readers import RawTable
from tfrec_attn.data.schema import (
    RESERVED,
    EntitySchema,
    FeedbackSchema,
    InteractionSchema,
    Kind,
    Schema,
    template_parts,
)
from tfrec_attn.labels import LABELS

logger = logging.getLogger(__name__)

_USER = (
    "userid user uid customerid customer memberid member reviewerid visitorid accountid "
    "clientid sessionid"
)
_ITEM = (
    "itemid item iid movieid productid product asin parentasin articleid artistid songid "
    "trackid bookid newsid videoid gameid businessid stockcode sku isbn"
)
_TIME = (
    "timestamp time ts datetime date createdat eventtime eventtimestamp timestampms "
    "unixreviewtime reviewtime invoicedate"
)
_FEEDBACK = "rating ratings stars score overall feedback event eventtype action behavior"
_TITLE = "title name headline movietitle productname itemname"
_TEXT = (
    "description overview plot text summary body abstract content tagline subtitle caption "
    "review synopsis"
)
_YEAR = "year releaseyear"
# Digits in these are names of places and things, no quantities.
_CODE = re.compile(r"(zip|zipcode|postal|postcode|code|phone|sku|isbn|id)$")
_IMAGE = r"(?i)\.(jpe?g|png|gif|webp|bmp)$"
_AUDIO = r"(?i)\.(wav|mp3|flac|ogg|opus|m4a)$"
_SAMPLE = 10_000
_MOST = 0.95  # A column is of a kind if so many of its values are; the others are bad rows.

_FIVE = {"buy": ">=5", "like": ">=4", "ignore": ">=3", "dislike": ">=2", "not_buy": "<2"}
_TEN = {"buy": ">=9", "like": ">=7", "ignore": ">=5", "dislike": ">=3", "not_buy": "<3"}
_EVENTS = {
    "buy": "buy purchase purchased order ordered transaction checkout",
    "like": "like click view cart addtocart favorite favourite wishlist play watch save "
    "upvote",
    "ignore": "ignore impression skip show",
    "dislike": "dislike downvote",
    "not_buy": "notbuy return refund hide report",
}


def resolve(
    schema: Schema, items: RawTable, users: RawTable | None, interactions: RawTable
) -> Schema:
    """Fills in whatever `schema` leaves open."""
    resolved = _interactions(schema.interactions, items, users, interactions)
    return Schema(
        items=_entity(schema.items, items, resolved.item, _ITEM, "items"),
        users=None
        if users is None
        else _entity(schema.users or EntitySchema(), users, resolved.user, _USER, "users"),
        interactions=resolved,
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _named(names: Sequence[str], known: str) -> str | None:
    """The column whose name stands first among the words of `known`."""
    found = {_plain(name): name for name in reversed(names)}
    return next((found[name] for name in known.split() if name in found), None)


def _cannot_tell(raw: RawTable, what: str, setting: str) -> ValueError:
    return ValueError(
        f"{raw.name}: cannot tell which column holds {what}. Set schema.{setting} to "
        f"one of: {', '.join(raw.frame.columns)}."
    )


def _interactions(
    schema: InteractionSchema, items: RawTable, users: RawTable | None, raw: RawTable
) -> InteractionSchema:
    names = raw.frame.columns
    user = schema.user or _named(names, _USER) or _shared(names, users)
    item = schema.item or _named(names, _ITEM) or _shared(names, items)
    if not user:
        raise _cannot_tell(raw, "the users' ids", "interactions.user")
    if not item:
        raise _cannot_tell(raw, "the items' ids", "interactions.item")
    time = schema.time
    if time is None:
        moments = [name for name in names if raw.frame.schema[name].is_temporal()]
        time = _named(names, _TIME) or next(iter(moments), "")
    labels = _feedback(schema.feedback or FeedbackSchema(), raw)
    _log_unused(raw, {user, item, time, labels.column or "", schema.weight or ""})
    return InteractionSchema(
        user=user,
        item=item,
        time=time,
        feedback=labels,
        weight=schema.weight or None,
        file=schema.file,
    )


def _shared(names: Sequence[str], entities: RawTable | None) -> str | None:
    ids = [n for n in names if n.lower().endswith("id")]
    shared = [n for n in ids if entities and n in entities.frame.columns]
    return shared[0] if len(shared) == 1 else None


def _feedback(schema: FeedbackSchema, raw: RawTable) -> FeedbackSchema:
    column = schema.column
    if column is None:
        column = _named(raw.frame.columns, _FEEDBACK) or ""
    if not column or schema.labels is not None or column not in raw.frame.columns:
        return FeedbackSchema(column=column, labels=schema.labels)
    return FeedbackSchema(column=column, labels=_labels(raw, column))


def _labels(raw: RawTable, column: str) -> dict[str, str | tuple[str, ...]]:
    text = (
        columns.as_text(raw.frame[column]).str.strip_chars().replace("", None).drop_nulls()
    )
    values = text.unique(maintain_order=True)
    numbers = values.cast(pl.Float64, strict=False).drop_nulls()
    if len(numbers) and len(numbers) >= _MOST * len(values):
        low, high = float(numbers.min()), float(numbers.max())  # type: ignore[arg-type]
        if set(numbers) <= {-1.0, 0.0, 1.0}:
            scale = {"like": "==1", "ignore": "==0", "dislike": "==-1"}
            return {label: rule for label, rule in scale.items() if float(rule[2:]) >= low}
        if low >= 0 and high <= 10:
            return dict(_FIVE if high <= 5 else _TEN)
    known = {name: label for label, names in _EVENTS.items() for name in names.split()}
    events = {value: known.get(_plain(value)) for value in values[:1000]}
    if not len(values) or None in events.values():
        raise ValueError(
            f"{raw.name}: cannot tell what feedback the values of {column!r} are: "
            f"{', '.join(map(repr, values[:8]))}. Say it in schema.interactions.feedback, "
            f'as in {{column = "{column}", labels = {{buy = "purchase", like = ">=4"}}}} '
            f"(labels: {', '.join(LABELS)}), "
            'or take every interaction as a like with column = "".'
        )
    found: dict[str, str | tuple[str, ...]] = {}
    for label in LABELS:
        named = tuple(value for value, its in events.items() if its == label)
        if named:
            found[label] = named
    return found


def _entity(
    schema: EntitySchema, raw: RawTable, foreign: str | None, known: str, table: str
) -> EntitySchema:
    names = raw.frame.columns
    own = next((name for name in names if _plain(name) == "id"), None)
    same = foreign if foreign in names else None
    identity = schema.id or same or own or _named(names, known)
    if not identity:
        raise _cannot_tell(raw, f"the {table}' ids", f"{table}.id")
    kinds, separators = schema.columns, dict(schema.separators)
    texts: list[str] = []
    if kinds is None or schema.text is None:
        written = schema.columns or {}
        guessed, texts, guessed_separators = _kinds(raw, {identity, *written}, table)
        if kinds is None:
            kinds, separators = guessed, guessed_separators | separators
            in_text = texts if schema.text is None else template_parts(schema.text)[1::2]
            _log_unused(raw, {identity, *kinds, *in_text})
    text = schema.text
    if text is None:
        text = _template(names, texts, kinds) if table == "items" else _sentence(texts)
    return EntitySchema(
        id=identity, text=text, columns=kinds, separators=separators, file=schema.file
    )


def _log_unused(raw: RawTable, used: set[str]) -> None:
    unused = [name for name in raw.frame.columns if name not in used]
    if unused:
        logger.info("%s: columns not used: %s", raw.name, ", ".join(unused))


def _template(names: Sequence[str], texts: list[str], kinds: dict[str, Kind]) -> str:
    year = _named(list(kinds), _YEAR)
    lists = [name for name in names if kinds.get(name) == "categories"]
    head = _named(texts, _TITLE) or next(iter(texts), None)
    rest = lists + [name for name in texts if name != head]
    first = (f"{{{head}}}" if head else "") + (f" ({{{year}}})" if head and year else "")
    return ". ".join(([first] if first else []) + [f"{{{name}}}" for name in rest])


def _sentence(texts: list[str]) -> str:
    return ". ".join(f"{{{name}}}" for name in texts)


def _kinds(
    raw: RawTable, taken: set[str], table: str
) -> tuple[dict[str, Kind], list[str], dict[str, str]]:
    """Feature columns with kinds, text columns, and separators of `categories`."""
    kinds: dict[str, Kind] = {}
    texts: list[str] = []
    separators: dict[str, str] = {}
    for name in raw.frame.columns:
        braces = "{" in name or "}" in name
        if name in taken:
            continue
        series = raw.frame[name].drop_nulls().head(_SAMPLE)
        if not len(series):
            continue
        hint = raw.hints.get(name, "")
        if not braces and _is_text(name, series, hint, table):
            texts.append(name)
            continue
        kind, separator = _kind(name, series, hint)
        if kind and name not in RESERVED:
            kinds[name] = kind
            if separator:
                separators[name] = separator
    return kinds, texts, separators


def _is_text(name: str, series: pl.Series, hint: str, table: str) -> bool:
    if series.dtype != pl.String or hint.startswith("float"):
        return False
    plain = _plain(name)
    if plain.endswith(tuple(_TEXT.split())):
        return True
    if plain in _TITLE.split() or plain.endswith("title"):
        return table == "items"
    words = series.str.count_matches(r"\S+").mean()
    return not hint and isinstance(words, float) and words > 5 and not _listed(series, "|")


def _listed(series: pl.Series, separator: str) -> bool:
    return bool(series.str.contains(separator, literal=True).sum() > 0.05 * len(series))


def _kind(name: str, series: pl.Series, hint: str) -> tuple[Kind | None, str]:
    """The kind of a feature column, None for no use, and the separator if it is not `|`."""
    plain, dtype = _plain(name), series.dtype
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
        if plain in _TIME.split() and _share(columns.time(series)) >= _MOST:
            return "time", ""
        if _share(columns.number(series)) >= _MOST:
            return "number", ""
    if dtype == pl.String:
        if _share(columns.time(series)) >= _MOST and not _CODE.search(plain):
            return "time", ""
        for kind, pattern in (("image", _IMAGE), ("audio", _AUDIO)):
            if series.str.contains(pattern).all() and not series.str.contains("://").any():
                return kind, ""  # type: ignore[return-value]
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
    if not isinstance(dtype, pl.List) or dtype.inner.is_nested():  # type: ignore[attr-defined]
        return None
    widths = series.list.len()
    steady = widths.min() == widths.max() and widths[0] > 1
    return "embedding" if dtype.inner.is_float() and steady else "categories"  # type: ignore


def _share(column: columns.Column) -> float:
    """The part of the rows that have a value and break no rule."""
    return 1.0 - column.values.null_count() / max(1, len(column.values))
