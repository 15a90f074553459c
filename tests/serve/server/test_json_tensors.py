import json
import math

import numpy as np
import pytest

from tfrec_attn.serve import tensors
from tfrec_attn.serve.server import json_tensors

FLOAT, STRING, INT32, INT64, BOOL, INT8, DOUBLE = (
    tensors.KINDS[number] for number in (1, 7, 3, 9, 10, 6, 2)
)


def read(text, **kinds):
    body = json_tensors.parse(
        text if isinstance(text, bytes) else json.dumps(text).encode()
    )
    return json_tensors.inputs(body, kinds)


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [{"a": 1, "t": ["x", "y"]}, {"a": 2.5, "t": ["", "ü"]}]},
        {"inputs": {"a": [1, 2.5], "t": [["x", "y"], ["", "ü"]]}},
    ],
)
def test_rows_and_columns_give_the_same_arrays(body):
    arrays = read(body, a=FLOAT, t=STRING)
    np.testing.assert_array_equal(arrays["a"], np.array([1, 2.5], np.float32), strict=True)
    assert arrays["t"].tolist() == [[b"x", b"y"], [b"", "ü".encode()]]


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ({"instances": [[1, 2], [3, 4], [5, 6]]}, [[1, 2], [3, 4], [5, 6]]),
        ({"inputs": [1, 2, 3]}, [1, 2, 3]),
        ({"inputs": 7}, 7),
        ({"inputs": []}, []),
        ({"inputs": {"a": [[], []]}}, [[], []]),
    ],
)
def test_one_input_needs_no_name(body, want):
    got = read(body, a=INT32)["a"]
    np.testing.assert_array_equal(got, np.array(want, np.int32), strict=True)


def test_b64_is_bytes_in_any_place():
    coded = {"b64": "/wBh"}
    assert read({"inputs": coded}, a=STRING)["a"].tolist() == b"\xff\x00a"
    assert read({"instances": [coded, "b"]}, a=STRING)["a"].tolist() == [b"\xff\x00a", b"b"]
    assert read({"instances": [{"a": coded}]}, a=STRING)["a"].tolist() == [b"\xff\x00a"]


def test_bytes_that_are_no_utf8_pass_through_a_string():
    assert read(b'{"inputs": ["\xff"]}', a=STRING)["a"].tolist() == [b"\xff"]
    answer = json_tensors.answer({"a": np.array([b"\xff"], object)}, rows=True)
    assert answer == b'{"predictions": ["\xff"]}'


def test_special_numbers():
    got = read(b'{"inputs": [NaN, Infinity, -Infinity, 1e300, 1E2]}', a=FLOAT)["a"]
    np.testing.assert_array_equal(got, np.array([np.nan, np.inf, -np.inf, np.inf, 100]))
    big = read({"inputs": [2**53 + 1, -(2**63)]}, a=INT64)["a"]
    assert big.tolist() == [9007199254740993, -9223372036854775808]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b'{"inputs": [1', "JSON Parse error: "),
        (b'{"inputs": ' + b"[" * 100_000, "JSON Parse error: "),
        (b'{"inputs": [1' + b"0" * 5000 + b"]}", "JSON Parse error: "),
        (b"[1]", "Is not object"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"inputs": [1], "instances": [1]}', "expecting only one of"),
        (b'{"instances": 1}', "to be an list/array"),
        (b'{"instances": []}', "No values in 'instances' array"),
        (b'{"signature_name": 1, "inputs": 1}', "must be a string value"),
    ],
)
def test_a_broken_body_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        json_tensors.parse(text)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instances": [1, 2]}, "instances is a plain list, but expecting list of objects"),
        ({"instances": [{"a": 1}]}, "element: 0 .* keys must be equal to: a,b"),
        ({"instances": [{"a": 1, "b": 2, "c": 3}]}, "keys must be equal to: a,b"),
        ({"instances": [{"a": 1, "b": 2}, 5]}, "Expecting object but got list at item 1"),
        ({"inputs": [1, 2]}, "inputs is a plain value/list"),
        ({"inputs": {"a": [1]}}, "Missing named input: b"),
        ({"inputs": {"a": [[1, 2], [3]], "b": 1}}, "unexpected size: 1 at level: 1 .* 2"),
        ({"inputs": {"a": [[1], 2], "b": 1}}, "2 found at incorrect level: 2"),
        ({"inputs": {"a": [1, [2]], "b": 1}}, "list at unexpected level: 1"),
        ({"inputs": {"a": ["x"], "b": 1}}, "'x' is not of expected type: float"),
        ({"inputs": {"a": [True], "b": 1}}, "True is not of expected type: float"),
        ({"inputs": {"a": [None], "b": 1}}, "None is not of expected type: float"),
        ({"inputs": {"a": [{"b64": "aGk="}], "b": 1}}, "is not of expected type: float"),
        ({"inputs": {"a": [10**400], "b": 1}}, "does not fit DT_FLOAT"),
    ],
)
def test_values_that_do_not_fit_are_named(body, message):
    with pytest.raises(ValueError, match=message):
        read(body, a=FLOAT, b=FLOAT)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (1.0, INT32, "1.0 is not of expected type: int32"),
        (2**31, INT32, "does not fit DT_INT32"),
        (128, INT8, "does not fit DT_INT8"),
        (0, BOOL, "0 is not of expected type: bool"),
        (1, STRING, "1 is not of expected type: string"),
        ({"b64": "?"}, STRING, "Unable to base64 decode"),
        ({"b64": 1}, STRING, "not formatted correctly for base64 data"),
        ("\ud800", STRING, "half a surrogate pair"),
    ],
)
def test_each_type_is_checked(value, kind, message):
    with pytest.raises(ValueError, match=message):
        read({"inputs": {"a": value}}, a=kind)


