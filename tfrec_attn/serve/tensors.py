"""TensorProto to NumPy and back, for the server and the client alike: no TensorFlow.

It works on any message with TensorProto's fields: the official class in the server,
the small one of `wire` in the client. Strings are object arrays of `bytes`.
"""

import math
from typing import Any, NamedTuple

import numpy as np


class Kind(NamedTuple):
    """How one DataType is stored.

    Attributes:
      name: As the protocol's JSON names it.
      dtype: The NumPy dtype of the values.
      field: The repeated field of a TensorProto that holds them.
    """

    name: str
    dtype: np.dtype
    field: str


STRING = 7
HALF = 19
# By DataType number. Complex numbers, quantized types, bfloat16 and resources are not
# served: they have no form in the JSON interface or no NumPy dtype.
KINDS = {
    1: Kind("DT_FLOAT", np.dtype(np.float32), "float_val"),
    2: Kind("DT_DOUBLE", np.dtype(np.float64), "double_val"),
    3: Kind("DT_INT32", np.dtype(np.int32), "int_val"),
    4: Kind("DT_UINT8", np.dtype(np.uint8), "int_val"),
    5: Kind("DT_INT16", np.dtype(np.int16), "int_val"),
    6: Kind("DT_INT8", np.dtype(np.int8), "int_val"),
    STRING: Kind("DT_STRING", np.dtype(object), "string_val"),
    9: Kind("DT_INT64", np.dtype(np.int64), "int64_val"),
    10: Kind("DT_BOOL", np.dtype(np.bool_), "bool_val"),
    17: Kind("DT_UINT16", np.dtype(np.uint16), "int_val"),
    HALF: Kind("DT_HALF", np.dtype(np.float16), "half_val"),
    22: Kind("DT_UINT32", np.dtype(np.uint32), "uint32_val"),
    23: Kind("DT_UINT64", np.dtype(np.uint64), "uint64_val"),
}
NUMBERS = {kind.dtype: number for number, kind in KINDS.items()}
NUMBERS_BY_NAME = {kind.name: number for number, kind in KINDS.items()}

# A message of 20 bytes may promise a shape of any size (missing values repeat the last
# one), so what is made up is bounded.
MADE_UP_LIMIT = 1 << 24


def kind_of(number: int) -> Kind:
    """The storage of a DataType, or a ValueError where there is none."""
    if number not in KINDS:
        known = ", ".join(kind.name for kind in KINDS.values())
        raise ValueError(f"Data type {number} is not served; served are {known}.")
    return KINDS[number]


def number_of(dtype: np.dtype) -> int:
    """The DataType of a NumPy dtype, or a ValueError where there is none."""
    if dtype not in NUMBERS:
        raise ValueError(f"NumPy dtype {dtype} has no tensor form.")
    return NUMBERS[dtype]


def read(proto: Any) -> np.ndarray:
    """The values of a TensorProto, packed (`tensor_content`) or one by one.

    Numbers that were packed are a read-only view of the message's bytes.
    """
    kind = kind_of(proto.dtype)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError(f"A tensor needs a known shape: received {shape}.")
    count = math.prod(shape)
    content = proto.tensor_content
    if content and proto.dtype != STRING:
        if len(content) != count * kind.dtype.itemsize:
            raise ValueError(
                f"tensor_content of shape {shape} and {kind.name} needs "
                f"{count * kind.dtype.itemsize} bytes: received {len(content)}."
            )
        return np.frombuffer(content, kind.dtype).reshape(shape)
    values = _values(proto, kind)
    if len(values) != count:
        values = _repeat_last(values, count, kind)
    return values.reshape(shape)


def _values(proto: Any, kind: Kind) -> np.ndarray:
    listed = getattr(proto, kind.field)
    if proto.dtype == HALF:
        return np.array(listed, np.uint16).view(np.float16)
    if proto.dtype != STRING:
        return np.array(listed, kind.dtype)
    values = np.empty(len(listed), object)
    values[:] = listed
    return values


def _repeat_last(values: np.ndarray, count: int, kind: Kind) -> np.ndarray:
    """TensorProto's short form: the last value stands for all that are missing."""
    if len(values) > count or count > MADE_UP_LIMIT:
        raise ValueError(f"A tensor of {count} values was sent with {len(values)}.")
    zero = b"" if kind.dtype == object else kind.dtype.type()
    last = values[-1] if len(values) else zero
    full = np.full(count, last, kind.dtype)
    full[: len(values)] = values
    return full


def as_array(values: Any) -> np.ndarray:
    """An array of a served dtype; text of any kind becomes an object array of bytes."""
    array = np.asarray(values)
    if array.dtype.kind in "OUS":
        flat = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel()]
        text = np.empty(array.size, object)
        text[:] = flat
        return text.reshape(array.shape)
    number_of(array.dtype)
    return array


def write(array: np.ndarray, proto: Any, *, packed: bool) -> None:
    """Fills an empty TensorProto.

    Args:
      array: Of a served dtype; strings as an object array of bytes.
      proto: The message to fill.
      packed: Numbers as `tensor_content` (one copy), instead of one by one as a model
        server answers and as clients without NumPy like to read them.
    """
    number = number_of(array.dtype)
    kind = KINDS[number]
    proto.dtype = number
    # An empty shape is a scalar; the message must say that a shape is there.
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if packed and number != STRING:
        proto.tensor_content = array.tobytes()
        return
    flat = array.ravel()
    if number == HALF:
        flat = flat.view(np.uint16)
    getattr(proto, kind.field).extend(flat.tolist())
