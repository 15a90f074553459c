"""The four ways to send a request: gRPC and REST, blocking and awaited. No TensorFlow.

A transport has `messages`, which make requests and read answers, and `send`, which tries
once and raises `ServerError`.
"""

import asyncio
import functools
import json
from typing import Any

import grpc
import httpx

from tfrec_attn.serve import wire
from tfrec_attn.serve.client.connections import Connection
from tfrec_attn.serve.client.messages import GrpcMessages, Http, RestMessages, Rpc
from tfrec_attn.serve.client.retries import Deadline, ServerError
from tfrec_attn.serve.signatures import Asked

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A channel waits a second and longer before it looks for a server that went away;
    # until then calls fail at once. When to try again is told by `retries`.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_ANSWERS = {
    "Predict": wire.PredictResponse,
    "GetModelMetadata": wire.GetModelMetadataResponse,
}
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def _methods(channel: Any) -> dict[str, Any]:
    return {
        name: channel.unary_unary(
            f"/tensorflow.serving.PredictionService/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        for name, answer in _ANSWERS.items()
    }


def _channel(module: Any, connection: Connection) -> Any:
    """A channel of `grpc` or `grpc.aio`, which name the same things alike."""
    if connection.tls is None:
        return module.insecure_channel(connection.target, options=_OPTIONS)
    credentials = connection.tls.credentials()
    return module.secure_channel(connection.target, credentials, options=_OPTIONS)


def _grpc_error(error: Any) -> ServerError:
    return ServerError(error.code().name, error.details())


class GrpcTransport:
    """One channel, which may be shared by threads."""

    def __init__(self, connection: Connection, asked: Asked):
        self.messages = GrpcMessages(asked)
        self._headers = connection.lower_headers
        self._channel = _channel(grpc, connection)
        self._methods = _methods(self._channel)

    def send(self, request: Rpc, deadline: Deadline) -> Any:
        """The answer's message."""
        method = self._methods[request.method]
        try:
            return method(request.message, timeout=deadline.left(), metadata=self._headers)
        except grpc.RpcError as error:
            raise _grpc_error(error) from error

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()


class AsyncGrpcTransport:
    """One channel, which belongs to the event loop of the first call."""

    def __init__(self, connection: Connection, asked: Asked):
        self.messages = GrpcMessages(asked)
        self._connection = connection

    # A channel of grpc.aio binds itself to the loop that runs when it is made.
    @functools.cached_property
    def _channel(self) -> Any:
        return _channel(grpc.aio, self._connection)

    @functools.cached_property
    def _methods(self) -> dict[str, Any]:
        return _methods(self._channel)

    async def send(self, request: Rpc, deadline: Deadline) -> Any:
        """The answer's message."""
        method = self._methods[request.method]
        headers = self._connection.lower_headers
        try:
            return await method(request.message, timeout=deadline.left(), metadata=headers)
        except grpc.RpcError as error:
            raise _grpc_error(error) from error

    async def close(self) -> None:
        """Closes the channel."""
        if "_channel" in vars(self):
            await self._channel.close()


def _http_settings(connection: Connection) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "base_url": connection.url,
        "headers": connection.lower_headers,
    }
    if connection.tls is not None:
        settings["verify"] = connection.tls.context()
    return settings


def _http_client(kind: Any, connection: Connection) -> Any:
    try:
        return kind(**_http_settings(connection))
    except httpx.InvalidURL as error:
        raise ValueError(
            f'target must be "http://host:port" for REST: received {connection.target!r} '
            f"({error})."
        ) from error


def read_json(status: int, body: bytes) -> Any:
    """What a REST answer holds; a `ServerError` where it is a refusal or no JSON."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if status == 200 and answer is not None:
        return answer
    message = answer.get("error") if isinstance(answer, dict) else None
    code = "UNKNOWN" if status == 200 else _CODES.get(status, "UNKNOWN")
    raise ServerError(
        code, message or f"HTTP {status}: {body[:500].decode(errors='replace')}"
    )


# A TLS alert that comes while an answer is awaited passes through httpx as it is.
_BROKEN = httpx.HTTPError, OSError


class RestTransport:
    """Kept connections, which may be shared by threads."""

    def __init__(self, connection: Connection, asked: Asked):
        self.messages = RestMessages(asked)
        self._http = _http_client(httpx.Client, connection)

    def send(self, request: Http, deadline: Deadline) -> Any:
        """The answer's JSON."""
        method, path, body = request
        left, parts = deadline.left(), []
        try:
            with self._http.stream(method, path, json=body, timeout=left) as response:
                # The timeout is for each wait on the socket; an answer that drips would
                # begin it anew with every part.
                for part in response.iter_bytes():
                    parts.append(part)
                    deadline.left()
        except httpx.TimeoutException as error:
            raise deadline.passed() from error
        except _BROKEN as error:
            raise ServerError("UNAVAILABLE", str(error)) from error
        return read_json(response.status_code, b"".join(parts))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()


class AsyncRestTransport:
    """Kept connections of one event loop."""

    def __init__(self, connection: Connection, asked: Asked):
        self.messages = RestMessages(asked)
        self._http = _http_client(httpx.AsyncClient, connection)

    async def send(self, request: Http, deadline: Deadline) -> Any:
        """The answer's JSON."""
        method, path, body = request
        try:
            async with asyncio.timeout(deadline.left()):
                response = await self._http.request(method, path, json=body, timeout=None)
        except TimeoutError as error:
            raise deadline.passed() from error
        except _BROKEN as error:
            raise ServerError("UNAVAILABLE", str(error)) from error
        return read_json(response.status_code, response.content)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()
