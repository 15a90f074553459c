"""Malformed requests to a server: none may crash it, hang it or be its own fault.

    python benchmarks/fuzz.py --model saved_models/movielens --requests 10000

The embedded server runs as its own process and is sent requests that are wrong in one way
each, by eight threads over REST, bare sockets and gRPC: broken JSON, wrong types and ranks,
huge k, NaN, texts of 10 MB, deep nesting, bytes that are no message, tensors that promise
more than they hold, paths that are none, clients that stop in the middle. Each must be
answered in time: over HTTP with 4xx, 501, or 200 where it was only odd; over gRPC with a
status that is not INTERNAL or UNKNOWN. Right requests in between must be answered as at
the start. Prints what was answered, and the server's memory after each tenth; the status is
1 if anything failed.
"""

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import json
import random
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import serving

NAME = "benchmarks/fuzz.py"
THREADS = 8
LIMIT = 60.0
LARGE = 10_000_000
STALLED = 40
TENTHS = 10
PREDICTION = "/tensorflow.serving.PredictionService/"
NUMBERS = (0, -1, 2**31 - 1, -(2**31), 2**31, 2**63, 10**400, 1.5, 1e300)
ODD = (*NUMBERS, float("nan"), float("inf"), None, True, "", "x", "\ud800", [], {}, [[]])
FAULTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


