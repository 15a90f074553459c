"""The request log: what a line holds, that nothing waits for it, what a fault leaves."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import toys
from asking import ask

from tfrec_attn.serve import __main__ as command
from tfrec_attn.serve.client import Client
from tfrec_attn.serve.server import model_server, request_log
from tfrec_attn.serve.server import sockets as server
from tfrec_attn.serve.server.logged import LoggedModelServer
from tfrec_attn.serve.server.request_log import Entry, RequestLog
from tfrec_attn.user_keys import UserKey

KEY = UserKey(b"0123456789abcdef")


def lines(folder):
    return [
        json.loads(line)
        for file in sorted(folder.glob("requests-*.jsonl"))
        for line in file.read_text("utf-8").splitlines()
    ]


def entry(user="42", **outputs):
    inputs = {"user_id": np.array([user.encode()], object), "k": np.array([2], np.int32)}
    outputs = outputs or {"score": np.float32([[0.5]])}
    return Entry(1.5, "m", 7, "score", inputs, outputs, 0.0025)


def test_a_line():
    found = json.loads(request_log.line(entry(), None))
    assert len(found.pop("id")) == 32
    assert found == {
        "time": 1500,
        "model": "m",
        "version": 7,
        "signature": "score",
        "user_key": None,
        "inputs": {"user_id": ["42"], "k": [2]},
        "outputs": {"score": [[0.5]]},
        "latency_ms": 2.5,
    }


def test_a_line_with_users_hashed_says_by_which_key():
    found = json.loads(request_log.line(entry(), KEY))
    assert found["user_key"] == KEY.name
    assert found["inputs"]["user_id"] == [KEY.hash("42")]
    assert "42" not in json.dumps(found["inputs"])


def test_bytes_that_are_no_text_do_not_break_a_line():
    found = request_log.line(entry(item_id=np.array([[b"\xff"]], object)), None)
    assert json.loads(found)["outputs"]["item_id"] == [["\\xff"]]


@pytest.fixture(params=["grpc", "rest"])
def logged(request, tmp_path):
    """A target of a server whose requests are logged, its protocol, and the log."""
    toys.save_recommender(tmp_path / "models" / "1")
    log = RequestLog(tmp_path / "log")
    models = LoggedModelServer(
        [model_server.Model("movielens", tmp_path / "models")], log=log
    )
    running = server.start(models, "127.0.0.1", 0, 0)
    models.poll()
    try:
        port = getattr(running, f"{request.param}_port")
        yield f"127.0.0.1:{port}", request.param, log
    finally:
        running.stop(grace=5)
        log.close()


def closed(log):
    """The lines once all are written."""
    log.close()
    return lines(log.folder)


def test_what_is_asked_and_answered_is_logged(logged):
    target, protocol, log = logged
    call = lambda client: client.recommend(["1", "7"], [["i0"], []], k=[2, 1])
    ask(Client, target, call, "movielens", protocol=protocol)
    (found,) = closed(log)
    assert (found["model"], found["version"]) == ("movielens", 1)
    assert found["signature"] == "serving_default"
    assert found["inputs"]["user_id"] == ["1", "7"]
    assert found["inputs"]["history"] == [["i0"], [""]]
    assert found["outputs"] == {
        "item_id": [["i1", "i2"], ["i0", ""]],
        "score": [[6.0, 5.0], [7.0, 6.0]],
        "valid": [[True, True], [True, False]],
    }
    assert found["latency_ms"] > 0


def test_a_refused_request_is_not_logged(logged):
    target, protocol, log = logged
    with Client(target, "movielens", protocol=protocol) as client:
        with pytest.raises(ValueError, match="no signature"):
            client.predict("nothing", {})
        client.score("1", ["i3"])
    (found,) = closed(log)
    assert found["signature"] == "score"


def stuck(monkeypatch):
    """Makes the writer wait; returns what is set once it does, and what lets it go."""
    waiting, go = threading.Event(), threading.Event()
    write = RequestLog._append

    def held(self, text):
        waiting.set()
        go.wait(30)
        write(self, text)

    monkeypatch.setattr(RequestLog, "_append", held)
    return waiting, go


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path, monkeypatch, caplog):
    waiting, go = stuck(monkeypatch)
    log = RequestLog(tmp_path, waiting=3)
    log.offer(entry("first"))
    assert waiting.wait(30)
    for number in range(10):
        log.offer(entry(str(number)))
    assert log.lost == 7
    # One warning now, not seven.
    assert [record.message for record in caplog.records] == [
        "1 requests were not logged so far; the last: the queue is full"
    ]
    go.set()
    log.close()
    assert [line["inputs"]["user_id"][0] for line in lines(tmp_path)] == [
        "first", "0", "1", "2",
    ]  # fmt: skip
    assert caplog.records[-1].message == "7 requests were not logged in all"


def test_a_sample_is_a_share(tmp_path, monkeypatch):
    drawn = iter([0.0, 0.09, 0.1, 0.5, 0.99, 0.05])
    monkeypatch.setattr(request_log.random, "random", lambda: next(drawn))
    log = RequestLog(tmp_path, share=0.1)
    for number in range(6):
        log.offer(entry(str(number)))
    log.close()
    assert [line["inputs"]["user_id"][0] for line in lines(tmp_path)] == ["0", "1", "5"]
    assert log.lost == 0


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan")])
def test_a_share_out_of_its_range_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match="above 0 and at most 1: received"):
        RequestLog(tmp_path, share)


def test_files_are_left_when_large_and_after_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(request_log, "_LARGEST_FILE", 1)
    log = RequestLog(tmp_path)
    for number in range(3):
        log.offer(entry(str(number)))
    log.close()
    files = sorted(tmp_path.glob("*.jsonl"))
    assert [len(file.read_text().splitlines()) for file in files] == [1, 1, 1]


def test_after_a_full_disk_the_next_line_begins_a_file(tmp_path, caplog):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        tell, close = (lambda self: 0), (lambda self: None)

    log = RequestLog(tmp_path)
    log._file.close()
    log._file = Full()
    log.offer(entry("lost"))
    log.offer(entry("kept"))
    log.close()
    assert log.lost == 1
    assert "No space left on device" in caplog.text
    assert [line["inputs"]["user_id"] for line in lines(tmp_path)] == [["kept"]]


def test_a_line_beyond_the_limit_is_counted(tmp_path, monkeypatch):
    """The second is below it as values, and beyond as a line."""
    monkeypatch.setattr(request_log, "_LONGEST_LINE", 300)
    log = RequestLog(tmp_path)
    for user in ("x" * 293, "x" * 292, "y"):
        log.offer(entry(user))
    log.close()
    assert log.lost == 2
    assert [line["inputs"]["user_id"] for line in lines(tmp_path)] == [["y"]]


def test_a_killed_process_leaves_what_was_written(tmp_path):
    """The line is with the system once it is written: nothing waits in a buffer."""
    program = f"""
