"""Versions swapped, and the server killed, under clients that never stop asking.

    python benchmarks/hot_swap.py

The embedded server runs as a process of its own, and so does each client: half of them over
gRPC, half over REST. Version v of the model multiplies by v, so that an answer shows which
version it is from. An answer is wrong if it is of a version that was not there, of an older
one than the client's last, or (gRPC, which names it) of another than it says.

First row: three versions are swapped in, and nobody tries anything again. Second row: the
server is killed (SIGKILL) and started again, twice; clients try again while the server is
unavailable. A request that is not answered in the end is failed.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import tenacity

NAME = "benchmarks/hot_swap.py"
MODEL = "factor"
NEW_VERSIONS = (2, 3, 4)
KILLS = 2
# A killed server must load TensorFlow and the model again.
PATIENCE = 120.0


@dataclasses.dataclass
class Outcome:
    """What one client met.

    Attributes:
      requests: How many it made.
      failed: Of them, without an answer; `problem` is the first one's.
      wrong: Of them, with a wrong answer.
      retried: How often it tried again.
      longest: Seconds of the slowest request, retries included.
      versions: Which versions answered.
    """

    requests: int = 0
    failed: int = 0
    problem: str = ""
    wrong: int = 0
    retried: int = 0
    longest: float = 0.0
    versions: set[int] = dataclasses.field(default_factory=set)


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--requests", type=int, default=20_000, help="in each row (default: 20000)")
    add("--clients", type=int, default=8, help="half of them over REST (default: 8)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints the table; 1 if a request failed or an answer was wrong."""
    args = parser().parse_args(argv)
    print(
        "| what | clients | requests | failed | wrong | tried again | slowest s "
        "| versions |\n|---|---:|---:|---:|---:|---:|---:|---|"
    )
    bad = 0
    for what, disturb, patience in (
        ("three versions swapped in", swap, 0.0),
        (f"killed and restarted, {KILLS} times", kill, PATIENCE),
    ):
        outcomes = run(args, disturb, patience)
        print(row(what, outcomes), flush=True)
        bad += sum(each.failed + each.wrong for each in outcomes)
        for each in outcomes:
            if each.problem:
                print(f"{NAME}: {each.problem}", file=sys.stderr)
    return 1 if bad else 0


def row(what: str, outcomes: list[Outcome]) -> str:
    """One line of the table."""
    total = lambda field: sum(getattr(each, field) for each in outcomes)
    slowest = max(each.longest for each in outcomes)
    versions = sorted(set().union(*(each.versions for each in outcomes)))
    return (
        f"| {what} | {len(outcomes)} | {total('requests')} | {total('failed')} "
        f"| {total('wrong')} | {total('retried')} | {slowest:.2f} "
        f"| {', '.join(map(str, versions))} |"
    )


