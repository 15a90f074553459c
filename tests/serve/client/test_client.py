"""The client against a live server, over both protocols; the toy's answers are by heart."""

import datetime
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import toys

from tfrec_attn.serve.client import Client, ServerError

both = pytest.mark.parametrize("protocol", ["grpc", "rest"])


def target(live, protocol):
    port = live.grpc_port if protocol == "grpc" else live.rest_port
    return f"127.0.0.1:{port}"


@pytest.fixture
def client(recommender_live, protocol):
    with Client(target(recommender_live, protocol), protocol=protocol) as opened:
        yield opened


def listed(answer):
    return [(item.id, item.score) for item in answer.items]


@both
def test_metadata(client, protocol):
    metadata = client.metadata()
    assert (metadata.model, metadata.version) == ("movielens", 1)
    inputs = metadata.signatures["serving_default"].inputs
    assert inputs["k"].dtype == np.int32
    assert inputs["history"].shape == (-1, -1)
    assert metadata.signatures["score"].outputs["known_item"].dtype == np.bool_


@both
def test_a_user_alone_gets_the_best_of_the_whole_catalogue(client, protocol):
    answer = client.recommend("1", k=3)
    assert listed(answer) == [("i0", 7.0), ("i1", 6.0), ("i2", 5.0)]
    assert answer.items[0].text == "Titel ü i0"
    assert answer.known_user
    assert (answer.unknown_history, answer.truncated_history) == (0, False)
    assert client.recommend(1, k=3) == answer
    assert client.recommend(np.int64(1), k=np.int64(3)) == answer


@both
def test_every_argument_reaches_the_model(client, protocol):
    answer = client.recommend(
        "stranger",
        history=["i0", "i9", "i2", "i8"],
        history_feedback=["like", "buy", "dislike", "like"],
        history_time=[1, 2, 3, 4],
        exclude=["i1"],
        candidates=["i1", "i3", "i5", "i2"],
        profile={"age": 30},
        time=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        k=7,
    )
    # i1 is excluded, i2 in the history: i3 and i5 remain, at 4 and 2 plus 30 plus 100.
    assert listed(answer) == [("i3", 134.0), ("i5", 132.0)]
    assert not answer.known_user
    assert (answer.unknown_history, answer.truncated_history) == (2, True)


@both
def test_a_batch_with_rows_of_unequal_length(client, protocol):
    answers = client.recommend(
        ["1", "2"], history=[["i0", "i6"], []], exclude=[[], ["i1", "i3"]], k=[2, 5]
    )
    assert [listed(answer) for answer in answers] == [
        [("i1", 6.0), ("i2", 5.0)],
        [("i0", 7.0), ("i2", 5.0), ("i4", 3.0), ("i5", 2.0), ("i6", 1.0)],
    ]
    assert [answer.known_user for answer in answers] == [True, False]


@both
def test_score(client, protocol):
    answer = client.score("1", ["i2", "new"], profile={"age": "4"})
    assert [(one.id, one.score, one.known) for one in answer.items] == [
        ("i2", 9.0, True),
        ("new", 4.0, False),
    ]
    assert answer.known_user
    batch = client.score(["1", "2"], [["i6"], ["i0", "i5"]])
    assert [[one.score for one in row.items] for row in batch] == [[1.0], [7.0, 2.0]]


@both
def test_predict_fills_and_casts(client, protocol):
    outputs = client.predict("serving_default", {"user_id": ["1", "2"], "k": [1, 2]})
    assert outputs["item_id"].tolist() == [[b"i0", b""], [b"i0", b"i1"]]
    assert outputs["score"].dtype == np.float32
    assert outputs["valid"].tolist() == [[True, False], [True, True]]
    with pytest.raises(ValueError, match="k must be int32: received float64"):
        client.predict("serving_default", {"user_id": ["1"], "k": [1.5]})
    with pytest.raises(ValueError, match="time must be int64: received text"):
        client.predict("score", {"user_id": ["1"], "time": ["now"]})


