"""One predict and one metadata call, over gRPC or REST. No TensorFlow."""

import base64
import dataclasses
import urllib.parse
from collections.abc import Mapping
from typing import Any

import grpc
import httpx
import numpy as np

from tfrec_attn.serve import tensors, wire

_UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

Arrays = dict[str, np.ndarray]


class ServerError(Exception):
    """The server refused a call or did not answer.

    Attributes:
      code: A canonical code's name: INVALID_ARGUMENT, NOT_FOUND, UNAVAILABLE, …
      message: The server's words.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """An input or output of a signature.

    Attributes:
      dtype: `object` for strings, which travel as bytes.
      shape: -1 for a free size; None if even the rank is free.
    """

    dtype: np.dtype
    shape: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a server says of the version in service."""

    model: str
    version: int
    signatures: Mapping[str, Signature]


class GrpcTransport:
    """Calls over one gRPC channel, which may be shared by threads."""

    def __init__(self, target: str, model: str, timeout: float):
        self._model = model
        self._timeout = timeout
        self._channel = grpc.insecure_channel(target, options=_UNLIMITED)
        self._predict = self._method("Predict", wire.PredictResponse)
        self._metadata = self._method("GetModelMetadata", wire.GetModelMetadataResponse)

    def _method(self, name: str, response_class: Any) -> Any:
        return self._channel.unary_unary(
            f"/tensorflow.serving.PredictionService/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response_class.FromString,
        )

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise ServerError(error.code().name, error.details()) from error

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Calls one signature."""
        request = wire.PredictRequest()
        request.model_spec.name = self._model
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            tensors.write(array, request.inputs[name], packed=True)
        response = self._call(self._predict, request)
        return {name: tensors.read(proto) for name, proto in response.outputs.items()}

    def metadata(self) -> Metadata:
        """Asks what the model's signatures are."""
        request = wire.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self._model
        response = self._call(self._metadata, request)
        packed = response.metadata["signature_def"].value
        signatures = {
            name: Signature(_proto_specs(saved.inputs), _proto_specs(saved.outputs))
            for name, saved in wire.SignatureDefMap.FromString(packed).signature_def.items()
        }
        return Metadata(self._model, response.model_spec.version.value, signatures)

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()


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


class RestTransport:
    """Calls over HTTP, in columns; connections are kept and may be shared by threads."""

    def __init__(self, target: str, model: str, timeout: float):
        base = target if "://" in target else f"http://{target}"
        self._model = urllib.parse.quote(model, safe="")
        try:
            self._http = httpx.Client(base_url=base, timeout=timeout)
        except httpx.InvalidURL as error:
            raise ValueError(
                f'target must be "http://host:port" for REST: received {target!r} '
                f"({error})."
            ) from error
        self._specs: Mapping[str, Signature] = {}

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        url = f"/v1/models/{self._model}{path}"
        try:
            response = self._http.request(method, url, json=body)
        except httpx.TimeoutException as error:
            raise ServerError("DEADLINE_EXCEEDED", str(error)) from error
        except httpx.HTTPError as error:
            raise ServerError("UNAVAILABLE", str(error)) from error
        if response.status_code == 200:
            return response.json()
        code = _CODES.get(response.status_code, "UNKNOWN")
        try:
            message = response.json()["error"]
        except (ValueError, KeyError, TypeError):
            message = response.text
        raise ServerError(code, message)

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Calls one signature; its metadata say how to read the numbers of the answer."""
        body = {
            "signature_name": signature,
            "inputs": {name: _to_json(array) for name, array in inputs.items()},
        }
        answer = self._call("POST", ":predict", body)["outputs"]
        specs = self._outputs(signature)
        # A newer version may have other outputs than the one that was asked about.
        if len(specs) > 1 and answer.keys() != specs.keys():
            self.metadata()
            specs = self._outputs(signature)
        if len(specs) == 1:
            answer = {next(iter(specs)): answer}
        return {name: _from_json(answer[name], spec) for name, spec in specs.items()}

    def _outputs(self, signature: str) -> Mapping[str, TensorSpec]:
        if signature not in self._specs:
            self.metadata()
        return self._specs[signature].outputs

    def metadata(self) -> Metadata:
        """Asks what the model's signatures are."""
        answer = self._call("GET", "/metadata")
        listed = answer["metadata"]["signature_def"]["signature_def"]
        self._specs = {
            name: Signature(_json_specs(saved["inputs"]), _json_specs(saved["outputs"]))
            for name, saved in listed.items()
        }
        name = urllib.parse.unquote(self._model)
        return Metadata(name, int(answer["model_spec"]["version"]), self._specs)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()


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
