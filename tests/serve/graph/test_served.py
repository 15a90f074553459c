"""The served graph of the shop, through a server: each signature and each "not given"."""

import numpy as np
import pytest
import shop
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfrec_attn.serve.client import Client, ServerError
from tfrec_attn.serve.server.servable import WARM_UP_FILE


@pytest.fixture(scope="module")
def client(shop_live):
    with Client(f"127.0.0.1:{shop_live[2].grpc_port}", "shop") as opened:
        yield opened


def ids(answer):
    return [item.id for item in answer.items]


def explain(client, **given):
    out = client.predict("explain", {name: [value] for name, value in given.items()})
    return {name: value[0] for name, value in out.items()}


def test_explanations_add_up_to_the_score(client):
    out = explain(client, user_id="u4", item="i3")
    (scored,) = client.score("u4", ["i3"]).items
    assert out["score"] == pytest.approx(scored.score, abs=1e-5)
    for side in ("item", "user"):
        total = out["retrieval_contribution"] + out[f"{side}_contributions"].sum()
        assert total == pytest.approx(scored.score, abs=1e-5)
    assert abs(out["item_contributions"]).max() > 1e-3
    # Each real item token spreads one unit of attention over the real user tokens.
    real = out["item_token"] != b""
    np.testing.assert_allclose(out["attention"].sum(0), real, atol=1e-5)
    assert not out["attention"][out["user_token"] == b""].any()


def test_tokens_are_named(shop_live, client):
    _, prepared, _ = shop_live
    # The kinds of every fourth item are a|b; one that was bought has an id token.
    row = next(r for r in range(0, shop.ITEMS, 4) if prepared.item_features["id"][r])
    out = explain(client, user_id="u4", item=f"i{row}", history=["i7", "lost", "i9"])
    names = [token.decode() for token in out["item_token"] if token]
    assert names[:5] == ["item", "id", "kinds=a", "kinds=b", "price"]
    text = prepared.items.texts[row].split()
    assert names[5:] == [f"text={word}" for word in text]
    assert [token.decode() for token in out["user_token"] if token] == [
        "age", "town=ž", "id", "user", "history=i7", "history=i9",
    ]  # fmt: skip


def test_what_is_unknown_explains_nothing(client):
    out = explain(client, user_id="u4", item="lost")
    assert (out["known_item"], out["score"]) == (False, 0)
    assert not set(out["item_token"]) - {b""}
    for name in ("item_contributions", "user_contributions", "attention"):
        assert not out[name].any()


def test_more_answers_than_there_may_be(client):
    assert len(ids(client.recommend("nobody", k=1000))) == 13  # index.max_k
    assert len(ids(client.recommend("nobody", k=1000, candidates=["i1", "i2", "x"]))) == 2


def test_a_given_profile_goes_before_the_stored_one(client):
    score = lambda **profile: client.score("u4", ["i3"], profile=profile).items[0].score
    assert score(age=24) == pytest.approx(score())  # what users.csv says
    assert abs(score(age=40) - score()) > 1e-4
    assert abs(score(town="y") - score()) > 1e-4


def test_a_new_item_is_near_its_twin(shop_live, client):
    """Without its id an item of the catalogue is its texts and columns."""
    _, prepared, _ = shop_live
    texts = [str(text) for text in prepared.items.texts[[4, 4, 9]]] + [" ".join(shop.WORDS)]
    out = client.predict(
        "embed_item",
        {
            "text": texts,
            "item_kinds": ["a|b", "a|b", "b", "new"],
            "item_price": ["4.5"] * 4,
        },
    )
    np.testing.assert_allclose(np.linalg.norm(out["embedding"], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(out["embedding"][0], out["embedding"][1], rtol=1e-5)
    assert abs(out["embedding"][0] - out["embedding"][2]).max() > 1e-2
    # Six words, [CLS] and [SEP] just fit.
    assert out["truncated"].tolist() == [False] * 4
    assert client.predict("embed_item", {"text": [" ".join(shop.WORDS) + " hat"]})[
        "truncated"
    ].tolist() == [True]


def test_no_table_over_all_items_is_saved_that_nothing_reads(shop_live, shop_base):
    """Their vectors are there; the ids that they came from are not needed again."""
    model, _, _ = shop_live
    tower = model.item_tower
    tables = [tower.candidate_id.table, tower.event_id.table]
    tables.append(tower.features.encoders["id"].table)
    saved = tf.train.load_checkpoint(str(shop_base / "1" / "variables" / "variables"))
    shapes = saved.get_variable_to_shape_map()
    values = [saved.get_tensor(name) for name in shapes if "index/weights" in name]
    assert values
    for table in tables:
        same = [v for v in values if v.shape == table.shape and (v == table).all()]
        assert not same


@pytest.mark.parametrize("value", ["old", "3 4", "1e", "--3"])
def test_what_is_no_number_is_named(client, value):
    with pytest.raises(ServerError, match=f"user_age must be a number.*{value}") as caught:
        client.recommend("u4", profile={"age": value})
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "[Op:" not in caught.value.message


def test_numbers_are_read_as_they_are_written(client):
    answers = [
        client.score("u4", ["i3"], profile={"age": age}).items[0].score
        for age in ("40", " 40 ", "+4e1", "40.0")
    ]
    np.testing.assert_allclose(answers, answers[0])


def test_every_signature_is_warm_before_the_server_is_ready(shop_live, shop_base):
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record)
        for record in tf.data.TFRecordDataset(
            str(shop_base / "1" / WARM_UP_FILE)
        ).as_numpy_iterator()
    ]
    specs = [log.predict_log.request.model_spec for log in logs]
    names = {"serving_default", "score", "embed_user", "embed_item", "explain"}
    assert {spec.signature_name for spec in specs} == names
    assert {spec.name for spec in specs} == {"shop"}
    assert [path.name for path in shop_base.iterdir()] == ["1"]
