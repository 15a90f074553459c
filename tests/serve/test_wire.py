"""The small messages must be the official ones, byte for byte."""

import numpy as np
import pytest
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2, predict_pb2

from tfrec_attn.serve import tensors, wire

VALUES = [
    np.array([[1.5, -2.0]], np.float32),
    np.array([0.1], np.float64),
    np.array([3, -4], np.int32),
    np.array([5, -6], np.int64),
    np.array([True, False]),
    np.array([0.5], np.float16),
    np.array([7], np.uint32),
    np.array([8], np.uint64),
    np.array([b"\xff\x00", b""], object),
]


def both(name, module):
    return getattr(wire, name)(), getattr(module, name)()


def same_bytes(ours, official):
    bytes_ = official.SerializeToString(deterministic=True)
    assert bytes_
    assert ours.SerializeToString(deterministic=True) == bytes_
    assert type(ours).FromString(bytes_) == ours
    assert type(official).FromString(ours.SerializeToString()) == official


def set_spec(spec):
    spec.name = "movielens"
    spec.version.value = 3
    spec.signature_name = "score"


@pytest.mark.parametrize("packed", [True, False])
def test_predict_request_and_response(packed):
    for message in ("PredictRequest", "PredictResponse"):
        pair = both(message, predict_pb2)
        for proto in pair:
            set_spec(proto.model_spec)
            named = proto.inputs if message == "PredictRequest" else proto.outputs
            for index, array in enumerate(VALUES):
                tensors.write(array, named[f"t{index}"], packed=packed)
            if message == "PredictRequest":
                proto.output_filter.extend(["score", "item_id"])
        same_bytes(*pair)


def test_model_spec_by_label():
    pair = both("ModelSpec", model_pb2)
    for spec in pair:
        spec.name = "m"
        spec.version_label = "canary"
    same_bytes(*pair)


def test_a_tensor_of_unknown_rank():
    pair = wire.Tensor(dtype=1), tensor_pb2.TensorProto(dtype=1)
    for tensor in pair:
        tensor.tensor_shape.unknown_rank = True
        tensor.tensor_shape.dim.add(size=-1, name="batch")
    same_bytes(*pair)


def test_metadata():
    pair = both("GetModelMetadataRequest", get_model_metadata_pb2)
    for request in pair:
        set_spec(request.model_spec)
        request.metadata_field.append("signature_def")
    same_bytes(*pair)

    signatures = both("SignatureDefMap", get_model_metadata_pb2)
    for found in signatures:
        definition = found.signature_def["serving_default"]
        definition.method_name = "tensorflow/serving/predict"
        for infos, name in ((definition.inputs, "user_id"), (definition.outputs, "score")):
            infos[name].name = f"serving_default_{name}:0"
            infos[name].dtype = 7
            infos[name].tensor_shape.dim.add(size=-1)
    assert isinstance(
        signatures[1].signature_def["serving_default"], meta_graph_pb2.SignatureDef
    )
    same_bytes(*signatures)

    responses = both("GetModelMetadataResponse", get_model_metadata_pb2)
    for response, found in zip(responses, signatures, strict=True):
        set_spec(response.model_spec)
        response.metadata["signature_def"].type_url = "type.googleapis.com/x"
        response.metadata["signature_def"].value = found.SerializeToString(
            deterministic=True
        )
    same_bytes(*responses)
