"""envoy.yaml run by Envoy before the embedded server: who gets in, how often, to what."""

import base64
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import grpc
import httpx
import pytest

from tests.serving import door, files
from tfrec_attn.serve import wire

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))
import toys

METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
ALLOWED = [
    ("GET", "/v1/models/movielens"),
    ("GET", "/v1/models/movielens/metadata"),
    ("GET", "/v1/models/movielens/versions/1/metadata"),
    ("POST", "/v1/models/movielens:predict"),
    ("POST", "/v1/models/movielens/versions/1:predict"),
    ("POST", "/v1/models/movielens/labels/canary:predict"),
]
REFUSED = [
    ("GET", "/monitoring/prometheus/metrics"),
    ("GET", "/v1/models/movielens:predict"),
    ("POST", "/v1/models/movielens:classify"),
    ("POST", "/v1/models/movielens/metadata"),
    ("DELETE", "/v1/models/movielens"),
    ("GET", "/v1/models/a/b"),
    ("GET", "/v1/models/movielens/../../../monitoring/prometheus/metrics"),
    ("GET", "/v1/models/.."),
    ("GET", "/"),
]
REFUSED_GRPC = [
    "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
    "/tensorflow.serving.PredictionService/Classify",
    "/tensorflow.serving.SessionService/SessionRun",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    return door.make_secrets(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / files.MODEL
    toys.save_recommender(base / "1")
    with toys.live(base, files.MODEL) as (running, _):
        yield running


@pytest.fixture(scope="module")
def front(secrets, server):
    with door.before(secrets, server.grpc_port, server.rest_port) as found:
        yield found


@pytest.fixture(scope="module")
def headers(secrets):
    return {"x-api-key": door.api_key(secrets)}


@pytest.fixture
def http(front):
    with door.rest(front) as client:
        yield client


@pytest.fixture
def channel(front):
    with grpc_of(front) as opened:
        yield opened


def grpc_of(front):
    trusted = grpc.ssl_channel_credentials(front.authority.read_bytes())
    return grpc.secure_channel(f"localhost:{front.calls}", trusted)


def call(channel, method, headers=()):
    """A metadata request to any method; the answer's bytes."""
    request = wire.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = files.MODEL
    ask = channel.unary_unary(method, lambda one: one.SerializeToString(), lambda one: one)
    return ask(request, metadata=tuple(dict(headers).items()), timeout=20)


def test_the_shipped_file_is_valid(secrets, tmp_path):
    """As it is, but for the folder of the secrets."""
    text = files.ENVOY.read_text("utf-8").replace("/etc/envoy/secrets", str(secrets))
    config = tmp_path / "envoy.yaml"
    config.write_text(text)
    command = [door.BINARY, "--mode", "validate", "-c", config]
    found = subprocess.run(command, capture_output=True, text=True)
    assert "configuration '" in found.stdout, found.stderr
    assert found.stdout.endswith("OK\n"), found.stderr


@pytest.mark.parametrize(("method", "path"), ALLOWED)
def test_what_clients_may_call_reaches_the_server(http, headers, method, path):
    body = {} if method == "POST" else None
    answer = http.request(method, path, json=body, headers=headers)
    assert answer.status_code in (200, 400, 404)
    assert answer.headers["server"] == "envoy"
    assert "x-envoy-upstream-service-time" in answer.headers


@pytest.mark.parametrize(("method", "path"), REFUSED)
def test_all_else_is_refused_before_the_server(http, headers, method, path):
    # httpx would resolve the dots itself.
    url = httpx.URL(http.base_url, raw_path=path.encode())
    answer = http.send(http.build_request(method, url, headers=headers))
    assert answer.status_code == 403
    assert answer.json() == {"error": "This call is not open to clients."}
    assert "x-envoy-upstream-service-time" not in answer.headers


def test_grpc_reaches_the_server(channel, headers):
    answer = wire.GetModelMetadataResponse.FromString(call(channel, METADATA, headers))
    assert answer.model_spec.name == files.MODEL


@pytest.mark.parametrize("method", REFUSED_GRPC)
def test_all_else_is_refused_over_grpc(channel, headers, method):
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, method, headers)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("given", [{}, {"x-api-key": "no"}, {"x-client": "shop"}])
def test_without_a_key_nobody_gets_in(http, channel, given):
    assert http.get("/v1/models/movielens", headers=given).status_code == 401
    with pytest.raises(grpc.RpcError) as refused:
        call(channel, METADATA, given)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_without_tls_nobody_gets_in(front):
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://localhost:{front.calls}/v1/models/movielens")


def test_a_large_request_is_refused(http, headers):
    answer = http.post(
        "/v1/models/movielens:predict", content=b" " * 4194305, headers=headers
    )
    assert answer.status_code == 413


def test_a_client_is_limited_whatever_name_it_claims(secrets, server, headers):
    """100 a second: the bucket is empty before 300 calls are through."""
    with door.before(secrets, server.grpc_port, server.rest_port) as front:
        with door.rest(front) as http:
            names = (headers | {"x-client": str(number)} for number in range(300))
            statuses = (http.get("/nowhere", headers=name).status_code for name in names)
            assert 429 in statuses
        with grpc_of(front) as channel:
            calls = (refusal(channel, headers) for _ in range(300))
            assert grpc.StatusCode.RESOURCE_EXHAUSTED in calls


def refusal(channel, headers):
    """The code with which a call is refused, None for an answer."""
    try:
        call(channel, METADATA, headers)
    except grpc.RpcError as error:
        return error.code()
    return None


def test_only_its_figures_are_open_of_the_admin_interface(front):
    base = f"http://localhost:{front.figures}"
    found = httpx.get(f"{base}/stats/prometheus").text
    healthy = 'envoy_cluster_membership_healthy{envoy_cluster_name="tfserving_grpc"} 1'
    assert healthy in found
    assert httpx.get(f"{base}/config_dump").status_code == 404


def test_a_new_key_counts_without_a_restart(secrets, http, headers):
    auth = secrets / "auth.yaml"
    before = auth.read_text()
    added = secrets.parent / "auth.yaml"
    added.write_text(f"{before}        - {{client: app, key: another}}\n")
    added.replace(auth)
    accepted(http, {"x-api-key": "another"})
    accepted(http, headers)


def accepted(http, headers):
    """Asks until the door lets these headers in: it hears of its file from the system."""
    limit = time.monotonic() + 20
    while http.get("/v1/models/movielens", headers=headers).status_code != 200:
        assert time.monotonic() < limit, "still refused"


def coded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def openssl(*args, **more):
    command = ["openssl", *map(str, args)]
    return subprocess.run(command, check=True, capture_output=True, **more).stdout


def make_key(folder):
    """A key to sign tokens with, and its public part as jwks.json."""
    openssl("genrsa", "-out", folder / "jwt.key", 2048)
    told = openssl("rsa", "-in", folder / "jwt.key", "-noout", "-modulus").decode()
    modulus = coded(bytes.fromhex(told.partition("=")[2])).decode()
    public = {"kty": "RSA", "alg": "RS256", "e": "AQAB", "n": modulus}
    (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))


