"""The results of all signatures, by heart, of both clients over both protocols."""

import asyncio

import numpy as np
import pytest
from asking import ask, both, either

from tfrec_attn.serve.client import AsyncClient
from tfrec_attn.serve.client.answers import Score, Scores, Token


@pytest.fixture
def asked(recommender_live, kind, protocol):
    """Makes one call of a live toy recommender."""
    port = recommender_live.grpc_port if protocol == "grpc" else recommender_live.rest_port
    target = f"127.0.0.1:{port}"
    return lambda call: ask(kind, target, call, "movielens", protocol=protocol)


@either
@both
def test_recommend(asked):
    answer = asked(lambda client: client.recommend("1", ["i0", "lost"], k=2))
    assert [(one.id, one.score, one.text) for one in answer.items] == [
        ("i1", 6.0, "Titel ü i1"),
        ("i2", 5.0, "Titel ü i2"),
    ]
    assert (answer.known_user, answer.unknown_history) == (True, 1)


@either
@both
def test_score(asked):
    assert asked(lambda client: client.score(["1", "2"], [["i6"], ["new"]])) == [
        Scores((Score("i6", 1.0, True),), True),
        Scores((Score("new", 0.0, False),), False),
    ]


@either
@both
def test_embed_user(asked):
    one = asked(lambda client: client.embed_user("1", profile={"age": 30}))
    assert one.known_user
    np.testing.assert_array_equal(one.vector, np.float32([0.6, 0.8]))
    many = asked(lambda client: client.embed_user(["2", "1"]))
    assert [found.known_user for found in many] == [False, True]
    np.testing.assert_array_equal(many[0].vector, np.float32([-0.6, -0.8]))


@either
@both
def test_embed_item(asked):
    film = {"text": "A film (1998)", "genres": ["Comedy", "Drama"]}
    one = asked(lambda client: client.embed_item(film))
    assert one.truncated
    np.testing.assert_array_equal(one.vector, np.float32([0.6, 0.8]))
    many = asked(lambda client: client.embed_item([{"genres": ""}, {"text": "short"}]))
    assert [found.truncated for found in many] == [False, False]
    assert [found.vector[0] > 0 for found in many] == [False, True]


@either
@both
def test_explain(asked):
    """i2 scores 5 and the age 4 is added; the retrieval has 1 of the 9."""
    found = asked(lambda client: client.explain("1", "i2", profile={"age": 4}))
    assert (found.score, found.retrieval) == (9.0, 1.0)
    assert found.item_tokens == (Token("item", 6.0), Token("id", 2.0))
    assert found.user_tokens == (Token("age=4", 0.0), Token("user", 8.0))
    # Padding stands between the two tokens of the item.
    np.testing.assert_array_equal(found.attention, [[9, 11], [12, 14]])
    assert found.known_item
    assert found.known_user


@either
@both
def test_explain_a_batch_with_an_unknown_item(asked):
    first, second = asked(lambda client: client.explain(["1", "2"], ["i0", "lost"]))
    assert (first.score, first.known_item, first.known_user) == (7.0, True, True)
    assert (second.score, second.known_item, second.known_user) == (0.0, False, False)
    assert second.item_tokens == ()
    assert second.user_tokens == (Token("user", 0.0),)
    assert second.attention.shape == (1, 0)


@either
@both
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.embed_item([]), "at least one of them: received"),
        (lambda client: client.embed_item("A film"), "a mapping of columns"),
        (lambda client: client.embed_item({"year": 1}), "does not read item_year"),
        (lambda client: client.explain(["1", "2"], ["i0"]), "one entry for each of them"),
        (lambda client: client.embed_user("1", history="i0"), "must be a list of values"),
    ],
)
def test_mistakes_are_named(asked, call, message):
    with pytest.raises(ValueError, match=message):
        asked(call)


@both
def test_awaited_calls_run_side_by_side(recommender_live, protocol):
    async def many():
        port = getattr(recommender_live, f"{protocol}_port")
        target = f"127.0.0.1:{port}"
        async with AsyncClient(target, protocol=protocol) as client:
            return await asyncio.gather(
                *(client.recommend("1", k=1, exclude=[f"i{n}"]) for n in range(3))
            )

    assert [answer.items[0].id for answer in asyncio.run(many())] == ["i1", "i0", "i0"]
