"""From tables larger than memory to a trained run: the same examples, folds and words."""

import json

import numpy as np
import polars as pl
import pytest

from tests.unordered import (
    ITEMS,
    LENGTH,
    SPLITS,
    prepared,
    rows,
    settings,
    write,
)
from tfrec_attn import prepare
from tfrec_attn.data import batches
from tfrec_attn.run import pipeline, streamed
from tfrec_attn.settings import config as config_lib


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


@pytest.mark.parametrize(("workers", "size"), [(1, 4), (2, 4), (3, 9)])
def test_workers_with_shards_of_their_own_see_each_example_once(both, workers, size):
    """Of both stages, in as many batches each: of 2 workers that leave the last out one has
    14 of its 53 targets, and the other, of 52, as many. One worker has what all have."""
    out, tables = both
    stream, _ = read(out)
    for shards, cut in (
        (stream.training(), tables.training()),
        (stream.training().singly(), tables.training().singly()),
    ):
        own = [shards.own(worker, workers) for worker in range(workers)]
        (steps,) = {batches.steps(one, size) for one in own}
        seen = [[], []]
        for one in own:
            run = list(batches.training(one, size, seed=3).take(2 * steps))
            for at, batch in enumerate(run):
                seen[at // steps] += shown(batch, stream.users.ids)
            later = batches.training(one, size, seed=3, epoch=1, step=steps - 1)
            for last in later.take(1):
                np.testing.assert_array_equal(last["target"], run[-1]["target"])
        for one in seen:
            assert sorted(one) == shown(whole(cut), tables.users.ids)
    if workers == 1:
        for batch, same in zip(run, epoch(shards, size), strict=False):
            np.testing.assert_array_equal(batch["target"], same["target"])


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


def test_prepared_data_is_not_prepared_over(shop, both, capsys):
    given = ["--items", shop / "items.csv", "--interactions", shop / "interactions"]
    assert command(*given, "--out", both[0]) == 2
    assert "holds prepared data already" in capsys.readouterr().err
