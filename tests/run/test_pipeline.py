"""From a config to features and examples: what is encoded once, what nobody foresees."""

import dataclasses
import shutil

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tests.model import test_bert as small
from tfrec_attn.data import batches
from tfrec_attn.run import building, pipeline
from tfrec_attn.settings import config as config_lib

ITEMS, USERS, EACH = 11, 5, 8
DAY = 86_400
LENGTH, TARGETS = 3, 2


def write(place, **changes):
    """Three tables. Four moments for eight events of a user: most have a twin."""
    draw = np.random.default_rng(0)
    rows = {
        "items": [
            "item_id,title,price",
            *(f"i{i},word{i % 4} word9,{i}" for i in range(ITEMS)),
        ],
        "users": ["user_id,age", *(f"u{u},{20 + u}" for u in range(USERS))],
        "interactions": ["user_id,item_id,rating,timestamp"],
    }
    rows["items"][3] = "i2,,7"
    for u in range(USERS):
        rows["interactions"] += [
            f"u{u},i{i},{draw.integers(1, 6)},{1_000_000_000 + draw.integers(4) * DAY}"
            for i in draw.permutation(ITEMS - 1)[:EACH]
        ]
    for name, lines in (rows | changes).items():
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return place


def settings(place, *more):
    return config_lib.load(
        overrides=[
            *(f"data.{n}={place / n}.csv" for n in ("items", "users", "interactions")),
            "split.name=leave-last-out",
            "text.backbone=",
            "model.dim=8",
            f"examples.history={LENGTH}",
            f"examples.targets={TARGETS}",
            "examples.positives=['buy','like','ignore','dislike','not_buy']",
            *more,
        ]
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tables"))


@pytest.mark.parametrize(
    ("options", "validation", "test"),
    [
        (["split.share=0.25"], 0.25, 0.25),
        (["split.share=0.25", "split.validation=0.125"], 0.125, 0.25),
    ],
)
def test_a_random_split_within_each_user_holds_out_its_shares(
    options, validation, test, place
):
    random = ["split.name=random", "split.by_user=true"]
    split = pipeline.prepare(settings(place, *random, *options)).split
    tables = pipeline.read(settings(place))[1]
    user = tables.interactions["user"].to_numpy()
    for fold, share in {"validation": validation, "test": test}.items():
        counts = np.bincount(user[getattr(split, fold)], minlength=USERS)
        assert counts.tolist() == [int(EACH * share)] * USERS


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("berts") / "bert"
    small.write_folder(folder, small.random_weights())
    words = [*(f"word{i}" for i in range(10)), *(f"unused{i}" for i in range(17))]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


@pytest.fixture
def encoded(monkeypatch):
    """How many texts BERT was given, call by call."""
    counts, encode = [], pipeline.bert_lib.encode

    def count(bert, ids, **options):
        counts.append(len(ids))
        return encode(bert, ids, **options)

    monkeypatch.setattr(pipeline.bert_lib, "encode", count)
    return counts


def with_text(place, backbone, *more):
    return settings(
        place,
        f"text.backbone={backbone}",
        "text.max_length=5",
        "schema.items.text={title}",
        "schema.items.columns.price=number",
        *more,
    )


def test_texts_are_encoded_once_a_run(place, backbone, tmp_path, encoded):
    config = with_text(place, backbone)
    first = pipeline.prepare(config, tmp_path)
    again = pipeline.prepare(config, tmp_path)
    assert encoded == [ITEMS]
    for name in ("text", "text_mask", "text_mean"):
        np.testing.assert_array_equal(again.item_features[name], first.item_features[name])
    # Without a folder to keep them in there is nothing to read.
    pipeline.prepare(config)
    assert encoded == [ITEMS, ITEMS]


def test_the_same_weights_elsewhere_are_the_same(place, backbone, tmp_path, encoded):
    pipeline.prepare(with_text(place, backbone), tmp_path)
    moved = shutil.copytree(backbone, tmp_path / "moved")
    pipeline.prepare(with_text(place, moved), tmp_path)
    assert encoded == [ITEMS]


def test_other_weights_under_the_same_name_are_encoded_anew(
    place, tmp_path, backbone, encoded
):
    mine = shutil.copytree(backbone, tmp_path / "bert")
    config = with_text(place, mine)
    first = pipeline.prepare(config, tmp_path)
    weights = {name: 1.5 * value for name, value in small.random_weights().items()}
    small.write_folder(mine, weights)
    second = pipeline.prepare(config, tmp_path)
    assert encoded == [ITEMS, ITEMS]
    change = np.abs(second.item_features["text_mean"] - first.item_features["text_mean"])
    assert change.max() > 0.1


def test_other_texts_are_encoded_anew(place, backbone, tmp_path, encoded):
    mine = write(shutil.copytree(place, tmp_path / "tables"))
    config = with_text(mine, backbone)
    pipeline.prepare(config, tmp_path)
    table = mine / "items.csv"
    table.write_text(table.read_text().replace("i0,word0", "i0,word3"))
    pipeline.prepare(config, tmp_path)
    assert encoded == [ITEMS, ITEMS]


def test_a_run_killed_while_it_keeps_texts_leaves_no_half(
    place, backbone, tmp_path, encoded, monkeypatch
):
    def half(path, **arrays):
        path.write_bytes(b"PK")
        raise KeyboardInterrupt

    config = with_text(place, backbone)
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", half)
        with pytest.raises(KeyboardInterrupt):
            pipeline.prepare(config, tmp_path)
    pipeline.prepare(config, tmp_path)
    pipeline.prepare(config, tmp_path)
    assert encoded == [ITEMS, ITEMS]


def test_a_text_is_its_words_and_the_mean_of_all_its_pieces(place, backbone, tmp_path):
    prepared = pipeline.prepare(with_text(place, backbone), tmp_path)
    found = prepared.item_features
    hidden = np.load(tmp_path / "item_texts.npz")["hidden"].astype(np.float32)
    # [CLS] word word [SEP]; the third item has no title.
    assert found["text_mask"].sum(1).tolist() == [2, 2, 0, *[2] * (ITEMS - 3)]
    np.testing.assert_allclose(found["text"][0], hidden[0, 1:3], atol=1e-3)
    np.testing.assert_allclose(found["text_mean"][0], hidden[0, :4].mean(0), atol=1e-3)
    assert not found["text_mean"][2].any()
    assert prepared.words[0].tolist() == prepared.items.texts[0].split()
    assert prepared.words[2].tolist() == ["", ""]


def test_the_share_of_cut_texts_is_told(place, backbone):
    whole = pipeline.prepare(with_text(place, backbone))
    cut = pipeline.prepare(with_text(place, backbone, "text.max_length=3"))
    assert whole.truncated == 0
    assert cut.truncated == pytest.approx((ITEMS - 1) / ITEMS)


def test_an_item_without_a_training_event_has_no_id_token(place):
    prepared = pipeline.prepare(settings(place))
    train = prepared.events(prepared.split.train)
    counts = np.bincount(train.item, minlength=ITEMS)
    assert counts[ITEMS - 1] == 0  # nobody had the last one
    np.testing.assert_allclose(prepared.frequency, counts / counts.sum())
    want = np.where(counts > 0, np.arange(1, ITEMS + 1), 0)
    np.testing.assert_array_equal(prepared.item_features["id"], want)


def test_a_user_without_a_training_event_has_no_id_token(place):
    prepared = pipeline.prepare(settings(place, "split.name=cold-users"))
    had = np.zeros(len(prepared.users), bool)
    had[prepared.tables.interactions["user"].to_numpy()[prepared.split.train]] = True
    assert not had.all()
    want = np.where(had, np.arange(1, len(had) + 1), 0)
    np.testing.assert_array_equal(prepared.user_features["id"], want)


def test_a_repeated_item_is_no_target_and_told_once(tmp_path, caplog):
    """Of nine events a user the last is the test; user 1 has had its item."""
    write(tmp_path)
    again = tmp_path / "interactions.csv"
    lines = again.read_text().splitlines()
    first = next(line for line in lines if line.startswith("u1,")).split(",")
    late = 1_000_000_000 + 9 * DAY
    lines += [f"u{u},i{ITEMS - 1},5,{late}" for u in range(USERS) if u != 1]
    again.write_text("\n".join([*lines, f"u1,{first[1]},5,{late}"]) + "\n")
    caplog.set_level("INFO")
    prepared = pipeline.prepare(settings(tmp_path))
    targets = [prepared.held_out("test").targets for _ in range(2)][1]
    assert np.unique(targets.user).tolist() == [0, 2, 3, 4]
    assert caplog.text.count("test: 1 events repeat a known item") == 1
    assert "validation: " not in caplog.text


def test_what_cannot_be_trained_on_is_named(place, tmp_path):
    with pytest.raises(ValueError, match="No tables: "):
        pipeline.prepare(config_lib.load())
    lines = (place / "interactions.csv").read_text().splitlines()
    poor = [
        lines[0],
        *(",".join([*line.split(",")[:2], "3", line[-10:]]) for line in lines[1:]),
    ]
    rated = write(tmp_path, interactions=poor)
    with pytest.raises(ValueError, match=r"No training event has .*positives=\['buy'\]"):
        pipeline.prepare(settings(rated, "examples.positives=['buy']"))


def test_without_a_time_column_no_time_is_read(place, tmp_path):
    lines = [
        line.rpartition(",")[0] for line in (place / "interactions.csv").read_text().split()
    ]
    prepared = pipeline.prepare(settings(write(tmp_path, interactions=lines)))
    assert not prepared.config.model.time
    assert pipeline.prepare(settings(place)).config.model.time


# What nobody may foresee: a target's own event, and all at or after its time.


def model_of(prepared):
    """Weights away from where training starts, the same each time."""
    model, draw = building.build(prepared), np.random.default_rng(1)
    model.warm_up()
    for variable in model.trainable_variables:
        variable.assign(draw.normal(0, 0.5, variable.shape).astype(np.float32))
    return model


def training_queries(model, prepared):
    """By row of the interactions: what the retrieval and the ranking are trained on."""
    cut = prepared.training()
    batch = {n: tf.constant(v) for n, v in batches.gather(cut, np.arange(len(cut))).items()}
    step = model._step(batch, training=False)
    pick = tf.where(batch["weight"] > 0)
    user = model._users_of(step, tf.cast(pick, tf.int32), tf.gather_nd(step.query, pick))
    tokens = tf.where(user.mask[..., None], user.tokens, 0.0)
    found = np.concatenate([user.query, user.mask, tf.reshape(tokens, (len(pick), -1))], 1)
    return dict(zip(cut.targets.row.tolist(), found, strict=True))


def evaluated_answers(model, prepared):
    """Query and both stages' scores of all items, by row: what is evaluated and served."""
    cut, matrices = prepared.held_out("test"), model.encode_items()
    batch = batches.gather(cut, np.arange(len(cut)))
    asked = {n: batch[n] for n in ("history", "history_feedback", "history_time")}
    asked |= {"seen": batch["target_seen"][:, 0], "time": batch["target_time"][:, 0]}
    state = model.encode_users(model.users.rows(batch["user"]), matrices, asked)
    everything = tf.tile(tf.range(ITEMS)[None], (len(cut), 1))
    ranked = model.rank(state, *matrices.candidates(everything))
    found = np.concatenate(
        [state.query, tf.matmul(state.query, matrices.pooled, transpose_b=True), ranked], 1
    )
    return dict(zip(cut.targets.row.tolist(), found, strict=True))


def changed(prepared, rows, draw, earliest):
    """Other items, ratings and times (not before `earliest`) in some rows."""
    columns = prepared.tables.interactions.to_dict(as_series=False)
    for row in rows:
        columns["item"][row] = int(draw.integers(ITEMS))
        columns["feedback"][row] = int(draw.integers(5))
        columns["time"][row] = earliest + int(draw.integers(3)) * DAY * 500
    table = pl.DataFrame(columns, schema=prepared.tables.interactions.schema)
    return dataclasses.replace(
        prepared, tables=dataclasses.replace(prepared.tables, interactions=table)
    )


@pytest.mark.parametrize(
    ("fold", "answers", "time"),
    [("train", training_queries, "false"), ("test", evaluated_answers, "true")],
    ids=["training", "evaluation"],
)
def test_no_answer_foresees_anything(place, fold, answers, time):
    prepared, draw = (
        pipeline.prepare(settings(place, f"model.time={time}")),
        np.random.default_rng(2),
    )
    model = model_of(prepared)
    plain = answers(model, prepared)
    events = prepared.tables.interactions
    user, moment = events["user"].to_numpy(), events["time"].to_numpy()
    twins = moved = 0
    for row in draw.permutation(list(plain))[:12]:
        later = np.flatnonzero(moment >= moment[row])
        some = later[draw.random(len(later)) < 0.7]
        if fold == "test":
            some = some[some != row]  # its item may be one that the user had
        other = changed(prepared, some, draw, moment[row])
        if fold == "train":
            # Its own time is the moment that is asked about.
            column = other.tables.interactions["time"].to_numpy().copy()
            column[row] = moment[row]
            table = other.tables.interactions.with_columns(time=pl.Series(column))
            other = dataclasses.replace(
                other, tables=dataclasses.replace(other.tables, interactions=table)
            )
        found = answers(model, other)
        if row not in found:  # changed into a repeat of what the user had: no target
            continue
        np.testing.assert_allclose(found[row], plain[row], rtol=1e-4, atol=1e-5)
        own = user[some] == user[row]
        twins += int((own & (moment[some] == moment[row]) & (some != row)).sum())
        # The test can fail: what came just before does change the answer.
        before = np.flatnonzero((user == user[row]) & (moment < moment[row]))
        known = np.setdiff1d(before, prepared.split.test)
        if len(known):
            last = known[np.lexsort((known, moment[known]))][-1:]
            earlier = changed(prepared, last, draw, moment[last[0]] - DAY * 1000)
            gone = answers(model, earlier).get(row)
            moved += gone is None or bool(np.abs(gone - plain[row]).max() > 1e-3)
    assert twins > 0
    assert moved > 0
