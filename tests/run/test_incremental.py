"""Going on from a trained model: what grows, stays, is learned of and held out."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tests import killing, small
from tests.worded import arguments
from tfrec_attn import evaluate, export, train
from tfrec_attn.data import splits, tables
from tfrec_attn.run import incremental, knowledge, pipeline, runs
from tfrec_attn.training import checkpoints, fit
from tfrec_attn.training.keeper import Keeper

ROW = {"user": pl.Int32, "item": pl.Int32}
SETS = ("bert.tuning=lora", "split.name=global-time", "model.user_id=true")
SETS += ("loss.ranking=0",)
NEW = [
    f"u{u},{i},{2000000000 + 60 * t + u}"
    for u in range(6, 15)
    for t, i in enumerate(["n1", "i3", "n2"])
]


def write_today(yesterday, place):
    """The tables a day later: other orders, two new items, four new users, new events."""
    shutil.copytree(yesterday, place, dirs_exist_ok=True)
    for name, new in (("items", ["n1,word1 word2", "n2,word3"]), ("interactions", NEW)):
        head, *rows = (yesterday / f"{name}.csv").read_text().splitlines()
        (place / f"{name}.csv").write_text("\n".join([head, *new, *rows[::-1]]) + "\n")
    return place


@pytest.fixture(scope="module")
def base(worded, tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    assert train.main(arguments(worded, out, *SETS)) == 0
    return out


@pytest.fixture(scope="module")
def today(worded, tmp_path_factory):
    return write_today(worded, tmp_path_factory.mktemp("today"))


def command(base, today, out, *sets):
    paths = [
        x for n in ("items", "interactions") for x in (f"--{n}", str(today / f"{n}.csv"))
    ]
    more = [x for s in sets for x in ("--set", s)]
    return ["--from", str(base), *paths, "--out", str(out), *more]


@pytest.fixture(scope="module")
def gone_on(base, today, tmp_path_factory):
    out = tmp_path_factory.mktemp("next")
    assert train.main(command(base, today, out, "train.pull=0.5")) == 0
    return out


def named(model):
    return {name: v.numpy() for name, v in tf_names(model).items()}


def tf_names(model):
    parts = {"id": model.item_tower.features.encoders["id"].table}
    parts["candidate"] = model.item_tower.candidate_id.table
    parts["event"] = model.item_tower.event_id.table
    parts["user"] = model.user_tower.features.encoders["id"].table
    parts["scale"] = model.retrieval.log_scale
    parts |= {f"bert{i}": v for i, v in enumerate(model.learned["bert"])}
    return parts


def test_a_training_begins_with_the_old_weights_by_id(base, gone_on):
    """Whatever the order of the tables; behind them are rows as of any new model."""
    old, before = runs.load(base)
    start, after = runs.untrained(gone_on)
    was, now = named(old), named(start)
    tables = {"id": "items", "candidate": "items", "event": "items", "user": "users"}
    for name, value in was.items():
        if name not in tables:
            np.testing.assert_array_equal(now[name], value)
            continue
        ids = [getattr(one, tables[name]).ids.tolist() for one in (before, after)]
        assert set(ids[0]) < set(ids[1])
        for row, value_of in enumerate(value[1:]):
            place = 1 + ids[1].index(ids[0][row])
            np.testing.assert_array_equal(now[name][place], value_of)
        new = now[name][1 + len(ids[0]) :]
        assert (
            len(new) == len(ids[1]) - len(ids[0]) == {"items": 2, "users": 4}[tables[name]]
        )
        assert new.any(1).all()
    # The texts are encoded by the BERT that was trained.
    rows = [after.items.ids.tolist().index(i) for i in ("i0", "i7")]
    kept = [before.items.ids.tolist().index(i) for i in ("i0", "i7")]
    np.testing.assert_allclose(
        start.items.tensors["text_mean"].numpy()[rows],
        old.items.tensors["text_mean"].numpy()[kept],
        atol=2e-3,
    )


def test_it_answers_at_first_as_the_old_model_did(base, gone_on):
    old, before = runs.load(base)
    start, after = runs.untrained(gone_on)
    item = lambda model, prepared: model.encode_items().pooled.numpy()[
        [prepared.items.ids.tolist().index(f"i{i}") for i in range(17)]
    ]
    np.testing.assert_allclose(item(old, before), item(start, after), atol=2e-3)


def test_only_new_events_are_held_out_and_some_old_ones_learned_again(gone_on):
    _, prepared = runs.untrained(gone_on)
    events = prepared.tables.interactions
    new = events["time"].to_numpy() > 1_500_000_000_000
    np.testing.assert_array_equal(prepared.old, ~new)
    split = prepared.split
    assert new[split.validation].all()
    assert new[split.test].all()
    assert (
        events["time"].to_numpy()[split.train].max()
        < events["time"].to_numpy()[split.validation].min()
    )
    targets = prepared.training().targets
    old_targets = (targets.time < 1_500_000_000_000).sum()
    assert 0.08 < old_targets / (~new).sum() < 0.35
    assert len(targets) - old_targets == new[split.train].sum()
    # No history reaches its target's time, and the old events are in it.
    made = prepared.training()
    for at, stop in enumerate(made.stop):
        user = made.targets.user[at]
        begin = np.searchsorted(made.history.user, user)
        assert (made.history.time[begin:stop] < made.targets.time[at]).all()
    assert len(made.history) == len(split.train)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (1.0, 77, 77)])
def test_replay_is_the_share_of_old_targets(gone_on, share, least, most):
    config = runs.config_lib.load(gone_on / "config.toml", [f"train.replay={share}"])
    prepared = pipeline.prepare(config, gone_on, knowledge.Past.of(gone_on))
    old = (prepared.training().targets.time < 1_500_000_000_000).sum()
    assert least <= old <= most
    assert (prepared.frequency > 0).sum() >= 17
    assert abs(prepared.frequency.sum() - 1) < 0.01


def test_the_pull_is_the_squared_distance_of_old_weights(gone_on):
    model, _ = runs.untrained(gone_on)
    assert float(model.origin.distance()) == 0
    table = model.item_tower.candidate_id.table
    moved = table.numpy()
    moved[2] += 0.25
    moved[-1] += 7.0  # a new item
    table.assign(moved)
    model.retrieval.log_scale.assign_add(0.5)
    want = moved.shape[1] * 0.25**2 + 0.5**2
    assert float(model.origin.distance()) == pytest.approx(want, rel=1e-5)


def strayed(run):
    """From the weights that a run began with to those it kept, squared."""
    model, _ = runs.untrained(run)
    runs.restore(model, run)
    return float(model.origin.distance())


def test_the_pull_adds_the_gradient_of_that_distance_to_what_is_moved():
    table, still = tf.Variable([[1.0, 2.0], [3.0, 4.0]]), tf.Variable(5.0)
    starts = np.float32([[0, 2], [7, 7]]), np.float32(4)
    known = np.float32([[1, 1], [0, 0]]), np.float32(1)
    origin = incremental.Origin([table, still], starts, known)
    row = tf.IndexedSlices(tf.constant([[10.0, 20.0]]), tf.constant([1]), (2, 2))
    found, none = origin.pulled([table, still], [row, None], 0.25)
    np.testing.assert_array_equal(found, [[0.5, 0], [10, 20]])
    assert none is None
    with tf.GradientTape() as tape:
        distance = origin.distance()
    np.testing.assert_array_equal(tape.gradient(distance, table), [[2, 0], [0, 0]])


def test_a_strong_pull_holds_the_weights_and_no_stage_moves_those_of_another(
    base, today, tmp_path
):
    far = {}
    for pull in (0.0, 100.0):
        out = tmp_path / str(pull)
        sets = f"train.pull={pull}", "train.epochs=1", "train.ranking_epochs=1"
        sets += "loss.ranking=0.5", "loss.ranked_targets=8"
        assert train.main(command(base, today, out, *sets)) == 0
        far[pull] = strayed(out)
        names = "start", "best-retrieval", "best-ranking"
        start, retrieval, both = (
            tf.train.load_checkpoint(str(out / "checkpoints" / name)) for name in names
        )
        moved = lambda one, other, part: {
            not np.array_equal(one.get_tensor(name), other.get_tensor(name))
            for name in one.get_variable_to_shape_map()
            if name.startswith(part) and name.endswith("VALUE")
        }
        for part in ("user_tower", "item_tower/features", "retrieval", "bert"):
            assert True in moved(start, retrieval, part)
            assert moved(retrieval, both, part) == {False}
        assert moved(start, retrieval, "scorer") == {False}
        assert True in moved(retrieval, both, "scorer")
    assert far[100.0] < 0.8 * far[0.0]


def test_a_training_that_makes_it_worse_keeps_what_it_began_with(
    base, today, tmp_path, monkeypatch, caplog
):
    def ruined(model, examples, validate, weigh, *, out, **how):
        for variable in model.trainable_variables:
            variable.assign(tf.zeros_like(variable))
        model.refresh()
        checkpoints.write(checkpoints.weights(model), out / "checkpoints" / "best")
        return [{"epoch": 1, "stage": "both", "train_loss": 1.0, "ndcg@10": 0.0}]

    monkeypatch.setattr(fit, "fit", ruined)
    assert train.main(command(base, today, tmp_path)) == 0
    assert "its weights are kept" in caplog.text
    (kept, prepared), (began, _) = runs.load(tmp_path), runs.untrained(tmp_path)
    for name, value in named(began).items():
        np.testing.assert_array_equal(named(kept)[name], value)
    found = json.loads((tmp_path / "metrics.json").read_text())
    first = evaluate.evaluate(began, prepared, "validation")["ndcg@10"].mean()
    assert found["best_validation"] == pytest.approx(first)
    means = evaluate.means(began, prepared, "test")
    assert found["test"] == means


def test_two_replicas_go_on(base, today, tmp_path):
    given = command(base, today, tmp_path, "train.pull=0.5", "train.epochs=1")
    assert train.main([*given, "--strategy", "mirrored"]) == 0
    assert np.isfinite(strayed(tmp_path))


def test_a_killed_run_goes_on_as_if_it_had_not_been(base, today, gone_on, tmp_path):
    """Without the model that it began with, within its first epoch."""
    sets = "train.pull=0.5", "train.checkpoint_steps=1"
    with killing.dying(Keeper, "on_train_batch_end", 2) as died:
        train.main(command(base, today, tmp_path, *sets))
    assert died
    assert train.main(["--out", str(tmp_path), "--resume"]) == 0
    assert small.history(tmp_path) == small.history(gone_on)
    killing.require_same_weights(tmp_path, gone_on)


def test_killed_before_it_has_its_weights_it_takes_them(
    base, today, gone_on, tmp_path, capsys
):
    """Between the two files that they are in."""
    given = command(base, today, tmp_path, "train.pull=0.5")
    with killing.dying(incremental.tf.raw_ops, "SaveV2", 2) as died:
        train.main(given)
    assert died
    assert train.main(["--out", str(tmp_path), "--resume"]) == 2
    assert "was stopped before it had begun: say --from" in capsys.readouterr().err
    assert train.main([*given, "--resume"]) == 0
    assert small.history(tmp_path) == small.history(gone_on)


def test_tables_without_any_old_event_are_gone_on_with(base, worded, today, tmp_path):
    """Only the new rows are kept, as where a shop exports day by day."""
    whole = shutil.copytree(today, tmp_path / "tables")
    old = set((worded / "interactions.csv").read_text().splitlines()[1:])
    head, *events = (whole / "interactions.csv").read_text().splitlines()
    new = [line for line in events if line not in old]
    (whole / "interactions.csv").write_text("\n".join([head, *new]) + "\n")
    ids = dict.fromkeys(line.partition(",")[0] for line in [*sorted(old), *events])
    (whole / "users.csv").write_text("\n".join(["user_id", *ids]) + "\n")
    out, users = tmp_path / "run", ["--users", str(whole / "users.csv")]
    assert train.main([*command(base, whole, out), *users]) == 0
    assert train.main(["--out", str(out), "--resume"]) == 0
    assert evaluate.main(["--run", str(out)]) == 0


def test_users_without_weights_may_leave():
    """Not so where they have an id."""
    frame = lambda *ids: pl.DataFrame({"id": ids, "text": [""] * len(ids)})
    events = pl.DataFrame({"user": [1, 0], "item": [0, 1]}, schema_overrides=ROW)
    given = tables.Tables(frame("i2", "i1"), frame("u3", "u2"), events, None, None)
    past = knowledge.Past(({}, {}), (["i1", "i2"], ["u1", "u2"]), None, grows=True)
    found = past.ordered(given, user_id=False)
    assert found.items["id"].to_list() == ["i1", "i2"]
    assert found.users["id"].to_list() == ["u2", "u3"]
    assert found.interactions.rows() == [(0, 1), (1, 0)]
    with pytest.raises(
        ValueError, match="lack 1 of the users that the model knows, as 'u1'"
    ):
        past.ordered(given, user_id=True)


def test_the_next_training_goes_on_from_a_version(base, today, gone_on, tmp_path):
    """`export` holds answers against the trained model's; `evaluate` measures it as any."""
    assert export.main(["--run", str(gone_on), "--to", str(tmp_path / "shop")]) == 0
    assert evaluate.main(["--run", str(gone_on)]) == 0
    version, third = tmp_path / "shop" / "1", tmp_path / "third"
    place = tmp_path / "later"
    shutil.copytree(today, place)
    with (place / "interactions.csv").open("a") as file:
        rows = (r.replace(",2000", ",2100").replace("n1", "n3") for r in NEW)
        file.writelines(f"{row.replace('i3', 'i0').replace('n2', 'i11')}\n" for row in rows)
    head, *rows = (today / "items.csv").read_text().splitlines()
    (place / "items.csv").write_text("\n".join([head, *rows[::-1], "n3,word9"]) + "\n")
    assert train.main(command(version, place, third, "train.epochs=1")) == 0
    start, prepared = runs.untrained(third)
    assert prepared.items.ids[-1] == "n3"
    want = runs.load(gone_on)[0].item_tower.event_id.table.numpy()
    np.testing.assert_array_equal(start.item_tower.event_id.table[:-1], want)


