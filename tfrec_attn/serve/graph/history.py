"""What users did: as the request says, or as it was known at the export.

Letters: B users of a request, H its history, W events that the model reads, I items.
"""

import numpy as np
import tensorflow as tf

from tfrec_attn.labels import LABELS
from tfrec_attn.serve.graph.lookup import Lookup


class Histories(tf.Module):
    """The events of all users, oldest first.

    Args:
      item_row: Item ids to rows.
      items: I.
      row_lengths: `[users]` events of each.
      item, feedback, time: Flat, a row, a label's index and ms each.
      length: W.
    """

    def __init__(self, item_row: Lookup, items: int, *, row_lengths, item, feedback, time,
                 length: int):  # fmt: skip
        super().__init__(name="histories")
        self.item_row, self.items, self.length = item_row, items, length
        self.label = Lookup(LABELS, LABELS.index("like"), "label")
        fixed = lambda value, name: tf.Variable(value, trainable=False, name=name)
        # One more user, who has done nothing: who is unknown is that one.
        ends = np.cumsum(row_lengths)
        starts = np.concatenate([[0], ends, ends[-1:]])
        self.starts = fixed(starts.astype(np.int64), "history_starts")
        self.past = {
            name: fixed(np.append(value, value.dtype.type(0)), f"history_{name}")
            for name, value in (("item", item), ("feedback", feedback), ("time", time))
        }

    def __call__(self, request, row):
        """The last events of each user.

        Args:
          request: `history`, `history_feedback`, `history_time` and `time` of a request.
          row: `[B]` user rows; the number of users is nobody.

        Returns:
          The `batch` of `Recommender.encode_users`; `[B, I]` bool, the items of the whole
          history; and the outputs `unknown_history` and `truncated_history`.
        """
        given = self.item_row(request["history"])
        named = request["history"] != ""
        stated = tf.reduce_any(named, -1)
        real = named & (given >= 0)
        batch = tf.shape(row)[0]
        # What was not known is dropped, the rest moves together at the front.
        kept = tf.ragged.boolean_mask(
            tf.tile(tf.range(tf.shape(given)[1])[None], [batch, 1]), real
        )
        start, end = tf.gather(self.starts, row), tf.gather(self.starts, row + 1)
        count = tf.where(stated, kept.row_lengths(), end - start)
        seen = tf.cast(tf.minimum(count, self.length), tf.int32)
        back = tf.range(self.length)[None]
        mask = back < seen[:, None]
        place = tf.cast(count, tf.int32)[:, None] - seen[:, None] + back
        stored_at = start[:, None] + tf.cast(place, tf.int64)
        stored_at = tf.where(mask & ~stated[:, None], stored_at, 0)
        order = kept.to_tensor(0, shape=(None, None))
        width = tf.shape(order)[1]
        order = tf.pad(order, [[0, 0], [0, 1]])
        given_at = tf.gather(order, tf.minimum(place, width), batch_dims=1)
        # One "not given" may stand for a whole row.
        fit = lambda asked: tf.pad(
            asked, [[0, 0], [0, tf.maximum(tf.shape(given)[1] - tf.shape(asked)[1], 0)]]
        )
        pick = lambda asked, name: tf.where(
            stated[:, None],
            tf.gather(tf.pad(asked, [[0, 0], [0, 1]]), given_at, batch_dims=1),
            tf.gather(self.past[name], stored_at),
        )
        zero = lambda value: tf.where(mask, value, tf.zeros_like(value))
        events = {
            "history": tf.where(mask, pick(given, "item"), -1),
            "history_feedback": zero(
                pick(self.label(fit(request["history_feedback"])), "feedback")
            ),
            "history_time": zero(pick(fit(request["history_time"]), "time")),
            "seen": seen,
            "time": request["time"],
        }
        known = self.marked(given, batch) | self._stored(start, end, ~stated, batch)
        about = {
            "unknown_history": tf.math.count_nonzero(named & ~real, -1, dtype=tf.int32),
            "truncated_history": count > self.length,
        }
        return events, known, about

    def _stored(self, start, end, wanted, batch):
        at = tf.ragged.range(start, tf.where(wanted, end, start))
        rows = tf.gather(self.past["item"], at.values)
        return self._scatter(
            tf.stack([tf.cast(at.value_rowids(), tf.int32), rows], 1), batch
        )

    def marked(self, rows, batch):
        """`[B, I]` bool from item rows `[B, w]`, -1 being none."""
        user = tf.broadcast_to(tf.range(batch)[:, None], tf.shape(rows))
        return self._scatter(tf.boolean_mask(tf.stack([user, rows], -1), rows >= 0), batch)

    def _scatter(self, pairs, batch):
        ones = tf.ones([tf.shape(pairs)[0]], tf.int32)
        return tf.scatter_nd(pairs, ones, tf.stack([batch, self.items])) > 0
