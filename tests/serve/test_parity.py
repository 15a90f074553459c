"""Served answers against the model's own, over both protocols, and the judge itself."""

import numpy as np
import pytest
import shop

from tfrec_attn import export
from tfrec_attn.serve import parity
from tfrec_attn.serve.client import Client
from tfrec_attn.serve.export import request

K = 7


def asked(running, protocol, users):
    port = running.grpc_port if protocol == "grpc" else running.rest_port
    with Client(f"127.0.0.1:{port}", "shop", protocol=protocol) as client:
        answers = [client.recommend(user, k=K).items for user in users]
    pick = lambda name: [[getattr(one, name) for one in row] for row in answers]
    return pick("id"), pick("score")


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_every_user_gets_the_models_answer(shop_live, protocol):
    model, prepared, running = shop_live
    want = parity.trained(model, prepared, k=K, batch_size=10)
    items, scores = asked(running, protocol, want.users)
    assert [len(row) for row in items] == [K] * shop.USERS
    verdict = parity.compare(want, items, scores)
    assert (verdict.users, verdict.wrong, verdict.ties) == (shop.USERS, [], 0)
    assert verdict.difference < parity.TOLERANCE
    # The comparison sees order and scores: either of them a little off is found.
    items[3][2:4] = reversed(items[3][2:4])
    scores[5][0] += 3e-5 * max(1.0, *scores[5])
    wrong = parity.compare(want, items, scores).wrong
    assert [line.split(",")[0] for line in wrong] == ["user u3", "user u5"]


@pytest.mark.parametrize(
    "index",
    [
        {"shortlist": 0},
        {"shortlist": 11, "tokens": "float16"},
        {"shortlist": 11, "tokens": "int8"},
    ],
)
def test_every_setting_of_the_index_gives_the_models_answer(index, tmp_path):
    model, prepared = shop.untrained(tmp_path, **index)
    graph = export.served(model, prepared)
    want = parity.trained(model, prepared, k=K)
    answer = graph.recommend(**request(graph, want.users, K))
    items = [[item.decode() for item in row] for row in answer["item_id"].numpy()]
    verdict = parity.compare(want, items, answer["score"].numpy())
    assert (verdict.wrong, verdict.ties) == ([], 0)


WANT = parity.Answers(
    users=["1", "2"],
    items=[["a", "b", "c", "d"], ["a"]],
    scores=[np.array([3.0, 2.0, 2.0 - 4e-6, 1.0]), np.array([5.0])],
    k=3,
)


def test_what_the_model_ranks_is_right():
    found = parity.compare(WANT, [["a", "b", "c"], ["a"]], [[3 + 7e-6, 2, 2], [5]])
    assert (found.wrong, found.ties) == ([], 0)
    assert found.difference == pytest.approx(7e-6)


def test_large_scores_are_as_exact_as_their_digits():
    want = parity.Answers(["1"], [["a", "b"]], [np.array([2335.178, -1.0])], 2)
    assert parity.compare(want, [["a", "b"]], [[2335.178 + 3e-4, -1.0 + 1e-4]]).wrong == []
    assert parity.compare(want, [["a", "b"]], [[2335.178 + 3e-2, -1.0]]).wrong != []


def test_scores_within_the_tolerance_may_change_places():
    found = parity.compare(WANT, [["a", "c", "b"], ["a"]], [[3, 2, 2], [5]])
    assert (found.wrong, found.ties) == ([], 1)


@pytest.mark.parametrize(
    ("items", "scores", "message"),
    [
        (
            ["b", "a", "c"],
            [2, 3, 2],
            "user 1, place 1: item b at 2.000000, the model has a",
        ),
        (
            ["a", "b", "d"],
            [3, 2, 1],
            "place 3: item d at 1.000000, the model has c at 1.99",
        ),
        (["a", "b", "z"], [3, 2, 2], "place 3: item z at"),
        (["a", "b", "c"], [3, 2, 2.1], "place 3: item c at 2.100000"),
        (["a", "b"], [3, 2], "user 1: 2 items instead of 3"),
        (["a", "b", "b"], [3, 2, 2], "user 1: 2 items instead of 3"),
    ],
)
def test_what_the_model_does_not_say_is_wrong(items, scores, message):
    (wrong,) = parity.compare(WANT, [items, ["a"]], [scores, [5]]).wrong
    assert message in wrong
