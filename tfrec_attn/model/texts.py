"""Texts of a table as token ids, words and what BERT says of them.

Letters: N texts, m token ids a text, W words, L live texts of a step.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfrec_attn.arrays import stacked
from tfrec_attn.model import augmentation, replicas
from tfrec_attn.model import bert as bert_lib
from tfrec_attn.model.chunks import in_chunks
from tfrec_attn.model.tokenizer import WordPiece
from tfrec_attn.model.towers import masked_mean
from tfrec_attn.model.tuning import Rate


class Tokens(NamedTuple):
    """Attributes:
    ids: `[N, m]` int32, padded behind with the tokenizer's `pad_id`.
    place: `[N, m]` which word of its text a piece belongs to, -1 for none.
    words: `[N, W]` str, "" behind the last.
    pad_id: Id that is no token.
    truncated: Share of texts that were longer than `max_length`.
    """

    ids: np.ndarray
    place: np.ndarray
    words: np.ndarray
    pad_id: int
    truncated: float

    def followed_by(self, other: "Tokens | None", count: int) -> "Tokens":
        """These and those of `count` further texts; None where all of them are empty."""
        if other is None:
            empty = lambda dtype: np.zeros((count, 0), dtype)
            parts = empty(np.int32), empty(np.int64), empty(str)
            other = Tokens(*parts, self.pad_id, 0.0)
        cut = self.truncated * len(self.ids) + other.truncated * count
        return self._replace(
            truncated=cut / (len(self.ids) + count),
            ids=stacked(self.ids, other.ids, self.pad_id),
            place=stacked(self.place, other.place, -1),
            words=stacked(self.words, other.words, ""),
        )


def tokenize(folder: Path, texts, max_length: int) -> Tokens:
    """Texts `[N]` by the tokenizer of a BERT folder, cut to `max_length` ids."""
    tokenizer = WordPiece(folder)
    ids, cut = tokenizer(tf.constant(list(texts)), max_length)
    ids = ids.numpy()
    ids = ids[:, : (ids != tokenizer.pad_id).sum(1).max()]
    place, words = tokenizer.words(ids)
    return Tokens(ids, place, words, tokenizer.pad_id, float(cut.numpy().mean()))


def features(hidden: np.ndarray, tokens: Tokens) -> dict[str, np.ndarray]:
    """What the towers read of texts: a token for each word, and the mean of all pieces.

    Args:
      hidden: `[N, m, width]`, BERT's states of `tokens.ids`.
    """
    real = tokens.words != ""
    # Of an empty text BERT says something all the same.
    mean = _mean(hidden, np.where(tokens.ids != tokens.pad_id, 0, -1), 1)[:, 0]
    return {
        "text": _mean(hidden, tokens.place, tokens.words.shape[1]).astype(np.float16),
        "text_mask": real,
        "text_mean": np.where(real.any(1, keepdims=True), mean, 0),
    }


def _mean(hidden: np.ndarray, place: np.ndarray, count: int) -> np.ndarray:
    """The mean hidden state of the pieces of each of `count` places, `[N, count, width]`
    float32; `place` `[N, m]` ascends, and is -1 for a piece of none."""
    text, piece = np.nonzero(place >= 0)
    word = place[text, piece]
    starts = np.flatnonzero(np.diff(text * count + word, prepend=-1))
    total = np.add.reduceat(hidden[text, piece], starts, dtype=np.float32)
    pieces = np.diff(starts, append=len(word))
    mean = np.zeros((len(hidden), count, hidden.shape[2]), np.float32)
    mean[text[starts], word[starts]] = total / pieces[:, None]
    return mean


def states(bert, ids) -> np.ndarray:
    """What BERT says of all texts, `[N, m, width]` float16, behind a progress bar."""
    with tqdm(total=len(ids), desc="encoding texts", unit="text", leave=False) as bar:
        return bert_lib.encode(bert, ids, dtype=np.float16, progress=bar.update)


class Live:
    """A BERT that is trained, and the item texts that it reads.

    A step sends the texts of a few of its items through BERT; what it says of the others
    is what it said when they were last encoded.

    Args:
      bert: Tuned, see `tuning`.
      tokens: Of all items.
      count: L, most live texts of a step.
      rates: What trains of the BERT; see `tuning.rates`.
      unfreeze: Epochs after which a block begins to train, once the one above it has.
      chunk: Texts that pass at once, see `chunks`; 0 for all L.
      lost: Share of pieces that are left out.
    """

    def __init__(
        self,
        bert,
        tokens: Tokens,
        *,
        count: int,
        rates: Sequence[Rate],
        unfreeze: int = 0,
        chunk: int = 0,
        lost: float = 0.0,
    ):
        self.bert, self.tokens, self.count = bert, tokens, count
        self.rates, self.unfreeze = rates, unfreeze
        self.chunk, self.lost = chunk, lost
        self.ids = tf.constant(tokens.ids, tf.int32)
        self.real = tf.constant((tokens.words != "").any(1))

    def means(self, means, rows, at, seed, turn: int = 0):
        """`text_mean` of a step's items, of some of them with a gradient.

        Args:
          means: `[U, width]` as they were encoded last; of several replicas, of the share
            that this one has of the U items.
          rows: `[U]` item rows.
          at: Places among the U items, of any shape: those to choose from.
          seed: `[2]` of the choice, and of what is dropped.
          turn: Of several passes over the same choice, which drop other things.
        """
        places, _ = tf.unique(tf.reshape(at, [-1]))
        chance = tf.random.stateless_uniform(tf.shape(places), seed)
        places = tf.gather(places, tf.argsort(chance)[: self.count])
        chosen = tf.gather(rows, places)
        ids = self._cut(tf.gather(self.ids, chosen))
        seed = tf.random.experimental.stateless_fold_in(seed, 1 + turn)
        if self.lost:
            lost = tf.random.experimental.stateless_fold_in(seed, 0)
            pad = self.tokens.pad_id
            ids = augmentation.without_pieces(ids, pad, self.lost, lost)
        if replicas.count() > 1:
            seed = tf.random.experimental.stateless_fold_in(seed, replicas.place())
        said = self._passed(replicas.share(ids), seed)
        live = replicas.together(said, tf.shape(ids)[0])[: tf.shape(places)[0]]
        live = tf.where(tf.gather(self.real, chosen)[:, None], live, 0.0)
        places, here = replicas.place_in_share(places, tf.size(rows))
        live = live if here is None else tf.gather(live, here)
        return tf.tensor_scatter_nd_update(means, places[:, None], live)

    def _cut(self, ids):
        """Texts `[N, m]` without the places that are padding in all of them; for XLA always
        L texts of all places."""
        pad = self.tokens.pad_id
        if self.bert.xla:
            fill = [[0, self.count - tf.shape(ids)[0]], [0, 0]]
            ids = tf.pad(ids, fill, constant_values=pad)
            return tf.ensure_shape(ids, [self.count, self.ids.shape[1]])
        real = tf.math.count_nonzero(ids != pad, 1, dtype=tf.int32)
        return ids[:, : tf.reduce_max(real)]

    def _passed(self, ids, seed):
        """The mean states `[L, width]` of texts `[L, m]`, chunk by chunk if so wished."""

        def say(ids, number):
            part = tf.random.experimental.stateless_fold_in(seed, number)
            hidden = self.bert(ids, training=True, seed=part)
            return masked_mean(hidden, ids != self.tokens.pad_id)

        if not self.chunk:
            return say(ids, 0)
        return in_chunks(
            say,
            ids,
            self.chunk,
            self.bert.trainable_weights,
            fill=self.tokens.pad_id,
            width=self.bert.width,
        )

    def refresh(self, tensors: Mapping[str, tf.Variable]) -> None:
        """Encodes all texts anew, into the item features."""
        found = features(states(self.bert, self.tokens.ids), self.tokens)
        for name, values in found.items():
            if name != "text_mask":
                tensors[name].assign(values)
