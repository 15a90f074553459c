"""What a request asks of items: conditions on their attributes, in the graph.

A condition is `column=value`, `column=value|another` (either), `column<=number`,
`column>=number`; "" is none. Letters: B users of a request, F conditions of each, C items,
V values of a condition, W values of an item, I items.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfrec_attn.data.catalog import Catalog
from tfrec_attn.serve.graph.lookup import Lookup, check

_PARTS = r"\s*([^=<>]*?)\s*(<=|>=|=)\s*(.*?)\s*"
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"


class Conditions(NamedTuple):
    """Attributes:
    column: `[B, F]` names, "" for no condition.
    values: `[B, F, V]` rows of category values, -1 at padding.
    low, high: `[B, F]` bounds of a number, both included.
    """

    column: tf.Tensor
    values: tf.Tensor
    low: tf.Tensor
    high: tf.Tensor


class Attributes(tf.Module):
    """Attributes of all items, by which requests choose.

    Args:
      catalog: Of the columns to choose by; kinds `category`, `categories`, `number`,
        `time`.

    Raises:
      ValueError: When a value holds what separates values in a condition.
    """

    def __init__(self, catalog: Catalog):
        super().__init__(name="attributes")
        fixed = lambda value, name: tf.Variable(value, trainable=False, name=name)
        words = {n: c.vocabulary for n, c in catalog.columns.items() if _listed(c.kind)}
        tokens = [f"{name}={word}" for name in words for word in words[name]]
        if odd := [token for token in tokens if "|" in token]:
            raise ValueError(
                f"index.filters: {odd[0]!r} holds |, which stands between the values of a "
                "condition. Rename the value, or leave the column out."
            )
        self.value_row = Lookup(tokens, name="attribute_value")
        self.values = fixed(_rows(catalog, words), "item_values")
        self.numbers = {
            name: fixed(np.asarray(catalog.features[name], np.float32), f"item_{name}")
            for name in catalog.columns
            if name not in words
        }
        self._words = tuple(words)

    def read(self, name: str, text) -> Conditions:
        """The conditions of the input `name`, `[B, F]` strings; what is none is refused."""
        part = lambda number: tf.strings.regex_replace(text, f"^{_PARTS}$", rf"\{number}")
        column, sign, value = part(1), part(2), part(3)
        is_in = lambda names: tf.reduce_any(
            [tf.fill(tf.shape(text), False), *(column == one for one in names)], 0
        )
        numeric = is_in(self.numbers) & tf.strings.regex_full_match(value, _NUMBER)
        right = (text == "") | numeric | (is_in(self._words) & (sign == "="))
        right &= (text == "") | tf.strings.regex_full_match(text, _PARTS)
        columns = ", ".join([*self._words, *self.numbers])
        such = [f"{next(iter(self._words))}=value"] if self._words else []
        such += [f"{next(iter(self.numbers))}{s}5" for s in ("<=", ">=") if self.numbers]
        rule = f"conditions such as {' or '.join(such)}, of the columns {columns}"
        with check(name, rule, right, text):
            number = tf.strings.to_number(tf.where(numeric, value, "0"))
        infinity = tf.fill(tf.shape(text), np.float32(np.inf))
        return Conditions(
            tf.where(text == "", "", column),
            self._value_rows(column, value),
            tf.where(sign == "<=", -infinity, number),
            tf.where(sign == ">=", infinity, number),
        )

    def _value_rows(self, column, value):
        parts = tf.strings.split(tf.reshape(value, [-1]), "|")
        of = tf.gather(tf.reshape(column, [-1]), parts.value_rowids())
        tokens = tf.strings.join([of, "=", tf.strings.strip(parts.values)])
        rows = parts.with_values(self.value_row(tokens)).to_tensor(-1)
        return tf.reshape(rows, tf.concat([tf.shape(column), [-1]], 0))

    def hold(self, conditions: Conditions, rows):
        """`[B, F, C]` bool: which conditions hold for which items.

        Args:
          conditions: Of `read`.
          rows: `[C]` items, or `[B, C]` each user's own. An item of which an attribute is
            not known meets no condition on it.
        """
        own = (lambda value: value[None]) if rows.shape.rank == 1 else (lambda value: value)
        have = own(tf.gather(self.values, rows))[:, None, :, :, None]
        met = tf.reduce_any(have == conditions.values[:, :, None, None, :], (-1, -2))
        for name, numbers in self.numbers.items():
            value = own(tf.gather(numbers, rows))[:, None]
            low, high = conditions.low[..., None], conditions.high[..., None]
            within = (value >= low) & (value <= high)
            met |= (conditions.column == name)[..., None] & within
        return met


def _listed(kind: str) -> bool:
    return kind in ("category", "categories")


def _rows(catalog: Catalog, words: Mapping[str, tuple[str, ...]]) -> np.ndarray:
    """`[I, W]` rows of all category values of each item, -2 where there is none."""
    found, before = [np.zeros((len(catalog), 0), np.int32)], 0
    for name in words:
        value = catalog.features[name]
        value = value[:, None] if value.ndim == 1 else value
        found.append(np.where(value > 0, value - 1 + before, -2).astype(np.int32))
        before += len(words[name])
    return np.concatenate(found, 1)


class Rules(NamedTuple):
    """Which items a request may be answered with, and what it adds to their scores.

    Attributes:
      allowed: `[B, I]` bool.
      attributes: Of the items; None where requests do not choose by them.
      require: Conditions of which every one must hold.
      forbid: Conditions of which none may hold.
      boost: Conditions under which `by` is added to a score.
      by: `[B, F]`.
    """

    allowed: tf.Tensor
    attributes: Attributes | None = None
    require: Conditions | None = None
    forbid: Conditions | None = None
    boost: Conditions | None = None
    by: tf.Tensor | None = None

    def keep(self, rows):
        """`[B, C]` bool, of items `[C]` or `[B, C]`."""
        if rows.shape.rank == 1:
            kept = tf.gather(self.allowed, rows, axis=1)
        else:
            kept = tf.gather(self.allowed, rows, batch_dims=1)
        if self.attributes is None:
            return kept
        none = (self.require.column == "")[..., None]
        kept &= tf.reduce_all(none | self.attributes.hold(self.require, rows), 1)
        return kept & ~tf.reduce_any(self.attributes.hold(self.forbid, rows), 1)

    def bonus(self, rows):
        """`[B, C]` what is added, of items `[C]` or `[B, C]`; 0 where nothing can be."""
        if self.attributes is None:
            return 0.0
        met = self.attributes.hold(self.boost, rows)
        return tf.reduce_sum(tf.where(met, self.by[..., None], 0.0), 1)
