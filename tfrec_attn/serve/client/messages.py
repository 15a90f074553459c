"""The two calls of a client, predict and metadata, as requests and from answers.

Pure functions of both protocols: who sends, and when, is another's concern.
"""

import base64
import dataclasses
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tfrec_attn.serve import tensors, wire
from tfrec_attn.serve.signatures import Asked, Metadata, Signature, TensorSpec

Arrays = dict[str, np.ndarray]
Outputs = Mapping[str, TensorSpec]


class Rpc(NamedTuple):
    """A request over gRPC: a method of the PredictionService and its message."""

    method: str
    message: Any


class Http(NamedTuple):
    """A request over HTTP; `body` is sent as JSON."""

    method: str
    path: str
    body: Any = None


@dataclasses.dataclass(frozen=True)
class GrpcMessages:
    """Requests and answers as protobuf messages."""

    asked: Asked

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Rpc:
        """The request that calls one signature."""
        request = wire.PredictRequest()
        self._name(request.model_spec)
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            tensors.write(array, request.inputs[name], packed=True)
        return Rpc("Predict", request)

    def outputs(self, answer: Any, specs: Outputs) -> Arrays:
        """Every output of a predict; the message itself says what it holds."""
        return {name: tensors.read(proto) for name, proto in answer.outputs.items()}

    def metadata(self) -> Rpc:
        """The request for the signatures."""
        request = wire.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._name(request.model_spec)
        return Rpc("GetModelMetadata", request)

    def described(self, answer: Any) -> Metadata:
        """The signatures that a server answered with."""
        packed = answer.metadata["signature_def"].value
        saved = wire.SignatureDefMap.FromString(packed).signature_def
        signatures = {
            name: Signature(_proto_specs(one.inputs), _proto_specs(one.outputs))
            for name, one in saved.items()
        }
        return Metadata(self.asked.model, answer.model_spec.version.value, signatures)

    def _name(self, spec: Any) -> None:
        spec.name = self.asked.model
        if self.asked.version is not None:
            spec.version.value = self.asked.version
        elif self.asked.label is not None:
            spec.version_label = self.asked.label


def _proto_specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {
        name: TensorSpec(
            tensors.KINDS[info.dtype].dtype,
            None
            if info.tensor_shape.unknown_rank
            else tuple(dim.size for dim in info.tensor_shape.dim),
        )
        for name, info in infos.items()
        if info.dtype in tensors.KINDS
    }


@dataclasses.dataclass(frozen=True)
class RestMessages:
    """Requests and answers as JSON, in columns."""

    asked: Asked

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Http:
        """The request that calls one signature."""
        columns = {name: _to_json(array) for name, array in inputs.items()}
        body = {"signature_name": signature, "inputs": columns}
        return Http("POST", f"{self._path()}:predict", body)

    def outputs(self, answer: Any, specs: Outputs) -> Arrays | None:
        """Every output of a predict, its numbers read by `specs`.

        Returns:
          None where the answer has other outputs: it is of a version that was not the
          one described.
        """
        found = answer["outputs"]
        if len(specs) == 1:
            found = {next(iter(specs)): found}
        elif not isinstance(found, dict) or found.keys() != specs.keys():
            return None
        return {name: _from_json(found[name], spec) for name, spec in specs.items()}

    def metadata(self) -> Http:
        """The request for the signatures."""
        return Http("GET", f"{self._path()}/metadata")

    def described(self, answer: Any) -> Metadata:
        """The signatures that a server answered with."""
        saved = answer["metadata"]["signature_def"]["signature_def"]
        signatures = {
            name: Signature(_json_specs(one["inputs"]), _json_specs(one["outputs"]))
            for name, one in saved.items()
        }
        version = int(answer["model_spec"]["version"])
        return Metadata(self.asked.model, version, signatures)

    def _path(self) -> str:
        quoted = lambda name: urllib.parse.quote(name, safe="")
        path = f"/v1/models/{quoted(self.asked.model)}"
        if self.asked.version is not None:
            return f"{path}/versions/{self.asked.version}"
        if self.asked.label is not None:
            return f"{path}/labels/{quoted(self.asked.label)}"
        return path


def _json_specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, info in infos.items():
        number = tensors.NUMBERS_BY_NAME.get(info["dtype"])
        if number is not None:
            shape = info["tensor_shape"]
            sizes = tuple(int(dim["size"]) for dim in shape.get("dim", ()))
            dtype = tensors.KINDS[number].dtype
            specs[name] = TensorSpec(dtype, None if shape.get("unknown_rank") else sizes)
    return specs


def _to_json(array: np.ndarray) -> Any:
    if array.dtype != object:
        return array.tolist()
    texts = np.empty(array.size, object)
    texts[:] = [_text_or_b64(value) for value in array.ravel()]
    return texts.reshape(array.shape).tolist()


def _text_or_b64(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _from_json(value: Any, spec: TensorSpec) -> np.ndarray:
    if spec.dtype != object:
        return np.array(value, spec.dtype)
    # Dictionaries (b64) are leaves; NumPy sees them as such only under an object dtype.
    found = np.array(value, object)
    flat = [
        base64.b64decode(leaf["b64"]) if isinstance(leaf, dict) else leaf.encode()
        for leaf in found.ravel()
    ]
    decoded = np.empty(len(flat), object)
    decoded[:] = flat
    return decoded.reshape(found.shape)
