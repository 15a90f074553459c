"""compose.yaml as Docker Compose reads it, and what the services have of one another."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import door, files, text_protos

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
import toys


@pytest.fixture(scope="module")
def services():
    """The services as resolved by Docker Compose itself, which checks the schema."""
    command = ["docker-compose", "--file", files.COMPOSE, "config", "--format", "json"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)["services"]


def mounts(service):
    """What a service sees, by path in it."""
    return {one["target"]: Path(one["source"]) for one in service["volumes"]}


def test_only_the_door_is_open_to_others(services):
    open_ports = {
        name: [(one.get("host_ip"), one["target"]) for one in service.get("ports", [])]
        for name, service in services.items()
    }
    assert open_ports.pop("envoy") == [(None, 8443)]
    assert open_ports.pop("tfserving") == []
    assert {host for ports in open_ports.values() for host, _ in ports} == {"127.0.0.1"}
    assert list(services["tfserving"]["networks"]) == ["inside"]


def test_every_service_is_hardened(services):
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service["image"].endswith("latest")


def test_every_file_that_is_mounted_is_there(services):
    for service in services.values():
        for target, source in mounts(service).items():
            if source.is_absolute() and source.name != "door":
                assert source.exists(), target


def test_tf_serving_reads_the_files_of_this_folder(services):
    serving = services["tfserving"]
    assert serving["image"] == files.IMAGE
    flags = files.flags(serving["command"])
    seen = mounts(serving)
    assert seen["/serving"] == files.SERVING
    for name in ("model_config_file", "monitoring_config_file"):
        path = Path(flags[name])
        assert (seen["/serving"] / path.relative_to("/serving")).is_file()
    config = text_protos.parse("ModelServerConfig", files.SERVING / "models.config")
    (model,) = config.model_config_list.config
    assert Path(model.base_path).parent == Path("/models")
    assert seen["/models"] == files.SERVING.parent / "saved_models"


def test_the_door_leads_to_tf_serving(services):
    flags = files.flags(services["tfserving"]["command"])
    clusters = files.document(files.ENVOY)["static_resources"]["clusters"]
    ends = {
        one["name"]: one["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        for one in clusters
    }
    ports = {"tfserving_grpc": "port", "tfserving_rest": "rest_api_port"}
    for name, flag in ports.items():
        address = ends[name]["address"]["socket_address"]
        assert address == {"address": "tfserving", "port_value": int(flags[flag])}
    checked = ends["tfserving_grpc"]["health_check_config"]["port_value"]
    assert checked == int(flags["rest_api_port"])
    (published,) = services["envoy"]["ports"]
    calls = files.document(files.ENVOY)["static_resources"]["listeners"][0]
    assert published["target"] == calls["address"]["socket_address"]["port_value"]
    assert mounts(services["envoy"])["/etc/envoy/secrets"].name == "door"


def test_the_version_of_envoy_is_the_one_that_is_tested(services):
    told = subprocess.run([door.BINARY, "--version"], capture_output=True, text=True).stdout
    assert f"/{services['envoy']['image'].partition(':v')[2]}/" in told


@pytest.mark.parametrize(("folder", "status"), [(files.MODEL, 0), ("other", 1)])
def test_the_health_check_asks_for_a_version(services, tmp_path, folder, status):
    """The container's command, with the port of a server that has the model or another."""
    toys.save_recommender(tmp_path / folder / "1")
    kind, *command = services["tfserving"]["healthcheck"]["test"]
    assert kind == "CMD"
    with toys.live(tmp_path / folder, folder) as (running, _):
        asked = [
            part.replace("/8501", f"/{running.rest_port}").replace("$$", "$")
            for part in command
        ]
        assert subprocess.run(asked).returncode == status
