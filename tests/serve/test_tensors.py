import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from tfrec_attn.serve import tensors, wire

ARRAYS = [
    np.array([[0.25, -1.5, np.inf]], np.float32),
    np.array([0.1], np.float64),
    np.array([[1], [-2]], np.int32),
    np.array([2**40, -3, 5], np.int64),
    np.array([200, 3], np.uint8),
    np.array([-7, 3], np.int8),
    np.array([-300], np.int16),
    np.array([40000], np.uint16),
    np.array([2**32 - 1], np.uint32),
    np.array([2**64 - 1], np.uint64),
    np.array([True, False]),
    np.array([1.5, -0.5], np.float16),
    np.array([[b"a\x00b", "ü".encode()], [b"", b"x"]], object),
    np.zeros((3, 0), np.float32),
    np.array(5, np.int32),
]
each_array = pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
each_class = pytest.mark.parametrize("cls", [tensor_pb2.TensorProto, wire.Tensor])


@each_array
@each_class
@pytest.mark.parametrize("packed", [True, False])
def test_a_tensor_comes_back(array, cls, packed):
    proto = cls()
    tensors.write(array, proto, packed=packed)
    got = tensors.read(proto)
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array, strict=True)


@each_array
@pytest.mark.parametrize("packed", [True, False])
def test_tensorflow_reads_what_is_written(array, packed):
    proto = tensor_pb2.TensorProto()
    tensors.write(array, proto, packed=packed)
    np.testing.assert_array_equal(tf.make_ndarray(proto), array, strict=True)


@each_array
def test_what_tensorflow_writes_is_read(array):
    np.testing.assert_array_equal(
        tensors.read(tf.make_tensor_proto(array)), array, strict=True
    )


@pytest.mark.parametrize(
    ("values", "want"), [([2.5, 3.5], [2.5, 3.5, 3.5, 3.5, 3.5]), ([], [0.0] * 5)]
)
def test_a_short_list_repeats_its_last_value(values, want):
    proto = tensor_pb2.TensorProto(dtype=1, float_val=values)
    proto.tensor_shape.dim.add().size = 5
    np.testing.assert_array_equal(tensors.read(proto), np.array(want, np.float32))
    np.testing.assert_array_equal(tf.make_ndarray(proto), np.array(want, np.float32))


def shaped(sizes, **fields):
    proto = tensor_pb2.TensorProto(**fields)
    for size in sizes:
        proto.tensor_shape.dim.add().size = size
    return proto


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (shaped([3], dtype=1, tensor_content=b"1234"), r"needs 12 bytes: received 4"),
        (shaped([-1], dtype=1, float_val=[1]), r"known shape: received \(-1,\)"),
        (shaped([1], dtype=1, float_val=[1, 2]), r"of 1 values was sent with 2"),
        (shaped([10**6, 10**6], dtype=1, float_val=[1]), r"was sent with 1"),
        (shaped([1], dtype=8), r"Data type 8 is not served"),
    ],
)
def test_a_broken_tensor_is_named(proto, message):
    with pytest.raises(ValueError, match=message):
        tensors.read(proto)


@pytest.mark.parametrize(
    "values",
    [
        ["a", "ü"],
        [b"a", "ü".encode()],
        np.array(["a", "ü"]),
        np.array(["a", b"\xc3\xbc"], object),
    ],
)
def test_text_becomes_bytes(values):
    assert tensors.as_array(values).tolist() == [b"a", "ü".encode()]
