import grpc
import numpy as np
import pytest
import tensorflow as tf
import toys
from tensorflow_serving.apis import predict_pb2

from tfrec_attn.serve import servable as servable_lib
from tfrec_attn.serve import tensors
from tfrec_attn.serve.servable import ServingError

A = np.array([2, 3, 5], np.float32)
B = np.array([7, 11, 13], np.float32)


@pytest.fixture(scope="module")
def loaded(toy):
    return servable_lib.load(toy / "1", 1)


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


def test_the_fast_call_is_the_plain_call(loaded):
    signature = loaded.loaded.signatures["several"]
    plain = signature(a=tf.constant(A), z=tf.constant(B))
    # Both kinds of graph must take the fast way, or the overhead grows tenfold unseen.
    assert {call.__name__ for call in loaded.calls.values()} == {"call"}
    fast = loaded.run("several", {"a": A, "z": B})
    assert set(plain) == set(fast)
    for name, values in plain.items():
        np.testing.assert_array_equal(fast[name], values.numpy(), strict=True)


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


def test_a_graph_of_tensorflow_1(tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        # The order of names, of placeholders and of outputs all differ.
        first = tf.compat.v1.placeholder(tf.float32, [None, 1], "zz")
        second = tf.compat.v1.placeholder(tf.float32, [None, 1], "aa")
        builder = tf.compat.v1.saved_model.Builder(str(tmp_path / "1"))
        info = tf.compat.v1.saved_model.build_tensor_info
        definition = tf.compat.v1.saved_model.build_signature_def(
            {"a": info(first), "b": info(second)},
            {
                "less": info(first - second),
                "again": info(first + 0.0),
                "more": info(first + second),
                "zero": info(first * 0.0),
            },
            "tensorflow/serving/predict",
        )
        builder.add_meta_graph_and_variables(session, ["serve"], {"sub": definition})
        builder.save()
    old = servable_lib.load(tmp_path / "1", 1)
    assert old.calls["sub"].__name__ == "call"
    got = old.run("sub", {"a": B[:, None], "b": A[:, None]})
    assert got["less"].tolist() == [[5], [8], [8]]
    assert got["again"].tolist() == [[7], [11], [13]]
    assert got["more"].tolist() == [[9], [14], [18]]
    assert got["zero"].tolist() == [[0], [0], [0]]
    # As in a session, the declared rank is the graph's business, not the server's.
    assert old.run("sub", {"a": B, "b": A})["less"].tolist() == [5, 8, 8]


def warm_up_request(**arrays):
    request = predict_pb2.PredictRequest()
    for name, values in arrays.items():
        tensors.write(values, request.inputs[name], packed=False)
    return request


def test_warm_up_requests_are_replayed(tmp_path, caplog):
    toys.save_toy(tmp_path / "1")
    toys.warm_up_with(tmp_path / "1", *[warm_up_request(a=A, b=B)] * 3)
    with caplog.at_level("INFO"):
        servable_lib.load(tmp_path / "1", 1)
    assert "replayed 3 warm-up requests" in caplog.text
    toys.warm_up_with(tmp_path / "1", warm_up_request(a=A, b=B), warm_up_request(a=A))
    with pytest.raises(ServingError, match=r"Missing but required: \{b\}"):
        servable_lib.load(tmp_path / "1", 1)
    toys.warm_up_with(tmp_path / "1", *[warm_up_request(a=A, b=B)] * 1001)
    with pytest.raises(ValueError, match="more than 1000 warm-up requests"):
        servable_lib.load(tmp_path / "1", 1)
