"""How long a recommendation takes through each protocol, beside the bare model call.

    python benchmarks/serving.py --model saved_models/movielens
    python benchmarks/serving.py --model saved_models/movielens --batching

The embedded server runs as its own process on free ports, as in use; so do the clients,
one process each, so that they share no interpreter lock. Every client sends the same
requests one after another: a user each, k items, history as stored. The first row calls
the signature itself in this process, with tensors in and NumPy out. On a machine with
few cores the clients compete with the server: eight clients are a load test, not latency.

`--batching` compares two servers, requests joined into batches or not, where the call of
the model dominates: `embed_item` on one text a request, through BERT. They take turns; the
last line is how many times the requests a second of the other the one with batches answers,
the median of the turns with its quartiles.
"""

import argparse
import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

NAME = "benchmarks/serving.py"
MEASURED = "measured"
WARM_UP = 20
CLIENTS = (1, 8)
# Set in each client's process by `meet`: a barrier is inherited, not sent.
_shared: dict[str, Any] = {}
START_LIMIT = 180.0
# Two batches of four at a time: while the model has one, the clients make the next.
BATCHING = """
max_batch_size { value: 4 }
batch_timeout_micros { value: 5000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds."""

    path: str
    clients: int
    requests: int
    p50: float
    p95: float
    p99: float
    per_second: float


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, required=True, help="exported: saved_models/movielens")
    add("--requests", type=int, default=500, help="by each client (default: 500)")
    add("--users", type=int, default=943, help="ids 1 to this are asked (default: 943)")
    add("--k", type=int, default=10, help="items a request (default: 10)")
    add("--batching", action="store_true", help="embed_item, with batching and without")
    add("--turns", type=int, default=5, help="of --batching (default: 5)")
    add("--parameters", type=Path, metavar="FILE", help="of batching, instead of its own")
    add("--json", type=Path, metavar="FILE", help="also write the rows there")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 2 if there is no model to measure."""
    args = parser().parse_args(argv)
    try:
        rows = run(args)
    except (OSError, ValueError) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    if args.batching:
        print(gain(rows))
    if args.json:
        report = {"cpus": os.cpu_count(), "rows": [dataclasses.asdict(row) for row in rows]}
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def run(args: argparse.Namespace) -> list[Row]:
    """The bare call first, while nothing else runs; then each protocol and load."""
    if min(args.requests, args.users, args.k, args.turns) < 1:
        raise ValueError("--requests, --users, --k and --turns must be at least 1.")
    return with_batching(args) if args.batching else protocols(args)


def protocols(args: argparse.Namespace) -> list[Row]:
    """Recommendations."""
    rows = [bare_call(args)]
    with server(args.model) as started:
        for clients in CLIENTS:
            for path, target in (("gRPC", started.grpc), ("REST", started.rest)):
                rows.append(load(path, target, clients, args, recommend))
    return rows


def with_batching(args: argparse.Namespace) -> list[Row]:
    """Texts embedded over gRPC, by one client, and in turns by many."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".pbtxt"))
        file.write(args.parameters.read_text("utf-8") if args.parameters else BATCHING)
        file.flush()
        batching = ["--enable_batching", f"--batching_parameters_file={file.name}"]
        sides = {
            path: stack.enter_context(server(args.model, *flags)).grpc
            for path, flags in (("not batched", []), ("batched", batching))
        }
        few, many = CLIENTS
        return [
            load(path, target, clients, args, embed)
            for clients in (few, *[many] * args.turns)
            for path, target in sides.items()
        ]


def gain(rows: list[Row]) -> str:
    """What batches are worth to many clients; see the head of the file."""
    _, many = CLIENTS
    paths = "batched", "not batched"
    ours, other = (
        np.array([r.per_second for r in rows if (r.path, r.clients) == (path, many)])
        for path in paths
    )
    low, middle, high = np.percentile(ours / other, [25, 50, 75])
    return f"\n{' × '.join(paths)}, {many} clients: {middle:.2f} [{low:.2f}, {high:.2f}]"


def bare_call(args: argparse.Namespace) -> Row:
    """The signature in this process, with the inputs a client would send."""
    import tensorflow as tf

    importlib.import_module("tensorflow_text")  # registers the tokenizer's ops

    loaded = tf.saved_model.load(str(newest(args.model)))
    signature = loaded.signatures["serving_default"]
    _, specs = signature.structured_input_signature

    def call(user: str) -> None:
        tensors = {name: unknown(spec) for name, spec in specs.items()}
        tensors |= {"user_id": tf.constant([user]), "k": tf.constant([args.k], tf.int32)}
        for value in signature(**tensors).values():
            value.numpy()

    def unknown(spec: tf.TensorSpec) -> tf.Tensor:
        empty = "" if spec.dtype == tf.string else 0
        return tf.fill([1] * spec.shape.rank, tf.constant(empty, spec.dtype))

    _, times = timed(call, args)
    return row("bare call", 1, [times], times.sum(), args.requests)


