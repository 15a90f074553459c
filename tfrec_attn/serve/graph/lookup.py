"""Strings of a request to rows and features, in the graph."""

import pathlib
import shutil
import tempfile
import weakref

import numpy as np
import tensorflow as tf

from tfrec_attn.data.catalog import MILLISECONDS_PER_YEAR

# Characters of keys that a constant of the graph may hold.
_LARGE = 1 << 20


class Lookup(tf.Module):
    """Strings to rows: the row of each known key, `default` elsewhere."""

    def __init__(self, keys, default: int = -1, name: str = "lookup"):
        super().__init__(name=name)
        self.table = tf.lookup.StaticHashTable(self._initializer(list(keys)), default)

    def _initializer(self, keys: list[str]):
        if sum(map(len, keys)) <= _LARGE or any("\n" in key or "\r" in key for key in keys):
            rows = tf.range(len(keys), dtype=tf.int64)
            return tf.lookup.KeyValueTensorInitializer(tf.constant(keys, tf.string), rows)
        # A file of the version's `assets`, as a constant would be in memory with the graph.
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = pathlib.Path(folder, f"{self.name}.txt")
        file.write_text("".join(f"{key}\n" for key in keys), "utf-8")
        whole, number = (
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        return tf.lookup.TextFileInitializer(str(file), tf.string, whole, tf.int64, number)

    def __call__(self, keys):
        return tf.cast(self.table.lookup(keys), tf.int32)


class Columns(tf.Module):
    """The feature columns of items or users, one string a column and row; "" is missing.

    Args:
      columns: `catalog.Column` by name.
      side: `item` or `user`; `item_genres` is the input of the column `genres`.
    """

    def __init__(self, columns, side: str):
        super().__init__(name=f"{side}_columns")
        # A dict of a tf.Module is tracked, and one of columns cannot be saved.
        self._columns = lambda: columns
        self.side = side
        words = {n: ("", *c.vocabulary) for n, c in columns.items() if c.vocabulary}
        self.rows = {n: Lookup(w, 0, f"{side}_{n}") for n, w in words.items()}
        self.words = {
            n: tf.Variable(list(w), trainable=False, name=f"{side}_{n}_words")
            for n, w in words.items()
        }

    @property
    def names(self) -> list[str]:
        """The inputs, `item_genres` for the column `genres`."""
        return [f"{self.side}_{name}" for name in self._columns()]

    def parse(self, request):
        """Features of `catalog.Catalog`, from `[B]` strings by input."""
        return {
            name: self._read(name, column, request[f"{self.side}_{name}"])
            for name, column in self._columns().items()
        }

    def _read(self, name, column, text):
        if column.kind == "category":
            return self.rows[name](text)
        if column.kind == "categories":
            return self.rows[name](tf.strings.split(text, "|").to_tensor(""))
        if column.kind == "embedding":
            parts = tf.strings.split(text)
            width = parts.row_lengths()
            right = (width == column.width) | (width == 0)
            rule = f"{column.width} numbers with spaces between, or nothing"
            with check(f"{self.side}_{name}", rule, right, text):
                parts = parts.to_tensor("0", shape=(None, column.width))
            return _numbers(f"{self.side}_{name}", parts, tf.float32)
        text = tf.strings.strip(text)
        text = tf.where(text == "", "nan", text)
        value = _numbers(f"{self.side}_{name}", text, tf.float64)
        if column.kind == "time":
            value /= MILLISECONDS_PER_YEAR
        return tf.cast(value, tf.float32)

    def token_names(self, name, value):
        """What the tokens of a column are called: `genres=Drama`, or `age`.

        Args:
          name: The column.
          value: `[B]` or `[B, w]`, its feature.

        Returns:
          `[B, t]` strings.
        """
        if name not in self.words:
            return tf.fill([tf.shape(value)[0], 1], name)
        rows = value[:, None] if value.shape.rank == 1 else value
        return tf.strings.join([f"{name}=", tf.gather(self.words[name], rows)])


def _numbers(name, text, dtype):
    # The op's own message does not say which input it read.
    pattern = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan"
    with check(name, "a number", tf.strings.regex_full_match(text, pattern), text):
        return tf.strings.to_number(tf.identity(text), dtype)


def check(name, rule, right, text):
    """What runs inside fails where a text of the input `name` is not `right`; the message
    says the rule and what was received."""
    wrong = tf.boolean_mask(text, ~right)
    message = f"{name} must be {rule}: received"
    check = tf.debugging.Assert(tf.reduce_all(right), [message, wrong])
    return tf.control_dependencies([check])


def prefer(given, stored, is_given):
    """What the request says, else what is stored; `[B, w]` of unlike widths are padded."""
    if given.shape.rank == 1:
        return tf.where(is_given, given, stored)
    width = tf.maximum(tf.shape(given)[1], tf.shape(stored)[1])
    fill = lambda value: tf.pad(value, [[0, 0], [0, width - tf.shape(value)[1]]])
    return tf.where(is_given[:, None], fill(given), fill(stored))


def nothing(value: np.ndarray) -> np.ndarray:
    """A row that says that nothing is known."""
    fill = np.nan if value.dtype == np.float32 and value.ndim == 1 else 0
    return np.full_like(value[:1], fill)
