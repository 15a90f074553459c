"""One version of a model, in memory: its signatures and the call."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from tfrec_attn.serve import tensors

DEFAULT_SIGNATURE = "serving_default"
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"
WARM_UP_LIMIT = 1000
_CODES = {code.value[0]: code for code in grpc.StatusCode}

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
                _CODES[error.error_code], first_line(error.message)
            ) from error
        except (TypeError, ValueError) as error:
            raise invalid(first_line(str(error))) from error
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


def first_line(message: str) -> str:
    """An error of the graph without the names of generated nodes and the stack below it."""
    named = re.sub(r"\{\{.*?\}\} ?|\[Op:\w+\]( name: ?\S*)?", "", message.strip())
    lines = [line for line in named.splitlines() if line.strip()]
    # A traced error opens with a heading and the Python stack; its own text comes last.
    if lines and lines[0].startswith("Graph execution error"):
        return lines[-1].strip()
    return lines[0] if lines else "The model failed without a message."


def read_inputs(protos: Mapping) -> dict[str, np.ndarray]:
    """The inputs of a predict request as arrays."""
    arrays = {}
    for name, proto in protos.items():
        try:
            arrays[name] = tensors.read(proto)
        except (ValueError, OverflowError) as error:
            raise invalid(f'tensor parsing error: "{name}": {error}') from error
    return arrays
