"""The manifests by the schemas of Kubernetes, and what they have of one another."""

import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from tests.serving import files, text_protos

FOLDER = files.SERVING / "kubernetes"
KUSTOMIZATION = files.document(files.SERVING / "kustomization.yaml")
LISTED = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in files.documents(files.SERVING / name)
]
# The oldest that is looked at, and the newest that the package has.
VERSIONS = ["1.30", "1.37"]


def one(kind, name="tfserving"):
    (found,) = [
        document
        for document in LISTED
        if (document["kind"], document["metadata"]["name"]) == (kind, name)
    ]
    return found


def pod(name="tfserving"):
    return one("Deployment", name)["spec"]["template"]


def container(name="tfserving"):
    (found,) = pod(name)["spec"]["containers"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "manifest", LISTED, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}"
)
def test_the_schema_holds(manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_sees_a_misspelt_field():
    wrong = {"kind": "Service", "apiVersion": "v1", "spec": {"clusterIp": "None"}}
    with pytest.raises(kubernetes_validate.ValidationError, match="clusterIp"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_manifest_is_listed_or_named_as_an_alternative():
    others = {"kserve.yaml", "from-bucket.yaml"}
    listed = {name.removeprefix("kubernetes/") for name in KUSTOMIZATION["resources"]}
    assert {path.name for path in FOLDER.iterdir()} == listed | others


def test_the_config_maps_hold_the_files_that_are_read():
    maps = {one["name"]: one["files"] for one in KUSTOMIZATION["configMapGenerator"]}
    for names in maps.values():
        assert all((files.SERVING / name).is_file() for name in names)
    flags = files.flags(container()["args"])
    read = {flags["model_config_file"], flags["monitoring_config_file"]}
    assert read <= {f"/serving/{name}" for name in maps["tfserving"]}
    mounted = {one["name"]: one["mountPath"] for one in container()["volumeMounts"]}
    assert mounted["serving"] == "/serving"
    volumes = {
        volume["configMap"]["name"]
        for name in ("tfserving", "envoy")
        for volume in pod(name)["spec"]["volumes"]
        if "configMap" in volume
    }
    assert volumes == set(maps)


def test_the_server_runs_as_with_compose():
    service = files.document(files.COMPOSE)["services"]["tfserving"]
    assert container()["image"] == service["image"] == files.IMAGE
    assert container()["args"] == service["command"]
    assert container()["command"] == service["entrypoint"]
    envoy = files.document(files.COMPOSE)["services"]["envoy"]
    assert container("envoy")["image"] == envoy["image"]
    assert container("envoy")["args"] == envoy["command"]


def test_probes_ask_for_the_model_that_is_configured():
    config = text_protos.parse("ModelServerConfig", files.SERVING / "models.config")
    (model,) = config.model_config_list.config
    metadata = {"path": f"/v1/models/{model.name}/metadata", "port": "rest"}
    for probe in ("startupProbe", "readinessProbe"):
        assert container()[probe]["httpGet"] == metadata
    assert "httpGet" not in container()["livenessProbe"]


def test_ports_are_those_of_the_flags():
    flags = files.flags(container()["args"])
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"grpc": int(flags["port"]), "rest": int(flags["rest_api_port"])}
    service = one("Service")["spec"]
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    annotations = pod()["metadata"]["annotations"]
    monitoring = text_protos.parse("MonitoringConfig", files.SERVING / "monitoring.config")
    assert annotations["prometheus.io/path"] == monitoring.prometheus_config.path
    assert annotations["prometheus.io/port"] == flags["rest_api_port"]


def test_the_door_finds_every_pod():
    """STRICT_DNS takes all addresses of a headless service, and its name is Envoy's."""
    service = one("Service")
    assert service["spec"]["clusterIP"] == "None"
    clusters = files.document(files.ENVOY)["static_resources"]["clusters"]
    names = {
        one["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"][
            "socket_address"
        ]["address"]
        for one in clusters
        if one.get("type") == "STRICT_DNS"
    }
    assert names == {service["metadata"]["name"]}


def test_selectors_select_the_pods():
    for name in ("tfserving", "envoy"):
        labels = pod(name)["metadata"]["labels"]
        assert one("Deployment", name)["spec"]["selector"]["matchLabels"] == labels
        assert one("Service", name)["spec"]["selector"] == labels
    budget, policy = one("PodDisruptionBudget"), one("NetworkPolicy")
    labels = pod()["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    door, prometheus = policy["spec"]["ingress"]
    allowed = door["from"][0]["podSelector"]["matchLabels"]
    assert allowed == pod("envoy")["metadata"]["labels"]
    flags = files.flags(container()["args"])
    assert {port["port"] for port in door["ports"]} == {
        int(flags["port"]),
        int(flags["rest_api_port"]),
    }
    # Prometheus gets no way to gRPC, where HandleReloadConfigRequest is.
    assert prometheus["ports"] == [{"port": int(flags["rest_api_port"])}]


@pytest.mark.parametrize("name", ["tfserving", "envoy"])
def test_pods_are_hardened_and_end_in_order(name):
    spec = pod(name)["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    own = container(name)["securityContext"]
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert own["capabilities"]["drop"] == ["ALL"]
    sleep, seconds = container(name)["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    # What still runs after preStop has as long as the longest call.
    longest = int(files.flags(container()["args"])["rest_api_timeout_in_ms"]) / 1000
    assert int(seconds) + longest <= spec["terminationGracePeriodSeconds"]
    assert "limits" in container(name)["resources"]


def test_the_scaler_scales_the_deployment():
    scaler, deployment = one("HorizontalPodAutoscaler")["spec"], one("Deployment")
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    assert "cpu" in container()["resources"]["requests"]
    assert scaler["minReplicas"] > one("PodDisruptionBudget")["spec"]["maxUnavailable"]


def test_a_bucket_goes_where_the_models_are_read():
    patch = files.document(FOLDER / "from-bucket.yaml")
    assert patch["metadata"]["name"] == one("Deployment")["metadata"]["name"]
    (copy,) = patch["spec"]["template"]["spec"]["initContainers"]
    (mount,) = copy["volumeMounts"]
    read = [one for one in container()["volumeMounts"] if one["name"] == mount["name"]]
    assert [one["mountPath"] for one in read] == [mount["mountPath"]]
    assert copy["args"][2] == f"/models/{files.MODEL}"


def test_kserve_serves_the_same():
    runtime, service = files.documents(FOLDER / "kserve.yaml")
    (its,) = runtime["spec"]["containers"]
    assert its["image"] == files.IMAGE
    ours, theirs = files.flags(container()["args"]), files.flags(its["args"])
    for name in ("monitoring_config_file", "rest_api_timeout_in_ms"):
        assert theirs[name] == ours[name]
    assert its["ports"][0]["containerPort"] == int(theirs["rest_api_port"])
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] in runtime["spec"]["supportedModelFormats"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    claim = one("PersistentVolumeClaim", "models")["metadata"]["name"]
    assert model["storageUri"] == f"pvc://{claim}/{service['metadata']['name']}"
    assert service["metadata"]["name"] == files.MODEL


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("bucket", [False, True])
def test_kustomize_builds_what_the_schema_takes(tmp_path, bucket):
    copy = tmp_path / "serving"
    shutil.copytree(files.SERVING, copy)
    if bucket:
        written = KUSTOMIZATION | {"patches": [{"path": "kubernetes/from-bucket.yaml"}]}
        (copy / "kustomization.yaml").write_text(yaml.safe_dump(written))
    built = subprocess.run(["kubectl", "kustomize", copy], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    documents = list(yaml.safe_load_all(built.stdout))
    for document in documents:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    (server,) = [
        document["spec"]["template"]["spec"]
        for document in documents
        if document["kind"] == "Deployment" and document["metadata"]["name"] == "tfserving"
    ]
    (models,) = [one for one in server["volumes"] if one["name"] == "models"]
    assert ("emptyDir" in models) == bucket
    assert ("persistentVolumeClaim" in models) != bucket
