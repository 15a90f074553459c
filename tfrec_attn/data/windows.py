"""Windows and targets cut in a graph: what `batches.gather` does in NumPy.

Letters: n examples, N events, W events of a window, T targets of an example.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

Columns = Mapping[str, tf.Tensor]


class Spans(NamedTuple):
    """Where examples are, `[n]` each: the window is `first` to `last` of the events, the
    targets `begin` to `end` of theirs."""

    first: tf.Tensor
    last: tf.Tensor
    begin: tf.Tensor
    end: tf.Tensor


def cut(at: Spans, past: Columns, goals: Columns, width: int, count: int) -> Columns:
    """The tensors of some examples, but for their user; see `batches.gather`.

    Args:
      at: Of n examples; empty spans give an example without history or targets.
      past: `item`, `feedback`, `time` of the events, `[N]` each.
      goals: The same of the targets, with `weight` and `stop`, where the past of each ends.
      width: W.
      count: T.
    """
    event, seen = span(at.first, at.last, width)
    goal, asked = span(at.begin, at.end, count)
    seen_of = lambda name, pad: _pick(past[name], event, seen, pad)
    asked_of = lambda name: _pick(goals[name], goal, asked, 0)
    stop = asked_of("stop") - tf.where(asked, at.first[:, None], 0)
    integers = lambda value: tf.cast(value, tf.int32)
    return {
        "history": seen_of("item", -1),
        "history_feedback": integers(seen_of("feedback", 0)),
        "history_time": seen_of("time", 0),
        "target": asked_of("item"),
        "target_seen": integers(stop),
        "target_feedback": integers(asked_of("feedback")),
        "target_time": asked_of("time"),
        "weight": asked_of("weight"),
    }


def span(begin, end, width) -> tuple[tf.Tensor, tf.Tensor]:
    """`[n, width]` places from `begin`, and which of them are before `end`; 0 else."""
    place = begin[:, None] + tf.range(width, dtype=begin.dtype)
    real = place < end[:, None]
    return tf.where(real, place, 0), real


def _pick(column, where, mask, pad):
    pad = tf.cast(pad, column.dtype)
    if column.shape[0] == 0:
        return tf.fill(tf.shape(mask), pad)
    return tf.where(mask, tf.gather(column, where), pad)
