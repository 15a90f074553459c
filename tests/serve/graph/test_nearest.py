"""The first stage, against NumPy's full sort."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfrec_attn.serve.graph import clusters, nearest

COUNT, D = 5003, 7


def unit(rows, seed):
    drawn = np.random.default_rng(seed).normal(size=(rows, D)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


VECTORS, QUERIES = unit(COUNT, 0), unit(3, 1)
# Rows of each query that are not wanted, its nearest one among them.
LOST = np.random.default_rng(2).random((3, COUNT)) < 0.3
LOST[np.arange(3), (QUERIES @ VECTORS.T).argmax(1)] = True


def adjust(cosine, rows):
    lost = tf.constant(LOST)
    shared = rows.shape.rank == 1
    lost = tf.gather(lost, rows, axis=1) if shared else tf.gather(lost, rows, batch_dims=1)
    # What is added counts, too: odd rows are moved up.
    bonus = tf.cast(tf.math.floormod(rows, 2), tf.float32) / 8
    return tf.where(lost, nearest.LEFT_OUT, cosine + bonus)


def expected(size):
    worth = QUERIES @ VECTORS.T + (np.arange(COUNT) % 2) / np.float32(8)
    rows = np.argsort(np.where(LOST, np.inf, -worth), 1, kind="stable")[:, :size]
    return np.take_along_axis(worth, rows, 1), rows


@pytest.mark.parametrize("size", [1, 11, 700])
@pytest.mark.parametrize("room", [1 << 21, 1 << 13])
def test_exact_is_a_full_sort_whatever_the_blocks(size, room, monkeypatch):
    monkeypatch.setattr(nearest, "_ROOM", room)
    index = nearest.Exact(VECTORS)
    values, rows = tf.function(index)(tf.constant(QUERIES), adjust, tf.constant(size))
    np.testing.assert_allclose(values, expected(size)[0], atol=1e-6)
    np.testing.assert_array_equal(rows, expected(size)[1])


def test_of_equals_the_first_comes_first():
    same = np.tile(unit(1, 3), (COUNT, 1))
    index = nearest.Exact(same)
    _, rows = index(tf.constant(same[:2]), lambda cosine, _: tf.round(cosine), 5)
    np.testing.assert_array_equal(rows, [[0, 1, 2, 3, 4]] * 2)


@pytest.fixture(scope="module")
def lists():
    return clusters.train(VECTORS, 41)


def test_each_vector_is_in_the_list_of_its_nearest_centroid(lists):
    np.testing.assert_allclose(np.linalg.norm(lists.centroids, axis=1), 1, atol=1e-6)
    assert lists.starts[0] == 0
    assert np.sort(lists.order).tolist() == list(range(COUNT))
    nearest_centroid = (VECTORS @ lists.centroids.T).argmax(1)
    for number, (begin, end) in enumerate(itertools.pairwise(lists.starts)):
        members = lists.order[begin:end]
        assert (nearest_centroid[members] == number).all()
        assert (np.diff(members) > 0).all()


@pytest.mark.parametrize("room", [1 << 21, 1 << 13])
def test_all_lists_hold_what_an_exact_search_finds(lists, room, monkeypatch):
    monkeypatch.setattr(nearest, "_ROOM", room)
    index = nearest.Clustered(VECTORS, lists, probes=41)
    values, rows = tf.function(index)(tf.constant(QUERIES), adjust, tf.constant(11))
    np.testing.assert_allclose(values, expected(11)[0], atol=1e-6)
    np.testing.assert_array_equal(rows, expected(11)[1])
    np.testing.assert_array_equal(index.rows(rows), VECTORS[rows])


def test_few_lists_hold_their_own_members_only(lists):
    index = nearest.Clustered(VECTORS, lists, probes=3)
    _, rows = index(tf.constant(QUERIES), lambda cosine, _: cosine, 11)
    cosine = QUERIES @ VECTORS.T
    for query, found in enumerate(rows.numpy()):
        chosen = np.argsort(-(QUERIES[query] @ lists.centroids.T))[:3]
        members = np.concatenate(
            [lists.order[lists.starts[n] : lists.starts[n + 1]] for n in chosen]
        )
        best = members[np.argsort(-cosine[query, members])][:11]
        np.testing.assert_array_equal(found, best)


def test_no_row_is_found_twice(lists):
    """Lists of unlike lengths are padded: not by a vector that is there already."""
    index = nearest.Clustered(VECTORS, lists, probes=3)
    queries = np.concatenate([QUERIES, VECTORS[lists.order[:1]]])
    _, rows = index(tf.constant(queries), lambda cosine, _: cosine, 50)
    assert [len(set(row)) for row in rows.numpy()] == [50] * 4


def test_where_the_nearest_lists_hold_too_few_all_are_searched(lists):
    """A request whose conditions leave five items, wherever they are, gets five."""
    index = nearest.Clustered(VECTORS, lists, probes=1)
    wanted = np.arange(5) * 1000
    only = lambda cosine, rows: tf.where(
        tf.reduce_any(rows[..., None] == wanted, -1), cosine, nearest.LEFT_OUT
    )
    values, rows = index(tf.constant(QUERIES), only, 7)
    assert [set(row) for row in rows.numpy()[:, :5]] == [set(wanted)] * 3
    assert np.isinf(values.numpy()[:, 5:]).all()


def test_as_many_lists_are_searched_as_the_recall_needs(caplog):
    caplog.set_level("INFO")
    queries = unit(50, 4)
    index = nearest.clustered(VECTORS, count=41, recall=0.9, queries=queries, size=10)
    exact = np.argsort(-(queries @ VECTORS.T), 1)[:, :10]

    def recall(probes):
        _, rows = index.search(tf.constant(queries), lambda c, _: c, 10, probes)
        return np.mean(
            [len(set(a) & set(b)) for a, b in zip(rows.numpy(), exact, strict=True)]
        )

    assert 1 < index.probes < 41
    assert recall(index.probes) / 10 >= 0.9 > recall(index.probes - 1) / 10
    assert f"it finds {recall(index.probes) / 10:.3f} of the 10 nearest" in caplog.text


def test_more_lists_than_vectors_are_refused():
    with pytest.raises(ValueError, match=r"clusters must be at most .* 9: received 10"):
        clusters.train(VECTORS[:9], 10)
