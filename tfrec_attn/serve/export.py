"""A served model as a version folder, complete and checked before it appears.

Letters: B users or items of a request.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfrec_attn.serve.graph.served import Served
from tfrec_attn.serve.server.servable import DEFAULT_SIGNATURE as DEFAULT
from tfrec_attn.serve.server.servable import WARM_UP_FILE


def signatures(served: Served, names: Sequence[str] = ()) -> dict[str, Any]:
    """The signatures, traced.

    Args:
      served: What they call.
      names: Which of the five; all by default. `serving_default` is always there.

    Raises:
      ValueError: When there is no such signature.
    """
    string = lambda name, *shape: tf.TensorSpec([None, *shape], tf.string, name)
    user = served.user_specs()
    item = {name: string(name) for name in served.item_columns.names}
    text = {"text": string("text")} if served.encoder is not None else {}
    asked = {
        "serving_default": (served.recommend, user | served.rule_specs()),
        "score": (served.score, user | {"candidates": string("candidates", None)}),
        "embed_user": (served.embed_user, user),
        "explain": (served.explain, user | {"item": string("item")}),
    }
    if text or item:
        asked["embed_item"] = (served.embed_item, text | item)
    if unknown_names := sorted(set(names) - set(asked)):
        raise ValueError(
            f"There is no signature {unknown_names[0]!r}: this model can have "
            f"{', '.join(asked)}."
        )
    return {
        name: tf.function(_shaped(function, specs), autograph=False).get_concrete_function(
            **specs
        )
        for name, (function, specs) in asked.items()
        if not names or name in (DEFAULT, *names)
    }


def _shaped(function, specs):
    """`function`, which refuses inputs of another rank.

    Nobody else looks: a model server feeds what came, and tensorflow-text's kernels then
    read past their input, which ends the server.
    """

    def shaped(**inputs):
        checked = {
            name: tf.ensure_shape(inputs[name], spec.shape) for name, spec in specs.items()
        }
        return function(**checked)

    return shaped


def unknown(specs, batch: int) -> dict[str, tf.Tensor]:
    """Inputs that say nothing, by name: "" and 0."""
    return {
        name: tf.zeros([batch, *[1 for _ in spec.shape[1:]]], spec.dtype)
        for name, spec in specs.items()
    }


def request(served: Served, users, k: int = 10) -> dict[str, tf.Tensor]:
    """A `serving_default` request that only says who asks."""
    return unknown(served.user_specs() | served.rule_specs(), len(users)) | {
        "user_id": tf.constant(list(users), tf.string),
        "k": tf.fill([len(users)], k),
    }


def free_version(base: Path, version: int | None = None) -> int:
    """The version asked for, or the next one of the model's folder.

    Raises:
      ValueError: When it exists already or is no version, or `base` is no model's folder.
    """
    if base.exists() and not base.is_dir():
        raise ValueError(f"A model is a folder of versions: {base} is a file.")
    if (base / "saved_model.pb").exists():
        raise ValueError(
            f"A model is a folder of versions (1/, 2/, …): {base} is a version itself. "
            f"Give its parent: {base.resolve().parent}."
        )
    taken = [int(p.name) for p in base.glob("*") if p.name.isdecimal()]
    if version is None:
        return max(taken, default=0) + 1
    if version < 1:
        raise ValueError(f"A version is a number from 1: received {version}.")
    if version in taken:
        raise ValueError(
            f"{base / str(version)} exists: leave --version out for the next one, "
            f"{max(taken) + 1}."
        )
    return version


def write(
    served: Served,
    base: Path,
    version: int,
    *,
    only: Sequence[str] = (),
    check=lambda reloaded: None,
    keep=lambda folder, reloaded: None,
) -> Path:
    """Publishes `base/<version>` at once, after `check` has passed on what was reloaded.

    Args:
      served: What is exported.
      base: The model's folder; made when missing.
      version: A free one, see `free_version`.
      only: Which signatures; all by default.
      check: Called with the reloaded SavedModel; raises to prevent publication.
      keep: Called with the folder and the reloaded SavedModel, to put more into it than a
        server reads; may raise, too.
    """
    base.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=base))
    try:
        calls = signatures(served, only)
        served.index.keep_read(calls.values())
        tf.saved_model.save(served, str(partial), signatures=calls)
        _write_warm_up(partial, calls, base.resolve().name)
        reloaded = tf.saved_model.load(str(partial))
        check(reloaded)
        keep(partial, reloaded)
        os.chmod(partial, 0o755)
        partial.rename(base / str(version))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return base / str(version)


def _write_warm_up(folder: Path, signatures: dict[str, Any], model: str) -> None:
    """Requests that a server replays before it says that it is ready."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    place = folder / WARM_UP_FILE
    place.parent.mkdir()
    with tf.io.TFRecordWriter(str(place)) as writer:
        for name, function in signatures.items():
            for batch in (1, 8):
                inputs = unknown(function.structured_input_signature[1], batch)
                if "k" in inputs:
                    inputs["k"] = tf.fill([batch], 10)
                call = predict_pb2.PredictRequest()
                call.model_spec.name, call.model_spec.signature_name = model, name
                for key, value in inputs.items():
                    call.inputs[key].CopyFrom(tf.make_tensor_proto(value))
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=call)
                )
                writer.write(log.SerializeToString())
