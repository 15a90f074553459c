"""A trained model as a SavedModel: strings in, strings out, only ops that TF Serving has.

Letters: B users of a request, H history, E left out, C candidates, K answers, I items.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec_attn.labels import LABELS
from tfrec_attn.model.recommender import UserState
from tfrec_attn.serve.index import Index

USER_INPUTS = ("user_id", "history", "history_feedback", "history_time", "time")


class Lookup(tf.Module):
    """Strings to rows: the row of each known key, `default` elsewhere."""

    def __init__(self, keys, default: int = -1, name: str = "lookup"):
        super().__init__(name=name)
        rows = tf.range(len(keys), dtype=tf.int64)
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(list(keys), tf.string), rows),
            default,
        )

    def __call__(self, keys):
        return tf.cast(self.table.lookup(keys), tf.int32)


class Served(tf.Module):
    """What is exported: raw requests to answers.

    Args:
      index: Over all items.
      items, users: Catalogs: ids, texts, columns and features by row.
      user_features: Arrays by row of `users`, texts encoded.
      history: Of each user the events known at the export: `row_lengths` `[users]` and flat
        `item`, `feedback`, `time`, oldest first.
      length: Events of a history that the model reads.
      encoder: Tokenizer and BERT, or None for a model without text.
    """

    def __init__(
        self,
        index: Index,
        *,
        items,
        users,
        user_features: Mapping[str, np.ndarray],
        history,
        length: int,
        max_length: int,
        encoder=None,
    ):
        super().__init__(name="served")
        self.index, self.model, self.encoder = index, index.model, encoder
        self.length, self.max_length = length, max_length
        self.item_columns, self.user_columns = dict(items.columns), dict(users.columns)
        fixed = lambda value, name: tf.Variable(value, trainable=False, name=name)
        self.item_ids = fixed(np.append(items.ids, "").astype(str), "item_ids")
        self.item_texts = fixed(np.append(items.texts, "").astype(str), "item_texts")
        self.item_row, self.user_row = (
            Lookup(items.ids, name="item_row"),
            Lookup(users.ids, name="user_row"),
        )
        self.label = Lookup(LABELS, LABELS.index("like"), "label")
        self.vocabularies = {
            f"{side}_{name}": Lookup(("", *column.vocabulary), 0, f"{side}_{name}")
            for side, columns in (("item", self.item_columns), ("user", self.user_columns))
            for name, column in columns.items()
            if column.vocabulary
        }
        # One more row: what is known of a user nobody has seen.
        self.profile = {
            name: fixed(np.concatenate([value, _nothing(value)]), f"user_{name}")
            for name, value in user_features.items()
        }
        starts = np.concatenate([[0], np.cumsum(history["row_lengths"]), [0]])
        starts[-1] = starts[-2]
        self.starts = fixed(starts.astype(np.int64), "history_starts")
        self.past = {
            name: fixed(
                np.append(history[name], history[name].dtype.type(0)), f"history_{name}"
            )
            for name in ("item", "feedback", "time")
        }

    def user_specs(self) -> dict[str, tf.TensorSpec]:
        """The inputs that describe users, by name."""
        spec = lambda shape, dtype, name: tf.TensorSpec(shape, dtype, name)
        specs = {
            "user_id": spec([None], tf.string, "user_id"),
            "history": spec([None, None], tf.string, "history"),
            "history_feedback": spec([None, None], tf.string, "history_feedback"),
            "history_time": spec([None, None], tf.int64, "history_time"),
            "time": spec([None], tf.int64, "time"),
        }
        for name in self.user_columns:
            specs[f"user_{name}"] = spec([None], tf.string, f"user_{name}")
        return specs

    def recommend(self, **request):
        """`serving_default`: the best items, those of the history left out."""
        user, about = self._user(request)
        batch, count = tf.size(request["user_id"]), self.index.pooled.shape[0]
        blocked = self._marked(self.item_row(request["exclude"]), batch)
        blocked |= about["known_items"]
        wanted = self._marked(self.item_row(request["candidates"]), batch)
        everything = tf.reduce_all(request["candidates"] == "", -1, keepdims=True)
        k = tf.clip_by_value(request["k"], 0, count)
        rows, scores, valid = self.index.search(
            user, (everything | wanted) & ~blocked, tf.reduce_max(k)
        )
        valid &= tf.range(tf.shape(rows)[1])[None] < k[:, None]
        rows = tf.where(valid, rows, count)
        return {
            "item_id": tf.gather(self.item_ids, rows),
            "score": tf.where(valid, scores, tf.zeros_like(scores)),
            "item_text": tf.gather(self.item_texts, rows),
            "valid": valid,
            "known_user": about["known_user"],
            "unknown_history": about["unknown_history"],
            "truncated_history": about["truncated_history"],
        }

    def score(self, **request):
        """`score`: the ranking score of named items."""
        user, about = self._user(request)
        rows = self.item_row(request["candidates"])
        scores = self.index.score(user, tf.maximum(rows, 0))
        return {
            "score": tf.where(rows >= 0, scores, tf.zeros_like(scores)),
            "known_item": rows >= 0,
            "known_user": about["known_user"],
        }

    def embed_user(self, **request):
        """`embed_user`: the pooled unit vector, to search an index of one's own."""
        user, about = self._user(request)
        return {"embedding": user.query, "known_user": about["known_user"]}

    def embed_item(self, **request):
        """`embed_item`: the pooled unit vector of items the model has never seen."""
        features = self._parse("item", self.item_columns, request)
        batch = tf.shape(next(iter(request.values())))[0]
        features["id"] = tf.zeros([batch], tf.int32)
        truncated = tf.zeros([batch], tf.bool)
        if self.encoder is not None:
            text, truncated = self.encoder(request["text"], self.max_length)
            features |= text
        vector = self.model.item_tower.vector(features)
        return {"embedding": self.model.item_tower.pool(vector), "truncated": truncated}

    def explain(self, **request):
        """`explain`: what each token of an item adds to its score."""
        user, about = self._user(request)
        row = self.item_row(request["item"])
        at = tf.maximum(row, 0)[:, None]
        take = lambda matrix: tf.gather(matrix, at)
        _, parts = self.model.scorer(
            {
                "user": user.tokens,
                "user_mask": user.mask,
                "item": tf.cast(take(self.index.tokens), tf.float32),
                "item_mask": take(self.index.mask),
            },
            return_attention=True,
        )
        known = tf.cast(row >= 0, tf.float32)
        total = self.index.score(user, at)[:, 0] * known
        each = parts["contributions"]
        each = tf.reduce_sum(each, 2)[:, 0] if each.shape.rank == 4 else each[:, 0]
        back = parts.get("user_contributions")
        attention = parts["A"]
        attention = (
            attention[:, 0]
            if attention.shape.rank == 4
            else tf.reduce_mean(attention[:, 0], 1)
        )
        tokens = each * known[:, None]
        result = {
            "score": total,
            "item_contributions": tokens,
            "attention": attention,
            "known_item": row >= 0,
            "known_user": about["known_user"],
        }
        rest = total - tf.reduce_sum(tokens, -1)
        if back is not None:
            result["user_contributions"] = tf.reduce_sum(back[:, 0], 1) * known[:, None]
            rest -= tf.reduce_sum(result["user_contributions"], -1)
        return result | {"retrieval_contribution": rest}

    def _user(self, request):
        """The state of a request's users, and what was known of them."""
        row = self.user_row(request["user_id"])
        anyone = self.starts.shape[0] - 2
        row_or_nobody = tf.where(row >= 0, row, anyone)
        profile = {
            name: tf.gather(value, row_or_nobody) for name, value in self.profile.items()
        }
        if self.model.user_tower.features is not None:
            given = self._parse("user", self.user_columns, request)
            for name, value in given.items():
                profile[name] = _prefer(value, profile[name], request[f"user_{name}"] != "")
        history, known_items, about = self._history(request, row_or_nobody)
        about |= {"known_user": row >= 0, "known_items": known_items}
        return self.model.encode_users(profile, self.index.vector, history), about

    def _history(self, request, row):
        """The last events, given or stored, and all items to be left out."""
        given = self.item_row(request["history"])
        named = request["history"] != ""
        stated = tf.reduce_any(named, -1)
        real = named & (given >= 0)
        batch = tf.shape(row)[0]
        blocked = self._marked(given, batch)
        # What was not known is dropped, the rest moves together at the front.
        kept = tf.ragged.boolean_mask(
            tf.tile(tf.range(tf.shape(given)[1])[None], [batch, 1]), real
        )
        start, end = tf.gather(self.starts, row), tf.gather(self.starts, row + 1)
        stored = tf.where(stated, tf.zeros_like(start), end - start)
        count = tf.where(stated, kept.row_lengths(), stored)
        seen = tf.cast(tf.minimum(count, self.length), tf.int32)
        back = tf.range(self.length)[None]
        mask = back < seen[:, None]
        place = tf.maximum(tf.cast(count, tf.int32) - seen, 0)[:, None] + back
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
        pick = lambda asked, past: tf.where(
            stated[:, None],
            tf.gather(tf.pad(asked, [[0, 0], [0, 1]]), given_at, batch_dims=1),
            tf.gather(past, stored_at),
        )
        item = pick(given, self.past["item"])
        feedback = pick(self.label(fit(request["history_feedback"])), self.past["feedback"])
        time = pick(fit(request["history_time"]), self.past["time"])
        zero = lambda value: tf.where(mask, value, tf.zeros_like(value))
        history = {
            "history": tf.where(mask, item, -1),
            "history_feedback": zero(feedback),
            "history_time": zero(time),
            "seen": seen,
            "time": request["time"],
        }
        blocked |= self._stored_items(row, ~stated, batch)
        unknown = tf.math.count_nonzero(named & ~real, -1, dtype=tf.int32)
        return (
            history,
            blocked,
            {"unknown_history": unknown, "truncated_history": count > self.length},
        )

    def _stored_items(self, row, wanted, batch):
        starts, ends = tf.gather(self.starts, row), tf.gather(self.starts, row + 1)
        ends = tf.where(wanted, ends, starts)
        at = tf.ragged.range(starts, ends)
        pairs = tf.stack(
            [tf.cast(at.value_rowids(), tf.int32), tf.gather(self.past["item"], at.values)],
            1,
        )
        return self._scatter(pairs, batch)

    def _marked(self, rows, batch):
        """`[B, I]` bool from item rows `[B, w]`, -1 being none."""
        user = tf.broadcast_to(tf.range(batch)[:, None], tf.shape(rows))
        return self._scatter(tf.boolean_mask(tf.stack([user, rows], -1), rows >= 0), batch)

    def _scatter(self, pairs, batch):
        count = self.index.pooled.shape[0]
        return (
            tf.scatter_nd(
                pairs, tf.ones([tf.shape(pairs)[0]], tf.int32), tf.stack([batch, count])
            )
            > 0
        )

    def _parse(self, side, columns, request):
        """Features from one string a column; "" is missing."""
        parsed = {}
        for name, column in columns.items():
            text = request[f"{side}_{name}"]
            if column.kind == "category":
                parsed[name] = self.vocabularies[f"{side}_{name}"](text)
            elif column.kind == "categories":
                parsed[name] = self.vocabularies[f"{side}_{name}"](
                    tf.strings.split(text, "|").to_tensor("")
                )
            else:
                parsed[name] = _numbers(text, column)
        return parsed


