"""A catalogue in parts, and one whose first stage is a vector database."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
import shop
import toys

from tfrec_attn import export, offers
from tfrec_attn.serve.client import Client, ServerError
from tfrec_attn.serve.export import write
from tfrec_attn.serve.graph import nearest
from tfrec_attn.serve.shards import Shards

DOCS = Path(__file__).parents[2] / "docs/exporting.md"


@pytest.fixture(scope="module")
def whole(shop_live):
    with Client(f"127.0.0.1:{shop_live[2].grpc_port}", "shop") as client:
        yield client


@pytest.fixture(scope="module")
def shards(shop_live, tmp_path_factory):
    """Two servers, with the even and the odd items."""
    model, prepared, _ = shop_live
    with contextlib.ExitStack() as stack:
        clients = []
        for number in (1, 2):
            base = tmp_path_factory.mktemp(f"part-{number}") / "shop"
            part = offers.offered(prepared, None, (number, 2))
            graph = export.served(model, prepared, offered=part)
            write(graph, base, 1, only=["score"])
            running, _ = stack.enter_context(toys.live(base, "shop"))
            clients.append(Client(f"127.0.0.1:{running.grpc_port}", "shop"))
        yield stack.enter_context(Shards(clients))


def test_the_parts_together_are_the_whole(shards, whole):
    """The shortlist of 11 of each part holds more than that of the whole."""
    everything = whole.score("u4", [f"i{n}" for n in range(shop.ITEMS)]).items
    score = {item.id: item.score for item in everything}
    answer = shards.recommend("u4", k=5)
    ids = [item.id for item in answer.items]
    assert {int(i[1:]) % 2 for i in ids} == {0, 1}
    for item in answer.items:
        assert item.score == pytest.approx(score[item.id], abs=1e-5)
    assert [item.score for item in answer.items] == sorted(
        (item.score for item in answer.items), reverse=True
    )
    alone = whole.recommend("u4", k=5).items
    assert all(a.score >= b.score - 1e-5 for a, b in zip(answer.items, alone, strict=True))
    assert answer.known_user


def test_a_batch_of_users(shards):
    ids = lambda answer: [item.id for item in answer.items]
    both = shards.recommend(["u4", "nobody"], k=[2, 3])
    assert ids(both[0]) == ids(shards.recommend("u4", k=2))
    assert ids(both[1]) == ids(shards.recommend("nobody", k=3))
    assert [len(ids(one)) for one in both] == [2, 3]
    again = shards.recommend(["u4", "nobody"], k=np.int64(2))
    assert [len(ids(one)) for one in again] == [2, 2]
    assert [one.known_user for one in both] == [True, False]


def test_a_part_that_fails_fails_the_call(shards):
    with pytest.raises((ServerError, ValueError)):
        shards.recommend("u4", profile={"colour": "red"})
    with pytest.raises(ValueError, match="diversity is chosen within one list"):
        shards.recommend("u4", diversity=0.5)
    with pytest.raises(ValueError, match="a client for each part: received none"):
        Shards([])


def test_a_vector_database_is_the_first_stage(shop_live, whole, tmp_path, monkeypatch):
    """The block of the docs, as it stands there."""
    model, prepared, running = shop_live
    monkeypatch.chdir(tmp_path)
    first = nearest.Exact(model.encode_items().pooled)
    every = offers.offered(prepared, None, None)
    offers.write_vectors(tmp_path / "vectors.parquet", prepared, first, every)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "qdrant" in block]
    for said, meant in (
        ("localhost:8500", f"127.0.0.1:{running.grpc_port}"),
        ('"movielens"', '"shop"'),
        ('"42"', '"u4"'),
    ):
        assert said in block
        block = block.replace(said, meant)
    told = {}
    exec(block, told)
    told["store"].close()
    cosine = told["vectors"] @ told["user"]
    points = [point.payload["id"] for point in told["found"]]
    assert points == [prepared.items.ids[row] for row in np.argsort(-cosine)]
    seen = prepared.tables.interactions.filter(
        prepared.tables.interactions["user"] == prepared.users.ids.tolist().index("u4")
    )["item"]
    left = set(points) - set(prepared.items.ids[seen.to_numpy()])
    # All that is left is ranked, where the server's own shortlist holds 11.
    best = sorted(whole.score("u4", sorted(left)).items, key=lambda item: -item.score)
    assert [item.id for item in told["answer"].items] == [item.id for item in best[:10]]