@both
def test_mistakes_are_named(client, protocol):
    for call, message in [
        (lambda: client.recommend("1", k=0), "k must be a whole number of at least 1"),
        (lambda: client.recommend("1", k=2**31), "k must be a whole number"),
        (lambda: client.recommend("1", "i0"), "history must be a list of values"),
        (lambda: client.recommend([]), "user_id must name at least one user"),
        (lambda: client.recommend(["1", "2"], k=[1]), "needs one entry for each"),
        (
            lambda: client.recommend("1", ["i0"], history_feedback=["like"] * 2),
            r"history_feedback must have one entry .* received \[2\] for \[1\]",
        ),
        (lambda: client.recommend("1", profile={"agee": 1}), "does not read user_agee; it"),
        (
            lambda: client.predict("classify", {}),
            'no signature "classify"; it has: embed_item, embed_user, explain, score',
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@both
def test_the_servers_refusals(recommender_live, protocol):
    where = target(recommender_live, protocol)
    with (
        Client(where, "other/model", protocol=protocol) as client,
        pytest.raises(ServerError, match=r"Servable not found for.*other/model") as caught,
    ):
        client.recommend("1")
    assert caught.value.code == "NOT_FOUND"
    with (
        Client("127.0.0.1:1", protocol=protocol, retry=False) as client,
        pytest.raises(ServerError) as caught,
    ):
        client.metadata()
    assert caught.value.code == "UNAVAILABLE"


def test_a_wrong_target_or_protocol():
    with pytest.raises(ValueError, match="Drop the scheme"):
        Client("http://localhost:1", protocol="grpc")
    with pytest.raises(ValueError, match=r'protocol must be "grpc" or "rest"'):
        Client(protocol="http")
    with pytest.raises(ValueError, match='target must be "http://host:port" for REST'):
        Client("http://localhost:port")


def test_the_client_imports_no_tensorflow(recommender_live):
    """Not even once it has called, over either protocol."""
    code = f"""
import sys
import tfrec_attn.ask
from tfrec_attn.serve.client import Client
for target in ("127.0.0.1:{recommender_live.grpc_port}",
               "http://127.0.0.1:{recommender_live.rest_port}"):
    with Client(target) as client:
        print(client.recommend("1", k=1).items[0].id)
print(sorted({{"tensorflow", "tf_keras", "tensorflow_serving"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["i0", "i0", "[]"]


def test_a_newer_version_with_other_columns_is_asked_about_again(tmp_path):
    """A client outlives the version that it asked the metadata of."""
    toys.save_toy(tmp_path / "1")
    with (
        toys.live(tmp_path, "toy") as (running, models),
        Client(f"127.0.0.1:{running.grpc_port}", "toy") as client,
    ):
        # The toy reads a and b; the next version, a recommender, reads neither.
        assert client.predict("serving_default", {"a": [2.0], "b": [5.0]})["product"] == 10
        with pytest.raises(ValueError, match="does not read user_id; it reads: a, b"):
            client.predict("serving_default", {"user_id": ["1"]})
        toys.save_recommender(tmp_path / "2")
        models.poll()
        assert listed(client.recommend("1", k=1)) == [("i0", 7.0)]
        assert client.metadata().version == 2


def test_over_rest_a_newer_version_may_answer_more(tmp_path):
    text = np.array([b"ab"], object)
    more = lambda text: {
        "upper": tf.strings.upper(text),
        "raw_bytes": text,
        "n": tf.ones(7),
    }
    toys.save_toy(tmp_path / "1")
    with (
        toys.live(tmp_path, "toy") as (running, models),
        Client(f"http://127.0.0.1:{running.rest_port}", "toy") as client,
    ):
        assert sorted(client.predict("texts", {"text": text})) == ["raw_bytes", "upper"]
        signatures = {"texts": toys.signature(more, text=toys.TEXTS)}
        tf.saved_model.save(tf.Module(), str(tmp_path / "2"), signatures=signatures)
        models.poll()
        outputs = client.predict("texts", {"text": text})
        assert outputs["n"].tolist() == [1] * 7
        assert outputs["raw_bytes"].tolist() == [b"ab"]
