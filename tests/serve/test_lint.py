"""Each fault that would keep TF Serving from serving a SavedModel, in one of its own."""

import importlib

import numpy as np
import pytest
import tensorflow as tf
import toys
from tensorflow_serving.apis import prediction_log_pb2

from tfrec_attn.serve import lint
from tfrec_attn.serve.server.servable import WARM_UP_FILE


def saved(folder, function, warm_up=True, batch=2, **constants):
    """A version whose default signature is `function` of `a`, `[B]` floats."""
    module = tf.Module()
    call = toys.signature(lambda a: function(a), a=toys.FLOATS)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": call})
    if warm_up:
        write(folder, [request(a=tf.ones([batch]))])
    return folder


def request(signature="serving_default", **inputs):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()


def write(folder, records):
    place = folder / WARM_UP_FILE
    place.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(place)) as writer:
        for record in records:
            writer.write(record)


def test_a_plain_model_has_no_fault(tmp_path, capsys):
    folder = saved(tmp_path / "1", lambda a: {"twice": 2 * a})
    assert lint.lint(folder) == []
    assert lint.main([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: no fault found\n"


def ragged(a):
    return {"rows": tf.RaggedTensor.from_row_lengths(a, [tf.size(a)])}


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (
            lambda a: {"b": tf.py_function(lambda x: x, [a], tf.float32)},
            "op EagerPyFunc calls back into Python: ",
        ),
        (
            lambda a: {"b": tf.numpy_function(lambda x: x, [a], tf.float32)},
            "op PyFunc calls back into Python: ",
        ),
        (
            tf.function(lambda a: {"b": 2 * a}, jit_compile=True),
            "is compiled by XLA (jit_compile)",
        ),
        (lambda a: {"sum": tf.reduce_sum(a)}, "output sum is a scalar: "),
        (
            lambda a: {"b": a, "two": tf.ones([2]), "three": tf.ones([3])},
            "outputs differ in their first dimension: ",
        ),
        (
            lambda a: {"b": a, "one": tf.reshape(tf.reduce_sum(a), tf.constant([1]))[:1]},
            "the batch is not the first dimension of ",
        ),
        (
            lambda a: {"b": a + tf.reduce_sum(tf.constant(np.arange(3000.0), tf.float32))},
            "has 12,0",
        ),
        (
            lambda a: {"b": tf.raw_ops.Unique(x=a)[0]},
            "the batch is not the first dimension of {'b': 1}",
        ),
        (
            lambda a: {"b": a + tf.reduce_sum(tf.gather(a, [9]))},
            "request 1 to serving_default fails: ",
        ),
    ],
    ids=["py_function", "numpy_function", "xla", "scalar", "first", "one", "constant",
         "unique",  "fails"],
)  # fmt: skip
def test_a_fault_is_named(tmp_path, function, fault):
    found = lint.lint(saved(tmp_path / "1", function), largest=10_000)
    assert any(fault in line for line in found), found


def test_other_answers_in_a_session_are_told(tmp_path):
    module = tf.Module()
    module.factor = tf.Variable(2.0)
    call = toys.signature(lambda a: {"b": module.factor * a}, a=toys.FLOATS)
    folder = tmp_path / "1"
    tf.saved_model.save(module, str(folder), signatures={"serving_default": call})
    write(folder, [request(a=tf.ones([2]))])
    loaded = tf.saved_model.load(str(folder))
    assert lint.lint(folder, loaded=loaded) == []
    loaded.factor.assign(2.01)
    (fault,) = lint.lint(folder, loaded=loaded)
    assert fault.endswith("b is another one in a session than in Python")


def test_an_op_of_no_image_is_named(tmp_path):
    folder = saved(tmp_path / "1", lambda a: {"b": a})
    file = folder / "saved_model.pb"
    # Another op of as many letters under the identity's name.
    file.write_bytes(file.read_bytes().replace(b"\x12\x08Identity", b"\x12\x08ScaNNOps"))
    (fault, *_) = lint.lint(folder)
    assert fault.startswith("op ScaNNOps is neither TensorFlow's core's nor in tensorflow-")


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([], "has 0 records: 1 to 1000 are read"),
        ([b"\xff\xff"], "record 1 is no PredictionLog"),
        ([request("other", a=[1.0])], "record 1 calls 'other', which is no signature"),
        (
            [request(a=[1.0], c=[2])],
            "record 1: the inputs c are not those of serving_default",
        ),
    ],
)
def test_a_warm_up_that_would_not_run(tmp_path, records, fault):
    folder = saved(tmp_path / "1", lambda a: {"b": a}, warm_up=False)
    assert any("is missing" in line for line in lint.lint(folder))
    write(folder, records)
    assert any(fault in line for line in lint.lint(folder))
    (folder / WARM_UP_FILE).write_bytes(b"no records" * 9)
    assert any("is no TFRecord file" in line for line in lint.lint(folder))


def test_the_command(tmp_path, capsys):
    folder = saved(tmp_path / "1", lambda a: {"sum": tf.reduce_sum(a)})
    assert lint.main([str(folder)]) == 1
    assert "output sum is a scalar" in capsys.readouterr().out
    assert lint.main([str(tmp_path)]) == 2
    assert "is no version folder: it has no saved_model.pb" in capsys.readouterr().err
    (tmp_path / "saved_model.pb").write_bytes(b"\xff")
    assert lint.main([str(tmp_path)]) == 2
    assert "saved_model.pb is no SavedModel" in capsys.readouterr().err


def test_the_text_ops_are_those_that_tensorflow_text_registers():
    from tensorflow.python.framework import op_def_registry

    importlib.import_module("tensorflow_text")

    assert all(op_def_registry.get(op) is not None for op in lint.TEXT_OPS)
    assert not any(hasattr(tf.raw_ops, op) for op in lint.TEXT_OPS)
