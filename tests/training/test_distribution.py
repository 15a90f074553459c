"""Several replicas and workers: who is who, who writes, and what each is given."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tests import killing, small, unordered
from tests.data.test_batches import ITEM, made
from tfrec_attn import train
from tfrec_attn.data import batches
from tfrec_attn.training import distribution
from tfrec_attn.training.preemption import Preempted

TWO = {"worker": ["a:1", "b:2"]}


def config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (None, None),
        (config(TWO, index=1), (["a:1", "b:2"], 1)),
        (config({"chief": ["c:3"], **TWO}, "chief"), (["c:3", "a:1", "b:2"], 0)),
        (config({"chief": ["c:3"], **TWO}, index=1), (["c:3", "a:1", "b:2"], 2)),
    ],
)
def test_a_cluster_begins_with_its_chief(monkeypatch, text, want):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text:
        monkeypatch.setenv("TF_CONFIG", text)
    assert distribution.cluster() == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "TF_CONFIG is JSON with a cluster and a task, such as {"),
        ("[]", "Received: [] (TypeError"),
        (json.dumps({"cluster": TWO}), "KeyError: 'task'"),
        (config(TWO, index=2), "Received: worker 2, where the cluster has 2 worker(s)"),
        (config(TWO, "chief"), "Received: chief 0"),
        (config({**TWO, "ps": ["p:1"]}), "chief and worker alone. Received: ps."),
    ],
)
@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_a_wrong_cluster_is_named(monkeypatch, tmp_path, capsys, text, message, name):
    monkeypatch.setenv("TF_CONFIG", text)
    given = ["--items", "x", "--interactions", "x", "--out", str(tmp_path)]
    assert train.main([*given, "--strategy", name]) == 2
    assert message in capsys.readouterr().err


def test_workers_need_a_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="multiworker needs the variable TF_CONFIG"):
        distribution.strategy("multiworker")


def test_a_cluster_of_one_is_none_for_auto(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config({"worker": ["a:1"]}))
    found = distribution.strategy("auto")
    assert type(found) is tf.distribute.MirroredStrategy


def test_only_the_chief_has_the_run_s_folder(monkeypatch, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best").write_text("kept")
    monkeypatch.setattr(distribution, "from_chief", lambda strategy, say: None)
    for chief in (True, False):
        monkeypatch.setattr(distribution, "is_chief", lambda strategy, is_=chief: is_)
        with distribution.own_folder(None, tmp_path) as place:
            assert (place == tmp_path) == chief
            assert (place / "checkpoints" / "best").read_text() == "kept"
            (place / "new").write_text("x")
        assert (tmp_path / "new").exists()
        assert place.exists() == chief
        (tmp_path / "new").unlink() if chief else None
        if chief:
            (tmp_path / "new").write_text("of the chief")
    assert (tmp_path / "new").read_text() == "of the chief"


@pytest.mark.parametrize("chief", [True, False])
@pytest.mark.parametrize(("error", "met"), [(Preempted, 2), (ValueError, 1)])
def test_workers_leave_together_where_all_are_asked_to(
    monkeypatch, tmp_path, chief, error, met
):
    """What one alone raises is no reason to wait for the others."""
    meetings = []
    monkeypatch.setattr(distribution, "from_chief", lambda *_: meetings.append("met"))
    monkeypatch.setattr(distribution, "is_chief", lambda strategy: chief)
    with pytest.raises(error), distribution.own_folder(None, tmp_path):
        raise error
    assert len(meetings) == met


@pytest.mark.parametrize("size", [1, 4, 5])
def test_replicas_see_each_example_once_an_epoch(size):
    cut, strategy = made(count=1), distribution.strategy("mirrored")
    make = functools.partial(batches.training, cut, size, seed=0)
    stream, seen = iter(distribution.distributed(strategy, make, size, 1)), []
    for _ in range(batches.steps(cut, size)):
        batch = next(stream)
        local = strategy.experimental_local_results
        for target, weight in zip(
            local(batch["target"]), local(batch["weight"]), strict=True
        ):
            assert target.shape == (-(-size // 2), 1)
            seen += target.numpy()[weight.numpy() > 0].tolist()
    assert sorted(seen) == sorted(ITEM)


@pytest.mark.parametrize(
    ("own", "want"),
    [
        # In two parts, of which each replica has a place.
        (False, [[[0, 4], [1, 5]], [[2, 6], [3, 7]]]),
        (True, [[[0, 1, 4, 5], [2, 3, 6, 7]]] * 2),
    ],
)
def test_the_replicas_of_a_worker_share_all_batches_or_its_own(own, want):
    """Four replicas of two workers."""

    class Four:
        num_replicas_in_sync = 4

        def distribute_datasets_from_function(self, of_worker):
            return [of_worker(tf.distribute.InputContext(2, worker)) for worker in (0, 1)]

    found = []
    make = lambda at: tf.data.Dataset.from_tensors(found.append(at.tolist()) or 0)
    distribution.distributed(Four(), make, 8, 2, own=own)
    assert found == want


STILL = ["model.dropout=0", "model.id_dropout=0", "scorer.dropout=0", "train.epochs=1"]
STILL += ["train.ranking_epochs=0"]
TRAIN = ("tfrec_attn.train",)


def workers(given, *programs):
    """Runs a training in as many processes over loopback, to their ends.

    Args:
      given: Arguments of all.
      programs: The module of each worker, and what it is told before them.
    """
    count = len(programs)
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    hosts = [f"127.0.0.1:{one.getsockname()[1]}" for one in holders]
    for one in holders:
        one.close()
    running = []
    for index, program in enumerate(programs):
        told = {"TF_CONFIG": config({"worker": hosts}, index=index)}
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", *program, *given],
                cwd=Path(__file__).parents[2],
                env={**os.environ, **told},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    found = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * count, found
    return found


def test_two_workers_train_what_one_process_does(tables, tmp_path):
    """At the same batch, but for the last bits of sums; the chief alone has a result."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert train.main(small.arguments(tables, one, sets=STILL)) == 0
    given = small.arguments(tables, two, "--strategy", "multiworker", sets=STILL)
    (out, _), (nothing, _) = workers(given, TRAIN, TRAIN)
    assert nothing == ""
    result = json.loads((two / "metrics.json").read_text())
    assert json.loads(out) == result
    want = json.loads((one / "metrics.json").read_text())
    for name, row in want["test"].items():
        assert result["test"][name] == pytest.approx(row, abs=1e-4)
    for found, wanted in zip(small.history(two), small.history(one), strict=True):
        assert found.pop("stage") == wanted.pop("stage")
        assert found == pytest.approx(wanted, rel=1e-3)
    files = lambda place: sorted(re.sub("[0-9]{4,}.*", "", str(f)) for f in names(place))
    names = lambda place: (f.relative_to(place) for f in place.rglob("*") if f.is_file())
    assert files(two) == files(one)