def cut(path, *without):
    """The same table without rows."""
    rows = path.read_text().splitlines()
    path.write_text("\n".join(r for r in rows if r not in without) + "\n")


@pytest.mark.parametrize(
    ("change", "sets", "message"),
    [
        ("items", (), "lack 1 of the items that the model knows, as 'i5': its weights"),
        ("events", (), "None of the 77 interactions is new to the model"),
        ("column", (), "The items have the column 'size', which the model lacks"),
        (None, ("model.dim=16",), "model.dim was 8 in"),
        (None, ("bert.tuning=all",), "bert.tuning was 'lora' in"),
        (None, ("split.name=cold-items",), "split.name='cold-items' holds out what"),
        ("early", ("split.name=leave-last-out",), "old events are later than new ones"),
    ],
    ids=["item", "events", "column", "dim", "tuning", "split", "early"],
)
def test_what_cannot_go_on_is_told(
    base, today, worded, tmp_path, capsys, change, sets, message
):
    place = tmp_path / "today"
    shutil.copytree(today, place)
    if change == "items":
        row = next(
            r for r in (place / "items.csv").read_text().splitlines() if r[:3] == "i5,"
        )
        cut(place / "items.csv", row)
        events = (place / "interactions.csv").read_text().splitlines()
        cut(place / "interactions.csv", *[r for r in events if ",i5," in r])
    elif change == "events":
        shutil.copyfile(worded / "interactions.csv", place / "interactions.csv")
    elif change == "column":
        head, *rows = (place / "items.csv").read_text().splitlines()
        lines = [f"{head},size", *(f"{row},{i % 3}" for i, row in enumerate(rows))]
        (place / "items.csv").write_text("\n".join(lines) + "\n")
        sets = ("schema.items.columns={size='number'}",)
        message = "schema.items"
    elif change == "early":
        text = (place / "interactions.csv").read_text()
        (place / "interactions.csv").write_text(text.replace(",20000", ",09000"))
    assert train.main(command(base, place, tmp_path / "next", *sets)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("what", ["nothing", "config", "half"])
def test_from_names_what_was_trained_and_its_settings_alone(
    worded, base, tmp_path, capsys, what
):
    shutil.copytree(base, tmp_path / "half")
    (tmp_path / "half" / "metrics.json").unlink()
    start = {"nothing": tmp_path, "config": base, "half": tmp_path / "half"}[what]
    given = command(start, worded, tmp_path / "next")
    more = ["--config", "configs/movielens-100k.toml"] if what == "config" else []
    assert train.main([*given, *more]) == 2
    message = {
        "nothing": "lacks metrics.json. Train it to its end",
        "half": "half lacks metrics.json. Train it to its end",
        "config": "--from brings the settings of the model that it names",
    }
    assert message[what] in capsys.readouterr().err


def test_new_events_are_split_and_old_ones_are_training():
    draw = np.random.default_rng(0)
    user, item = draw.integers(0, 5, 60), draw.integers(0, 9, 60)
    time = np.arange(60)
    old = time < 35
    found = splits.going_on(old, "global_time", user, item, time, validation=0.2, test=0.2)
    np.testing.assert_array_equal(found.test, np.arange(55, 60))
    np.testing.assert_array_equal(found.validation, np.arange(50, 55))
    np.testing.assert_array_equal(found.train, np.arange(50))
    with pytest.raises(ValueError, match="1 old events are later than new ones"):
        splits.going_on(
            old | (time == 57), "global_time", user, item, time, validation=0.2, test=0.2
        )
