"""What a step compares: draws by their rule, and by NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.model import sampling

ITEMS, SEED = 13, tf.constant([5, 7], tf.int64)


@pytest.mark.parametrize("count", [0, 1, 4, 6, 99])
def test_negatives_are_so_many_of_the_items_each_once(count):
    items = np.array([2, 3, 5, 7, 11, 12], np.int32)
    drawn = sampling.negatives(tf.constant(items), count, SEED).numpy()
    assert len(set(drawn)) == len(drawn) == min(count, 6)
    assert set(drawn) <= set(items)


def test_every_item_is_a_negative_as_often():
    seeds = [tf.constant([0, i], tf.int64) for i in range(600)]
    drawn = [sampling.negatives(tf.range(6), 2, seed).numpy() for seed in seeds]
    # 200 each, standard deviation 11.5.
    np.testing.assert_allclose(np.bincount(np.concatenate(drawn)), 200, atol=58)


def test_items_stand_once_and_are_found_again():
    parts = {"history": [[4, 4], [0, 9]], "target": [[9], [2]], "negatives": [2, 7]}
    items, at = sampling.each_once({k: tf.constant(v) for k, v in parts.items()})
    assert sorted(items.numpy()) == [0, 2, 4, 7, 9]
    for name, rows in parts.items():
        np.testing.assert_array_equal(tf.gather(items, at[name]), rows)


def test_taken_are_the_positives_among_the_items():
    positives = tf.ragged.constant([[8], [0], [3, 9, 1], [], [4, 10]], dtype=tf.int32)
    users, items = tf.constant([2, 3, 0, 4]), tf.constant([9, 0, 8, 3])
    found = sampling.taken(tf.gather(positives, users), items)
    assert found.numpy().tolist() == [
        [True, False, False, True],
        [False] * 4,
        [False, False, True, False],
        # Between others and above all of them.
        [False] * 4,
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 99])
def test_no_more_targets_are_ranked_than_asked_and_never_padding(count):
    weight = tf.constant([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    pick = sampling.targets(weight, count, SEED).numpy().tolist()
    assert len(pick) == min(count, 3)
    assert len({*map(tuple, pick)} & {(0, 1), (2, 0), (3, 0)}) == len(pick)


def test_every_target_is_ranked_as_often():
    weight = tf.constant([[1.0, 0.0, 5.0], [2.0, 0.1, 0.0]])
    seeds = [tf.constant([0, i], tf.int64) for i in range(600)]
    picks = np.concatenate([sampling.targets(weight, 2, seed).numpy() for seed in seeds])
    # 300 each, standard deviation 12.2.
    found = np.zeros((2, 3), int)
    np.add.at(found, tuple(picks.T), 1)
    np.testing.assert_allclose(found[weight.numpy() > 0], 300, atol=62)


def test_hard_negatives_are_drawn_from_the_shortlist():
    draw = np.random.default_rng(3)
    pooled = draw.normal(size=(ITEMS, 8)).astype(np.float32)
    query, target = np.tile(pooled[:1], (500, 1)), np.zeros(500, np.int32)
    taken = np.zeros((500, ITEMS), bool)
    taken[:, 0] = True
    places, real = sampling.shortlist(
        *map(tf.constant, (query, pooled, target, taken)), size=4, count=2, seed=SEED
    )
    best = 1 + np.argsort(-(pooled[1:] @ pooled[0]))[:4]
    assert real.numpy().all()
    assert set(places[:, 1:].numpy().ravel()) == set(best)
    assert (places[:, 1] != places[:, 2]).numpy().all()


def test_a_shortlist_without_candidates_has_its_target_alone():
    pooled = tf.constant([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    taken = tf.constant([[True, True, True], [False, True, True]])
    places, real = sampling.shortlist(
        pooled[:2], pooled, tf.constant([0, 2]), taken, size=3, count=2, seed=SEED
    )
    # The second's only candidate is as far from its query as can be.
    assert real.numpy().sum(1).tolist() == [1, 2]
    assert places[:, 0].numpy().tolist() == [0, 2]
    assert tf.boolean_mask(places, real).numpy().tolist() == [0, 2, 0]


def test_what_was_turned_down_is_ranked_unless_it_is_a_positive_too():
    """The user turns down 9, then 4, then buys 4; 6 was liked."""
    history = tf.constant([[9, 4, 6, -1]])
    taken = tf.constant([[row in (4, 6) for row in range(ITEMS)]])
    at = tf.maximum(history, 0)
    for count in (1, 3, 9):
        places, real = sampling.rejected(history, at, taken, count)
        assert places.shape == (1, min(count, 4))
        assert tf.boolean_mask(places, real).numpy().tolist() == [9]