def sign(folder, **claims):
    """A token; a claim that is None is left out."""
    given = {name: value for name, value in claims.items() if value is not None}
    parts = [{"alg": "RS256", "typ": "JWT"}, given]
    text = b".".join(coded(json.dumps(part).encode()) for part in parts)
    signature = openssl("dgst", "-sha256", "-sign", folder / "jwt.key", input=text)
    return (text + b"." + coded(signature)).decode()


def test_tokens_in_place_of_keys(secrets, server, tmp_path):
    """jwt.yaml as auth.yaml: only its folder is another one."""
    own = tmp_path / "door"
    shutil.copytree(secrets, own)
    shutil.copy(secrets.parent / "ca.pem", tmp_path)
    text = (files.SERVING / "jwt.yaml").read_text("utf-8")
    (own / "auth.yaml").write_text(text.replace("/etc/envoy/secrets", str(own)))
    claims = {"iss": "https://login.example.com", "aud": "recommendations", "sub": "shop"}
    make_key(own)
    good = sign(own, **claims, exp=int(time.time()) + 600)
    head, body, signature = good.split(".")
    with (
        door.before(own, server.grpc_port, server.rest_port) as front,
        door.rest(front) as http,
    ):
        for given, status in [(good, 200), (f"{head}.{body}x.{signature}", 401)]:
            bearer = {"authorization": f"Bearer {given}"}
            answer = http.get("/v1/models/movielens", headers=bearer)
            assert answer.status_code == status
        assert http.get("/v1/models/movielens").status_code == 401
        # Without a `sub` nobody is known by name, not even by the one that is claimed: no
        # limit of one client's, and 350 calls are within that of all.
        unnamed = claims | {"sub": None, "exp": int(time.time()) + 600}
        claimed = {"authorization": f"Bearer {sign(own, **unnamed)}", "x-client": "app"}
        ask = lambda: http.get("/nowhere", headers=claimed).status_code
        assert {ask() for _ in range(350)} == {403}