def _numbers(text, column):
    if column.kind == "embedding":
        parts = tf.strings.split(text, " ").to_tensor("0", shape=(None, column.width))
        return tf.strings.to_number(tf.where(parts == "", "0", parts))
    value = tf.strings.to_number(tf.where(text == "", "nan", text), tf.float64)
    if column.kind == "time":
        value /= 365.25 * 86_400_000
    return tf.cast(value, tf.float32)


def _prefer(given, stored, is_given):
    """What the request says, else what is stored; `[B, w]` of unlike widths are padded."""
    if given.shape.rank == 1:
        return tf.where(is_given, given, stored)
    width = tf.maximum(tf.shape(given)[1], tf.shape(stored)[1])
    fill = lambda value: tf.pad(value, [[0, 0], [0, width - tf.shape(value)[1]]])
    return tf.where(is_given[:, None], fill(given), fill(stored))


def _nothing(value: np.ndarray) -> np.ndarray:
    """A row that says that nothing is known."""
    fill = np.nan if value.dtype == np.float32 and value.ndim == 1 else 0
    return np.full_like(value[:1], fill)


class TextEncoder(tf.Module):
    """Texts to the features of `towers.FeatureTokens`, tokenizer and BERT in the graph."""

    def __init__(self, tokenizer, bert):
        super().__init__(name="text_encoder")
        self.tokenizer, self.bert = tokenizer, bert

    def __call__(self, texts, max_length: int):
        ids, truncated = self.tokenizer(texts, max_length)
        hidden = self.bert(ids)
        mask = (ids != self.tokenizer.pad_id) & (tf.strings.length(texts) > 0)[:, None]
        real = tf.cast(mask, tf.float32)[..., None]
        mean = tf.math.divide_no_nan(
            tf.reduce_sum(hidden * real, 1), tf.reduce_sum(real, 1)
        )
        return {"text": hidden, "text_mask": mask, "text_mean": mean}, truncated


