"""Classify and regress bodies in JSON: features to examples, results back.

The form is that of tensorflow/serving `g3doc/api_rest.md`; what it leaves open is as in
`util/json_tensor.cc`.
"""

from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from tfrec_attn.serve.server import json_tensors

_INT64, _UINT64 = 2**63, 2**64
_TYPE_NAMES = {
    list: "Array",
    dict: "Object",
    type(None): "Null",
    str: "String",
    bool: "Bool",
}


def parse(text: bytes) -> tuple[input_pb2.Input, str]:
    """The examples of a body, and the name of the signature; empty for the default.

    Raises:
      ValueError: With a text for the caller.
    """
    body, signature = json_tensors.document(text)
    source = input_pb2.Input()
    into = source.example_list
    if "context" in body:
        into = source.example_list_with_context
        _fill(into.context, body["context"])
    for example in _listed(body):
        _fill(into.examples.add(), example)
    return source, signature


def _listed(body: dict) -> list:
    shown = json_tensors.show(body)
    if "examples" not in body:
        raise ValueError(
            f"JSON Value: {shown} When method is classify, key 'examples' is expected and "
            "was not found"
        )
    if not isinstance(body["examples"], list):
        raise ValueError(
            f"JSON Value: {shown} Expecting 'examples' value to be an list/array"
        )
    if not body["examples"]:
        raise ValueError(f"JSON Value: {shown} 'examples' value is an empty array")
    return body["examples"]


def _fill(example: example_pb2.Example, value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"Example must be JSON object but got JSON {_type_name(value)}")
    for name, content in value.items():
        values = content if isinstance(content, list) else [content]
        example.features.feature[name].CopyFrom(_feature(name, values))


def _feature(name: str, values: list) -> feature_pb2.Feature:
    feature = feature_pb2.Feature()
    for value in values:
        kind, converted = _converted(name, value)
        if feature.WhichOneof("kind") not in (None, kind):
            have = feature.WhichOneof("kind").removesuffix("_list")
            raise ValueError(
                f"Unexpected element type in feature: {name} expecting type: {have}"
            )
        getattr(feature, kind).value.append(converted)
    return feature


def _converted(name: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, str):
        return "bytes_list", json_tensors.from_text(value)
    if json_tensors.is_b64(value):
        return "bytes_list", json_tensors.from_b64(value)
    if isinstance(value, float):
        return "float_list", _float32(value)
    if not isinstance(value, int):
        raise ValueError(
            f"Feature: {name} has element with unexpected JSON type: {_type_name(value)}"
        )
    if -_INT64 <= value < _INT64:
        return "int64_list", int(value)
    if 0 < value < _UINT64:
        raise ValueError(
            f"Feature: {name} has uint64_t element. Only int64_t is supported."
        )
    try:
        return "float_list", _float32(float(value))
    except OverflowError:
        raise ValueError(f"Feature: {name} has a number too big for a double.") from None


def _float32(value: float) -> float:
    # A number too large for the type becomes infinite, as in a cast of C.
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _type_name(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), "Number")


def classifications(result: classification_pb2.ClassificationResult) -> bytes:
    """The body of an answer: for each example a list of label and score."""
    rows = [
        [
            [each.label, score]
            for each, score in zip(row.classes, _numbers(row.classes, "score"), strict=True)
        ]
        for row in result.classifications
    ]
    return json_tensors.encode({"results": rows})


def regressions(result: regression_pb2.RegressionResult) -> bytes:
    """The body of an answer: a number for each example."""
    return json_tensors.encode({"results": _numbers(result.regressions, "value")})


def _numbers(messages: Any, field: str) -> list[float]:
    values = np.array([getattr(message, field) for message in messages], np.float32)
    return json_tensors.short(values).tolist()
