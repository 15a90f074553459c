"""From tables larger than memory to a trained run: the same examples, folds and words."""

import json

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tests import killing
from tests.small import SMALL, history
from tfrec_attn import config as config_lib
from tfrec_attn import evaluate, export, pipeline, prepare, runs, streamed, train
from tfrec_attn.data import batches, blocks, partitions

ITEMS, USERS = 31, 23
LENGTH, TARGETS = 4, 3
CUT = ["examples.history=4", "examples.targets=3", "text.backbone="]
SPLITS = ["leave-last-out", "global-time"]


def rows():
    """Of users, items, ratings and seconds, in no order; a moment has about two events."""
    draw = np.random.default_rng(0)
    found = [
        (f"u{u}", f"i{i}", int(draw.integers(1, 6)), 1_000_000_000 + 60 * (t // 2) + u // 9)
        for u in range(USERS)
        for t, i in enumerate(draw.permutation(ITEMS)[: 3 + u % 9])
    ]
    return [found[place] for place in draw.permutation(len(found))]


def write(place, events, kind="csv"):
    """Tables, the interactions in two files; user 22 has nothing but its row."""
    items = ["item_id,kind,price", *(f"i{i},{'ab'[i % 2]},{i}.5" for i in range(ITEMS))]
    users = ["user_id,age", *(f"u{u},{20 + u}" for u in range(2, USERS)), "quiet,7"]
    (place / "items.csv").write_text("\n".join(items) + "\n")
    (place / "users.csv").write_text("\n".join(users) + "\n")
    names = ("user_id", "item_id", "rating", "timestamp")
    folder = place / "interactions"
    folder.mkdir()
    for number, some in enumerate((events[:70], events[70:])):
        path = folder / f"{number}.{kind}"
        if kind == "csv":
            lines = [",".join(map(str, row)) for row in some]
            path.write_text("\n".join([",".join(names), *lines]) + "\n")
        elif kind == "jsonl":
            lines = [json.dumps(dict(zip(names, row, strict=True))) for row in some]
            path.write_text("\n".join(lines) + "\n")
        else:
            pl.DataFrame(some, schema=names, orient="row").write_parquet(path)
    return place


def settings(tables, *more):
    names = ("items", "users", "interactions")
    files = {name: next(tables.glob(f"{name}*")) for name in names}
    paths = [f"data.{name}={json.dumps(str(path))}" for name, path in files.items()]
    return config_lib.load(overrides=[*paths, *CUT, *more])


def prepared(tables, out, *more):
    """Prepares, in blocks and records of a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BYTES", 900)
        patch.setattr(blocks, "ROWS", 40)
        patch.setattr(partitions, "RECORD", 7)
        return prepare.run(settings(tables, *more), out, [])


def read(out, *more):
    """The stream, and the same in memory."""
    config = config_lib.load(
        out / "config.toml",
        [f"data.prepared={json.dumps(str(out))}", "text.backbone=", *more],
        without=["data"],
    )
    return streamed.prepare(config), pipeline.prepare(config)


def shown(batch, ids):
    """The real examples, whoever the user is in rows, in an order of their own."""
    names = sorted(batch.keys() - {"positives", "user"})
    values = [np.asarray(batch[name]).tolist() for name in names]
    user = [str(ids[row]) for row in np.asarray(batch["user"])]
    place = 1 + names.index("weight")
    return sorted(row for row in zip(user, *values, strict=True) if any(row[place]))


def epoch(shards, size, number=0):
    """The batches of an epoch."""
    stream = batches.training(shards, size, seed=3, epoch=number)
    return list(stream.take(batches.steps(shards, size)).as_numpy_iterator())


def whole(cut):
    return batches.gather(cut, np.arange(len(cut)))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shop"), rows())


@pytest.fixture(scope="module", params=SPLITS)
def both(request, shop, tmp_path_factory):
    """A split's prepared folder, and what is prepared of its tables in memory."""
    out = tmp_path_factory.mktemp(request.param) / "prepared"
    split = f"split.name={request.param}"
    prepared(shop, out, split)
    return out, pipeline.prepare(settings(shop, split))


def test_the_split_is_that_of_the_tables(both):
    out, tables = both
    stream, memory = read(out)
    assert memory.split.digest == stream.split.digest == tables.split.digest
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(
            getattr(memory.split, name), getattr(tables.split, name)
        )
    for name in ("promise", "users_only_in_training", "items_not_in_training"):
        assert getattr(stream.split, name) == getattr(tables.split, name)
    np.testing.assert_array_equal(stream.frequency, tables.frequency)
    np.testing.assert_array_equal(stream.items.ids, tables.items.ids)
    assert sorted(stream.users.ids) == sorted(tables.users.ids)


def test_an_epoch_holds_the_examples_of_the_tables_once(both):
    """Of both stages, the last batch filled up, in an order of the epoch's own."""
    out, tables = both
    stream, _ = read(out)
    for shards, cut in (
        (stream.training(), tables.training()),
        (stream.training().singly(), tables.training().singly()),
    ):
        found = [epoch(shards, 8, number) for number in (0, 1)]
        for one in found:
            got = [row for batch in one for row in shown(batch, stream.users.ids)]
            assert sorted(got) == shown(whole(cut), tables.users.ids)
            assert {len(batch["user"]) for batch in one} == {8}
        later = batches.training(shards, 8, seed=3, epoch=1, step=2).take(1)
        (third,) = later.as_numpy_iterator()
        np.testing.assert_array_equal(third["target"], found[1][2]["target"])
        first, second = (
            np.concatenate([batch["target"] for batch in one]) for one in found
        )
        assert (first != second).any()


def test_positives_come_with_the_batch_and_none_is_held_out(both):
    out, _ = both
    stream, memory = read(out)
    train = memory.events(memory.split.train)
    liked = memory.label_is_positive[train.feedback]
    for batch in epoch(stream.training(), 8):
        real = batch["weight"].any(1)
        for user, found in zip(batch["user"][real], batch["positives"][real], strict=True):
            mine = train.item[(train.user == user) & liked]
            assert sorted(found[found >= 0]) == sorted(mine)


def test_a_target_sees_what_came_strictly_before_in_training_alone(both):
    """By the rows themselves, one by one."""
    out, _ = both
    stream, memory = read(out)
    table = memory.tables.interactions
    in_training = {int(row) for row in memory.split.train}
    held_out = set(range(len(table))) - in_training
    ties = 0
    for batch in epoch(stream.training(), 8):
        for b, t in zip(*np.nonzero(batch["weight"]), strict=True):
            user, time = batch["user"][b], batch["target_time"][b, t]
            before = [
                (row["time"], number, row["item"], row["feedback"])
                for number, row in enumerate(table.iter_rows(named=True))
                if row["user"] == user and number in in_training
            ]
            ties += sum(moment == time for moment, *_ in before) - 1
            want = sorted(row for row in before if row[0] < time)[-LENGTH:]
            seen = batch["target_seen"][b, t]
            past = [
                batch[name][b, max(0, seen - LENGTH) : seen].tolist()
                for name in ("history_time", "history", "history_feedback")
            ]
            assert list(zip(*past, strict=True)) == [(m, i, f) for m, _, i, f in want]
            if memory.split.name == "global_time":
                assert time < min(table["time"][row] for row in held_out)
    assert ties > 0


def test_what_is_held_out_is_what_the_tables_hold_out(both):
    out, tables = both
    stream, _ = read(out)
    for fold in ("validation", "test"):
        want = shown(whole(tables.held_out(fold)), tables.users.ids)
        assert shown(whole(stream.held_out(fold)), stream.users.ids) == want
        assert stream.queries(fold) == len(want)
        assert stream.repeated(fold) == tables.repeated(fold)
        parts = [shown(whole(part), stream.users.ids) for part in stream.parts_of(fold)]
        assert len(parts) > 1
        assert sorted(row for part in parts for row in part) == want
        some = shown(whole(stream.held_out(fold, 5)), stream.users.ids)
        assert len(some) == 5
        assert set(map(str, some)) <= set(map(str, want))


def test_later_events_change_no_feature_of_an_earlier_target(both, shop, tmp_path):
    """The table again, with other items and ratings at and after a moment."""
    out, _ = both
    stream, _ = read(out)
    events = rows()
    moment = int(np.median([row[3] for row in events]))
    draw = np.random.default_rng(5)
    events = [
        (user, item, rating, time)
        if time < moment
        else (user, f"i{draw.integers(ITEMS)}", int(draw.integers(1, 6)), time)
        for user, item, rating, time in events
    ]
    split = f"split.name={stream.config.split.name}"
    prepared(write(tmp_path, events), tmp_path / "other", split)
    other, _ = read(tmp_path / "other")
    # At the moment itself a target sees nothing of it.
    one, two = features(stream), features(other)
    assert one != two
    one, two = ([row for row in rows if row[1] <= moment * 1000] for rows in (one, two))
    assert one == two
    assert len(one) > 50


def features(stream):
    """What each target sees, by user and time."""
    found = []
    for batch in epoch(stream.training(), 8):
        for b, t in zip(*np.nonzero(batch["weight"]), strict=True):
            time, seen = batch["target_time"][b, t], batch["target_seen"][b, t]
            names = ("history", "history_feedback", "history_time")
            past = [batch[name][b, max(0, seen - LENGTH) : seen].tolist() for name in names]
            found.append((str(stream.users.ids[batch["user"][b]]), int(time), past))
    return sorted(found)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_formats_agree(both, kind, tmp_path):
    _, tables = both
    place = write(tmp_path, rows(), kind)
    made = prepared(
        place, tmp_path / "out", f"split.name={tables.split.name.replace('_', '-')}"
    )
    assert made["split"]["digest"] == tables.split.digest


def test_whole_numbers_stay_numbers_until_they_are_ids(tmp_path):
    place, table = (
        tmp_path,
        pl.DataFrame(
            [(int(u[1:]), int(i[1:]) * 1000, r, t) for u, i, r, t in rows()],
            schema=["user_id", "item_id", "rating", "timestamp"],
            orient="row",
        ),
    )
    table.write_parquet(place / "interactions.parquet")
    ids = [i * 1000 for i in range(ITEMS)]
    pl.DataFrame({"item_id": ids}).write_parquet(place / "items.parquet")
    pl.DataFrame({"user_id": [3, 7]}).write_parquet(place / "users.parquet")
    made = prepared(place, place / "out", "split.name=leave-last-out")
    want = pipeline.prepare(settings(place, "split.name=leave-last-out"))
    stream, _ = read(place / "out")
    assert made["split"]["digest"] == want.split.digest
    got = [
        row
        for batch in epoch(stream.training(), 8)
        for row in shown(batch, stream.users.ids)
    ]
    assert sorted(got) == shown(whole(want.training()), want.users.ids)


BAD = [("u1", "i99", 3, 5), ("", "i1", 3, 1_000_000_000), ("u1", "i1", 3, "soon")]


def test_bad_rows_are_told_as_they_are_of_tables(tmp_path, capsys):
    place = write(tmp_path, [*rows()[:50], *BAD, *rows()[50:]])
    more = ["data.bad_rows=set-aside", "split.name=leave-last-out"]
    made = prepared(place, tmp_path / "out", *more)
    want = pipeline.prepare(settings(place, *more), tmp_path)
    found, told = (
        pl.read_csv(path / "rejects.csv").sort(pl.all())
        for path in (tmp_path / "out", tmp_path)
    )
    assert found.equals(told)
    assert made["rejected_rows"] == 3
    assert made["split"]["digest"] == want.split.digest


def test_bad_rows_stop_and_are_named(tmp_path):
    place = write(tmp_path, [*rows()[:50], *BAD, *rows()[50:]])
    with pytest.raises(ValueError, match=r"0\.csv:52, column 'item_id': 'i99' is no id"):
        prepared(place, tmp_path / "out", "split.name=leave-last-out")
    assert [path.name for path in (tmp_path / "out").glob("*.json")] == []


def command(*arguments):
    return prepare.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["split.name=random"], "prepare knows leave-last-out and global-time"),
        (["split.name=cold-items"], "split.name='cold-items' cannot be made one part"),
        (["schema.interactions.time="], "there is no time column"),
        (["schema.interactions.item=what"], "no column 'what'"),
    ],
)
def test_what_cannot_be_prepared_is_named(shop, tmp_path, capsys, sets, words):
    tables = ["--items", shop / "items.csv", "--interactions", shop / "interactions"]
    given = [x for one in sets for x in ("--set", one)]
    assert command(*tables, "--out", tmp_path / "out", *given) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_is_no_parquet(shop, tmp_path, capsys):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing")
    given = ["--items", shop / "items.csv", "--interactions", tmp_path / "a.parquet"]
    assert command(*given, "--out", tmp_path / "out") == 2
    assert "a.parquet: cannot be read as Parquet" in capsys.readouterr().err


def test_a_worker_that_fails_is_told_in_a_line(shop, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tfrec_attn.data.shards.write", full)
    given = ["--items", shop / "items.csv", "--interactions", shop / "interactions"]
    assert command(*given, "--out", tmp_path / "out") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("tfrec_attn.prepare: the pipeline failed: ")
    assert "No space left on device" in message


# Training on it.


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


def test_prepared_data_is_not_prepared_over(shop, made, capsys):
    given = ["--items", shop / "items.csv", "--interactions", shop / "interactions"]
    assert command(*given, "--out", made) == 2
    assert "holds prepared data already" in capsys.readouterr().err