def signatures(served: Served) -> dict[str, Any]:
    """The five signatures, traced."""
    string = lambda name, *shape: tf.TensorSpec([None, *shape], tf.string, name)
    user = served.user_specs()
    item = {f"item_{name}": string(f"item_{name}") for name in served.item_columns}
    text = {"text": string("text")} if served.encoder is not None else {}
    asked = {
        "serving_default": (
            served.recommend,
            user
            | {
                "k": tf.TensorSpec([None], tf.int32, "k"),
                "exclude": string("exclude", None),
                "candidates": string("candidates", None),
            },
        ),
        "score": (served.score, user | {"candidates": string("candidates", None)}),
        "embed_user": (served.embed_user, user),
        "explain": (served.explain, user | {"item": string("item")}),
    }
    if text or item:
        asked["embed_item"] = (served.embed_item, text | item)
    return {
        name: tf.function(function).get_concrete_function(**specs)
        for name, (function, specs) in asked.items()
    }


def request(served: Served, users, k: int = 10) -> dict[str, tf.Tensor]:
    """A `serving_default` request that only says who asks."""
    batch = len(users)
    made = {"user_id": tf.constant(list(users), tf.string)}
    for name, spec in served.user_specs().items():
        if name not in made:
            shape = [batch, *[1 for _ in spec.shape[1:]]]
            made[name] = tf.zeros(shape, spec.dtype)
    empty = tf.fill([batch, 1], "")
    return made | {"k": tf.fill([batch], k), "exclude": empty, "candidates": empty}


