import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.serve.server import saved_model

A = np.array([2, 3, 5], np.float32)
B = np.array([7, 11, 13], np.float32)


@pytest.fixture(scope="module")
def loaded(toy):
    return saved_model.load(toy / "1", 1)


def test_the_fast_call_is_the_plain_call(loaded):
    signature = loaded.loaded.signatures["several"]
    plain = signature(a=tf.constant(A), z=tf.constant(B))
    # Both kinds of graph must take the fast way, or the overhead grows tenfold unseen.
    assert {call.__name__ for call in loaded.calls.values()} == {"call"}
    fast = loaded.run("several", {"a": A, "z": B})
    assert set(plain) == set(fast)
    for name, values in plain.items():
        np.testing.assert_array_equal(fast[name], values.numpy(), strict=True)


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
    old = saved_model.load(tmp_path / "1", 1)
    got = old.run("sub", {"a": B[:, None], "b": A[:, None]})
    assert got["less"].tolist() == [[5], [8], [8]]
    assert got["again"].tolist() == [[7], [11], [13]]
    assert got["more"].tolist() == [[9], [14], [18]]
    assert got["zero"].tolist() == [[0], [0], [0]]
    # As in a session, the declared rank is the graph's business, not the server's.
    assert old.run("sub", {"a": B, "b": A})["less"].tolist() == [5, 8, 8]


def test_a_graph_with_another_tag_is_named(tmp_path, toy):
    saved = (toy / "1" / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(saved.replace(b"serve", b"train"))
    with pytest.raises(ValueError, match='has no graph tagged "serve"'):
        saved_model.load(tmp_path, 1)