def newest(model: Path) -> Path:
    """The folder of the version that a server would serve."""
    from tfrec_attn.serve import versions

    found = versions.versions(model)
    if not found:
        raise ValueError(
            f"{model} holds no exported version. "
            "Export a model first: python -m tfrec_attn.export."
        )
    return found[max(found)]


def timed(call: Callable[[str], object], args: argparse.Namespace, first: int = 0):
    """When the measured calls began (after a warm-up) and seconds for each."""
    users = [str(1 + (first + n) % args.users) for n in range(WARM_UP + args.requests)]
    for user in users[:WARM_UP]:
        call(user)
    started, times = time.time(), []
    for user in users[WARM_UP:]:
        before = time.perf_counter()
        call(user)
        times.append(time.perf_counter() - before)
    return started, np.array(times)


def row(path: str, clients: int, times: list[np.ndarray], span: float, count: int) -> Row:
    """Percentiles over the calls of all clients."""
    p50, p95, p99 = np.percentile(np.concatenate(times) * 1e3, [50, 95, 99])
    total = clients * count
    return Row(path, clients, total, p50, p95, p99, total / span)


class Server(NamedTuple):
    """A server's gRPC and REST targets and the number of its process."""

    grpc: str
    rest: str
    pid: int


@contextlib.contextmanager
def server(model: Path, *more: str, log: int | IO = subprocess.DEVNULL) -> Iterator[Server]:
    """The command as a process, once it is ready; its log goes to `log`."""
    newest(model)  # or the wait for a version would be long
    flags = ["--model_base_path", str(model), "--model_name", MEASURED, *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "tfrec_attn.serve", *flags, "--port=0", "--rest_api_port=0"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"gRPC on (\S+), REST on (\S+)", process.stdout.readline())
        if not found:
            raise OSError(f"python -m tfrec_attn.serve {' '.join(flags)} did not start.")
        wait_until_ready(found[1])
        yield Server(found[1], found[2], process.pid)
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(target: str) -> None:
    """Asks for the metadata, which only a loaded model has."""
    from tfrec_attn.serve.client import Client, ServerError

    end = time.monotonic() + START_LIMIT
    with Client(target, MEASURED) as client:
        while True:
            try:
                client.metadata()
                return
            except ServerError as error:
                if time.monotonic() > end:
                    raise OSError(f"the server did not load the model: {error}") from error
                time.sleep(0.1)


def load(
    path: str, target: str, clients: int, args: argparse.Namespace, ask: Callable
) -> Row:
    """Some clients at once; the span runs from the first start to the last end."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(clients)
    with context.Pool(clients, initializer=meet, initargs=(together,)) as pool:
        jobs = [(target, args, index * 97, ask) for index in range(clients)]
        results = pool.starmap(one_client, jobs, chunksize=1)
    started = min(begin for begin, _ in results)
    ended = max(begin + times.sum() for begin, times in results)
    return row(
        path, clients, [times for _, times in results], ended - started, args.requests
    )


def meet(barrier) -> None:
    """Gives each client's process the barrier at which all of them wait."""
    _shared["barrier"] = barrier


def one_client(target: str, args: argparse.Namespace, first: int, ask: Callable):
    """One client's calls, in a process of its own."""
    from tfrec_attn.serve.client import Client, ServerError

    with Client(target, MEASURED, timeout=60) as client:
        # A ServerError does not survive the way between processes.
        try:
            call = ask(client, args)
            _shared["barrier"].wait()
            return timed(call, args, first)
        except ServerError as error:
            _shared["barrier"].abort()
            raise OSError(f"a call failed: {error}") from None


def recommend(client, args: argparse.Namespace) -> Callable[[str], object]:
    """A user's items."""
    client.metadata()
    return lambda user: client.recommend(user, k=args.k)


def embed(client, args: argparse.Namespace) -> Callable[[str], object]:
    """The vector of a text: of one of those that were recommended, by number."""
    users = [str(1 + n) for n in range(min(args.users, 20))]
    answers = [client.recommend(user, k=args.k) for user in users]
    texts = sorted({item.text for answer in answers for item in answer.items})
    return lambda number: client.predict(
        "embed_item", {"text": [texts[int(number) % len(texts)]]}
    )


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| path | clients | requests | P50 ms | P95 ms | P99 ms | requests/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.path} | {r.clients} | {r.requests} | {r.p50:.2f} | {r.p95:.2f} "
        f"| {r.p99:.2f} | {r.per_second:.0f} |"
        for r in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
