"""The requests that a version brings with it, replayed before it goes live.

Source: tensorflow/serving `g3doc/saved_model_warmup.md`.
"""

import logging
import pathlib

import grpc
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import prediction_log_pb2

from tfrec_attn.serve.server import inference
from tfrec_attn.serve.server.servable import (
    WARM_UP_FILE,
    WARM_UP_LIMIT,
    Servable,
    ServingError,
)

_CALLS = {
    "predict_log": inference.predict,
    "classify_log": inference.classify,
    "regress_log": inference.regress,
    "multi_inference_log": inference.multi_inference,
}
_log = logging.getLogger(__name__)


def replay(servable: Servable, version_path: pathlib.Path, times: int = 1) -> None:
    """Runs each request of a version's warm-up file, if there is one.

    Raises:
      ServingError: A request fails, or is of a kind that cannot be replayed.
      ValueError: The file holds too many records, or one that is no PredictionLog.
      tf.errors.OpError: The file cannot be read.
    """
    path = version_path / WARM_UP_FILE
    if not path.exists():
        return
    count = 0
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        count += 1
        if count > WARM_UP_LIMIT:
            raise ValueError(f"{path} holds more than {WARM_UP_LIMIT} warm-up requests.")
        for _ in range(times):
            _run(servable, record, path)
    _log.info("replayed %d warm-up requests of %s", count, path)


def _run(servable: Servable, record: bytes, path: pathlib.Path) -> None:
    try:
        entry = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        raise ValueError(f"{path} holds a record that is no PredictionLog.") from error
    kind = entry.WhichOneof("log_type")
    if kind is None:
        return
    if kind not in _CALLS:
        raise ServingError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Unsupported log_type for warmup: {kind}; supported are {', '.join(_CALLS)}.",
        )
    _CALLS[kind](servable, getattr(entry, kind).request)
