"""What is tried again, and until when, of both clients over both protocols."""

import pathlib
import socket
import subprocess
import sys
import threading

import grpc
import pytest
import scripted
from asking import ask, both, either

from tfrec_attn.serve.client import Client, ServerError
from tfrec_attn.serve.client.retries import RETRIED, Deadline
from tfrec_attn.serve.client.transports import _CODES

metadata = lambda client: client.metadata()
REFUSALS = [
    *(("grpc", code.name, code.name) for code in grpc.StatusCode if code.value[0]),
    *(("rest", status, code) for status, code in _CODES.items()),
    ("rest", 418, "UNKNOWN"),
]


@either
@pytest.mark.parametrize(("protocol", "refusal", "code"), REFUSALS)
def test_each_code_is_tried_again_or_raised(kind, protocol, refusal, code):
    with scripted.serving(protocol) as (server, target):
        server.script = [refusal]
        if code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
            assert ask(kind, target, metadata, protocol=protocol).version == 3
            assert len(server.asked) == 2
            return
        with pytest.raises(ServerError, match="as told") as caught:
            ask(kind, target, metadata, protocol=protocol)
        assert caught.value.code == code
        assert len(server.asked) == 1


def test_the_codes_of_both_protocols_reach_the_rule():
    assert {"UNAVAILABLE", "RESOURCE_EXHAUSTED"} == RETRIED < set(_CODES.values())


@either
@both
def test_without_retries_a_refusal_is_final(kind, protocol):
    with scripted.serving(protocol) as (server, target):
        server.script = ["UNAVAILABLE" if protocol == "grpc" else 503]
        with pytest.raises(ServerError, match="UNAVAILABLE: as told"):
            ask(kind, target, metadata, protocol=protocol, retry=False)
        assert len(server.asked) == 1


@either
@both
def test_a_refusal_that_outlasts_the_deadline_is_raised(kind, protocol):
    with scripted.serving(protocol) as (server, target):
        server.script = ["UNAVAILABLE" if protocol == "grpc" else 503] * 1000
        with pytest.raises(ServerError, match="UNAVAILABLE: as told"):
            ask(kind, target, metadata, protocol=protocol, timeout=1)
        assert 2 <= len(server.asked) < 1000


@either
@both
def test_a_server_that_does_not_answer_is_given_up_at_the_deadline(kind, protocol):
    with scripted.serving(protocol) as (server, target):
        server.hold = True
        with pytest.raises(ServerError) as caught:
            ask(
                kind, target, lambda client: client.metadata(timeout=0.2), protocol=protocol
            )
        assert caught.value.code == "DEADLINE_EXCEEDED"
        assert len(server.asked) == 1


@either
def test_an_answer_that_drips_is_given_up_at_the_deadline(kind):
    with scripted.serving("rest") as (server, target):
        server.drip = True
        with pytest.raises(ServerError, match=r"DEADLINE_EXCEEDED: no answer within 0.5 s"):
            ask(kind, target, metadata, protocol="rest", timeout=0.5)


@either
@both
def test_all_requests_of_a_call_share_its_deadline(kind, protocol):
    """The metadata that a first call asks for is of its time."""
    with scripted.serving(protocol) as (server, target):
        server.hold = True
        twice = lambda client: client.predict("twice", {"x": [4]}, timeout=0.2)
        with pytest.raises(ServerError, match="DEADLINE_EXCEEDED"):
            ask(kind, target, twice, protocol=protocol)
        assert len(server.asked) == 1


@pytest.mark.parametrize("seconds", [0, -1.5, float("nan")])
def test_a_deadline_is_positive(seconds):
    with pytest.raises(ValueError, match="timeout must be positive, in seconds: received"):
        Deadline(seconds)
    with pytest.raises(ValueError, match="timeout must be positive"):
        Client(timeout=seconds)


def free_port():
    with socket.create_server(("localhost", 0)) as one:
        return one.getsockname()[1]


@pytest.fixture
def restart():
    """Kills the scripted server, if one runs, and starts it anew on the same two ports."""
    ports, running = [free_port(), free_port()], []

    def kill():
        for process in running:
            process.kill()
            process.communicate()

    def again():
        kill()
        program = [sys.executable, str(pathlib.Path(scripted.__file__)), *map(str, ports)]
        running[:] = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True)]
        assert running[0].stdout.readline() == "ready\n"
        return ports

    yield again
    kill()


def test_a_kill_and_restart_loses_no_call(restart):
    """Four clients count upwards while their server is killed under them, twice."""
    grpc_port, rest_port = restart()
    counted, wrong = [threading.Semaphore(0) for _ in range(4)], []
    stop = threading.Event()

    def count(done, protocol, port):
        with Client(f"localhost:{port}", "m", protocol=protocol, timeout=60) as client:
            number = 0
            while not stop.is_set():
                try:
                    answer = client.predict("twice", {"x": [number, 7]})["y"].tolist()
                except ServerError as error:
                    answer = error
                if answer != [2 * number, 14]:
                    wrong.append(answer)
                number += 1
                done.release()

    targets = [("grpc", grpc_port), ("rest", rest_port)] * 2
    threads = [
        threading.Thread(target=count, args=(done, *target), daemon=True)
        for done, target in zip(counted, targets, strict=True)
    ]
    for thread in threads:
        thread.start()
    # Between the kills, and after the last, every client has calls answered.
    for kill in (True, True, False):
        for done in counted * 20:
            assert done.acquire(timeout=60), wrong
        if kill:
            restart()
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not wrong
