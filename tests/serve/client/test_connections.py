"""TLS, headers, and what is asked for, of both clients over both protocols."""

import ssl

import httpx
import pytest
import scripted
import trustme
from asking import ask, both, either

from tfrec_attn.serve.client import Client, ServerError, Tls, transports

metadata = lambda client: client.metadata()
twice = lambda client: client.predict("twice", {"x": [4, -5]})


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(ca, tmp_path_factory):
    """Paths in PEM: the root, and a certificate of the client's with its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = [folder / name for name in ("root.pem", "client.pem", "client.key")]
    own = ca.issue_cert("client@example.org")
    ca.cert_pem.write_to_path(paths[0])
    own.cert_chain_pems[0].write_to_path(paths[1])
    own.private_key_pem.write_to_path(paths[2])
    return paths


@either
@both
def test_mutual_tls(kind, protocol, ca, files):
    with scripted.serving(protocol, ca) as (_, target):
        found = ask(kind, target, twice, protocol=protocol, tls=Tls(*files))
        assert found["y"].tolist() == [8, -10]


@either
@both
def test_a_client_without_a_certificate_is_turned_away(kind, protocol, ca, files):
    with scripted.serving(protocol, ca) as (server, target):
        settings = {"protocol": protocol, "tls": Tls(files[0]), "retry": False}
        with pytest.raises(ServerError, match="UNAVAILABLE"):
            ask(kind, target, metadata, **settings)
        assert not server.asked


@either
@both
def test_a_server_of_another_root_is_not_spoken_to(kind, protocol, ca, files, tmp_path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    with scripted.serving(protocol, ca) as (server, target):
        tls = Tls(tmp_path / "other.pem", *files[1:])
        with pytest.raises(ServerError, match="UNAVAILABLE"):
            ask(kind, target, metadata, protocol=protocol, tls=tls, retry=False)
        assert not server.asked


@either
@both
def test_headers_go_with_every_request(kind, protocol):
    headers = {"X-Api-Key": "s3cret", "authorization": "Bearer abc"}
    with scripted.serving(protocol) as (server, target):
        ask(kind, target, twice, protocol=protocol, headers=headers)
        sent = {name.lower(): value for name, value in server.headers.items()}
        assert (sent["x-api-key"], sent["authorization"]) == ("s3cret", "Bearer abc")


@either
@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({}, "/v1/models/a%20b"),
        ({"version": 3}, "/v1/models/a%20b/versions/3"),
        ({"label": "canary"}, "/v1/models/a%20b/labels/canary"),
    ],
)
def test_a_version_or_a_label_is_asked_for(kind, settings, path):
    with scripted.serving("rest") as (server, target):
        ask(kind, target, twice, "a b", protocol="rest", **settings)
        assert server.asked == [f"{path}/metadata", f"{path}:predict"]
    with scripted.serving("grpc") as (server, target):
        ask(kind, target, twice, "a b", protocol="grpc", **settings)
        for spec in server.asked:
            assert (spec.name, spec.version.value, spec.version_label) == (
                "a b",
                settings.get("version", 0),
                settings.get("label", ""),
            )
        assert [spec.signature_name for spec in server.asked] == ["", "twice"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": 3, "label": "canary"}, "asks for a version or for a label"),
        ({"version": -1}, "version must be a whole number of at least 0: received -1"),
        (
            {"headers": {"x-key": "naïve"}},
            "printable ASCII, name and value: 'x-key' is not",
        ),
        ({"headers": {"x-key": "a\nb"}}, "printable ASCII, .*: 'x-key' is not"),
        (
            {"target": "http://localhost:1", "tls": Tls()},
            "tls needs an address of HTTPS: received 'http://localhost:1'",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        Client(**settings)
    assert "naïve" not in str(caught.value)


def test_a_certificate_needs_its_key():
    with pytest.raises(ValueError, match="certificate and key together, or neither"):
        Tls(certificate="client.pem")
    with pytest.raises(ValueError, match=r"Tls.root names a file in PEM: 'lost.pem' is"):
        Tls(root="lost.pem")


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>", "UNKNOWN: HTTP 200: <html>"),
        (502, b"no upstream", "UNKNOWN: HTTP 502: no upstream"),
        (503, b'{"error": "full"}', "UNAVAILABLE: full"),
        (503, b'["full"]', r"UNAVAILABLE: HTTP 503: \["),
    ],
)
def test_an_answer_of_another_kind_of_server_is_said(status, body, message):
    with pytest.raises(ServerError, match=f"^{message}"):
        transports.read_json(status, body)


@either
def test_an_alert_that_httpx_lets_through_is_an_answer_like_the_others(kind, monkeypatch):
    def alert(*_, **__):
        raise ssl.SSLError(1, "tlsv13 alert certificate required")

    for client, method in ((httpx.Client, "stream"), (httpx.AsyncClient, "request")):
        monkeypatch.setattr(client, method, alert)
    with pytest.raises(ServerError, match=r"UNAVAILABLE: .*certificate required"):
        ask(kind, "http://localhost:1", metadata, retry=False)
