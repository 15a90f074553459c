"""Towers: tokens and masks of rows, and users as of a moment."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.model import encoders
from tfrec_attn.model.towers import (
    GAPS,
    FeatureTokens,
    ItemTower,
    UserTokens,
    UserTower,
    gap,
    latest,
    masked_mean,
)

DIM, WIDE, LENGTH = 6, 7, 3
DAY = 86_400_000


def shaken(layer):
    """Moves every weight away from its start, as training does."""
    draw = np.random.default_rng(7)
    for variable in layer.trainable_variables:
        variable.assign(variable + draw.normal(0, 0.3, variable.shape))
    return layer


def columns():
    text = encoders.TextTokens(DIM)
    # A centre, so that a text that is not there would project to something.
    text.adapt(np.random.default_rng(9).normal(2.0, 1.0, (13, 11)).astype(np.float32))
    return {
        "id": encoders.CategoryTokens(5, DIM),
        "genres": encoders.CategoryTokens(7, DIM),
        "year": encoders.NumberTokens([0.0, 1.0, 3.0], DIM),
        "text": text,
    }


def features(rows=4):
    draw = np.random.default_rng(3)
    text = draw.normal(size=(rows, 3, 11)).astype(np.float32)
    mask = np.arange(3) < np.array([3, 1, 2, 0])[:rows, None]
    total = (text * mask[..., None]).sum(1)
    made = {
        "id": np.array([1, 5, 0, 0], np.int32)[:rows],
        "genres": np.array([[1, 7], [2, 0], [0, 0], [0, 0]], np.int32)[:rows],
        "year": np.array([0.5, np.nan, 2.0, np.nan], np.float32)[:rows],
        "text": text,
        "text_mask": mask,
        "text_mean": total / np.maximum(mask.sum(1), 1)[:, None],
    }
    return {
        name: tf.constant(value, tf.as_dtype(value.dtype)) for name, value in made.items()
    } | {"text_mean": tf.constant(made["text_mean"], tf.float32)}


def test_columns_stand_side_by_side():
    layer = FeatureTokens(columns())
    tokens, mask = layer(features())
    assert tokens.shape == (4, 1 + 2 + 1 + 3, DIM)
    assert mask.numpy().astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_the_summary_is_the_sum_of_the_columns_means():
    layer = FeatureTokens(columns())
    tokens, mask = (value.numpy() for value in layer(features()))
    want = np.zeros((4, DIM))
    for row, start, stop in np.array(
        [(r, *part) for r in range(4) for part in ((0, 1), (1, 3), (3, 4), (4, 7))]
    ):
        real = tokens[row, start:stop][mask[row, start:stop]]
        want[row] += real.mean(0) if len(real) else 0
    np.testing.assert_allclose(layer.summary(features()), want, atol=1e-5)
    assert not want[3].any()


def test_masked_mean_of_nothing_is_zero_whatever_stands_there():
    tokens = tf.constant([[[3.0, 1.0], [5.0, 9.0]], [[np.nan, 1.0], [2.0, np.inf]]])
    mask = tf.constant([[True, False], [False, False]])
    np.testing.assert_array_equal(masked_mean(tokens, mask), [[3, 1], [0, 0]])


def item_tower(most=9):
    own = {name: encoders.CategoryTokens(5, WIDE) for name in ("candidate", "event")}
    tower = ItemTower(columns(), most=most, wide=WIDE, **own)
    tower(features())
    tower.event(tower.vector(features()), features()["id"])
    return shaken(tower)


@pytest.mark.parametrize("most", [2, 4, 9])
def test_an_item_is_its_vector_its_own_id_and_its_first_real_tokens(most):
    tower, given = item_tower(most), features()
    tokens, mask = (value.numpy() for value in tower(given))
    assert tokens.shape == (4, min(most, 8), WIDE)
    own, known = (value.numpy()[:, 0] for value in tower.candidate_id(given["id"][:, None]))
    plain, there = (value.numpy() for value in tower.features(given))
    vector, kernel = tower.vector(given).numpy(), tower.widen.kernel.numpy()
    for row in range(4):
        rest = plain[row, 1:][there[row, 1:]][: most - 2]
        want = [vector[row] @ kernel, own[row], *(token @ kernel for token in rest)]
        real = [True, known[row], *[True] * len(rest)]
        assert mask[row].tolist() == real + [False] * (min(most, 8) - len(real))
        np.testing.assert_allclose(tokens[row, : len(real)], want, atol=1e-6)


def test_an_item_of_which_nothing_is_known_has_no_direction():
    tower = ItemTower(columns(), candidate=None, event=None, most=9, wide=WIDE)
    pooled = tower.pool(tower.vector(features())).numpy()
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), [1, 1, 1, 0], atol=1e-5)


def test_an_event_is_the_items_vector_and_an_id_of_its_own():
    tower, given = item_tower(), features()
    vector = tower.vector(given)
    own = tower.event_id.table.numpy()[given["id"].numpy()]
    own[given["id"].numpy() == 0] = 0
    want = vector @ tower.widen_event.kernel + own
    np.testing.assert_allclose(tower.event(vector, given["id"]), want, atol=1e-6)


def test_the_ranking_reads_what_the_retrieval_learned_and_does_not_move_it():
    tower, given = item_tower(), features()
    with tf.GradientTape() as tape:
        events = tower.event(tower.vector(given), given["id"])
        total = tf.reduce_sum(tower(given)[0] ** 3) + tf.reduce_sum(events**3)
    found = tape.gradient(total, tower.trainable_variables)
    moved = {
        v.ref()
        for v, g in zip(tower.trainable_variables, found, strict=True)
        if g is not None
    }
    layers = (tower.candidate_id, tower.event_id, tower.widen, tower.widen_event)
    assert moved == {v.ref() for layer in layers for v in layer.trainable_variables}


def test_what_stands_at_padding_changes_no_item():
    tower, plain = item_tower(), features()
    noisy = {**plain, "text": tf.where(plain["text_mask"][..., None], plain["text"], 1e3)}
    np.testing.assert_array_equal(tower.vector(noisy), tower.vector(plain))
    for (got, mask), (want, _) in [(tower(noisy), tower(plain))]:
        np.testing.assert_array_equal(got[mask], want[mask])


def user_tower(profile=True, **changes):
    settings = {"dim": DIM, "heads": 2, "blocks": 1, "length": LENGTH} | changes
    tower = UserTower(columns() if profile else {}, **settings)
    query(tower, history(1), [[0]])
    return shaken(tower)


def history(n, start=0, rows=1, pad=0):
    """Events `start` to `start + n` of one endless history, and padding."""
    at = np.arange(start, start + n)
    events = (
        np.stack([np.random.default_rng(100 + i).normal(size=DIM) for i in at])
        if n
        else np.zeros((0, DIM))
    )
    wide = lambda value, fill: np.pad(
        value, [(0, pad)] + [(0, 0)] * (value.ndim - 1), constant_values=fill
    )
    made = {
        "events": wide(events, 9.0).astype(np.float32),
        "mask": wide(np.ones(n, bool), False),
        "feedback": wide(at % 5, 0).astype(np.int32),
        "time": wide((at * at + 1) * DAY, 0).astype(np.int64),
    }
    return {k: np.tile(v[None], (rows, *[1] * v.ndim)) for k, v in made.items()}


def _call(tower, past):
    rows = past["events"].shape[0]
    profile = features(rows) if tower.features else {}
    return tower({"profile": profile, **{k: tf.constant(v) for k, v in past.items()}})


def query(tower, past, seen, bucket=3):
    tokens, prefix = _call(tower, past)
    seen = tf.constant(seen)
    gaps = tf.fill(tf.shape(seen), bucket)
    return tower.query(tokens, prefix, seen, gaps, past["mask"]).numpy()


@pytest.mark.parametrize("profile", [True, False])
@pytest.mark.parametrize("width", [0, 1, 4])
def test_a_user_without_events_has_a_unit_vector(profile, width):
    tower, past = user_tower(profile), history(0, rows=2, pad=width)
    assert _call(tower, past)[1] == (8 if profile else 1)
    np.testing.assert_allclose(
        np.linalg.norm(query(tower, past, [[0], [0]]), axis=-1), 1, rtol=1e-5
    )


def test_profiles_tell_users_apart_and_users_without_one_are_alike():
    found = query(user_tower(), history(2, rows=2), [[2], [2]])[:, 0]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    found = query(user_tower(profile=False), history(2, rows=2), [[2], [2]])[:, 0]
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("seen", range(8))
def test_a_query_sees_its_last_events_and_no_other(seen):
    tower, past = user_tower(time=False), history(7)
    plain = query(tower, past, [[seen]])
    for at in range(7):
        for name in ("events", "feedback"):
            other = {k: v.copy() for k, v in past.items()}
            value = past[name][0, at]
            other[name][0, at] = value[::-1] if name == "events" else (value + 1) % 5
            same = (query(tower, other, [[seen]]) == plain).all()
            assert same == (not seen - LENGTH <= at < seen), (at, name)


@pytest.mark.parametrize("seen", range(8))
def test_the_time_of_a_later_event_changes_nothing(seen):
    tower, past = user_tower(), history(7)
    plain = query(tower, past, [[seen]])
    other = {k: v.copy() for k, v in past.items()}
    other["time"][0, seen:] += 1000 * DAY
    np.testing.assert_array_equal(query(tower, other, [[seen]]), plain)
    if seen > 1:  # the first event has no event to be away from
        other["time"][0, seen - 1] += 1000 * DAY
        assert (query(tower, other, [[seen]]) != plain).any()


@pytest.mark.parametrize("seen", [1, 2, 3, 4, 7])
def test_what_is_served_is_the_query_of_the_training_window(seen):
    """The last events alone, with the time of the one before them; padding behind."""
    tower = user_tower()
    trained = query(tower, history(7), [[seen]])
    start = max(0, seen - LENGTH - 1)
    served = query(tower, history(seen - start, start, pad=2), [[seen - start]])
    np.testing.assert_allclose(served, trained, atol=1e-5)


@pytest.mark.parametrize("seen", range(8))
def test_the_mean_is_of_the_state_before_all_events_and_those_of_the_last(seen):
    tower = user_tower(pooling="mean", time=False)
    past = history(7, rows=2, pad=1)
    tokens, prefix = _call(tower, past)
    states = tokens.numpy()[:, int(prefix) - 1 :].astype(np.float64)
    kept = [0, *range(max(1, seen - LENGTH + 1), seen + 1)]
    want = tower.norm(tf.constant(states[:, kept].mean(1)[:, None], tf.float32))[:, 0]
    want /= np.linalg.norm(want, axis=-1, keepdims=True)
    found = query(tower, past, [[seen, 0]] * 2)[:, 0]
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("seen", range(5, 8))
def test_events_that_are_left_out_are_as_if_they_had_not_been(pooling, seen):
    """By the augmentation: what is cropped, or dropped from the front."""
    tower, past = user_tower(pooling=pooling, time=False), history(7)
    cropped = past | {"mask": past["mask"] & (np.arange(7) >= 4)}
    short = history(3, start=4)
    found = query(tower, cropped, [[seen]])
    np.testing.assert_allclose(found, query(tower, short, [[seen - 4]]), atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_nothing_after_the_moment_reaches_a_query(pooling):
    tower, past = user_tower(pooling=pooling), history(7)
    plain = query(tower, past, [[3]])
    other = {k: v.copy() for k, v in past.items()}
    other["events"][0, 3:] = -9.0
    other["feedback"][0, 3:] = 4
    np.testing.assert_array_equal(query(tower, other, [[3]]), plain)


@pytest.mark.parametrize("seen", range(5))
def test_the_latest_stand_at_the_end(seen):
    """Of two rows of which the first has one more."""
    values = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    found, there = latest(tf.constant(values), tf.constant([seen + 1, seen]), LENGTH)
    for row, count in enumerate((seen + 1, seen)):
        want = values[row, max(0, count - LENGTH) : count].tolist()
        missing = LENGTH - len(want)
        assert found[row].numpy().tolist() == [0] * missing + want
        assert there[row].numpy().tolist() == [False] * missing + [True] * len(want)


def test_the_latest_of_nothing_is_nothing():
    found, there = latest(tf.zeros((2, 0, 4)), tf.constant([0, 0]), LENGTH)
    assert found.shape == (2, LENGTH, 4)
    assert not there.numpy().any()


def user_tokens(**changes):
    layer = UserTokens(**{"wide": WIDE, "length": LENGTH} | changes)
    layer(moment())
    return shaken(layer)


def moment(**changes):
    """Two users of one column, of two and of three events."""
    draw = np.random.default_rng(11)
    made = {
        "profile": draw.normal(size=(2, 1, DIM)).astype(np.float32),
        "profile_mask": np.array([[True], [False]]),
        "events": draw.normal(size=(2, LENGTH, WIDE)).astype(np.float32),
        "mask": np.array([[False, True, True], [True, True, True]]),
        "feedback": np.array([[0, 2, 1], [4, 3, 0]], np.int32),
        "time": np.array([[0, 1, 2], [1, 2, 0]], np.int64) * DAY,
        "now": np.array([3, 5], np.int64) * DAY,
    }
    return {name: tf.constant(value) for name, value in (made | changes).items()}


def test_the_ranking_sees_profile_a_token_of_all_and_events_as_they_were():
    layer, given = user_tokens(), moment()
    tokens, mask = layer(given)
    assert mask.numpy().astype(int).tolist() == [[1, 1, 0, 1, 1], [0, 1, 1, 1, 1]]
    np.testing.assert_allclose(
        tokens[:, :1], given["profile"] @ layer.widen.kernel, atol=1e-6
    )
    np.testing.assert_allclose(tokens[:, 1], np.tile(layer.anyone, (2, 1)))
    gaps, labels = layer.gap.get_weights()[0], layer.feedback.get_weights()[0]
    for user, place in np.ndindex(2, LENGTH):
        passed = gap(given["time"][user, place], given["now"][user]).numpy()
        want = given["events"][user, place] + layer.recency[place]
        want += labels[given["feedback"][user, place]] + gaps[passed]
        np.testing.assert_allclose(tokens[user, 2 + place], want, atol=1e-6)


def test_without_time_the_ranking_reads_none():
    layer = user_tokens(time=False)
    other = moment(time=np.full((2, LENGTH), 4 * DAY), now=np.array([9, 0]) * DAY)
    np.testing.assert_array_equal(layer(moment())[0], layer(other)[0])


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        (0, 1),
        (0.5, 1),
        (0.999, 1),
        (1, 2),
        (2.9, 2),
        (3, 3),
        (6.9, 3),
        (7, 4),
        (-5, 1),
        (2**40, GAPS - 1),
    ],
)
def test_gaps_double(seconds, bucket):
    later = DAY + int(seconds * 1000)
    assert gap(tf.constant([DAY], tf.int64), tf.constant([later], tf.int64)) == [bucket]


@pytest.mark.parametrize(("earlier", "later"), [(0, DAY), (DAY, 0), (0, 0)])
def test_an_unknown_time_has_a_bucket_of_its_own(earlier, later):
    assert gap(tf.constant([earlier], tf.int64), tf.constant([later], tf.int64)) == [0]


def test_time_off_reads_no_time():
    tower, past = user_tower(time=False), history(5)
    other = {**past, "time": past["time"] * 3 + 1}
    np.testing.assert_array_equal(
        query(tower, past, [[4]], bucket=1), query(tower, other, [[4]], bucket=7)
    )