def write(
    served: Served, base: Path, *, version: int | None = None, check=lambda reloaded: None
) -> Path:
    """Publishes `base/<version>` at once, after `check` has passed on what was reloaded.

    Args:
      served: What is exported.
      base: The model's folder; made when missing.
      version: The next free one by default.
      check: Called with the reloaded SavedModel; raises to prevent publication.

    Raises:
      ValueError: When the version exists already.
    """
    base.mkdir(parents=True, exist_ok=True)
    taken = [int(p.name) for p in base.iterdir() if p.name.isdigit()]
    version = max(taken, default=0) + 1 if version is None else version
    if version in taken:
        raise ValueError(
            f"{base / str(version)} exists: leave --version out for the next one."
        )
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=base))
    try:
        tf.saved_model.save(served, str(partial), signatures=signatures(served))
        _write_warm_up(partial, served, base.name)
        check(tf.saved_model.load(str(partial)))
        os.chmod(partial, 0o755)
        partial.rename(base / str(version))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return base / str(version)


def _write_warm_up(folder: Path, served: Served, name: str) -> None:
    """Requests that a server replays before it says that it is ready."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    place = folder / "assets.extra"
    place.mkdir()
    with tf.io.TFRecordWriter(str(place / "tf_serving_warmup_requests")) as writer:
        for batch in (1, 8):
            call = predict_pb2.PredictRequest()
            call.model_spec.name, call.model_spec.signature_name = name, "serving_default"
            for key, value in request(served, [""] * batch).items():
                call.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=call)
            )
            writer.write(log.SerializeToString())


def manifest(path: Path, facts: dict[str, Any]) -> None:
    """Writes what the version was made from beside it, for people."""
    (path / "assets.extra" / "model.json").write_text(
        json.dumps(facts, indent=2) + "\n", "utf-8"
    )


__all__ = ["Index", "Served", "TextEncoder", "UserState", "request", "signatures", "write"]
