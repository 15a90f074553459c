"""From a version folder to a `Servable`. Any SavedModel with the tag `serve` will do."""

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2

from tfrec_attn.serve import tensors
from tfrec_attn.serve.server import warm_up
from tfrec_attn.serve.server.servable import Arrays, Servable

# Registers the tokenizer's ops: a graph that holds them does not load without this.
importlib.import_module("tensorflow_text")

_TAG = "serve"
# The signature that initializes a graph; nobody calls it.
_INIT = "__saved_model_init_op"

Call = Callable[[Arrays], dict[str, np.ndarray]]
Calls = dict[str, Call]
Definitions = Mapping[str, meta_graph_pb2.SignatureDef]


def limit_threads(within: int, between: int) -> None:
    """How many threads run inside one operation, and how many operations at a time.

    It must be said before anything is loaded; 0 leaves the choice to TensorFlow.
    """
    if within:
        tf.config.threading.set_intra_op_parallelism_threads(within)
    if between:
        tf.config.threading.set_inter_op_parallelism_threads(between)


def load(path: pathlib.Path, version: int, *, replays: int = 1) -> Servable:
    """Loads a version folder and replays its warm-up requests.

    Args:
      path: The folder.
      version: Its number.
      replays: How often each warm-up request is run; 0 runs none.

    Raises:
      ServingError: A warm-up request fails; the version must not go live.
      OSError, ValueError, tf.errors.OpError: The folder holds no model that loads.
    """
    graph = _graph(path)
    definitions = dict(graph.signature_def)
    # Graphs of TensorFlow 1 have no objects.
    run = _functions if graph.object_graph_def.nodes else _session
    calls, loaded = run(path, definitions)
    servable = Servable(version, definitions, calls, loaded)
    if replays:
        warm_up.replay(servable, path, replays)
    return servable


def _graph(path: pathlib.Path) -> meta_graph_pb2.MetaGraphDef:
    saved = saved_model_pb2.SavedModel()
    binary = path / "saved_model.pb"
    if binary.exists():
        saved.ParseFromString(binary.read_bytes())
    else:
        text_format.Parse((path / "saved_model.pbtxt").read_text(), saved)
    for graph in saved.meta_graphs:
        if set(graph.meta_info_def.tags) == {_TAG}:
            return graph
    raise ValueError(f'{path} has no graph tagged "{_TAG}".')


def _functions(path: pathlib.Path, definitions: Definitions) -> tuple[Calls, object]:
    loaded = tf.saved_model.load(str(path), tags=[_TAG])
    calls = {
        name: _call(function, definitions[name])
        for name, function in loaded.signatures.items()
    }
    return calls, loaded


def _session(path: pathlib.Path, definitions: Definitions) -> tuple[Calls, object]:
    """As functions, old graphs do not always load: shapes of [] once meant unknown."""
    session = tf.compat.v1.Session(graph=tf.Graph())
    tf.compat.v1.saved_model.load(session, [_TAG], str(path))
    calls = {
        name: _session_call(session, definition)
        for name, definition in definitions.items()
        if name != _INIT
    }
    return calls, session


def _session_call(session: tf.compat.v1.Session, definition) -> Call:
    inputs, outputs = list(definition.inputs), list(definition.outputs)
    options = config_pb2.CallableOptions(
        feed=[definition.inputs[name].name for name in inputs],
        fetch=[definition.outputs[name].name for name in outputs],
    )
    # The public call also checks the declared shapes, which no model server does.
    run = session._make_callable_from_options(options)

    def call(arrays: Arrays) -> dict[str, np.ndarray]:
        results = run(*(arrays[name] for name in inputs))
        return {name: _array(value) for name, value in zip(outputs, results, strict=True)}

    return call


def _call(function: tf.types.experimental.ConcreteFunction, definition) -> Call:
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
    return {name: _array(tensor.numpy()) for name, tensor in outputs.items()}


def _array(value: Any) -> np.ndarray:
    # A string scalar comes as plain bytes, every other tensor as an array.
    return tensors.as_array(value) if isinstance(value, bytes) else np.asarray(value)
