"""A schema from the names and values of columns, for what the user has not written.

Guesses are cheap to correct: the schema is logged and stands in the run's folder, and any
line of it can be put into the config. A column whose meaning stays unclear is not used, and
the log says so.
"""

import logging
import re
from collections.abc import Sequence

import polars as pl

from tfrec_attn.data import columns, kinds
from tfrec_attn.data.readers import RawTable
from tfrec_attn.data.schema import (
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
    "clientid sessionid 用户id 用户编号 用户"
)
_ITEM = (
    "itemid item iid movieid productid product asin parentasin articleid artistid songid "
    "trackid bookid newsid videoid gameid businessid stockcode sku isbn 物品id 商品id "
    "电影id 商品编号 物品 商品"
)
_FEEDBACK = (
    "rating ratings stars score overall feedback event eventtype action behavior 评分"
)
_YEAR = "year releaseyear"

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


def _named(names: Sequence[str], known: str) -> str | None:
    """The column whose name stands first among the words of `known`."""
    found = {kinds.plain_name(name): name for name in reversed(names)}
    return next((found[name] for name in known.split() if name in found), None)


def _cannot_tell(raw: RawTable, what: str, setting: str) -> ValueError:
    names, file = raw.frame.columns, f"schema.{setting.partition('.')[0]}.file"
    if not names:
        return ValueError(
            f"{raw.name}: no line of it is a JSON object. One object a line is read, no "
            "array of them."
        )
    if len(names) == 1 and (sign := re.search(r"[;\t|]", names[0])):
        return ValueError(
            f"{raw.name}: its only column is {names[0]!r}. If {sign[0]!r} parts its "
            f"columns, set {file}.separator to it."
        )
    return ValueError(
        f"{raw.name}: cannot tell which column holds {what}. Set schema.{setting} to "
        f"one of: {', '.join(names)}. If that is the first row and no header, name the "
        f"columns in {file}.header."
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
        time = _named(names, kinds.TIME) or _moment(raw, {user, item})
    labels = _feedback(schema.feedback or FeedbackSchema(), raw)
    _log_unused(raw, {user, item, time, labels.column or "", schema.weight or ""})
    return InteractionSchema(
        user=user,
        item=item,
        time=time,
        time_format=schema.time_format,
        feedback=labels,
        weight=schema.weight or None,
        file=schema.file,
    )


def _moment(raw: RawTable, taken: set[str]) -> str:
    """The first column whose values are times, whatever its name; "" if there is none."""
    found = kinds.guess(raw, taken, "interactions").features
    return next((name for name, kind in found.items() if kind == "time"), "")


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
    numbers = text.cast(pl.Float64, strict=False).fill_nan(None).drop_nulls()
    if len(numbers) and len(numbers) >= kinds.MOST * len(text):
        if set(numbers.unique()) <= {-1.0, 0.0, 1.0}:
            low = min(numbers.to_list())
            scale = {"like": "==1", "ignore": "==0", "dislike": "==-1"}
            return {label: rule for label, rule in scale.items() if float(rule[2:]) >= low}
        for highest, rules in ((5, _FIVE), (10, _TEN)):
            # A few slips must not turn all other ratings into another scale.
            slips = numbers.filter(~numbers.is_between(0, highest))
            if len(slips) <= (1 - kinds.MOST) * len(numbers):
                if len(slips):
                    logger.warning(
                        "%s, column %r: ratings from 0 to %d, but for %d such as %g, which "
                        "the rules take as they are",
                        *(raw.name, column, highest, len(slips), slips[0]),
                    )
                return dict(rules)
    known = {name: label for label, names in _EVENTS.items() for name in names.split()}
    events = {value: known.get(kinds.plain_name(value)) for value in values[:1000]}
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
    own = next((name for name in names if kinds.plain_name(name) == "id"), None)
    same = foreign if foreign in names else None
    identity = schema.id or same or own or _named(names, known)
    if not identity:
        raise _cannot_tell(raw, f"the {table}' ids", f"{table}.id")
    features, separators, text = schema.columns, dict(schema.separators), schema.text
    if features is None or text is None:
        guess = kinds.guess(raw, {identity, *(features or {})}, table)
        if features is None:
            features, separators = guess.features, guess.separators | separators
        if text is None:
            text = _template(guess.texts, features, table)
            if table == "items" and not text:
                logger.warning(
                    "%s: no column looks like a text, so the model knows items by their "
                    "ids and features alone; name the text's columns in schema.items.text",
                    raw.name,
                )
    _log_unused(raw, {identity, *features, *template_parts(text)[1::2]})
    return EntitySchema(
        id=identity, text=text, columns=features, separators=separators, file=schema.file
    )


def _log_unused(raw: RawTable, used: set[str]) -> None:
    unused = [name for name in raw.frame.columns if name not in used]
    if unused:
        logger.info("%s: columns not used: %s", raw.name, ", ".join(unused))


def _template(texts: Sequence[str], features: dict[str, Kind], table: str) -> str:
    """The title with its year, what it is, then longer texts; for users texts only."""
    title = _named(texts, kinds.TITLE) or next(iter(texts), "")
    year = _named(list(features), _YEAR)
    parts = [f"{{{title}}} ({{{year}}})" if year else f"{{{title}}}"] if title else []
    if table == "items":
        lists = [name for name, kind in features.items() if kind == "categories"]
        parts += [f"{{{name}}}" for name in lists if "{" not in name and "}" not in name]
    parts += [f"{{{name}}}" for name in texts if name != title]
    return ". ".join(parts)