class Server:
    """The embedded server over one folder, as a process that can be killed."""

    def __init__(self, base: Path):
        self._base = base
        self._ports = ("0", "0")
        self.start()

    def start(self) -> None:
        """Starts it, on the ports that it had before, and waits until it answers."""
        grpc_port, rest_port = self._ports
        flags = [
            f"--model_base_path={self._base}",
            f"--port={grpc_port}",
            f"--rest_api_port={rest_port}",
            "--file_system_poll_wait_seconds=0.2",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tfrec_attn.serve", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r"gRPC on \S+:(\d+), REST on \S+:(\d+)", line)
        if not found:
            raise OSError(f"python -m tfrec_attn.serve {' '.join(flags)} did not start.")
        self._ports = (found[1], found[2])
        self.ask = caller("gRPC", self.targets["gRPC"])
        tenacity.Retrying(stop=tenacity.stop_after_delay(PATIENCE))(self.ask, 1.0)

    @property
    def targets(self) -> dict[str, str]:
        """By protocol, where it listens."""
        return {
            "gRPC": f"127.0.0.1:{self._ports[0]}",
            "REST": f"127.0.0.1:{self._ports[1]}",
        }

    def kill(self) -> None:
        """Ends it without a chance to finish anything."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends it as it should be."""
        self._process.terminate()
        self._process.wait(60)


@contextlib.contextmanager
def served() -> Iterator[tuple[Server, Path, Path]]:
    """A server of version 1; yields it, its folder, and where the other versions lie."""
    with tempfile.TemporaryDirectory() as folder:
        base, later = Path(folder, MODEL), Path(folder, "later")
        save(base / "1", 1)
        for version in NEW_VERSIONS:
            save(later / str(version), version)
        server = Server(base)
        try:
            yield server, base, later
        finally:
            server.stop()


def save(path: Path, version: int) -> None:
    """A SavedModel that multiplies by its version."""
    import tensorflow as tf

    module = tf.Module()
    module.factor = tf.Variable(float(version))
    call = tf.function(lambda x: {"y": module.factor * x})
    signature = call.get_concrete_function(x=tf.TensorSpec([None], tf.float32, "x"))
    tf.saved_model.save(module, str(path), signatures=signature)


def run(args: argparse.Namespace, disturb: Callable, patience: float) -> list[Outcome]:
    """Lets the clients ask while the server is disturbed at even distances."""
    context = multiprocessing.get_context("spawn")
    counts = [context.Value("L", 0) for _ in range(args.clients)]
    over, answers = context.Event(), context.Queue()
    with served() as (server, base, later):
        clients = []
        for index, count in enumerate(counts):
            protocol = ("gRPC", "REST")[index % 2]
            told = (protocol, server.targets[protocol], patience, count, over, answers)
            clients.append(context.Process(target=one_client, args=told, daemon=True))
            clients[-1].start()
        try:
            disturb(args.requests, counts, server, base, later)
            wait_for(args.requests, counts)
        finally:
            over.set()
        outcomes = [answers.get(timeout=PATIENCE + 60) for _ in clients]
        for client in clients:
            client.join()
    return outcomes


def wait_for(requests: int, counts: list) -> None:
    """Until the clients have made so many."""
    while sum(count.value for count in counts) < requests:
        time.sleep(0.02)


def swap(requests: int, counts: list, server: Server, base: Path, later: Path) -> None:
    """Moves one new version after the other in, each to be seen before the next."""
    for number, version in enumerate(NEW_VERSIONS, 1):
        wait_for(requests * number // (len(NEW_VERSIONS) + 1), counts)
        (later / str(version)).rename(base / str(version))
        while server.ask(1.0)[0] != version:
            time.sleep(0.02)


def kill(requests: int, counts: list, server: Server, base: Path, later: Path) -> None:
    """Kills and restarts the server."""
    for number in range(1, KILLS + 1):
        wait_for(requests * number // (KILLS + 1), counts)
        server.kill()
        server.start()


def one_client(protocol: str, target: str, patience: float, count, over, answers) -> None:
    """Asks until it is over, and tells what it met."""
    outcome, ask, last = Outcome(), caller(protocol, target), 1
    while not over.is_set():
        x = float(1 + outcome.requests % 1000)
        outcome.requests += 1
        started = time.perf_counter()
        try:
            version, y = patiently(ask, x, patience, outcome)
        except (grpc.RpcError, httpx.HTTPError) as error:
            outcome.failed += 1
            outcome.problem = outcome.problem or f"{protocol}: {error!r}"
        else:
            found = round(y / x)
            known = found in (1, *NEW_VERSIONS) and y == found * x and found >= last
            outcome.wrong += not known or version not in (None, found)
            outcome.versions.add(found)
            last = max(last, found)
        outcome.longest = max(outcome.longest, time.perf_counter() - started)
        count.value += 1
    answers.put(outcome)


def patiently(ask: Callable, x: float, patience: float, outcome: Outcome) -> Any:
    """One request, tried again for so long while the server is unavailable; 0: once."""

    def note(_: Any) -> None:
        outcome.retried += 1

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_unavailable),
        wait=tenacity.wait_random_exponential(0.05, max=1.0),
        stop=tenacity.stop_after_delay(patience),
        before_sleep=note,
        reraise=True,
    )
    return retrying(ask, x)


def is_unavailable(error: BaseException) -> bool:
    """Whether another try may help: nothing that a server says of a request itself."""
    if isinstance(error, grpc.RpcError):
        return error.code() == grpc.StatusCode.UNAVAILABLE
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 503
    return isinstance(error, httpx.TransportError)


def caller(protocol: str, target: str) -> Callable[[float], tuple[int | None, float]]:
    """From x to the version that answered, if it is told, and y."""
    return over_grpc(target) if protocol == "gRPC" else over_rest(target)


def over_grpc(target: str) -> Callable[[float], tuple[int | None, float]]:
    """Calls with the protocol's messages, of which the answer names the version."""
    from tfrec_attn.serve import tensors, wire

    # Or a server that comes back is not tried for up to two minutes.
    options = [("grpc.max_reconnect_backoff_ms", 500)]
    predict = grpc.insecure_channel(target, options).unary_unary(
        "/tensorflow.serving.PredictionService/Predict",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=wire.PredictResponse.FromString,
    )

    def ask(x: float) -> tuple[int | None, float]:
        request = wire.PredictRequest()
        request.model_spec.name = MODEL
        tensors.write(np.array([x], np.float32), request.inputs["x"], packed=True)
        response = predict(request, timeout=30)
        (y,) = tensors.read(response.outputs["y"]).tolist()
        return response.model_spec.version.value, y

    return ask


def over_rest(target: str) -> Callable[[float], tuple[int | None, float]]:
    """Calls with JSON, of which the answer names no version."""
    client = httpx.Client(base_url=f"http://{target}", timeout=30)

    def ask(x: float) -> tuple[int | None, float]:
        answer = client.post(f"/v1/models/{MODEL}:predict", json={"instances": [x]})
        answer.raise_for_status()
        (y,) = answer.json()["predictions"]
        return None, y

    return ask


if __name__ == "__main__":
    sys.exit(main())
