"""One version of a model, loaded: its signatures and the call. Any SavedModel will do."""

import dataclasses
import importlib
import logging
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfrec_attn.serve import tensors

# Registers the tokenizer's ops: a graph that holds them does not load without this.
importlib.import_module("tensorflow_text")

DEFAULT_SIGNATURE = "serving_default"
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
WARM_UP_LIMIT = 1000
_TAG = "serve"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_log = logging.getLogger(__name__)

Arrays = Mapping[str, np.ndarray]


class ServingError(Exception):
    """A request that cannot be answered; both front ends send code and text.

    Attributes:
      code: One of the canonical codes; HTTP statuses are derived from it.
      message: What the caller reads.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message)
        self.code = code
        self.message = message


def invalid(message: str) -> ServingError:
    """The caller's mistake."""
    return ServingError(grpc.StatusCode.INVALID_ARGUMENT, message)


@dataclasses.dataclass(frozen=True)
class Servable:
    """One loaded version.

    Attributes:
      version: The number of its folder.
      signature_defs: As saved, for the metadata calls.
      calls: By signature name, arrays in, arrays out.
      loaded: The loaded object: its functions die when it is no longer referenced.
    """

    version: int
    signature_defs: Mapping[str, meta_graph_pb2.SignatureDef]
    calls: Mapping[str, Callable[[Arrays], dict[str, np.ndarray]]]
    loaded: object

    def run(self, signature: str, inputs: Arrays, only: Iterable[str] = ()) -> dict:
        """Calls one signature.

        Args:
          signature: Its name; empty for the default.
          inputs: An array for every input of the signature.
          only: Names of the outputs wanted; none means all.

        Raises:
          ServingError: With the code a model server answers with.
        """
        name = signature or DEFAULT_SIGNATURE
        if name not in self.calls:
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{name}" not found. '
                f"This model has: {', '.join(sorted(self.calls))}.",
            )
        definition = self.signature_defs[name]
        wanted = _wanted_outputs(definition, list(only))
        try:
            _check_inputs(definition, inputs)
            outputs = self.calls[name](inputs)
            for output in wanted:
                tensors.number_of(outputs[output].dtype)
        except tf.errors.OpError as error:
            raise ServingError(
                _CODES[error.error_code], _first_line(error.message)
            ) from error
        except (TypeError, ValueError) as error:
            raise invalid(_first_line(str(error))) from error
        return {name: outputs[name] for name in wanted}


def _check_inputs(definition: meta_graph_pb2.SignatureDef, inputs: Arrays) -> None:
    have, need = set(inputs), set(definition.inputs)
    if have != need:
        listed = lambda names: "{" + ",".join(sorted(names)) + "}"
        raise invalid(
            f"input size does not match signature: {len(have)}!={len(need)} "
            f"len({listed(have)}) != len({listed(need)}). "
            f"Sent extra: {listed(have - need)}. "
            f"Missing but required: {listed(need - have)}."
        )
    for name, info in definition.inputs.items():
        wanted = tensors.kind_of(info.dtype)
        got = inputs[name].dtype
        if got != wanted.dtype:
            sent = tensors.kind_of(tensors.number_of(got)).name
            raise invalid(f'Input "{name}" must be {wanted.name}: received {sent}.')


def _wanted_outputs(definition: meta_graph_pb2.SignatureDef, only: list[str]) -> list[str]:
    for name in only:
        if name not in definition.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected "
                f"to be in the set {{{','.join(sorted(definition.outputs))}}}."
            )
    if len(set(only)) != len(only):
        twice = next(name for name in only if only.count(name) > 1)
        raise invalid(f"duplicate output tensor alias: {twice}")
    return only or list(definition.outputs)


def _first_line(message: str) -> str:
    """An error of the graph without the names of generated nodes and the stack below it."""
    named = re.sub(r"\{\{.*?\}\} ?|\[Op:\w+\]( name: ?\S*)?", "", message.strip())
    lines = [line for line in named.splitlines() if line.strip()]
    # A traced error opens with a heading and the Python stack; its own text comes last.
    if lines and lines[0].startswith("Graph execution error"):
        return lines[-1].strip()
    return lines[0] if lines else "The model failed without a message."


