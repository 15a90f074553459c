"""Toy SavedModels whose every answer can be said by heart, and live servers over them."""

import contextlib
import pathlib

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfrec_attn.serve.server import model_server
from tfrec_attn.serve.server import sockets as server
from tfrec_attn.serve.server.options import Options


def spec(dtype, *shape):
    return lambda name: tf.TensorSpec(shape, dtype, name=name)


def signature(function, **inputs):
    named = {name: make(name) for name, make in inputs.items()}
    return tf.function(function).get_concrete_function(**named)


FLOATS = spec(tf.float32, None)
TEXTS = spec(tf.string, None)
TEXT_ROWS = spec(tf.string, None, None)


def save_toy(path: pathlib.Path, factor: float = 1.0) -> None:
    """`factor * a * b`, and one signature for each thing that can be said in an answer."""
    module = tf.Module()
    module.factor = tf.Variable(factor, dtype=tf.float32)
    product = lambda a, b: module.factor * a * b
    signatures = {
        "serving_default": signature(
            lambda b, a: {"product": product(a, b)}, b=FLOATS, a=FLOATS
        ),
        "several": signature(
            # In the order z, a: neither the sorted one of inputs nor of outputs.
            lambda z, a: {"z_less_a": z - a, "a": a, "count": tf.size(a)[None] + [0, 0]},
            z=FLOATS,
            a=FLOATS,
        ),
        "total": signature(lambda a: {"total": tf.reduce_sum(a)}, a=FLOATS),
        "texts": signature(
            lambda text: {"upper": tf.strings.upper(text), "raw_bytes": text}, text=TEXTS
        ),
        "joined": signature(
            lambda text: {"joined": tf.strings.reduce_join(text)}, text=TEXTS
        ),
        "whole": signature(
            lambda n, flag: {"next": n + 1, "not": ~flag},
            n=spec(tf.int64, None),
            flag=spec(tf.bool, None),
        ),
        "thirds": signature(lambda a: {"rows": tf.reshape(a, [-1, 3])}, a=FLOATS),
    }
    tf.saved_model.save(module, str(path), signatures=signatures)


def save_heads(path: pathlib.Path, plus: float = 1.0) -> None:
    """Reads x of examples: `x + plus` to regress; to classify, labels and -x and x."""

    def x_of(inputs):
        feature = tf.io.FixedLenFeature([], tf.float32)
        return tf.io.parse_example(inputs, {"x": feature})["x"]

    def classes(inputs):
        return tf.tile([["less", "more"]], [tf.size(inputs), 1])

    def scores(inputs):
        return tf.stack([-x_of(inputs), x_of(inputs)], axis=1)

    outputs = {
        "regress": lambda inputs: {"outputs": x_of(inputs) + plus},
        "regress_column": lambda inputs: {"outputs": x_of(inputs)[:, None] + plus},
        "regress_pair": lambda inputs: {"outputs": scores(inputs)},
        "regress_whole": lambda inputs: {"outputs": tf.cast(x_of(inputs), tf.int32)},
        "regress_total": lambda inputs: {"outputs": tf.reduce_sum(x_of(inputs))[None]},
        "classify": lambda inputs: {"classes": classes(inputs), "scores": scores(inputs)},
        "classify_scores": lambda inputs: {"scores": scores(inputs)},
        "classify_classes": lambda inputs: {"classes": classes(inputs)},
        "classify_flat": lambda inputs: {"scores": x_of(inputs)},
        "classify_uneven": lambda inputs: {
            "classes": classes(inputs),
            "scores": x_of(inputs)[:, None],
        },
        "other": lambda inputs: {"else": x_of(inputs)},
        "three": lambda inputs: {name: x_of(inputs) for name in ("scores", "b", "c")},
    }
    signatures = {name: signature(call, inputs=TEXTS) for name, call in outputs.items()}
    signatures["plain"] = signature(lambda x: {"outputs": x}, x=FLOATS)
    signatures["two"] = signature(lambda x, y: {"outputs": x + y}, x=FLOATS, y=FLOATS)
    tf.saved_model.save(tf.Module(), str(path), signatures=signatures)


ITEMS = tuple(f"i{n}" for n in range(7))


