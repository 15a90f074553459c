"""Conditions, boosts and unlike items on a command line: `ask` and `recommend` say the same
as the client, and what is wrong is told by the flag."""

import json

import polars as pl
import pytest
import shop
import toys

from tfrec_attn import ask, export, offers, recommend
from tfrec_attn.serve.client import Client
from tfrec_attn.serve.export import write

K = 7
KINDS = {"kinds": "categories", "price": "number"}
ALL = [
    ["--require", "kinds=a|b"],
    ["--require", "kinds=b", "--require", "price>=4"],
    ["--forbid", "kinds=c", "--forbid", "price<=3"],
    ["--boost", "kinds=c", "0.7", "--boost", "price>=20", "-0.5"],
    ["--diversity", "0.6"],
    ["--exclude", "i3", "--exclude", "i4"],
    [*(word for n in range(0, 31, 3) for word in ("--candidate", f"i{n}"))],
    ["--require", "price<=25", "--boost", "kinds=b", "2", "--diversity", "0.3", "--k", "4"],
]
ASKED = [
    {"require": ["kinds=a|b"]},
    {"require": ["kinds=b", "price>=4"]},
    {"forbid": ["kinds=c", "price<=3"]},
    {"boost": {"kinds=c": 0.7, "price>=20": -0.5}},
    {"diversity": 0.6},
    {"exclude": ["i3", "i4"]},
    {"candidates": [f"i{n}" for n in range(0, 31, 3)]},
    {"require": ["price<=25"], "boost": {"kinds=b": 2.0}, "diversity": 0.3, "k": 4},
]
FLAGS = pytest.mark.parametrize(("flags", "asked"), list(zip(ALL, ASKED, strict=True)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    settings = {"shortlist": 11, "max_k": 13, "filters": KINDS, "diversity": True}
    model, prepared = shop.untrained(folder, **settings)
    model.share.assign(0.5)
    found = tmp_path_factory.mktemp("models") / "shop"
    attributes = offers.attributes(prepared, [])
    write(export.served(model, prepared, attributes=attributes), found, 1)
    return found


@pytest.fixture(scope="module")
def live(base):
    with toys.live(base, "shop") as (running, _):
        yield running


@pytest.fixture(scope="module")
def client(live):
    with Client(f"127.0.0.1:{live.grpc_port}", "shop") as found:
        yield found


def run(base, users, out, *more):
    flags = {"--model": base, "--users": users, "--out": out}
    return recommend.main([str(x) for pair in flags.items() for x in pair] + [*more])


def read(out):
    return pl.read_parquet(sorted(out.glob("part-*.parquet")))


@pytest.fixture
def users(tmp_path):
    table = tmp_path / "users.csv"
    table.write_text("user_id\n" + "".join(f"u{n}\n" for n in range(0, 23, 2)))
    return table


def plain(answer):
    return [item.id for item in answer.items], [item.score for item in answer.items]


def require_same(found, client, asked):
    """That each row is what the server answers the user of it, and not what it would
    without the conditions."""
    ids = found["user_id"].to_list()
    for row in found.rows(named=True):
        want = client.recommend(row["user_id"], **{"k": K} | asked)
        assert row["item_id"] == plain(want)[0]
        assert row["score"] == pytest.approx(plain(want)[1], abs=1e-5)
    without = [plain(one)[0] for one in client.recommend(ids, k=K)]
    assert found["item_id"].to_list() != without


@FLAGS
def test_recommend_is_the_server(base, client, users, tmp_path, flags, asked):
    sizes = ["--k", str(K), "--users-per-shard", "5", "--batch", "3"]
    assert run(base, users, tmp_path / "out", *sizes, *flags) == 0
    require_same(read(tmp_path / "out"), client, asked)


def test_recommend_on_beam_is_the_server(base, client, users, tmp_path):
    more = ["--users-per-shard", "5", "--runner", "DirectRunner"]
    assert run(base, users, tmp_path / "out", *ALL[-1], *more) == 0
    require_same(read(tmp_path / "out"), client, ASKED[-1])


@FLAGS
def test_ask_is_the_client(live, client, capsys, flags, asked):
    where = ["--target", f"127.0.0.1:{live.grpc_port}", "--model", "shop", "--json"]
    assert ask.main(["--user", "u4", *where, *flags]) == 0
    found = json.loads(capsys.readouterr().out)["items"]
    want = plain(client.recommend("u4", **asked))
    assert [item["id"] for item in found] == want[0]
    assert [item["score"] for item in found] == pytest.approx(want[1], abs=1e-5)


ROWS = [
    {"user_id": "u1", "require": ["kinds=a|b", "price>=3"], "diversity": 0.5},
    {"user_id": "u2", "forbid": ["kinds=b"], "boost": ["kinds=a"], "boost_by": [1.5]},
    {"user_id": "u3", "candidates": ["i1", "i2", "i3", "i5", "i8"], "exclude": ["i8"]},
    {"user_id": "u4"},
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_row_says_more_than_the_flags(base, client, tmp_path, kind):
    """What is of all users counts beside it; its candidates and diversity instead."""
    table = tmp_path / f"users.{kind}"
    frame = pl.DataFrame(ROWS)
    frame.write_parquet(table) if kind == "parquet" else frame.write_ndjson(table)
    flags = ["--require", "price<=25", "--forbid", "kinds=c", "--boost", "kinds=a", "1"]
    flags += ["--diversity", "0.2", "--k", "5", "--exclude", "i0"]
    flags += [word for n in range(1, 31) for word in ("--candidate", f"i{n}")]
    assert run(base, table, tmp_path / "out", *flags) == 0
    found = {row["user_id"]: row for row in read(tmp_path / "out").rows(named=True)}
    for row in ROWS:
        by = dict(zip(row.get("boost", ()), row.get("boost_by", ()), strict=True))
        want = client.recommend(
            row["user_id"],
            k=5,
            require=["price<=25", *row.get("require", ())],
            forbid=["kinds=c", *row.get("forbid", ())],
            boost={"kinds=a": 1 + by.get("kinds=a", 0)},
            exclude=["i0", *row.get("exclude", ())],
            candidates=row.get("candidates", [f"i{n}" for n in range(1, 31)]),
            diversity=row.get("diversity", 0.2),
        )
        assert found[row["user_id"]]["item_id"] == plain(want)[0]
        assert found[row["user_id"]]["score"] == pytest.approx(plain(want)[1], abs=1e-5)


def test_in_text_a_cell_is_one_condition(base, client, tmp_path):
    table = tmp_path / "users.csv"
    table.write_text("user_id,require,boost,boost_by\nu1,kinds=a|b,price>=9,0.5\nu2,,,\n")
    assert run(base, table, tmp_path / "out", "--k", str(K)) == 0
    first, second = read(tmp_path / "out")["item_id"].to_list()
    asked = {"require": ["kinds=a|b"], "boost": {"price>=9": 0.5}}
    assert first == plain(client.recommend("u1", k=K, **asked))[0]
    assert second == plain(client.recommend("u2", k=K))[0]


BAD = [
    (
        ["--require", "colour=red"],
        "--require must be conditions such as kinds=value or price<=5 or price>=5, of "
        "the columns kinds, price: received 'colour=red'. Name one of these columns",
    ),
    (
        ["--forbid", "price=cheap"],
        "--forbid must be conditions such as kinds=value or price<=5 or price>=5, of "
        "the columns kinds, price: received 'price=cheap'.",
    ),
    (["--boost", "kinds", "1"], "--boost must be conditions such as kinds=value"),
    (
        ["--boost", "kinds=a", "much"],
        "--boost must be a condition and a number, as in --boost genres=Drama 0.7: "
        "received 'kinds=a' 'much'.",
    ),
    (["--boost", "kinds=a", "inf"], "--boost must be a condition and a number"),
    (["--diversity", "1.5"], "--diversity must be from 0 to 1: received 1.5. 0 leaves"),
    (["--require", ""], "--require must not be empty: received ''. Name what it asks for"),
]


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_what_is_wrong_is_told_by_the_flag(
    base, live, users, tmp_path, capsys, flags, message
):
    where = ["--target", f"127.0.0.1:{live.grpc_port}", "--model", "shop"]
    for name, status in (
        ("ask", lambda: ask.main([*where, *flags])),
        ("recommend", lambda: run(base, users, tmp_path / "out", *flags)),
    ):
        assert status() == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert f"tfrec_attn.{name}: {message}" in error
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.parametrize(
    ("flags", "setting", "received"),
    [
        (["--require", "kinds=a"], "index.filters", "kinds=a"),
        (["--boost", "kinds=a", "2"], "index.filters", "kinds=a"),
        (["--diversity", "0.5"], "index.diversity", "0.5"),
    ],
)
def test_a_version_that_cannot_be_asked_so(
    recommender_live, tmp_path, capsys, flags, setting, received
):
    toys.save_recommender(tmp_path / "models" / "1")
    (tmp_path / "users.csv").write_text("user_id\n1\n")
    message = (
        f"{flags[0]} needs a version that was exported with {setting}, and this one was "
        f"not: received {received}. Export one (docs/exporting.md), or leave the flag out."
    )
    target = f"localhost:{recommender_live.grpc_port}"
    assert ask.main(["--user", "1", "--target", target, *flags]) == 2
    assert message in capsys.readouterr().err
    table, out = tmp_path / "users.csv", tmp_path / "out"
    assert run(tmp_path / "models", table, out, *flags) == 2
    assert message in capsys.readouterr().err


def test_a_column_that_the_version_does_not_read(tmp_path, capsys):
    toys.save_recommender(tmp_path / "models" / "1")
    table = tmp_path / "users.csv"
    table.write_text("user_id,require\n1,kinds=a\n")
    assert run(tmp_path / "models", table, tmp_path / "out", "--k", "2") == 2
    assert "column 'require' is nothing that the model reads" in capsys.readouterr().err


def test_a_condition_of_a_row_that_is_none(base, tmp_path, capsys):
    table = tmp_path / "users.csv"
    table.write_text("user_id,require\nu1,kinds=a\nu2,colour=red\n")
    assert run(base, table, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "users.csv:3, user 'u2': " in error
    assert "require must be conditions such as kinds=value" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "require: was ['kinds=a|b', 'price>=4'], is None"),
        (["--require", "kinds=a|b"], "is ['kinds=a|b']"),
        ([*ALL[1], "--require", "kinds=a|b"], "require: was "),
        (["--boost", "kinds=a", "1"], "boost: was None, is {'kinds=a': 1.0}"),
        (["--diversity", "0.5"], "diversity: was None, is 0.5"),
        (["--exclude", "i1"], "exclude: was None, is ['i1']"),
        (["--candidate", "i1"], "candidates: was None, is ['i1']"),
    ],
)
def test_other_conditions_are_another_question(
    base, users, tmp_path, capsys, flags, message
):
    begun = ["--require", "price>=4", "--require", "kinds=a|b", "--k", "3"]
    assert run(base, users, tmp_path / "out", *begun) == 0
    before = read(tmp_path / "out")
    capsys.readouterr()
    assert run(base, users, tmp_path / "out", "--k", "3", *flags) == 2
    assert message in capsys.readouterr().err
    # The order of the flags says nothing: here are the same ones.
    again = ["--k", "3", "--require", "kinds=a|b", "--require", "price>=4"]
    assert run(base, users, tmp_path / "out", *again) == 0
    assert read(tmp_path / "out").equals(before)