def load(path: pathlib.Path, version: int) -> Servable:
    """Loads a version folder and replays its warm-up requests.

    Raises:
      ServingError: A warm-up request fails; the version must not go live.
      OSError, ValueError, tf.errors.OpError: The folder holds no model that loads.
    """
    definitions = _signature_defs(path)
    loaded = tf.saved_model.load(str(path), tags=[_TAG])
    calls = {
        name: _call(function, definitions[name])
        for name, function in loaded.signatures.items()
    }
    servable = Servable(version, definitions, calls, loaded)
    _warm_up(servable, path / WARM_UP_FILE)
    return servable


def _signature_defs(path: pathlib.Path) -> dict[str, meta_graph_pb2.SignatureDef]:
    saved = saved_model_pb2.SavedModel()
    binary = path / "saved_model.pb"
    if binary.exists():
        saved.ParseFromString(binary.read_bytes())
    else:
        text_format.Parse((path / "saved_model.pbtxt").read_text(), saved)
    for graph in saved.meta_graphs:
        if set(graph.meta_info_def.tags) == {_TAG}:
            return dict(graph.signature_def)
    raise ValueError(f'{path} has no graph tagged "{_TAG}".')


def _call(function: tf.types.experimental.ConcreteFunction, definition) -> Callable:
    """The signature as arrays in, arrays out.

    The signature's own `__call__` binds its arguments anew each time, 240 µs for nine
    inputs; calling the graph function by its op takes 26 µs. That needs the flat order
    of inputs and outputs, which is checked against the saved definition; where it cannot
    be told, the signature is called as it is.
    """
    inputs = list(function.function_type.parameters)
    # Structures are flattened by sorted name, whatever the order of the dictionary.
    outputs = sorted(function.structured_outputs)
    flat_dtypes = [tensor.dtype.as_datatype_enum for tensor in function.inputs]
    known = [definition.inputs[name].dtype for name in inputs if name in definition.inputs]
    result_dtypes = [tensor.dtype for tensor in function.outputs]
    if known != flat_dtypes[: len(inputs)] or [
        definition.outputs[name].dtype for name in outputs
    ] != [dtype.as_datatype_enum for dtype in result_dtypes]:
        return lambda arrays: _to_numpy(
            function(**{name: tf.constant(array) for name, array in arrays.items()})
        )
    captured = function.captured_inputs

    def call(arrays: Arrays) -> dict[str, np.ndarray]:
        flat = [tf.constant(arrays[name]) for name in inputs]
        results = tf.raw_ops.StatefulPartitionedCall(
            args=flat + captured, Tout=result_dtypes, f=function
        )
        return _to_numpy(dict(zip(outputs, results, strict=True)))

    return call


def _to_numpy(outputs: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    # A string scalar comes as plain bytes, every other tensor as an array.
    return {
        name: tensors.as_array(value)
        if isinstance(value := tensor.numpy(), bytes)
        else np.asarray(value)
        for name, tensor in outputs.items()
    }


def _warm_up(servable: Servable, path: pathlib.Path) -> None:
    if not path.exists():
        return
    count = 0
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        count += 1
        if count > WARM_UP_LIMIT:
            raise ValueError(f"{path} holds more than {WARM_UP_LIMIT} warm-up requests.")
        _replay(servable, record, path)
    _log.info("replayed %d warm-up requests of %s", count, path)


def _replay(servable: Servable, record: bytes, path: pathlib.Path) -> None:
    try:
        entry = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        raise ValueError(f"{path} holds a record that is no PredictionLog.") from error
    if not entry.HasField("predict_log"):
        _log.warning("%s: skipped a warm-up record that is no predict_log", path)
        return
    request: predict_pb2.PredictRequest = entry.predict_log.request
    servable.run(
        request.model_spec.signature_name,
        read_inputs(request.inputs),
        request.output_filter,
    )


def read_inputs(protos: Mapping) -> dict[str, np.ndarray]:
    """The inputs of a predict request as arrays."""
    arrays = {}
    for name, proto in protos.items():
        try:
            arrays[name] = tensors.read(proto)
        except (ValueError, OverflowError) as error:
            raise invalid(f'tensor parsing error: "{name}": {error}') from error
    return arrays
