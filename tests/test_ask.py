"""The command against a live toy server: what it prints, and its one line of advice."""

import json
import pathlib
import sys

import grpc
import pytest
import trustme

from tfrec_attn import ask

sys.path.insert(0, str(pathlib.Path(__file__).parent / "serve"))
import toys


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "movielens"
    toys.save_recommender(base / "1")
    with toys.live(base, "movielens") as (running, _):
        yield running


@pytest.fixture(params=["grpc", "rest"])
def where(live, request):
    if request.param == "grpc":
        return ["--target", f"localhost:{live.grpc_port}"]
    return ["--rest", f"http://localhost:{live.rest_port}"]


def test_the_table(where, capsys):
    flags = ["--user", "1", "--history", "i0", "--exclude", "i2", "--k", "2"]
    assert ask.main([*flags, *where]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "rank   score  item  title",
        "   1   6.000  i1    Titel ü i1",
        "   2   4.000  i3    Titel ü i3",
    ]


def test_what_the_model_did_not_know_is_said(where, capsys):
    flags = ["--user", "x", "--profile", "age=30", "--candidate", "i9"]
    for item in ("i0", "a", "b", "c"):
        flags += ["--history", item]
    assert ask.main([*flags, *where]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "(no item is left to recommend)",
        "(the model has not seen this user)",
        "(3 items of the history are unknown)",
        "(the history was longer than the model reads)",
    ]


def test_json(where, capsys):
    assert ask.main(["--user", "1", "--k", "1", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "items": [{"id": "i0", "score": 7.0, "text": "Titel ü i0"}],
        "known_user": True,
        "unknown_history": 0,
        "truncated_history": False,
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--profile", "age"], "--profile must be COLUMN=VALUE: received 'age'."),
        (["--profile", "agee=3"], "The model does not read user_agee; it reads: "),
        (
            ["--header", "secret"],
            "--header must be NAME=VALUE, as in x-api-key=",
        ),
        (["--k", "0"], "k must be a whole number of at least 1: received 0."),
        (["--model", "other"], "has no model other ready: Servable not found for request"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(where, flags, message, capsys):
    assert ask.main(["--user", "1", *where, *flags]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("tfrec_attn.ask: ")
    assert message in error


@pytest.mark.parametrize(
    "flags", [["--target", "localhost:1"], ["--rest", "http://localhost:1"]]
)
def test_nothing_answers(flags, capsys):
    assert ask.main(["--user", "1", *flags]) == 2
    error = capsys.readouterr().err
    protocol = {"--target": "gRPC", "--rest": "REST"}[flags[0]]
    assert f"nothing answers {protocol} at {flags[1]}. Start a server: " in error
    assert error.count("\n") == 1


def test_the_port_of_the_other_protocol(live, capsys):
    for flags in (
        ["--target", f"localhost:{live.rest_port}"],
        ["--rest", f"http://localhost:{live.grpc_port}"],
    ):
        assert ask.main(["--user", "1", *flags]) == 2
        error = capsys.readouterr().err
        assert f"at {flags[1]}. Start a server: " in error
        assert "asks the other protocol" in error


def test_a_url_for_grpc_is_told_of_rest(capsys):
    assert ask.main(["--user", "1", "--target", "http://localhost:8501"]) == 2
    error = capsys.readouterr().err
    assert "--target must be host:port, for gRPC: received 'http://localhost:8501'" in error
    assert "--rest" in error


def test_a_server_that_wants_to_know_who_asks(tmp_path, capsys):
    authority = trustme.CA()
    server, me = authority.issue_cert("localhost"), authority.issue_cert("me")
    chain = lambda one: b"".join(blob.bytes() for blob in one.cert_chain_pems)
    key = lambda one: one.private_key_pem.bytes()
    root, flags = authority.cert_pem.bytes(), []
    for flag, pem in {"ca": root, "certificate": chain(me), "key": key(me)}.items():
        (tmp_path / flag).write_bytes(pem)
        flags += [f"--{flag}", str(tmp_path / flag)]
    credentials = grpc.ssl_server_credentials([(key(server), chain(server))], root, True)
    base = tmp_path / "models/movielens"
    toys.save_recommender(base / "1")
    with toys.live(base, "movielens", credentials) as (running, _):
        asked = ["--user", "1", "--target", f"localhost:{running.grpc_port}"]
        assert ask.main([*asked, *flags]) == 0
        assert "i0" in capsys.readouterr().out
        assert ask.main([*asked, *flags[:2]]) == 2
        assert "nothing answers gRPC" in capsys.readouterr().err


def test_headers():
    args = ask.parser().parse_args(["--header", "x-api-key=a=b", "--header", "b=c"])
    assert ask.identity(args) == {"tls": None, "headers": {"x-api-key": "a=b", "b": "c"}}


def test_a_certificate_that_is_not_there(capsys):
    with pytest.raises(SystemExit, match="2"):
        ask.main(["--user", "1", "--ca", "absent.pem"])
    assert "argument --ca: there is no file 'absent.pem'" in capsys.readouterr().err
