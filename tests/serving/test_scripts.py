"""smoke.sh against a stand-in for Docker, and what secrets.sh makes."""

import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.serving import door, files, text_protos

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
sys.path.insert(0, str(files.SERVING))
import same_answers
import toys

SMOKE = files.SERVING / "smoke.sh"
# `run` starts nothing: the server that stands for the container runs in the test.
DOCKER = """#!/usr/bin/env bash
echo "$@" >> "$CALLS"
case $1 in
    port) [ "$3" = 8500/tcp ] && echo "127.0.0.1:$GRPC" || echo "127.0.0.1:$REST" ;;
    inspect) echo "$RUNNING" ;;
esac
"""


@pytest.mark.parametrize("script", sorted(files.SERVING.glob("*.sh")), ids=lambda p: p.name)
def test_shellcheck_finds_nothing(script):
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert script.stat().st_mode & stat.S_IXUSR


@pytest.fixture
def smoke(tmp_path):
    """Runs smoke.sh; returns the finished process and the calls of docker."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(0o755)
    calls = tmp_path / "calls"

    def run(*args, running="true", grpc_port=1, rest_port=1):
        own = {"CALLS": calls, "GRPC": grpc_port, "REST": rest_port, "RUNNING": running}
        path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = os.environ | {name: str(value) for name, value in own.items()}
        done = subprocess.run(
            [SMOKE, *args], capture_output=True, text=True, env=env | {"PATH": path}
        )
        return done, calls.read_text().splitlines() if calls.exists() else []

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / files.MODEL
    toys.save_recommender(folder / "1")
    return folder


def test_the_same_model_passes(base, smoke):
    with toys.live(base, files.MODEL) as (running, _):
        ports = {"grpc_port": running.grpc_port, "rest_port": running.rest_port}
        done, calls = smoke(base, "1", **ports)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 of 2 answers are the same; scores differ by 0.0e+00 at most.\n"
    start = calls[0]
    assert f"--volume {base}:/models/{files.MODEL}:ro" in start
    assert f"--env MODEL_NAME={files.MODEL} {files.IMAGE}" in start
    assert calls[-1].startswith("rm --force tfrec-attn-smoke-")


def test_a_container_that_stops_fails(base, smoke):
    done, calls = smoke(base, running="false")
    assert done.returncode == 1
    assert "has no version of movielens ready" in done.stderr
    assert [call.split()[0] for call in calls[-2:]] == ["logs", "rm"]


@pytest.mark.parametrize(
    ("args", "words"),
    [((), "name an exported model"), (("no/such",), "no/such is no folder. Export")],
)
def test_nothing_to_try(smoke, args, words):
    done, calls = smoke(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert not calls


def answer(scores, known=True):
    items = [{"id": name, "score": value, "text": name} for name, value in scores.items()]
    return {"items": items, "known_user": known}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (answer({"a": 2.0, "b": 1.0}), 0.0),
        (answer({"b": 1.25, "a": 2.0}), 0.25),
        (answer({"a": 2.0, "c": 1.0}), float("inf")),
        (answer({"a": 2.0}), float("inf")),
        (answer({"a": 2.0, "b": float("nan")}), float("inf")),
        (answer({"a": 2.0, "b": 1.0}, known=False), float("inf")),
    ],
)
def test_what_counts_as_the_same(other, difference):
    assert same_answers.difference(answer({"a": 2.0, "b": 1.0}), other) == difference


def test_another_answer_is_told(tmp_path, capsys):
    lines = [answer({"a": 2.0}), answer({"a": 2.0}), answer({"a": 2.0}), answer({"a": 3.0})]
    file = tmp_path / "answers"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert same_answers.main(file) == 1
    assert (
        "1 of 2 answers are the same; scores differ by 1.0e+00" in capsys.readouterr().out
    )


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    return door.make_secrets(tmp_path_factory.mktemp("checkout")).parent


def test_secrets_are_their_owners_alone(secrets):
    made = [secrets, *secrets.rglob("*")]
    assert {path.stat().st_mode & 0o077 for path in made} == {0}


def test_a_second_call_changes_nothing(secrets):
    content = lambda: {
        path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()
    }
    before = content()
    script = secrets.parent / "serving" / "secrets.sh"
    subprocess.run([script, "other"], check=True, capture_output=True)
    assert content() == before


def test_ssl_config_holds_what_grpc_takes(secrets):
    """A server of its texts, asked by a client with and without a certificate."""
    config = text_protos.parse("SSLConfig", secrets / "ssl.config")
    assert config.client_verify
    pair = (config.server_key.encode(), config.server_cert.encode())
    credentials = grpc.ssl_server_credentials([pair], config.custom_ca.encode(), True)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    authority = (secrets / "ca.pem").read_bytes()

    def ask(*own):
        trusted = grpc.ssl_channel_credentials(authority, *own)
        with grpc.secure_channel(f"localhost:{port}", trusted) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            return check(health_pb2.HealthCheckRequest(), timeout=10).status

    assert ask(*pair) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError):
        ask()
    server.stop(None)


def test_without_openssl_nothing_is_left_half_made(tmp_path):
    script = tmp_path / "serving" / "secrets.sh"
    script.parent.mkdir()
    shutil.copy(files.SERVING / "secrets.sh", script)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "env"):
        (tools / name).symlink_to(shutil.which(name))
    run = subprocess.run([script], capture_output=True, env={"PATH": str(tools)})
    assert run.returncode != 0
    assert not [path for path in (tmp_path / "secrets").rglob("*") if path.is_file()]