def test_long_values_are_cut_in_messages():
    with pytest.raises(ValueError, match="not of expected type") as caught:
        read({"inputs": ["x" * 10**6]}, a=FLOAT)
    assert len(str(caught.value)) < 400


A = np.array([[1, 2], [3, 4], [5, 6]], np.int64)
T = np.array([b"x", b"y", b"z"], object)


@pytest.mark.parametrize(
    ("outputs", "rows", "want"),
    [
        ({"a": A}, True, {"predictions": [[1, 2], [3, 4], [5, 6]]}),
        ({"a": A}, False, {"outputs": [[1, 2], [3, 4], [5, 6]]}),
        (
            {"t": T, "a": A[:, 0]},
            True,
            {"predictions": [{"a": 1, "t": "x"}, {"a": 3, "t": "y"}, {"a": 5, "t": "z"}]},
        ),
        ({"t": T, "a": A[0]}, False, {"outputs": {"a": [1, 2], "t": ["x", "y", "z"]}}),
        ({"a_bytes": T[:1]}, True, {"predictions": [{"b64": "eA=="}]}),
        ({"a": np.array(True)}, False, {"outputs": True}),
    ],
)
def test_the_answer_has_the_form_of_its_request(outputs, rows, want):
    assert json.loads(json_tensors.answer(outputs, rows=rows)) == want


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {"a": A, "t": T[:2]},
            "Tensor name: t has inconsistent batch size: 2 expecting: 3",
        ),
        ({"a": np.array(1)}, "Tensor name: a has no shape information"),
        (
            {"a": np.array([1], np.float16)},
            "Failed to write JSON value for tensor type: half",
        ),
    ],
)
def test_an_answer_that_cannot_be_written(outputs, message):
    with pytest.raises(ValueError, match=message):
        json_tensors.answer(outputs, rows=True)


def test_float32_prints_no_noise_and_loses_nothing():
    values = np.array([0.2, 1 / 3, 3.0, 16777217, 1e-7, np.pi], np.float32)
    text = json_tensors.answer({"a": values}, rows=False).decode()
    assert text == '{"outputs": [0.2, 0.333333343, 3.0, 16777216.0, 1e-07, 3.14159274]}'
    rng = np.random.default_rng(0)
    many = rng.integers(0, 2**32, 5003, dtype=np.uint32).view(np.float32)
    back = json.loads(json_tensors.answer({"a": many}, rows=False))["outputs"]
    np.testing.assert_array_equal(np.array(back).astype(np.float32), many)


def test_numbers_that_are_none():
    values = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert json_tensors.answer({"a": values}, rows=True) == (
        b'{"predictions": [NaN, Infinity, -Infinity]}'
    )
    double = json.loads(json_tensors.answer({"a": np.array([0.1])}, rows=True))
    assert math.isclose(double["predictions"][0], 0.1, rel_tol=0)
