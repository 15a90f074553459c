"""The REST interface as a function from request to answer; `server` gives it a socket."""

import logging
import re
import urllib.parse
from typing import NamedTuple

import grpc
from google.protobuf import json_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    regression_pb2,
)

from tfrec_attn.serve import tensors
from tfrec_attn.serve.server import json_examples, json_tensors
from tfrec_attn.serve.server.model_server import ModelServer
from tfrec_attn.serve.server.servable import (
    DEFAULT_SIGNATURE,
    Servable,
    ServingError,
    invalid,
)

_log = logging.getLogger(__name__)
_WHICH = r"(?:/versions/([0-9]+)|/labels/([^/:]+))?"
_CALL = re.compile(rf"(?i:/v1/models)/([^/:]+){_WHICH}:(classify|regress|predict)")
_LOOK = re.compile(rf"(?i:/v1/models)(?:/([^/:]+))?{_WHICH}(?:/(metadata))?")
_LARGEST_VERSION = 2**63 - 1

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


class Answer(NamedTuple):
    """What goes back: an HTTP status, a JSON body, and the canonical code behind them."""

    status: int
    body: bytes
    code: str = "OK"


def respond(models: ModelServer, method: str, path: str, body: bytes) -> Answer:
    """Answers one request.

    Args:
      models: Whose models are asked.
      method: GET or POST; others are answered as malformed.
      path: Still percent-encoded, without the query.
      body: The request's body.
    """
    try:
        return Answer(200, _respond(models, method, path, body))
    except ServingError as error:
        return refusal(error)
    # A fault of ours must still be an answer in the interface's form.
    except Exception as error:
        _log.exception("%s %s failed", method, path)
        internal = grpc.StatusCode.INTERNAL
        return refusal(ServingError(internal, f"{type(error).__name__}: {error}"))


def refusal(error: ServingError, status: int | None = None) -> Answer:
    """The answer to a request that failed; `status` instead of that of the code."""
    body = json_tensors.encode({"error": error.message})
    return Answer(status or _STATUSES.get(error.code, 500), body, error.code.name)


def _respond(models: ModelServer, method: str, path: str, body: bytes) -> bytes:
    if not path.lower().startswith("/v1/"):
        raise ServingError(grpc.StatusCode.NOT_FOUND, f"Nothing is served at {path}.")
    if method == "POST" and (match := _CALL.fullmatch(path)):
        name, version, label, verb = match.groups()
        spec = _model_spec(name, version, label)
        try:
            return _VERBS[verb](models, spec, body)
        except ValueError as error:
            raise invalid(str(error)) from error
    if method == "GET" and (match := _LOOK.fullmatch(path)):
        name, version, label, metadata = match.groups()
        if not name:
            raise invalid("Missing model name in request.")
        spec = _model_spec(name, version, label)
        return _metadata(models, spec) if metadata else _status(models, spec)
    raise invalid(f"Malformed request: {method} {path}")


def _model_spec(name: str, version: str | None, label: str | None) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(name))
    if version is not None:
        if len(version) > len(str(_LARGEST_VERSION)) or int(version) > _LARGEST_VERSION:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(version)
    if label is not None:
        spec.version_label = urllib.parse.unquote(label)
    return spec


def _predict(models: ModelServer, spec: model_pb2.ModelSpec, text: bytes) -> bytes:
    body = json_tensors.parse(text)
    servable = models.find(spec)
    arrays = json_tensors.inputs(body, _kinds(servable, body.signature))
    outputs = servable.run(body.signature, arrays)
    return json_tensors.answer(outputs, rows=body.rows)


def _classify(models: ModelServer, spec: model_pb2.ModelSpec, text: bytes) -> bytes:
    examples, spec.signature_name = json_examples.parse(text)
    request = classification_pb2.ClassificationRequest(model_spec=spec, input=examples)
    return json_examples.classifications(models.classify(request).result)


def _regress(models: ModelServer, spec: model_pb2.ModelSpec, text: bytes) -> bytes:
    examples, spec.signature_name = json_examples.parse(text)
    request = regression_pb2.RegressionRequest(model_spec=spec, input=examples)
    return json_examples.regressions(models.regress(request).result)


_VERBS = {"predict": _predict, "classify": _classify, "regress": _regress}


def _kinds(servable: Servable, signature: str) -> dict[str, tensors.Kind]:
    name = signature or DEFAULT_SIGNATURE
    if name not in servable.calls:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    infos = servable.signature_defs[name].inputs
    if not infos:
        raise invalid(f"Failed to get input map for signature: {name}")
    return {key: tensors.kind_of(info.dtype) for key, info in infos.items()}


def _status(models: ModelServer, spec: model_pb2.ModelSpec) -> bytes:
    response = models.status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec))
    return _json(response, indent=1)


def _metadata(models: ModelServer, spec: model_pb2.ModelSpec) -> bytes:
    response = models.metadata(
        get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        )
    )
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    # The `Any` of the response would carry an "@type" that this interface leaves out.
    spec_json, map_json = _json(response.model_spec), _json(signatures)
    return (
        b'{\n"model_spec":' + spec_json + b',\n"metadata": {"signature_def": ' + map_json
    ) + b"}\n}\n"


def _json(message, indent: int | None = 1) -> bytes:
    return json_format.MessageToJson(
        message,
        always_print_fields_with_no_presence=True,
        preserving_proto_field_name=True,
        indent=indent,
        ensure_ascii=False,
    ).encode()
