"""Both clients, blocking and awaited: one set of calls over either protocol."""

import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import tenacity

from tfrec_attn.serve.client.calls import Call, Calls
from tfrec_attn.serve.client.connections import Connection, Tls
from tfrec_attn.serve.client.retries import Deadline, ServerError, policy
from tfrec_attn.serve.client.transports import (
    AsyncGrpcTransport,
    AsyncRestTransport,
    GrpcTransport,
    RestTransport,
)
from tfrec_attn.serve.signatures import Asked

P = ParamSpec("P")
T = TypeVar("T")


class _Client:
    """What both clients are made of."""

    _grpc: Any
    _rest: Any

    def __init__(
        self,
        target: str = "localhost:8500",
        model: str = "movielens",
        *,
        protocol: str | None = None,
        timeout: float = 10.0,
        retry: bool = True,
        version: int | None = None,
        label: str | None = None,
        tls: Tls | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        Deadline(timeout)  # A timeout that is none is refused here, not at the first call.
        connection = Connection(target, protocol, tls, headers or {})
        transport = self._rest if connection.rest else self._grpc
        self._transport = transport(connection, Asked(model, version, label))
        self._calls = Calls(self._transport.messages)
        self._timeout, self._retry = timeout, retry

    def _deadline(self, call: Call) -> Deadline:
        return Deadline(self._timeout if call.timeout is None else call.timeout)


def _blocking(
    call: Callable[Concatenate[Calls, P], Call[T]],
) -> Callable[Concatenate["Client", P], T]:
    """A call of `Calls` as a method of `Client`."""

    @functools.wraps(call)
    def method(self: "Client", *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(call(self._calls, *args, **kwargs))

    return method


def _awaited(
    call: Callable[Concatenate[Calls, P], Call[T]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    """A call of `Calls` as a method of `AsyncClient`."""

    @functools.wraps(call)
    async def method(self: "AsyncClient", *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(call(self._calls, *args, **kwargs))

    return method


class Client(_Client):
    """Calls one model of one server; threads may share it.

    Args:
      target: "host:port", or "http://host:port" for REST.
      model: The name under which it is served.
      protocol: "grpc" or "rest"; by default what `target` looks like.
      timeout: Seconds until a call fails, all its requests and pauses together.
      retry: Whether what could not begin is tried again until then; see `retries`.
      version: Asks for this version instead of the one in service.
      label: Asks for the version that has this label.
      tls: Encrypts, checks the server, and shows a certificate of the client's own.
      headers: Sent with every request, such as an API key.

    Raises:
      ValueError: The arguments do not go together.
    """

    _grpc, _rest = GrpcTransport, RestTransport

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def _run(self, call: Call[T]) -> T:
        deadline, step = self._deadline(call), functools.partial(next, call.steps)
        while True:
            try:
                request = step()
            except StopIteration as done:
                return done.value
            attempts = tenacity.Retrying(**policy(deadline, retry=self._retry))
            try:
                answer = attempts(self._transport.send, request, deadline)
            except ServerError as error:
                step = functools.partial(call.steps.throw, error)
            else:
                step = functools.partial(call.steps.send, answer)

    metadata = _blocking(Calls.metadata)
    predict = _blocking(Calls.predict)
    recommend = _blocking(Calls.recommend)
    score = _blocking(Calls.score)
    embed_user = _blocking(Calls.embed_user)
    embed_item = _blocking(Calls.embed_item)
    explain = _blocking(Calls.explain)


class AsyncClient(_Client):
    """`Client` for asyncio: the same arguments, the same calls, awaited.

    async with AsyncClient("localhost:8500", model="movielens") as client:
        first, second = await asyncio.gather(client.recommend("42"), client.recommend("7"))
    """

    _grpc, _rest = AsyncGrpcTransport, AsyncRestTransport

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def _run(self, call: Call[T]) -> T:
        deadline, step = self._deadline(call), functools.partial(next, call.steps)
        while True:
            try:
                request = step()
            except StopIteration as done:
                return done.value
            attempts = tenacity.AsyncRetrying(**policy(deadline, retry=self._retry))
            try:
                answer: Any = await attempts(self._transport.send, request, deadline)
            except ServerError as error:
                step = functools.partial(call.steps.throw, error)
            else:
                step = functools.partial(call.steps.send, answer)

    metadata = _awaited(Calls.metadata)
    predict = _awaited(Calls.predict)
    recommend = _awaited(Calls.recommend)
    score = _awaited(Calls.score)
    embed_user = _awaited(Calls.embed_user)
    embed_item = _awaited(Calls.embed_item)
    explain = _awaited(Calls.explain)
