"""From tables to answers, on a small shop made here."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests import killing
from tests.small import ITEMS, arguments, ask, history
from tfrec_attn import evaluate, export, train
from tfrec_attn.run import runs


@pytest.fixture(scope="module")
def run(tables, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert train.main(arguments(tables, out)) == 0
    return out


def test_a_run_holds_what_it_was(run):
    for name in ("config.toml", "schema.toml", "environment.json", "learning_curves.png"):
        assert (run / name).stat().st_size
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert set(test) == {"random", "popularity", "retrieval", "retrieval + ranking"}
    stages = [(line["epoch"], line["stage"]) for line in history(run)]
    assert stages == [(1, "retrieval"), (2, "retrieval"), (3, "ranking"), (4, "ranking")]
    assert "train_ranking" not in history(run)[0]
    assert "train_retrieval" not in history(run)[2]


def test_the_same_seed_gives_the_same_run(run, tables, tmp_path):
    assert train.main(arguments(tables, tmp_path)) == 0
    assert history(tmp_path) == history(run)
    killing.require_same_weights(tmp_path, run)


def test_a_killed_run_goes_on_as_if_it_had_not_been(run, tables, tmp_path):
    """Within the second of the retrieval's epochs of nine steps, with no warning."""
    given = arguments(tables, tmp_path, sets=["train.checkpoint_steps=4"])
    command = [sys.executable, "-m", "tests.killing", "SIGKILL", "15", *given]
    root = Path(__file__).parents[1]
    killed = subprocess.run(command, cwd=root, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(history(tmp_path)) == 1
    states = (tmp_path / "checkpoints" / "retrieval").glob("last-*.index")
    assert {state.stem for state in states} == {"last-9", "last-13"}
    assert train.main(["--out", str(tmp_path), "--resume"]) == 0
    assert history(tmp_path) == history(run)
    killing.require_same_weights(tmp_path, run)


def test_a_run_that_is_asked_to_end_keeps_its_state(run, tables, tmp_path, capsys):
    """In the second epoch of the ranking, which has one step an epoch."""
    with killing.signalled("SIGTERM", 20):
        assert train.main(arguments(tables, tmp_path)) == 0
    out, err = capsys.readouterr()
    assert not out
    assert "SIGTERM: stopped. --resume goes on after the last state" in err
    assert len(history(tmp_path)) == 4
    assert not (tmp_path / "metrics.json").exists()
    assert train.main(["--out", str(tmp_path), "--resume"]) == 0
    assert history(tmp_path) == history(run)
    killing.require_same_weights(tmp_path, run)


def test_two_replicas_train(tables, tmp_path):
    assert train.main(arguments(tables, tmp_path, "--strategy", "mirrored")) == 0
    assert len(history(tmp_path)) == 4
    assert np.isfinite([line["train_loss"] for line in history(tmp_path)]).all()


def test_an_unknown_setting_is_named(tables, tmp_path, capsys):
    assert train.main(arguments(tables, tmp_path, "--set", "train.epoch=3")) == 2
    assert "Unknown setting train.epoch" in capsys.readouterr().err


def test_a_reloaded_run_evaluates_the_same(run):
    model, prepared = runs.load(run)
    want = json.loads((run / "metrics.json").read_text())["test"]["retrieval + ranking"]
    found = {k: v.mean() for k, v in evaluate.evaluate(model, prepared, "test").items()}
    assert found == pytest.approx(want, abs=1e-6)


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "shop"
    assert export.main(["--run", str(run), "--to", str(base)]) == 0
    moved = base.parent / "moved"
    (base / "1").rename(moved)
    return tf.saved_model.load(str(moved))


def test_a_known_user_is_not_given_what_was_seen(served, tables):
    events = [
        line.split(",") for line in (tables / "interactions.csv").read_text().split()[1:]
    ]
    answer = ask(served, user_id=["u3", "u4"], k=[ITEMS, 2])
    for row, user, count in ((0, "u3", ITEMS - 9), (1, "u4", 2)):
        ids = [i.decode() for i in answer["item_id"][row][answer["valid"][row]]]
        assert len(ids) == len(set(ids)) == count
        assert not set(ids) & {item for u, item, _ in events if u == user}
    assert answer["known_user"].all()


def test_what_is_excluded_or_not_a_candidate_is_never_answered(served):
    answer = ask(
        served,
        user_id=["nobody"] * 2,
        k=[9, 9],
        history=[["i1", "what"], ["", ""]],
        exclude=[["i2"], [""]],
        candidates=[["i1", "i2", "i5"], ["i7", "", "i8"]],
    )
    ids = [{i.decode() for i in row if i} for row in answer["item_id"]]
    assert ids == [{"i5"}, {"i7", "i8"}]
    assert answer["unknown_history"].tolist() == [1, 0]
    assert not answer["known_user"].any()
    assert np.isfinite(answer["score"]).all()


def test_a_history_given_is_worth_a_history_stored(served, tables):
    lines = [
        line.split(",") for line in (tables / "interactions.csv").read_text().split()[1:]
    ]
    mine = [(item, int(time) * 1000) for user, item, time in lines if user == "u5"]
    stored = ask(served, user_id=["u5"])
    given = ask(
        served,
        user_id=["u5"],
        history=[[item for item, _ in mine]],
        history_time=[[time for _, time in mine]],
    )
    assert stored["item_id"].tolist() == given["item_id"].tolist()
    np.testing.assert_allclose(stored["score"], given["score"], atol=1e-5)