def save_recommender(path: pathlib.Path) -> None:
    """Seven items i0…i6 that score 7…1, plus the user's age, plus 100 if a time is given.

    Only user "1" is known; a history of more than 3 is truncated. Of a score, the age is
    what the user adds, and 1 is the retrieval's; a vector is (0.6, 0.8) by the sign of the
    age, or by whether
    anything of an item is given.
    """
    items = tf.constant(ITEMS)
    base = tf.range(7.0, 0.0, -1.0)

    def among(rows):
        return tf.reduce_any(rows[:, :, None] == items[None, None, :], axis=1)

    def bonus(age, time):
        years = tf.strings.to_number(tf.where(age == "", "0", age))
        return years + tf.where(time > 0, 100.0, 0.0)

    def recommend(
        user_id,
        user_age,
        history,
        history_feedback,
        history_time,
        time,
        k,
        exclude,
        candidates,
    ):
        allowed = ~(among(history) | among(exclude))
        free = tf.reduce_all(candidates == "", axis=1, keepdims=True)
        allowed &= free | among(candidates)
        scores = tf.where(allowed, base + bonus(user_age, time)[:, None], -1.0)
        top, rows = tf.math.top_k(scores, tf.minimum(tf.reduce_max(k), 7))
        valid = (top > 0) & (tf.range(tf.shape(top)[1])[None] < k[:, None])
        known = tf.reduce_any(history[:, :, None] == items[None, None, :], axis=2)
        # The lists about the history must fit it, as in a real model.
        same = tf.shape(history_feedback) + tf.shape(history_time) - 2 * tf.shape(history)
        with tf.control_dependencies([tf.debugging.assert_equal(same, 0)]):
            unknown = tf.reduce_sum(tf.cast((history != "") & ~known, tf.int32), axis=1)
        ids = tf.where(valid, tf.gather(items, rows), "")
        return {
            "item_id": ids,
            "item_text": tf.where(valid, tf.strings.join(["Titel ü ", ids]), ""),
            "score": top,
            "valid": valid,
            "known_user": user_id == "1",
            "unknown_history": unknown,
            "truncated_history": tf.repeat(tf.shape(history)[1] > 3, tf.shape(history)[0]),
        }

    def score(user_id, user_age, time, candidates):
        same = candidates[:, :, None] == items[None, None, :]
        scores = tf.reduce_sum(tf.where(same, base, 0.0), axis=2)
        return {
            "score": scores + bonus(user_age, time)[:, None],
            "known_item": tf.reduce_any(same, axis=2),
            "known_user": user_id == "1",
        }

    def embed_user(user_id, user_age, time):
        sign = tf.where(bonus(user_age, time) > 0, 1.0, -1.0)
        return {"embedding": sign[:, None] * [0.6, 0.8], "known_user": user_id == "1"}

    def embed_item(text, item_genres):
        sign = tf.where(text + item_genres == "", -1.0, 1.0)
        long = tf.strings.length(text) > 9
        return {"embedding": sign[:, None] * [0.6, 0.8], "truncated": long}

    def explain(user_id, user_age, time, item):
        scored = score(user_id, user_age, time, item[:, None])
        total, known = scored["score"][:, 0], scored["known_item"][:, 0]
        total = tf.where(known, total, 0.0)
        rest = tf.where(known, total - 1.0, 0.0)
        nothing = tf.zeros_like(rest)
        names = lambda *listed: tf.where(known[:, None], tf.constant([listed]), "")
        age = tf.where(user_age == "", "", tf.strings.join(["age=", user_age]))
        return {
            "score": total,
            "retrieval_contribution": total - rest,
            "item_contributions": tf.stack([rest - 2.0, nothing, nothing + 2.0], 1),
            "user_contributions": tf.stack([nothing, rest], 1),
            "attention": tf.reshape(tf.range(6.0), [1, 2, 3]) + total[:, None, None],
            "item_token": names("item", "", "id"),
            "user_token": tf.stack([age, tf.fill(tf.shape(age), "user")], 1),
            "known_item": known,
            "known_user": scored["known_user"],
        }

    user = {"user_id": TEXTS, "user_age": TEXTS, "time": spec(tf.int64, None)}
    lists = {
        "history": TEXT_ROWS,
        "history_feedback": TEXT_ROWS,
        "history_time": spec(tf.int64, None, None),
        "exclude": TEXT_ROWS,
    }
    signatures = {
        "serving_default": signature(
            recommend, **user, **lists, k=spec(tf.int32, None), candidates=TEXT_ROWS
        ),
        "score": signature(score, **user, candidates=TEXT_ROWS),
        "embed_user": signature(embed_user, **user),
        "embed_item": signature(embed_item, text=TEXTS, item_genres=TEXTS),
        "explain": signature(explain, **user, item=TEXTS),
    }
    tf.saved_model.save(tf.Module(), str(path), signatures=signatures)


def warm_up_with(path: pathlib.Path, *requests, kind: str = "predict_log") -> None:
    """Puts requests into a version folder's warm-up file."""
    (path / "assets.extra").mkdir(exist_ok=True)
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()
            getattr(log, kind).request.CopyFrom(request)
            writer.write(log.SerializeToString())


@contextlib.contextmanager
def live(base_path: pathlib.Path, name: str, credentials=None):
    """A server on free ports over one folder; yields it and its models."""
    models = model_server.ModelServer([model_server.Model(name, base_path)])
    options = Options(credentials=credentials)
    running = server.start(models, "127.0.0.1", 0, 0, options)
    models.poll()
    try:
        yield running, models
    finally:
        running.stop(grace=5)
