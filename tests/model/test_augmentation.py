"""What a step leaves out: how much, of what, and by its seed alone."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.model import augmentation

SEED = tf.constant([3, 5], tf.int64)
ROWS = 4000


def features():
    ones = np.ones((ROWS, 3))
    return {
        "id": np.arange(1, ROWS + 1, dtype=np.int32),
        "text_mean": ones.astype(np.float32),
        "text": ones[..., None].astype(np.float16),
        "text_mask": ones.astype(bool),
        "kind": np.full(ROWS, 2, np.int32),
        "tags": np.full((ROWS, 3), 2, np.int32),
        "price": np.full(ROWS, 9.0, np.float32),
        "image": ones.astype(np.float32),
    }


def thinned(share=0.3, seed=SEED):
    given = {name: tf.constant(value) for name, value in features().items()}
    found = augmentation.without_tokens(given, share, seed)
    return {name: value.numpy() for name, value in found.items()}


MISSING = {
    "text_mask": lambda value: ~value,
    "kind": lambda value: value == 0,
    "tags": lambda value: value == 0,
    "price": np.isnan,
    "image": lambda value: (value == 0).all(-1),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_share_of_the_values_is_missing_and_no_other_changes(name):
    value, whole = thinned()[name], features()[name]
    lost = MISSING[name](value)
    assert abs(lost.mean() - 0.3) < 0.03
    np.testing.assert_array_equal(value[~lost], whole[~lost])


@pytest.mark.parametrize("name", ["id", "text", "text_mean"])
def test_ids_and_the_states_of_texts_stay(name):
    np.testing.assert_array_equal(thinned()[name], features()[name])


def test_each_feature_and_each_seed_has_draws_of_its_own():
    lost = {
        name: MISSING[name](value) for name, value in thinned().items() if name in MISSING
    }
    again = thinned()
    assert all((MISSING[n](again[n]) == lost[n]).all() for n in lost)
    assert (lost["kind"] != lost["price"]).any()
    later = thinned(seed=SEED + tf.constant([0, 1], tf.int64))
    assert (MISSING["kind"](later["kind"]) != lost["kind"]).any()


def test_pieces_of_texts_but_never_the_first():
    ids = np.full((ROWS, 4), 7, np.int32)
    found = augmentation.without_pieces(tf.constant(ids), 1, 0.5, SEED).numpy()
    assert (found[:, 0] == 7).all()
    assert set(np.unique(found)) == {1, 7}
    assert abs((found[:, 1:] == 1).mean() - 0.5) < 0.03


def histories():
    """Rows of 0 to 5 events, numbered by where they are."""
    place = np.tile(np.arange(5), (ROWS, 1))
    return np.where(place < np.arange(ROWS)[:, None] % 6, place, -1).astype(np.int32)


def test_events_are_left_out_one_by_one():
    given = histories()
    found = augmentation.without_events(tf.constant(given), 0.25, SEED).numpy()
    lost = (found == -1) & (given >= 0)
    assert abs(lost.sum() / (given >= 0).sum() - 0.25) < 0.02
    np.testing.assert_array_equal(found[~lost], given[~lost])


def test_a_cropped_history_keeps_its_end():
    given = histories()
    found = augmentation.cropped(tf.constant(given), 0.6, SEED).numpy()
    length, left = (given >= 0).sum(1), (found >= 0).sum(1)
    for row, whole, count, size in zip(found, given, left, length, strict=True):
        np.testing.assert_array_equal(row[size - count :], whole[size - count :])
        assert (row[: size - count] == -1).all()
    assert (left[length > 0] > 0).all()
    # Of five events the first stays the beginning by chance in a fifth of the crops.
    full = (left == length)[length == 5].mean()
    assert abs(full - (0.4 + 0.6 / 5)) < 0.06
    counts = np.bincount(left[(length == 5) & (left < 5)], minlength=5)[1:]
    assert counts.min() > 0.7 * counts.max()


def test_a_share_of_one_crops_all_and_of_none_nothing():
    given = tf.constant(histories())
    for change in (augmentation.cropped, augmentation.without_events):
        np.testing.assert_array_equal(change(given, 0.0, SEED), given)
