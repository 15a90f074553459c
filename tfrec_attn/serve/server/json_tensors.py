"""Predict bodies in JSON: rows (`instances`) and columns (`inputs`) to arrays and back.

The form is that of tensorflow/serving `g3doc/api_rest.md`: JSON with NaN and Infinity,
bytes as `{"b64": …}`, a single named output without its name. Bytes that are no UTF-8
pass through strings unchanged, in both directions.
"""

import base64
import binascii
import itertools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tfrec_attn.serve import tensors
from tfrec_attn.serve.tensors import Kind

# Outputs of this name are bytes, not text, and leave as b64.
_BYTES_SUFFIX = "_bytes"
_SHOWN = 256
_NUMBERS_OF_JSON: dict[str, set[type]] = {
    "i": {int},
    "u": {int},
    "f": {int, float},
    "b": {bool},
}


class Body(NamedTuple):
    """A predict body.

    Attributes:
      signature: Its name; empty for the default.
      rows: Whether it came as `instances`.
      values: What stands under `instances` or `inputs`.
    """

    signature: str
    rows: bool
    values: Any


def parse(text: bytes) -> Body:
    """Reads a predict body as far as it can be read without the model.

    Raises:
      ValueError: With a text for the caller.
    """
    body, signature = document(text)
    return Body(signature, "instances" in body, _values(body))


