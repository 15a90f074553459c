"""Going on from a trained model on prepared shards: what is held out, learned and kept."""

import json
import shutil

import numpy as np
import pytest

from tests import killing
from tests.small import SMALL, history
from tests.test_prepare import epoch, shown, whole
from tests.unordered import CUT, ITEMS, SPLITS, USERS, rows, write
from tfrec_attn import evaluate, export, prepare, train
from tfrec_attn.data import blocks, partitions
from tfrec_attn.run import incremental, knowledge, pipeline, runs

LATER = 2_000_000_000
UNTIL = 1000 * max(time for *_, time in rows())
SETS = [s for s in SMALL if not s.startswith("split")]
SETS += ["train.ranking_epochs=0", "loss.ranking=0", "loss.feedback=0"]
SETS += ["model.user_id=true"]


def fresh():
    """Events of a day later, of old users and of two new ones, of old and new items."""
    draw = np.random.default_rng(1)
    users = [*(f"u{u}" for u in range(4, USERS, 2)), "new1", "new2"]
    return [
        (user, f"i{i}", int(draw.integers(3, 6)), LATER + 60 * t + place)
        for place, user in enumerate(users)
        for t, i in enumerate(draw.permutation(ITEMS + 2)[: 3 + place % 3])
    ]


def write_today(place):
    """All events in no order; the items in another order, with two new ones among them."""
    events = [*rows(), *fresh()]
    order = np.random.default_rng(2).permutation(len(events))
    write(place, [events[at] for at in order])
    head, *items = (place / "items.csv").read_text().splitlines()
    items = [f"i{ITEMS},c,1.5", *items[::-1], f"i{ITEMS + 1},a,2.5"]
    (place / "items.csv").write_text("\n".join([head, *items]) + "\n")
    return place


def paths(place):
    files = {name: place / f"{name}.csv" for name in ("items", "users")}
    files["interactions"] = place / "interactions"
    return [x for name, path in files.items() for x in (f"--{name}", str(path))]


def given(sets):
    return [x for s in sets for x in ("--set", s)]


