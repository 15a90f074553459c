"""The calls of PredictionService on one loaded version: request in, response out.

Letters: B examples of a request.
Sources: tensorflow/serving `servables/tensorflow/` predict_impl.cc, multi_inference.cc,
util.cc.
"""

from collections.abc import Iterable

import grpc
import numpy as np
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from tfrec_attn.serve import tensors
from tfrec_attn.serve.server.heads import classified, regressed
from tfrec_attn.serve.server.servable import (
    DEFAULT_SIGNATURE,
    Servable,
    ServingError,
    invalid,
    read_inputs,
)

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"


def predict(
    servable: Servable, request: predict_pb2.PredictRequest
) -> predict_pb2.PredictResponse:
    """Tensors in, tensors out."""
    inputs = read_inputs(request.inputs)
    outputs = servable.run(request.model_spec.signature_name, inputs, request.output_filter)
    response = predict_pb2.PredictResponse()
    _say_who(response.model_spec, request.model_spec, servable)
    for name, array in outputs.items():
        tensors.write(array, response.outputs[name], packed=False)
    return response


def classify(
    servable: Servable, request: classification_pb2.ClassificationRequest
) -> classification_pb2.ClassificationResponse:
    """Examples in, for each of them its classes with scores out."""
    name = _signature_of(servable, request.model_spec)
    response = classification_pb2.ClassificationResponse()
    _say_who(response.model_spec, request.model_spec, servable)
    response.result.CopyFrom(classified(servable, name, examples(request.input)))
    return response


def regress(
    servable: Servable, request: regression_pb2.RegressionRequest
) -> regression_pb2.RegressionResponse:
    """Examples in, a number for each of them out."""
    name = _signature_of(servable, request.model_spec)
    response = regression_pb2.RegressionResponse()
    _say_who(response.model_spec, request.model_spec, servable)
    response.result.CopyFrom(regressed(servable, name, examples(request.input)))
    return response


def multi_inference(
    servable: Servable, request: inference_pb2.MultiInferenceRequest
) -> inference_pb2.MultiInferenceResponse:
    """Several signatures of one version on the same examples.

    Each signature is a call of its own, where a model server makes one of all of them.
    """
    _check_tasks(servable, request.tasks)
    sent = examples(request.input)
    response = inference_pb2.MultiInferenceResponse()
    for task in request.tasks:
        result = response.results.add()
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if task.method_name == CLASSIFY:
            result.classification_result.CopyFrom(classified(servable, name, sent))
        else:
            result.regression_result.CopyFrom(regressed(servable, name, sent))
        _say_who(result.model_spec, task.model_spec, servable)
    return response


def _say_who(
    answered: model_pb2.ModelSpec, asked: model_pb2.ModelSpec, servable: Servable
) -> None:
    answered.name = asked.name
    answered.version.value = servable.version
    answered.signature_name = asked.signature_name or DEFAULT_SIGNATURE


def _signature_of(servable: Servable, spec: model_pb2.ModelSpec) -> str:
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signature_defs:
        raise invalid(f"No signature was found with the name: {name}")
    return name


def _check_tasks(servable: Servable, tasks: Iterable[inference_pb2.InferenceTask]) -> None:
    models: set[str] = set()
    signatures: set[str] = set()
    for task in tasks:
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        models.add(task.model_spec.name)
        if len(models) > 1:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in signatures:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        signatures.add(name)
        if name not in servable.signature_defs:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if task.method_name not in (CLASSIFY, REGRESS):
            raise ServingError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}",
            )


def examples(source: input_pb2.Input) -> np.ndarray:
    """The serialized examples of a request.

    A context is written before each of them: read as one message, the features of both
    are merged, and the example's own go first.

    Returns:
      `[B]` object array of bytes.

    Raises:
      ServingError: There is none.
    """
    context = b""
    listed = source.example_list.examples
    if source.WhichOneof("kind") == "example_list_with_context":
        context = source.example_list_with_context.context.SerializeToString()
        listed = source.example_list_with_context.examples
    if not listed:
        raise invalid("Input is empty.")
    serialized = np.empty(len(listed), object)
    serialized[:] = [context + example.SerializeToString() for example in listed]
    return serialized