def document(text: bytes) -> tuple[dict, str]:
    """A body of any call, and the name of the signature in it; empty for the default.

    Raises:
      ValueError: With a text for the caller.
    """
    if not text:
        raise ValueError("JSON Parse error: The document is empty")
    try:
        body = json.loads(text.decode("utf-8", "surrogateescape"))
    except RecursionError:
        raise ValueError("JSON Parse error: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"JSON Parse error: {error}") from error
    if not isinstance(body, dict):
        raise ValueError(f"JSON Value: {show(body)} Is not object")
    signature = body.get("signature_name", "")
    if not isinstance(signature, str):
        raise ValueError(
            f"JSON Value: {show(body)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return body, signature


def _values(body: dict) -> Any:
    if "instances" in body and "inputs" in body:
        raise ValueError(
            f"JSON Value: {show(body)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist"
        )
    if "inputs" in body:
        return body["inputs"]
    if "instances" not in body:
        raise ValueError("Missing 'inputs' or 'instances' key")
    if not isinstance(body["instances"], list):
        raise ValueError(
            f"JSON Value: {show(body)} Expecting 'instances' to be an list/array"
        )
    if not body["instances"]:
        raise ValueError(f"JSON Value: {show(body)} No values in 'instances' array")
    return body["instances"]


def inputs(body: Body, kinds: Mapping[str, Kind]) -> dict[str, np.ndarray]:
    """The arrays of a body.

    Args:
      body: What `parse` gave.
      kinds: By input of the signature, what it holds.

    Raises:
      ValueError: With a text for the caller.
    """
    columns = _columns_of_rows(body.values, kinds) if body.rows else _columns(body, kinds)
    return {name: array(values, kinds[name]) for name, values in columns.items()}


def is_b64(value: Any) -> bool:
    """Whether a value stands for bytes."""
    return (
        isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)
    )


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not is_b64(value)


def _columns_of_rows(rows: list, kinds: Mapping[str, Kind]) -> dict[str, list]:
    if not isinstance(rows[0], dict) and len(kinds) > 1:
        raise ValueError(
            "instances is a plain list, but expecting list of objects as multiple input "
            "tensors required as per tensorinfo_map"
        )
    named = _is_named(rows[0])
    for index, row in enumerate(rows):
        if _is_named(row) != named:
            wanted, got = ("object", "list") if named else ("value/list", "object")
            raise ValueError(
                f"Expecting {wanted} but got {got} at item {index} of input list"
            )
        if named and row.keys() != kinds.keys():
            raise ValueError(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{show(row)} keys must be equal to: {','.join(sorted(kinds))}"
            )
    if not named:
        return dict.fromkeys(kinds, rows)
    return {name: [row[name] for row in rows] for name in kinds}


def _columns(body: Body, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    if not _is_named(body.values):
        if len(kinds) > 1:
            raise ValueError(
                "inputs is a plain value/list, but expecting an object as multiple input "
                "tensors required as per tensorinfo_map"
            )
        return dict.fromkeys(kinds, body.values)
    for name in kinds:
        if name not in body.values:
            raise ValueError(f"Missing named input: {name} in 'inputs' object.")
    return {name: body.values[name] for name in kinds}


def array(value: Any, kind: Kind) -> np.ndarray:
    """Nested lists as an array; every list of one depth must have one length."""
    shape, leaves = _flatten(value)
    if kind.dtype == object:
        flat = np.empty(len(leaves), object)
        flat[:] = [_bytes(leaf, kind) for leaf in leaves]
        return flat.reshape(shape)
    allowed = _NUMBERS_OF_JSON[kind.dtype.kind]
    # `bool` is an `int` in Python, but not in JSON.
    if not set(map(type, leaves)) <= allowed:
        raise _type_error(next(leaf for leaf in leaves if type(leaf) not in allowed), kind)
    try:
        # A number too large for the type becomes infinite, as in a cast of C.
        with np.errstate(over="ignore"):
            return np.array(leaves, kind.dtype).reshape(shape)
    except OverflowError as error:
        raise ValueError(f"A number does not fit {kind.name}: {error}.") from error


def _flatten(value: Any) -> tuple[list[int], list]:
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        depth, size = len(shape), len(level[0])
        for item in level:
            if not isinstance(item, list):
                raise ValueError(
                    f"JSON Value: {show(item)} found at incorrect level: {depth + 1} "
                    "in the JSON DOM."
                )
            if len(item) != size:
                raise ValueError(
                    f"Encountered list at unexpected size: {len(item)} at level: {depth} "
                    f"expected size: {size}"
                )
        shape.append(size)
        level = list(itertools.chain.from_iterable(level))
    if any(isinstance(item, list) for item in level):
        raise ValueError(
            f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}"
        )
    return shape, level


def _bytes(leaf: Any, kind: Kind) -> bytes:
    if isinstance(leaf, str):
        return from_text(leaf)
    if not isinstance(leaf, dict):
        raise _type_error(leaf, kind)
    if not is_b64(leaf):
        raise ValueError(
            f"JSON Value: {show(leaf)} not formatted correctly for base64 data"
        )
    return from_b64(leaf)


def from_text(text: str) -> bytes:
    """A string of a body as the bytes it was sent as."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("JSON Parse error: a string holds half a surrogate pair") from None


def from_b64(leaf: Mapping[str, str]) -> bytes:
    """The bytes of a `{"b64": …}`."""
    try:
        return base64.b64decode(leaf["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("Unable to base64 decode") from None


def _type_error(leaf: Any, kind: Kind) -> ValueError:
    name = kind.name.removeprefix("DT_").lower()
    return ValueError(f"JSON Value: {show(leaf)} is not of expected type: {name}")


def show(value: Any) -> str:
    """The start of a value, for messages."""
    text = repr(value) if not isinstance(value, dict | list) else json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def answer(outputs: Mapping[str, np.ndarray], *, rows: bool) -> bytes:
    """The body of an answer, in the form of its request.

    Raises:
      ValueError: In rows, outputs must have one first dimension.
    """
    if rows:
        return encode({"predictions": _rows(outputs)})
    columns = {name: _nested(name, outputs[name]) for name in sorted(outputs)}
    only = next(iter(columns.values())) if len(columns) == 1 else columns
    return encode({"outputs": only})


def _rows(outputs: Mapping[str, np.ndarray]) -> list:
    size = None
    for name, values in outputs.items():
        if not values.ndim:
            raise ValueError(f"Tensor name: {name} has no shape information ")
        if size not in (None, len(values)):
            raise ValueError(
                f"Tensor name: {name} has inconsistent batch size: {len(values)} "
                f"expecting: {size}"
            )
        size = len(values)
    columns = {name: _nested(name, outputs[name]) for name in sorted(outputs)}
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]


def _nested(name: str, values: np.ndarray) -> Any:
    if values.dtype == object:
        flat = np.empty(values.size, object)
        form = _b64 if name.endswith(_BYTES_SUFFIX) else _text
        flat[:] = [form(value) for value in values.ravel()]
        return flat.reshape(values.shape).tolist()
    if values.dtype == np.float32:
        return short(values).tolist()
    if values.dtype in (np.float16, np.uint16):
        kind = tensors.kind_of(tensors.number_of(values.dtype)).name.removeprefix("DT_")
        raise ValueError(f"Failed to write JSON value for tensor type: {kind.lower()}")
    return values.tolist()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _b64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def short(values: np.ndarray) -> np.ndarray:
    """float32 as the double that prints in six digits where they suffice, else in nine.

    The plain cast would print 0.2 as 0.20000000298023224.
    """
    flat = values.ravel()
    six = np.array([float(f"{value:.6g}") for value in flat.tolist()])
    with np.errstate(over="ignore"):
        exact = (six.astype(np.float32) == flat) | np.isnan(flat)
    for index in np.flatnonzero(~exact):
        six[index] = float(f"{flat[index]:.9g}")
    return six.reshape(values.shape)


def encode(body: Any) -> bytes:
    """JSON as it goes out."""
    text = json.dumps(body, ensure_ascii=False, separators=(", ", ": "))
    return text.encode("utf-8", "surrogateescape")