def do(command, *more, sets=()):
    """A command, in blocks and records of a few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BYTES", 900)
        patch.setattr(blocks, "ROWS", 40)
        patch.setattr(partitions, "RECORD", 7)
        return command.main([*map(str, more), *given(sets)])


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return write(tmp_path_factory.mktemp("shop"), rows())


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    return write_today(tmp_path_factory.mktemp("today"))


@pytest.fixture(scope="module", params=SPLITS)
def base(request, shop, tmp_path_factory):
    """A run on tables."""
    out = tmp_path_factory.mktemp("base")
    sets = [*SETS, f"split.name={request.param}"]
    one = ["--strategy", "one"]
    assert do(train, *paths(shop), "--out", out, *one, sets=sets) == 0
    return out


@pytest.fixture(scope="module")
def folder(base, today, tmp_path_factory):
    out = tmp_path_factory.mktemp("folder") / "prepared"
    assert do(prepare, "--from", base, *paths(today), "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def gone_on(base, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("next")
    sets = ["train.pull=0.5"]
    assert do(train, "--from", base, "--prepared", folder, "--out", out, sets=sets) == 0
    return out


def read(base, folder):
    """What a training stands on, streamed."""
    from tfrec_attn.run import streamed
    from tfrec_attn.settings import config

    sets = [f"data.prepared={json.dumps(str(folder))}"]
    found = config.load(folder / "config.toml", sets, without=["data"])
    return streamed.prepare(found, None, knowledge.Past.of(base, grows=True))


def tables(base, today, *sets):
    """The same of tables, which go on as they always did."""
    names = dict(zip(paths(today)[::2], paths(today)[1::2], strict=True))
    data = [f"data.{name[2:]}={json.dumps(path)}" for name, path in names.items()]
    found = incremental.settings(base, [*data, *sets])
    return pipeline.prepare(found, None, knowledge.Past.of(base, grows=True))


def test_the_split_is_that_of_the_tables(base, folder, today):
    """What the model may have seen is never held out."""
    stream, want = read(base, folder), tables(base, today)
    assert stream.split.digest == want.split.digest
    assert stream.split.promise == want.split.promise
    for fold in ("validation", "test"):
        held = stream.held_out(fold)
        assert held.targets.time.min() > UNTIL
        asked = shown(whole(want.held_out(fold)), want.users.ids)
        assert shown(whole(held), stream.users.ids) == asked
    np.testing.assert_array_equal(stream.items.ids, want.items.ids)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_epoch_holds_the_new_examples_and_replays(base, today, tmp_path, share):
    """With none and with all of the old targets those of the tables, of both stages."""
    sets = [f"train.replay={share}"]
    more = "--from", base, *paths(today), "--out", tmp_path / "out"
    assert do(prepare, *more, sets=sets) == 0
    stream, want = read(base, tmp_path / "out"), tables(base, today, *sets)
    np.testing.assert_allclose(stream.frequency, want.frequency)
    for shards, cut in (
        (stream.training(), want.training()),
        (stream.training().singly(), want.training().singly()),
    ):
        assert (len(shards), shards.n_targets) == (len(cut), cut.n_targets)
        got = [row for b in epoch(shards, 8) for row in shown(b, stream.users.ids)]
        assert sorted(got) == shown(whole(cut), want.users.ids)
    new = want.training().targets.time > UNTIL
    assert new.all() == (share == 0)


def test_of_the_old_targets_a_share_is_learned_again(base, folder):
    stream = read(base, folder)
    times = np.concatenate(
        [b["target_time"][b["weight"] > 0] for b in epoch(stream.training(), 8)]
    )
    old = (times <= UNTIL).sum()
    assert 0.08 < old / len(rows()) < 0.35  # train.replay = 0.2
    assert stream.training().n_targets == len(times)
    part = [stream.kept.part(one) for one in stream.kept.parts]
    train = np.concatenate([one.of("train").time for one in part])
    assert (times > UNTIL).sum() == (train > UNTIL).sum() > 0


def test_positives_are_those_of_all_events(base, folder):
    """Old ones too, of which most are no targets."""
    stream = read(base, folder)
    of_user = {}
    for one in stream.kept.parts:
        past = stream.kept.part(one).of("train")
        for user, item, feedback in zip(past.user, past.item, past.feedback, strict=True):
            if stream.label_is_positive[feedback]:
                of_user.setdefault(user, []).append(item)
    for batch in epoch(stream.training(), 8):
        for user in np.flatnonzero(batch["weight"].any(1)):
            found = batch["positives"][user]
            mine = of_user.get(batch["user"][user], [])
            assert sorted(found[found >= 0]) == sorted(mine)


def test_it_begins_with_the_old_weights_by_id(base, gone_on):
    old, before = runs.load(base)
    start, after = runs.untrained(gone_on)
    was, now = (
        model.item_tower.features.encoders["id"].table.numpy() for model in (old, start)
    )
    ids = before.items.ids.tolist()
    assert after.items.ids[: len(ids)].tolist() == ids
    np.testing.assert_array_equal(now[: 1 + len(ids)], was)
    assert len(now) == len(was) + 2
    assert now[-2:].any(1).all()
    was, now = (
        model.user_tower.features.encoders["id"].table.numpy() for model in (old, start)
    )
    known = dict(zip(before.users.ids, was[1:], strict=True))
    numbers = after.user_features["id"]
    # Who has no event in training has no number.
    had = numbers[numbers > 0]
    assert len(np.unique(had)) == len(had)
    assert set(had) <= set(range(1, len(now)))
    # The order of users is the folder's own: here no row is the old one for all of them.
    assert after.users.ids[: len(known)].tolist() != before.users.ids.tolist()
    for user, number in zip(after.users.ids[numbers > 0], had, strict=True):
        if user in known:
            np.testing.assert_array_equal(now[number], known[user])
        else:
            assert number > len(known)
    assert len(now) == len(was) + 2
    # And it answers as the old model did.
    rows_of = [after.users.ids.tolist().index(user) for user in before.users.ids]
    mine, its = start.users.tensors["id"].numpy()[rows_of], old.users.tensors["id"].numpy()
    np.testing.assert_array_equal(mine, its)
    pooled = start.encode_items().pooled.numpy()[: len(ids)]
    # Of an item that nobody had now somebody may have learned.
    same = after.item_features["id"][: len(ids)] == before.item_features["id"]
    assert same.sum() > ITEMS / 2
    want = old.encode_items().pooled.numpy()
    np.testing.assert_allclose(pooled[same], want[same], atol=1e-6)


def test_it_is_measured_and_exported_as_any(gone_on, tmp_path):
    model, prepared = runs.load(gone_on)
    found = evaluate.means(model, prepared, "test")
    want = json.loads((gone_on / "metrics.json").read_text())["test"]
    assert found["retrieval"] == pytest.approx(want["retrieval"], abs=1e-6)
    given = ["--run", gone_on, "--to", tmp_path / "shop", "--signatures", "serving_default"]
    assert do(export, *given) == 0
    kept = tmp_path / "shop" / "1" / incremental.KEPT
    assert incremental.base(tmp_path / "shop" / "1") == kept


def test_among_how_many_shards_were_divided_is_said_anew(gone_on, tmp_path):
    shutil.copytree(gone_on, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "config.toml").read_text()
    assert text.count("own_shards = false") == 1
    (tmp_path / "config.toml").write_text(
        text.replace("own_shards = false", "own_shards = true")
    )
    assert not incremental.settings(tmp_path, []).train.own_shards


def test_a_killed_run_goes_on_as_if_it_had_not_been(base, folder, gone_on, tmp_path):
    with killing.signalled("SIGTERM", 3):
        more = "--from", base, "--prepared", folder, "--out", tmp_path
        assert do(train, *more, sets=["train.pull=0.5"]) == 0
    assert not (tmp_path / "metrics.json").exists()
    assert do(train, "--out", tmp_path, "--resume") == 0
    assert history(tmp_path) == history(gone_on)
    killing.require_same_weights(tmp_path, gone_on)


def third(place, today):
    """A day later still: four more events of six users, and a new item."""
    shutil.copytree(today, place)
    with (place / "interactions" / "1.csv").open("a") as file:
        for user in range(6):
            for t in range(4):
                file.write(
                    f"u{user},i{ITEMS + t - 1},5,{LATER + 100_000 + 60 * t + user}\n"
                )
    with (place / "items.csv").open("a") as file:
        file.write(f"i{ITEMS + 2},b,9.5\n")
    return place


@pytest.mark.parametrize("streamed", [True, False], ids=["prepared", "tables"])
def test_the_next_goes_on_from_a_prepared_run(gone_on, today, tmp_path, streamed):
    """By the last moment of it: what it had is not held out."""
    place, out = third(tmp_path / "third", today), tmp_path / "out"
    more = paths(place)
    if streamed:
        made = tmp_path / "prepared"
        assert do(prepare, "--from", gone_on, *paths(place), "--out", made) == 0
        more = ["--prepared", made]
    assert do(train, "--from", gone_on, *more, "--out", out, sets=["train.epochs=1"]) == 0
    start, prepared = runs.untrained(out)
    assert prepared.items.ids[-1] == f"i{ITEMS + 2}"
    for fold in ("validation", "test"):
        times = prepared.events(getattr(prepared.split, fold)).time
        assert len(times)
        assert times.min() >= 1000 * (LATER + 100_000)
    model, before = runs.load(gone_on)
    was = model.user_tower.features.encoders["id"].table.numpy()
    now = start.user_tower.features.encoders["id"].table.numpy()
    for user, number in zip(before.users.ids, before.user_features["id"], strict=True):
        row = prepared.users.ids.tolist().index(user)
        mine = prepared.user_features["id"][row]
        np.testing.assert_array_equal(now[mine], was[number])


@pytest.fixture
def plain(today, tmp_path):
    out = tmp_path / "plain"
    sets = [*CUT, "split.name=leave-last-out"]
    assert do(prepare, *paths(today), "--out", out, sets=sets) == 0
    return out


def test_a_folder_of_another_training_is_refused(
    base, folder, plain, gone_on, tmp_path, capsys
):
    to = ["--out", tmp_path / "run"]
    for more, words in (
        (["--from", base, "--prepared", plain], "was not prepared to go on from this"),
        (["--from", gone_on, "--prepared", folder], "was not prepared to go on from this"),
        (["--prepared", folder], "was prepared to go on from a trained model"),
    ):
        sets = SETS if plain in more else []
        assert do(train, *more, *to, sets=sets) == 2
        assert words in capsys.readouterr().err
    more = ["--from", base, "--prepared", folder, *to]
    assert do(train, *more, sets=["train.replay=0.5"]) == 2
    assert "train.replay is 0.5, and" in capsys.readouterr().err
    assert do(train, *more, sets=["model.dim=16"]) == 2
    assert "model.dim was 8 in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sets", "message"),
    [
        ("items", [], "lack 1 of the items that the model knows, as 'i5': its weights"),
        ("events", [], "interactions is later than those that the model knows"),
        (None, ["model.dim=16"], "model.dim was 8 in"),
        (None, ["split.name=random"], "prepare knows leave-last-out and global-time"),
    ],
)
def test_what_cannot_be_gone_on_with_is_told(
    base, shop, today, tmp_path, capsys, change, sets, message
):
    place = tmp_path / "today"
    shutil.copytree(shop if change == "events" else today, place)
    if change == "items":
        table = place / "items.csv"
        kept = [r for r in table.read_text().splitlines() if not r.startswith("i5,")]
        table.write_text("\n".join(kept) + "\n")
        for file in (place / "interactions").iterdir():
            kept = [r for r in file.read_text().splitlines() if ",i5," not in r]
            file.write_text("\n".join(kept) + "\n")
    more = "--from", base, *paths(place), "--out", tmp_path / "out"
    assert do(prepare, *more, sets=sets) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "prepared.json").exists()


def test_users_with_weights_stay(base, today, tmp_path, capsys):
    place, out = tmp_path / "today", tmp_path / "prepared"
    shutil.copytree(today, place)
    for file in (place / "users.csv", *(place / "interactions").iterdir()):
        kept = [r for r in file.read_text().splitlines() if not r.startswith("u3,")]
        file.write_text("\n".join(kept) + "\n")
    assert do(prepare, "--from", base, *paths(place), "--out", out) == 0
    more = "--from", base, "--prepared", out, "--out", tmp_path / "run"
    assert do(train, *more) == 2
    assert "lack 1 of the users that the model knows, as 'u3'" in capsys.readouterr().err


def test_from_stands_without_config(base, today, tmp_path, capsys):
    more = "--from", base, "--config", "some.toml", "--out", tmp_path / "out"
    assert do(prepare, *more) == 2
    assert "--from brings the settings of the model" in capsys.readouterr().err


def test_without_a_clock_old_events_are_not_told_by_time(shop, today, tmp_path, capsys):
    sets = [*SETS, "split.name=leave-last-out", "train.epochs=1"]
    for place, name in ((shop, "shop"), (today, "today")):
        shutil.copytree(place, tmp_path / name)
        for file in (tmp_path / name / "interactions").iterdir():
            lines = [line.rpartition(",")[0] for line in file.read_text().splitlines()]
            file.write_text("\n".join(lines) + "\n")
    run = tmp_path / "run"
    assert do(train, *paths(tmp_path / "shop"), "--out", run, sets=sets) == 0
    more = "--from", run, *paths(tmp_path / "today"), "--out", tmp_path / "out"
    assert do(prepare, *more) == 2
    assert "was trained without a time column" in capsys.readouterr().err