import os, pathlib, signal
import numpy as np
from tfrec_attn.serve.server.request_log import Entry, RequestLog
write = RequestLog._append
RequestLog._append = lambda *line: (write(*line), os.kill(os.getpid(), signal.SIGKILL))
log = RequestLog(pathlib.Path({str(tmp_path)!r}))
log.offer(Entry(1.5, "m", 7, "score", {{"user_id": np.array([b"u"], object)}}, {{}}, 0.0))
log._thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program])
    assert done.returncode == -9
    assert [line["inputs"]["user_id"] for line in lines(tmp_path)] == [["u"]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--log-requests-sample", "0.1"],
            "--log-requests-sample needs --log-requests DIR",
        ),
        (["--log-requests-hash-users"], "--log-requests-hash-users needs --log-requests"),
        (
            ["--log-requests", "{log}", "--log-requests-key-file", "k"],
            "--log-requests-key-file needs --log-requests-hash-users",
        ),
        (
            ["--log-requests", "{log}", "--log-requests-sample", "0"],
            "above 0 and at most 1",
        ),
        (
            ["--log-requests", "{log}", "--log-requests-hash-users"],
            "set TFREC_ATTN_USER_KEY",
        ),
        (["--log-requests", "/dev/null/log"], "/dev/null/log"),
    ],
)
def test_flags_that_do_not_go_together(toy, tmp_path, flags, message, capsys, monkeypatch):
    monkeypatch.delenv("TFREC_ATTN_USER_KEY", raising=False)
    given = [flag.format(log=tmp_path / "log") for flag in flags]
    ports = ["--port", "0", "--rest_api_port", "0"]
    assert command.main(["--model_base_path", str(toy), *ports, *given]) == 2
    assert message in capsys.readouterr().err
