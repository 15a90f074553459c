"""The socket of the REST interface: limits, timeouts and metrics around `rest.respond`."""

import asyncio
import concurrent.futures
import logging
import re
import socket
import threading
import time
from typing import Any

import grpc
import h11
import starlette.requests
import starlette.responses
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tfrec_attn.serve.server import incoming, rest
from tfrec_attn.serve.server.model_server import ModelServer
from tfrec_attn.serve.server.options import Options
from tfrec_attn.serve.server.servable import ServingError

NAME = "tfrec_attn.serve"
_log = logging.getLogger(__name__)
_PATH = re.compile(r"(?i:/v1/models)/([^/:]+).*?(?::(classify|regress|predict))?")
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class RestServer:
    """Serves on an open socket until told to stop.

    Raises:
      OSError: It did not start.
    """

    def __init__(self, models: ModelServer, listening: socket.socket, options: Options):
        config = uvicorn.Config(
            Application(models, options),
            http=_protocol(options.rest_timeout),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="error",
            server_header=False,
            headers=[("server", NAME)],
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run,
            kwargs={"sockets": [listening]},
            name="rest",
            daemon=True,
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise OSError("the REST interface did not start; its log says why.")
            time.sleep(0.005)

    def begin_stop(self, grace: float) -> None:
        """Takes no new calls; those that run may take `grace` seconds more."""
        self._server.config.timeout_graceful_shutdown = int(grace)
        self._server.should_exit = True

    def join(self, seconds: float) -> None:
        """Waits until it has stopped."""
        self._thread.join(seconds)


def _protocol(seconds: float) -> type[H11Protocol]:
    """HTTP, for clients that send their headers in this many seconds."""

    class Protocol(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport):
            super().connection_made(transport)
            self._expect()

        def data_received(self, data):
            super().data_received(data)
            # Idle is also who has sent half of a header.
            if self.conn.their_state is h11.IDLE:
                self._expect()
            else:
                self._forget()

        def connection_lost(self, exc):
            self._forget()
            super().connection_lost(exc)

        def _expect(self):
            if self._late is None:
                self._late = self.loop.call_later(seconds, self.transport.abort)

        def _forget(self):
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Protocol


class Application:
    """The ASGI application."""

    def __init__(self, models: ModelServer, options: Options):
        self._models = models
        self._options = options
        self._pool = concurrent.futures.ThreadPoolExecutor(
            options.rest_threads, thread_name_prefix="rest"
        )
        self._lock = threading.Lock()
        self._present = 0

    async def __call__(self, scope, receive, send) -> None:
        """Answers one request."""
        request = starlette.requests.Request(scope, receive)
        path = scope["raw_path"].decode("latin-1")
        if path == self._options.metrics_path:
            page = self._options.metrics.page()
            response = starlette.responses.Response(page, media_type="text/plain")
        else:
            try:
                response = await self._answered(request, path)
            except starlette.requests.ClientDisconnect:
                return
        if self._options.cors:
            response.headers.update(_CORS)
        await response(scope, receive, send)

    async def _answered(
        self, request: starlette.requests.Request, path: str
    ) -> starlette.responses.Response:
        started = time.perf_counter()
        found = _PATH.fullmatch(path)
        model, verb = (found[1], found[2] or "") if found else ("", "")
        headers = {}
        try:
            if request.method == "OPTIONS":
                answer = _preflight(request)
            else:
                body = await self._body(request)
                answer = await self._respond(request.method, path, body, verb)
        except _BodyError as error:
            answer = rest.refusal(error, error.status)
            # What still comes of the body is not read.
            headers = {"connection": "close"}
        except ServingError as error:
            answer = rest.refusal(error)
        self._count(model, verb, answer.code, time.perf_counter() - started)
        return starlette.responses.Response(
            answer.body, answer.status, headers, media_type="application/json"
        )

    async def _body(self, request: starlette.requests.Request) -> bytes:
        limit, body = self._options.rest_bytes, bytearray()
        declared = request.headers.get("content-length", "")
        too_long = _BodyError(413, _EXHAUSTED, f"The body has more than {limit} bytes.")
        if declared.isdecimal() and int(declared) > limit:
            raise too_long
        try:
            async with asyncio.timeout(self._options.rest_timeout):
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise too_long
        except TimeoutError:
            raise _BodyError(
                408, grpc.StatusCode.DEADLINE_EXCEEDED, "The body did not arrive in time."
            ) from None
        return bytes(body)

    async def _respond(self, method: str, path: str, body: bytes, verb: str) -> rest.Answer:
        deadline = time.monotonic() + self._options.rest_timeout
        call = incoming.Call(verb.capitalize() or "Predict", deadline)
        self._enter()
        running = self._pool.submit(self._run, call, method, path, body)
        running.add_done_callback(self._leave)
        try:
            # Cancels what does not run yet; what runs is left to end.
            return await asyncio.wait_for(
                asyncio.wrap_future(running), self._options.rest_timeout
            )
        except TimeoutError:
            raise incoming.late("the server") from None

    def _run(self, call: incoming.Call, method: str, path: str, body: bytes) -> rest.Answer:
        with incoming.answering(call):
            return rest.respond(self._models, method, path, body)

    def _enter(self) -> None:
        with self._lock:
            if self._present >= self._options.rest_threads + self._options.waiting:
                raise ServingError(_EXHAUSTED, "Server Threadpool Exhausted")
            self._present += 1

    def _leave(self, _: Any) -> None:
        with self._lock:
            self._present -= 1

    def _count(self, model: str, verb: str, code: str, seconds: float) -> None:
        metrics = self._options.metrics
        metrics.request_count.add(model, code)
        if code == "OK":
            metrics.request_latency.add(seconds * 1e6, model, verb, "REST")


class _BodyError(ServingError):
    """The body cannot be read; it has an HTTP status of its own."""

    def __init__(self, status: int, code: grpc.StatusCode, message: str):
        super().__init__(code, message)
        self.status = status


def _preflight(request: starlette.requests.Request) -> rest.Answer:
    if re.search("https?://", request.headers.get("origin", "")):
        return rest.Answer(200, b"")
    return rest.refusal(
        ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            "Origin header is missing in CORS preflight",
        )
    )
