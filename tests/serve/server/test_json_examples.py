import json

import numpy as np
import pytest
from google.protobuf import json_format
from tensorflow_serving.apis import classification_pb2, regression_pb2

from tfrec_attn.serve.server import json_examples


def parse(body):
    return json_examples.parse(json.dumps(body).encode())


def features(example):
    """By name: the kind of values and the values."""
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, list(getattr(feature, kind).value) if kind else [])
    return found


def test_values_find_their_kind():
    body = b"""{"signature_name": "s", "examples": [
        {"whole": 2, "real": 2.5, "yes": true, "text": "\xc3\xbc", "raw": {"b64": "/w=="},
         "reals": [1.5, 2.5], "wholes": [-3, 4], "texts": ["a", {"b64": "YmI="}],
         "big": 9223372036854775807, "bigger": 18446744073709551616, "none": []},
        {"whole": 3}]}"""
    source, signature = json_examples.parse(body)
    assert signature == "s"
    first, second = source.example_list.examples
    assert features(first) == {
        "whole": ("int64_list", [2]),
        "real": ("float_list", [2.5]),
        "yes": ("int64_list", [1]),
        "text": ("bytes_list", ["ü".encode()]),
        "raw": ("bytes_list", [b"\xff"]),
        "reals": ("float_list", [1.5, 2.5]),
        "wholes": ("int64_list", [-3, 4]),
        "texts": ("bytes_list", [b"a", b"bb"]),
        "big": ("int64_list", [2**63 - 1]),
        "bigger": ("float_list", [2.0**64]),
        "none": (None, []),
    }
    assert features(second) == {"whole": ("int64_list", [3])}


def test_a_context_goes_with_every_example():
    source, signature = parse({"context": {"c": 1}, "examples": [{"x": 2}, {"x": 3}]})
    assert signature == ""
    listed = source.example_list_with_context
    assert features(listed.context) == {"c": ("int64_list", [1])}
    assert [features(each)["x"][1] for each in listed.examples] == [[2], [3]]


def test_a_number_past_float32_becomes_infinite():
    source, _ = json_examples.parse(b'{"examples": [{"x": [1e300, -Infinity, NaN]}]}')
    values = source.example_list.examples[0].features.feature["x"].float_list.value
    np.testing.assert_array_equal(values, [np.inf, -np.inf, np.nan])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "key 'examples' is expected and was not found"),
        ({"examples": {"x": 1}}, "Expecting 'examples' value to be an list/array"),
        ({"examples": []}, "'examples' value is an empty array"),
        ({"examples": [2]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [[2]]}, "Example must be JSON object but got JSON Array"),
        ({"examples": [{}], "context": "c"}, "must be JSON object but got JSON String"),
        ({"examples": [{"x": None}]}, "Feature: x has element .* JSON type: Null"),
        ({"examples": [{"x": [[1]]}]}, "Feature: x has element .* JSON type: Array"),
        ({"examples": [{"x": {"y": 1}}]}, "Feature: x has element .* JSON type: Object"),
        ({"examples": [{"x": [1, 2.5]}]}, "in feature: x expecting type: int64"),
        ({"examples": [{"x": ["a", 1]}]}, "in feature: x expecting type: bytes"),
        ({"examples": [{"x": [0.5, True]}]}, "in feature: x expecting type: float"),
        ({"examples": [{"x": 2**63}]}, "Feature: x has uint64_t element"),
        ({"examples": [{"x": 10**400}]}, "Feature: x has a number too big"),
        ({"examples": [{"x": {"b64": "?"}}]}, "Unable to base64 decode"),
        ({"examples": [{"x": "\ud800"}]}, "half a surrogate pair"),
        ({"examples": [{}], "signature_name": 1}, "'signature_name' key must be a string"),
        ([], "Is not object"),
    ],
)
def test_a_mistake_is_named(body, message):
    with pytest.raises(ValueError, match=message):
        parse(body)


def test_results_as_json():
    result = json_format.ParseDict(
        {
            "classifications": [
                {"classes": [{"label": "ü", "score": 0.1}, {"score": 1e-9}]},
                {"classes": []},
            ]
        },
        classification_pb2.ClassificationResult(),
    )
    body = json.loads(json_examples.classifications(result))
    assert body == {"results": [[["ü", 0.1], ["", 1e-9]], []]}
    result = json_format.ParseDict(
        {"regressions": [{"value": 0.2}, {"value": 3}]}, regression_pb2.RegressionResult()
    )
    assert json_examples.regressions(result) == b'{"results": [0.2, 3.0]}'