@pytest.fixture(params=["tables", "shards of their own"])
def told(request, tables, tmp_path):
    """Gives the arguments of a training into a folder, of two epochs of 9 steps and, on
    shards, one of 5, for which one of the workers has but four batches of 13 targets; and
    how many targets there are."""
    if request.param == "tables":
        sets = ["train.epochs=2", "train.ranking_epochs=0"]
        given = "--strategy", "multiworker"
        return lambda out: small.arguments(tables, tmp_path / out, *given, sets=sets), 161
    shop, place = tmp_path / "shop", tmp_path / "prepared"
    shop.mkdir()
    unordered.prepared(unordered.write(shop, unordered.rows()), place, small.SMALL[2])
    sets = ["train.own_shards=true", "train.batch_size=6", "train.ranking_epochs=1"]
    sets += ["loss.ranked_targets=26"]
    given = [x for s in (*small.SMALL, *sets) for x in ("--set", s)]
    given += ["--prepared", str(place), "--strategy", "multiworker"]
    return lambda out: [*given, "--out", str(tmp_path / out)], 105


@pytest.mark.slow
def test_workers_of_which_one_is_asked_to_end_go_on_as_if_it_had_not_been(told, tmp_path):
    """After step 3 of the 9 of an epoch; each draws its dropout for other items."""
    arguments, targets = told
    workers(arguments("whole"), TRAIN, TRAIN)
    silent, asked = ("tests.killing", "SIGTERM", "0"), ("tests.killing", "SIGTERM", "12")
    for out, err in workers(arguments("run"), silent, asked):
        assert out == ""
        assert "SIGTERM: stopped. --resume goes on after the last state" in err
    place = tmp_path / "run"
    states = (place / "checkpoints").glob("*/last-*.index")
    assert {state.stem for state in states} == {"last-9", "last-12"}
    again = workers([*arguments("run"), "--resume"], silent, silent)
    one, two = (re.findall(r"weights: (\d+), targets: (\d+)", err) for _, err in again)
    assert one == two
    assert one[-1][1] == str(targets)
    assert small.history(place) == small.history(tmp_path / "whole")
    killing.require_same_weights(place, tmp_path / "whole")