class Target:
    """A server, what its model reads, and right requests of which wrong ones are made."""

    def __init__(self, server: serving.Server):
        from tfrec_attn.serve.client import Client

        self.channel = grpc.insecure_channel(server.grpc)
        host, port = server.rest.removeprefix("http://").split(":")
        self.address = (host, int(port))
        self.client = Client(server.grpc, serving.MEASURED, timeout=LIMIT)
        self.inputs = {
            name: dict(signature.inputs)
            for name, signature in self.client.metadata().signatures.items()
            if signature.inputs
        }
        self.right = self.ask()
        self.stalled: collections.deque = collections.deque(maxlen=STALLED)

    def ask(self) -> Any:
        """A right request."""
        return self.client.recommend("1", k=3)

    def columns(self, draw: random.Random) -> tuple[str, dict[str, Any]]:
        """A signature and right inputs for it, one row each."""
        signature = draw.choice(sorted(self.inputs))
        inputs = {}
        for name, spec in self.inputs[signature].items():
            value: Any = "1" if self.is_text(signature, name) else 1
            inputs[name] = [value] if len(spec.shape) == 1 else [[value]]
        return signature, inputs

    def is_text(self, signature: str, name: str) -> bool:
        """Whether an input is a text."""
        return self.inputs[signature][name].dtype == np.dtype(object)

    def message(self, draw: random.Random) -> Any:
        """A right request as a message."""
        from tfrec_attn.serve import tensors, wire

        signature, inputs = self.columns(draw)
        request = wire.PredictRequest()
        request.model_spec.name = serving.MEASURED
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            array = tensors.as_array(np.array(value, self.inputs[signature][name].dtype))
            tensors.write(array, request.inputs[name], packed=draw.random() < 0.5)
        return request

    def http(self, data: bytes) -> str:
        """Sends bytes, and reads until the server closes."""
        answer = b""
        with socket.create_connection(self.address, timeout=LIMIT) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(data)
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(1 << 16):
                    answer += part
        # After a "100 Continue" comes the answer.
        found = re.search(rb"HTTP/1.1 ([2-5]\d\d)", answer)
        return found[1].decode() if found else "closed"

    def post(
        self, body: bytes, path: str = f"/v1/models/{serving.MEASURED}:predict"
    ) -> str:
        """Sends a body that is as long as it says."""
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        return self.http(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def call(self, method: str, message: bytes, timeout: float = LIMIT) -> str:
        """Calls a method with bytes."""
        try:
            self.channel.unary_unary(method)(message, timeout=timeout)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and timeout == LIMIT:
                raise TimeoutError(method) from None
            return error.code().name
        return "OK"


def body_of(signature: str, inputs: dict, draw: random.Random) -> bytes:
    """Inputs as JSON, in columns or rows."""
    body: dict[str, Any] = {"signature_name": signature, "inputs": inputs}
    if draw.random() < 0.5:
        rows = {n: v[0] if isinstance(v, list) and v else v for n, v in inputs.items()}
        body = {"signature_name": signature, "instances": [rows]}
    return json.dumps(body).encode()


def broken(data: bytes, draw: random.Random) -> bytes:
    """Bytes cut off, changed, doubled or left out."""
    place = draw.randrange(len(data) + 1)
    noise = draw.randbytes(draw.randrange(1, 5))
    return draw.choice(
        (
            data[:place],
            data[:place] + noise + data[place:],
            data[:place] + noise + data[place + len(noise) :],
            data[place:] + data[:place],
        )
    )


def broken_json(target: Target, draw: random.Random) -> str:
    """JSON with some bytes changed."""
    return target.post(broken(body_of(*target.columns(draw), draw), draw))


def wrong_value(target: Target, draw: random.Random) -> str:
    """One input is something else, or of another rank."""
    signature, inputs = target.columns(draw)
    name, odd = draw.choice(sorted(inputs)), draw.choice(ODD)
    shapes = (odd, [odd], [[odd]], [[[odd]]], [odd, 1], [[odd], [1, 2]], {"b64": odd})
    inputs[name] = draw.choice(shapes)
    return target.post(body_of(signature, inputs, draw))


def wrong_names(target: Target, draw: random.Random) -> str:
    """An input is missing, or unknown; or the signature is."""
    signature, inputs = target.columns(draw)
    if draw.random() < 0.5:
        del inputs[draw.choice(sorted(inputs))]
    else:
        inputs[draw.choice(("", "x", "k\0"))] = [1]
    odd = (signature, "", "none", "__saved_model_init_op", 1, None)
    return target.post(body_of(draw.choice(odd), inputs, draw))


def deep_nesting(target: Target, draw: random.Random) -> str:
    """Lists in lists, or objects in objects."""
    opening, closing = draw.choice((("[", "]"), ('{"inputs":', "}"), ('{"a":[', "]}")))
    depth = draw.choice((40, 900, 5000, 200_000))
    inner = opening * depth + draw.choice(("", "1")) + closing * draw.choice((0, depth))
    return target.post(draw.choice((inner, f'{{"instances": {inner}}}')).encode())


def large_text(target: Target, draw: random.Random) -> str:
    """10 MB in one string; rarely, it takes long."""
    if draw.random() > 0.02:
        return wrong_value(target, draw)
    signature, inputs = target.columns(draw)
    texts = [name for name in inputs if target.is_text(signature, name)]
    text = draw.choice(("x", "ü", " a", "\0")) * LARGE
    name = draw.choice(texts)
    inputs[name] = [text[:LARGE]] if isinstance(inputs[name][0], str) else [[text[:LARGE]]]
    return target.post(body_of(signature, inputs, draw))


def base64_of_all(target: Target, draw: random.Random) -> str:
    """Bytes that are no text, where texts are wanted."""
    signature, inputs = target.columns(draw)
    coded = {"b64": base64.b64encode(draw.randbytes(9)).decode()}
    for name in inputs:
        inputs[name] = [coded] if draw.random() < 0.5 else [[coded]]
    return target.post(body_of(signature, inputs, draw))


def odd_path(target: Target, draw: random.Random) -> str:
    """A path, a method or a version that is none."""
    parts = ("/", "v1", "models", serving.MEASURED, "versions", "labels", "metadata", ":")
    odd = ("..", "%00", "%2f", "9" * 30, "-1", ":predict", "?", "%", "%zz", "#", "x" * 999)
    path = "/v1/models/" + "/".join(draw.choices(parts + odd, k=draw.randrange(6)))
    method = draw.choice(("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "X"))
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    return target.http(head.encode())


def broken_http(target: Target, draw: random.Random) -> str:
    """What is no HTTP, or says the wrong length."""
    head = "POST /v1/models/x:predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    texts = (
        "\x16\x03\x01\x02\x00\x01",
        "GET /\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        f"{head}content-length: -1\r\n\r\n",
        f"{head}content-length: 1\r\ncontent-length: 2\r\n\r\nab",
        f"{head}content-length: {10**30}\r\n\r\n",
        f"{head}transfer-encoding: chunked\r\n\r\nzz\r\n",
        f"{head}transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        f"{head}x: {'y' * 70_000}\r\n\r\n",
        f"{head}connection: upgrade\r\nupgrade: websocket\r\n\r\n",
        f"{head}expect: 100-continue\r\ncontent-length: 2\r\n\r\n{{}}",
    )
    data = draw.choice(texts).encode("latin-1")
    return target.http(data + b"\r\n" * 8 if b"HTTP/1.1" not in data else data)


def stops_in_the_middle(target: Target, draw: random.Random) -> str:
    """A client that sends a part, and then nothing for as long as others follow."""
    head = f"POST /v1/models/{serving.MEASURED}:predict HTTP/1.1\r\nhost: x\r\n"
    whole = f'{head}content-length: 20\r\n\r\n{{"inputs"'.encode()
    slow = socket.create_connection(target.address, timeout=LIMIT)
    slow.sendall(whole[: draw.randrange(1, len(whole))])
    target.stalled.append(slow)
    return "left open"


def broken_message(target: Target, draw: random.Random) -> str:
    """A message with some bytes changed, to any method."""
    methods = ("Predict", "GetModelMetadata", "Classify", "Regress", "MultiInference", "No")
    method = PREDICTION + draw.choice(methods)
    return target.call(method, broken(target.message(draw).SerializeToString(), draw))


def wrong_tensor(target: Target, draw: random.Random) -> str:
    """A tensor of another type, shape or size than it holds."""
    request = target.message(draw)
    tensor = request.inputs[draw.choice(sorted(request.inputs))]
    match draw.randrange(6):
        case 0:
            tensor.dtype = draw.choice((*range(24), 101, 10**9, -1))
        case 1:
            tensor.tensor_shape.dim.add().size = draw.choice((-1, 0, 2, 2**24, 2**62))
        case 2:
            tensor.tensor_shape.unknown_rank = True
        case 3:
            tensor.tensor_content = draw.randbytes(draw.randrange(20))
        case 4:
            del tensor.tensor_shape.dim[:]
        case 5:
            for _ in range(draw.choice((1, 300))):
                tensor.tensor_shape.dim.add().size = draw.choice((1, 2**31))
    return target.call(f"{PREDICTION}Predict", request.SerializeToString())


def wrong_request(target: Target, draw: random.Random) -> str:
    """Inputs, outputs or the model are others; a huge k; a short deadline."""
    request = target.message(draw)
    match draw.randrange(6):
        case 0:
            del request.inputs[draw.choice(sorted(request.inputs))]
        case 1:
            request.inputs["x"].dtype = 1
        case 2:
            request.output_filter.extend(draw.choices(("", "x", "score"), k=3))
        case 3:
            request.model_spec.name = draw.choice(("", "none", "ü" * 9999))
        case 4:
            request.model_spec.version.value = draw.choice((-1, 0, 7, 2**63 - 1))
        case 5:
            if "k" in request.inputs:
                request.inputs["k"].ClearField("tensor_content")
                request.inputs["k"].int_val[:] = [draw.choice((-1, 0, 2**31 - 1, -(2**31)))]
    timeout = draw.choice((LIMIT, LIMIT, 0.001))
    return target.call(f"{PREDICTION}Predict", request.SerializeToString(), timeout)


def stalled_call(target: Target, draw: random.Random) -> str:
    """A call whose message never comes."""
    never = threading.Event()

    def messages():
        never.wait(LIMIT)
        yield from ()

    call = target.channel.stream_unary(f"{PREDICTION}Predict").future(messages())
    if draw.random() < 0.5:
        call.cancel()
    never.set()
    return "cancelled"


CASES: tuple[Callable[[Target, random.Random], str], ...] = (
    broken_json, wrong_value, wrong_names, deep_nesting, large_text, base64_of_all,
    odd_path, broken_http, stops_in_the_middle,
    broken_message, wrong_tensor, wrong_request, stalled_call,
)  # fmt: skip


def verdict(case: Callable, answer: str) -> bool:
    """Whether an answer blames the caller."""
    if answer.isdecimal():
        return answer in ("200", "501") or 400 <= int(answer) < 500
    return answer not in [fault.name for fault in FAULTS]


def one(target: Target, seed: int) -> tuple[str, str, bool]:
    """Sends the request of a number: its kind, the answer, whether that is right."""
    draw = random.Random(seed)
    case = CASES[seed % len(CASES)]
    try:
        answer = case(target, draw)
    except TimeoutError:
        return case.__name__, "no answer", False
    if seed % 50 == 0 and target.ask() != target.right:
        return "a right request", "another answer", False
    return case.__name__, answer, verdict(case, answer)


def memory(pid: int) -> int:
    """MiB that a process holds."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    if not found:
        raise OSError("the server died.")
    return int(found[1]) >> 10


def run(args: argparse.Namespace) -> int:
    """Sends all requests; 1 if one of them was answered wrongly."""
    counts: collections.Counter = collections.Counter()
    failed: list[str] = []
    with (
        tempfile.TemporaryFile("w+") as log,
        serving.server(args.model, *args.flag, log=log) as started,
        concurrent.futures.ThreadPoolExecutor(THREADS) as pool,
    ):
        target = Target(started)
        seeds = range(args.seed, args.seed + args.requests)
        sizes = []
        for part in np.array_split(seeds, TENTHS):
            answers = pool.map(lambda seed: one(target, int(seed)), part)
            for seed, (case, answer, right) in zip(part, answers, strict=True):
                counts[case, answer] += 1
                failed += [] if right else [f"{case}, seed {seed}: {answer}"]
            sizes.append(memory(started.pid))
        log.seek(0)
        failed += re.findall("Traceback.*", log.read())
    for (case, answer), count in sorted(counts.items()):
        print(f"{case:20} {answer:20} {count}")
    print("memory after each tenth, MiB:", *sizes)
    print(f"{args.requests} requests, {len(failed)} failed", *failed[:20], sep="\n")
    return int(bool(failed))


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="exported: saved_models/movielens")
    add("--requests", type=int, default=10_000, help="default: 10000")
    add("--seed", type=int, default=0, help="of the first request (default: 0)")
    add("--flag", action="append", default=[], help="of the server; may be repeated")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the answers; 2 if there is no model to serve."""
    args = parser().parse_args(argv)
    try:
        return run(args)
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
