"""A run on prepared shards: what it learns, where it goes on, which folders it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests import killing
from tests.small import SMALL, history
from tests.unordered import (
    ITEMS,
    prepared,
    rows,
    write,
)
from tfrec_attn import evaluate, export, train
from tfrec_attn.run import runs
from tfrec_attn.training import checkpoints, distribution


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shop"), rows())


# The retrieval alone, where nothing else is asked.
LIGHT = ["train.ranking_epochs=0", "loss.ranking=0", "loss.feedback=0"]


def arguments(out, place, *more, sets=LIGHT):
    given = [s for s in SMALL if not s.startswith(("examples", "split"))]
    given = [x for s in (*given, *sets) for x in ("--set", s)]
    given += ["--strategy", "one"]
    return ["--prepared", str(place), "--out", str(out), *given, *more]


@pytest.fixture(scope="module")
def made(shop, tmp_path_factory):
    out = tmp_path_factory.mktemp("folder") / "prepared"
    prepared(shop, out, "split.name=leave-last-out")
    return out


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert train.main(arguments(out, made)) == 0
    return out


def test_a_run_evaluates_in_memory_as_it_was_measured_on_the_stream(run):
    model, prepared = runs.load(run)
    found = evaluate.means(model, prepared, "test")
    want = json.loads((run / "metrics.json").read_text())["test"]
    for name in ("popularity", "retrieval", "retrieval + ranking"):
        assert found[name] == pytest.approx(want[name], abs=1e-6)


def test_a_run_learns_what_one_on_the_tables_learns(run, shop, tmp_path):
    tables = [x for n in ("items", "users") for x in (f"--{n}", str(shop / f"{n}.csv"))]
    tables += ["--interactions", str(shop / "interactions")]
    given = [x for s in (*SMALL, *LIGHT) for x in ("--set", s)]
    given += ["--strategy", "one"]
    assert train.main([*tables, "--out", str(tmp_path), *given]) == 0
    one, other = history(run), history(tmp_path)
    assert [line["stage"] for line in one] == [line["stage"] for line in other]
    # Of the same targets in another order: seeds differ by up to a fifth.
    for mine, its in zip(one, other, strict=True):
        assert mine["train_loss"] == pytest.approx(its["train_loss"], rel=0.2)
    mine, its = (json.loads((out / "metrics.json").read_text()) for out in (run, tmp_path))
    assert mine["digest"] == its["digest"]
    assert mine["test"]["popularity"] == pytest.approx(its["test"]["popularity"])


def test_a_run_is_exported_with_all_histories(run, shop, tmp_path):
    given = ["--run", str(run), "--to", str(tmp_path / "shop")]
    assert export.main([*given, "--signatures", "serving_default"]) == 0
    call = tf.saved_model.load(str(tmp_path / "shop" / "1")).signatures["serving_default"]
    spec = call.structured_input_signature[1]
    inputs = {
        name: tf.zeros([1, *[1] * (one.shape.rank - 1)], one.dtype)
        for name, one in spec.items()
    }
    inputs |= {"user_id": tf.constant(["u5"]), "k": tf.constant([ITEMS])}
    answer = call(**inputs)
    ids = {item.decode() for item in answer["item_id"].numpy()[0] if item}
    assert ids == {f"i{i}" for i in range(ITEMS)} - {i for u, i, *_ in rows() if u == "u5"}


def test_a_run_that_was_stopped_goes_on_with_the_same_batches(run, made, tmp_path):
    """Within the second epoch; each has five steps."""
    with killing.signalled("SIGTERM", 7):
        assert train.main(arguments(tmp_path, made)) == 0
    assert len(history(tmp_path)) == 1
    assert not (tmp_path / "metrics.json").exists()
    assert train.main(["--out", str(tmp_path), "--resume"]) == 0
    assert history(tmp_path) == history(run)
    killing.require_same_weights(tmp_path, run)


def test_within_an_epoch_there_are_as_many_workers_with_shards_of_their_own(
    made, tmp_path, monkeypatch, capsys
):
    """This is the first of them, and meets no other. Of 8 workers each has 11 steps, of one
    example each, as the largest shard has 11; one alone has 7 steps for 54 examples."""
    of = lambda count: monkeypatch.setattr(distribution, "worker", lambda _: (0, count))
    sets = [*LIGHT, "train.own_shards=true"]
    again = ["--out", str(tmp_path), "--resume"]
    states = tmp_path / "checkpoints" / "both"
    of(8)
    with killing.signalled("SIGTERM", 14):
        assert train.main(arguments(tmp_path, made, sets=sets)) == 0
    of(1)
    assert train.main(again) == 2
    assert "divided among 8 worker(s) (train.own_shards). Received: 1. Start as many" in (
        capsys.readouterr().err
    )
    # The state before is of the end of an epoch.
    checkpoints.remove(states / "last-14")
    assert [state.stem for state in states.glob("last-*.index")] == ["last-11"]
    assert train.main(again) == 0
    assert len(history(tmp_path)) == 2
    assert {state.stem for state in states.glob("last-*.index")} == {"last-7", "last-14"}
    # The schedule of the learning rate is where an epoch of 7 steps ends.
    ended = tf.train.load_checkpoint(str(states / "last-14"))
    (count,) = (n for n in ended.get_variable_to_shape_map() if "optimizer/_iter" in n)
    assert ended.get_tensor(count) == 14


@pytest.mark.slow
def test_two_replicas_train_both_stages_on_a_stream(made, tmp_path):
    short = ["train.epochs=1", "train.ranking_epochs=1"]
    given = arguments(tmp_path, made, "--strategy", "mirrored", sets=short)
    assert train.main(given) == 0
    assert [line["stage"] for line in history(tmp_path)] == ["retrieval", "ranking"]
    assert np.isfinite([line["train_loss"] for line in history(tmp_path)]).all()


def test_a_damaged_shard_is_named(made, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in made.rglob("*"):
        if path.is_file():
            copy = broken / path.relative_to(made)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    shard = sorted((broken / "train").iterdir())[2]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert train.main(arguments(tmp_path / "run", broken)) == 2
    message = capsys.readouterr().err
    assert f"tfrec_attn.train: {shard}: record " in message
    assert "is damaged. Restore the shard" in message
    shard.write_bytes(data[:-9])
    assert train.main(arguments(tmp_path / "short", broken)) == 2
    assert f"{shard} has {len(data) - 9} bytes" in capsys.readouterr().err
    shard.unlink()
    assert train.main(arguments(tmp_path / "gone", broken)) == 2
    assert f"{shard} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["examples.history=9"], "examples.history is 9, and"),
        (["split.name=global-time"], "split.name is 'global-time', and"),
        (["schema.items.id=kind"], "schema.items.id is 'kind', and"),
    ],
)
def test_other_settings_than_it_was_prepared_with(made, tmp_path, capsys, sets, words):
    assert train.main(arguments(tmp_path / "run", made, sets=sets)) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_is_not_whole(tmp_path, capsys):
    assert train.main(arguments(tmp_path / "run", tmp_path)) == 2
    assert "has no prepared.json, which tfrec_attn.prepare writes last" in (
        capsys.readouterr().err
    )


def test_a_folder_that_is_not_there_was_looked_for_here(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(arguments(tmp_path / "run", Path("nowhere"))) == 2
    want = f"nowhere: no such folder in {tmp_path}. A relative path"
    assert want in capsys.readouterr().err
