"""What a version offers: its items, their attributes, and what requests may ask of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests import small
from tests.small import ITEMS, ask
from tfrec_attn import card, export, offers, train
from tfrec_attn.serve import lint
from tfrec_attn.serve.client import Client, ServerError

sys.path.insert(0, str(Path(__file__).parent / "serve"))
import shop
import toys

FILTERS = 'index.filters={price="number",kinds="categories"}'


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    _, prepared = shop.untrained(folder, filters={"price": "number", "kinds": "categories"})
    return folder, prepared


def test_attributes_are_those_of_the_runs_own_table(prepared):
    _, of = prepared
    found = offers.attributes(of, [])
    assert found.ids.tolist() == of.items.ids.tolist()
    np.testing.assert_allclose(found.features["price"], np.arange(shop.ITEMS) + 0.5)
    words = found.columns["kinds"].vocabulary
    assert [words[n - 1] for n in found.features["kinds"][4] if n] == ["a", "b"]


def test_of_what_several_tables_tell_the_last_is_right(prepared, tmp_path, caplog):
    _, of = prepared
    today, sale = tmp_path / "today.csv", tmp_path / "sale.csv"
    today.write_text("item_id,price,kinds\ni3,7,a|new\ni0,1,\nelsewhere,9,\n")
    sale.write_text("item_id,price,kinds\ni3,5,\n")
    found = offers.attributes(of, [today, sale])
    assert found.features["price"][[0, 3]].tolist() == [1, 5]
    assert np.isnan(found.features["price"][1:3]).all()
    assert not found.features["kinds"].any()
    want = f"{shop.ITEMS - 2} items, as 'i1', are not in {today}, {sale}: no condition on "
    assert want + "price, kinds holds for them" in caplog.text


def test_items_are_removed(prepared, tmp_path, caplog):
    _, of = prepared
    gone = tmp_path / "gone.txt"
    gone.write_text("i3\ni30\nnone\n")
    assert np.flatnonzero(~offers.offered(of, gone, None)).tolist() == [3, 30]
    assert "1 ids, as 'none', are no items" in caplog.text
    assert np.flatnonzero(offers.offered(of, gone, (1, 5))).tolist() == [
        0,
        5,
        10,
        15,
        20,
        25,
    ]
    gone.write_text("\n".join(of.items.ids))
    with pytest.raises(ValueError, match=f"Of {shop.ITEMS} items none is left"):
        offers.offered(of, gone, None)


@pytest.fixture(scope="module")
def offered(tables, tmp_path_factory):
    """A version by every option at once, the log of the export, and the run."""
    out, base = (tmp_path_factory.mktemp(name) / "shop" for name in ("runs", "models"))
    sets = ("train.epochs=1", "train.ranking_epochs=0")
    assert train.main(small.arguments(tables, out, sets=sets)) == 0
    gone = base.parent / "gone.txt"
    gone.write_text("i1\ni2\n")
    given = ["--run", str(out), "--to", str(base), "--remove", str(gone)]
    for setting in (
        'index.filters={price="number",kind="category"}',
        "index.diversity=true",
        "index.clusters=5",
        "index.recall=0.6",
        "index.shortlist=7",
        "index.tokens=int8",
    ):
        given += ["--set", setting]
    assert export.main([*given, "--signatures", "score"]) == 0
    return base / "1", out


def items_of(answer, row=0):
    return [i.decode() for i in answer["item_id"][row][answer["valid"][row]]]


def test_a_version_answers_by_rules(offered, tables):
    served = tf.saved_model.load(str(offered[0]))
    everything = ask(served, user_id=["u3"], k=[ITEMS])
    assert len(items_of(everything)) >= 22 - 2
    assert not {"i1", "i2"} & set(items_of(everything))
    cheap = ask(served, user_id=["nobody"], k=[ITEMS], require=[["price<=9.5", "kind=a"]])
    assert sorted(items_of(cheap)) == ["i0", "i4", "i6", "i8"]
    rest = ask(served, user_id=["nobody"], k=[ITEMS], forbid=[["price<=20", "kind=b"]])
    assert sorted(items_of(rest)) == ["i20", "i22", "i24", "i26", "i28", "i30"]
    plain = ask(served, user_id=["nobody"], k=[ITEMS])
    boosted = ask(
        served,
        user_id=["nobody"],
        k=[ITEMS],
        boost=[["kind=b", "price>=28"]],
        boost_by=[[100.0, 50.0]],
    )
    score = lambda answer: dict(zip(items_of(answer), answer["score"][0], strict=False))
    for item, value in score(boosted).items():
        row = int(item[1:])
        bonus = 100 * (row % 2) + 50 * (row >= 28)
        assert value == pytest.approx(score(plain)[item] + bonus, abs=1e-3)
    assert items_of(boosted)[0] == "i29"


def test_unlike_items_are_asked_for(offered):
    served = tf.saved_model.load(str(offered[0]))
    plain = ask(served, user_id=["nobody"], k=[7])
    same = ask(served, user_id=["nobody"] * 2, k=[7, 7], diversity=[0.0, 0.9])
    assert items_of(same) == items_of(plain)
    assert items_of(same, 1)[0] == items_of(plain)[0]
    assert items_of(same, 1) != items_of(plain)
    assert sorted(same["score"][1])[::-1] != same["score"][1].tolist()


def test_the_client_asks_for_it(offered):
    base = offered[0].parent
    with toys.live(base, "shop") as (running, _):
        client = Client(f"127.0.0.1:{running.grpc_port}", "shop")
        ids = lambda **given: [i.id for i in client.recommend("nobody", k=4, **given).items]
        assert sorted(ids(require=["price<=9.5", "kind=a"])) == ["i0", "i4", "i6", "i8"]
        assert ids(forbid=["kind=a|b"]) == []
        assert ids(boost={"price>=30": 99, "price=29.5": 98.0})[:2] == ["i30", "i29"]
        assert ids(diversity=0.9) != ids()
        with pytest.raises(ServerError, match=r"require must be .*colour=red"):
            ids(require=["colour=red"])
        client.close()


def test_a_version_has_what_was_chosen_and_says_so(offered):
    folder, run = offered
    served = tf.saved_model.load(str(folder))
    assert sorted(served.signatures) == ["score", "serving_default"]
    assert lint.lint(folder) == []
    text = (folder / card.FILE).read_text()
    assert text.startswith("# shop, version 1\n")
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    for name, values in metrics.items():
        assert f"{values['ndcg@10']:.4f}" in text
        assert f"| {name} " in text
    assert (
        "29 items are offered; the nearest of 5 lists are searched by cosine; 7 of " in text
    )
    assert "item tokens in int8" in text
    assert "requests may choose by price, kind" in text
    assert "from 2001-09-09 to 2001-09-09" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "train.epochs=3"], "Only settings of [index] can still be changed"),
        (["--set", "index.shortlst=3"], "Unknown setting index.shortlst"),
        (["--attributes", "x.csv"], "--attributes is for the columns of index.filters"),
        (["--signatures", "recomend"], "There is no signature 'recomend': this model can "),
        (
            ["--set", "index.clusters=99"],
            "index.clusters must be at most the number of items",
        ),
        (["--set", 'index.filters={colour="category"}'], "no column"),
        (["--remove", "no such file"], "no such file"),
        (["--part", "40/40"], "Of 31 items none is left"),
    ],
)
def test_a_wrong_option_is_named(offered, tmp_path, capsys, flags, message):
    given = ["--run", str(offered[1]), "--to", str(tmp_path / "shop")]
    assert export.main([*given, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "shop").glob("*")) if (tmp_path / "shop").exists() else True
