import grpc
import numpy as np
import pytest

from tfrec_attn.serve.server import saved_model
from tfrec_attn.serve.server.servable import ServingError

A = np.array([2, 3, 5], np.float32)
B = np.array([7, 11, 13], np.float32)


@pytest.fixture(scope="module")
def loaded(toy):
    return saved_model.load(toy / "1", 1)


def test_the_default_signature(loaded):
    np.testing.assert_array_equal(loaded.run("", {"a": A, "b": B})["product"], [14, 33, 65])


def test_inputs_and_outputs_keep_their_names(loaded):
    got = loaded.run("several", {"a": A, "z": B})
    assert {name: values.tolist() for name, values in got.items()} == {
        "a": [2, 3, 5],
        "z_less_a": [5, 8, 8],
        "count": [3, 3],
    }


def test_strings_scalars_and_whole_numbers(loaded):
    text = np.array([b"ab", "ü".encode(), b"\xff"], object)
    got = loaded.run("texts", {"text": text})
    assert got["upper"].tolist() == [b"AB", "ü".encode(), b"\xff"]
    assert loaded.run("joined", {"text": text[:1]})["joined"].tolist() == b"ab"
    total = loaded.run("total", {"a": A})["total"]
    np.testing.assert_array_equal(total, np.array(10, np.float32), strict=True)
    whole = loaded.run("whole", {"n": np.array([2**40]), "flag": np.array([True, False])})
    assert (whole["next"].tolist(), whole["not"].tolist()) == ([2**40 + 1], [False, True])


def test_a_wanted_output_comes_alone_and_in_its_order(loaded):
    inputs = {"a": A, "z": B}
    assert list(loaded.run("several", inputs, ["z_less_a", "a"])) == ["z_less_a", "a"]


@pytest.mark.parametrize(
    ("signature", "inputs", "only", "code", "message"),
    [
        ("none", {}, (), "FAILED_PRECONDITION", 'signature key "none" not found'),
        ("", {"a": A}, (), "INVALID_ARGUMENT", r"1!=2 .*Missing but required: \{b\}"),
        ("", {"a": A, "b": B, "c": A}, (), "INVALID_ARGUMENT", r"3!=2 .*extra: \{c\}"),
        ("", {"a": A, "c": B}, (), "INVALID_ARGUMENT", r"extra: \{c\}.*required: \{b\}"),
        (
            "",
            {"a": A, "b": B.astype(np.int32)},
            (),
            "INVALID_ARGUMENT",
            '"b" must be DT_FLOAT: received DT_INT32',
        ),
        ("", {"a": A, "b": B}, ["x"], "INVALID_ARGUMENT", "x Outputs expected .*product"),
        (
            "",
            {"a": A, "b": B},
            ["product"] * 2,
            "INVALID_ARGUMENT",
            "duplicate .*: product",
        ),
        (
            "",
            {"a": A, "b": B[:2]},
            (),
            "INVALID_ARGUMENT",
            r"Incompatible shapes: \[3\] vs",
        ),
        (
            "thirds",
            {"a": B[:2]},
            (),
            "INVALID_ARGUMENT",
            "^Input to reshape is a tensor with 2",
        ),
    ],
)
def test_a_mistake_has_its_code(loaded, signature, inputs, only, code, message):
    with pytest.raises(ServingError, match=message) as caught:
        loaded.run(signature, inputs, only)
    assert caught.value.code == grpc.StatusCode[code]
    assert "\n" not in caught.value.message
    assert "{{" not in caught.value.message
