"""All users at once: the answers of the server, in shards that are whole or absent."""

import json
import sys

import polars as pl
import pytest
import shop
import toys

from tfrec_attn import bulk, recommend
from tfrec_attn.bulk import version
from tfrec_attn.serve.client import Client

K = 7


def run(model, users, out, *more):
    flags = {"--model": model, "--users": users, "--out": out}
    return recommend.main([str(x) for pair in flags.items() for x in pair] + [*more])


def read(out):
    return pl.read_parquet(sorted(out.glob("part-*.parquet")))


@pytest.fixture(scope="module")
def toy_version(tmp_path_factory):
    """A made-up recommender of seven items; see `toys`."""
    base = tmp_path_factory.mktemp("models") / "toy"
    toys.save_recommender(base / "1")
    return base


@pytest.fixture
def users(tmp_path):
    """Nine users; of them the model knows "1"."""
    table = tmp_path / "users.parquet"
    ids = [str(u) for u in range(1, 10)]
    history = [["i0"], ["i1", "lost"], *[None] * 7]
    pl.DataFrame({"user_id": ids, "history": history}).write_parquet(table)
    return table


@pytest.mark.parametrize("more", [[], ["--runner", "DirectRunner"]], ids=["here", "beam"])
def test_every_user_gets_the_answer_of_the_server(shop_live, shop_base, tmp_path, more):
    """Known users and strangers, histories stored and given, several shards and calls."""
    _, prepared, running = shop_live
    rows = [(user, None, None) for user in prepared.users.ids]
    rows += [("new", ["i1", "i2", "no such item"], "y"), ("stranger", ["i5"], None)]
    table, out = tmp_path / "users.parquet", tmp_path / "recs"
    names = ["user_id", "history", "town"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(table)
    sizes = ["--k", str(K), "--users-per-shard", "10", "--batch", "4"]
    assert run(shop_base, table, out, *sizes, *more) == 0
    found = read(out)
    assert found["user_id"].to_list() == [user for user, _, _ in rows]
    assert len(list(out.glob("*.parquet"))) == 3
    with Client(f"127.0.0.1:{running.grpc_port}", "shop") as client:
        for (user, history, town), row in zip(rows, found.rows(named=True), strict=True):
            profile = {"town": town} if town else {}
            want = client.recommend(user, history or (), k=K, profile=profile)
            assert row["item_id"] == [item.id for item in want.items]
            assert row["score"] == pytest.approx([i.score for i in want.items], abs=1e-5)
            assert row["known_user"] == want.known_user
            assert row["unknown_history"] == want.unknown_history
            assert row["truncated_history"] == want.truncated_history
    assert found["known_user"].sum() == shop.USERS


def test_what_was_answered_is_counted(toy_version, users, tmp_path, capsys):
    """Of seven items, i0 was seen by one user and i1 by another."""
    assert run(toy_version, users, tmp_path / "out", "--k", "7") == 0
    assert json.loads(capsys.readouterr().out) == {
        "shards": 1,
        "users": 9,
        "unknown_users": 8,
        "users_without_items": 0,
        "items": 7 * 9 - 2,
        "unknown_items_in_histories": 1,
        "bad_rows": 0,
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "_lock", "_manifest.json", "part-00000.parquet",
    }  # fmt: skip


def test_a_user_for_whom_nothing_is_left_has_an_empty_list(toy_version, tmp_path):
    table = tmp_path / "users.jsonl"
    table.write_text(json.dumps({"user_id": 1, "exclude": toys.ITEMS}))
    assert run(toy_version, table, tmp_path / "out", "--k", "3") == 0
    assert read(tmp_path / "out")["item_id"].to_list() == [[]]


def stopped(monkeypatch, after, call):
    """A run that dies in the answer of a shard, after so many."""
    answer, done = version.Version.shard, []

    def die(self, folder, number, *rest):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(number)
        answer(self, folder, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(version.Version, "shard", die)
        with pytest.raises(KeyboardInterrupt):
            call()


def test_the_same_command_goes_on(toy_version, users, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    call = lambda to: run(toy_version, users, to, "--k", "2", "--users-per-shard", "2")
    stopped(monkeypatch, 2, lambda: call(out))
    kept = {path: path.stat().st_mtime_ns for path in sorted(out.glob("part-*"))}
    assert [path.name for path in kept] == ["part-00000.parquet", "part-00001.parquet"]
    assert call(out) == call(whole) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert read(out).equals(read(whole))
    # And once more, with one shard lost after the end.
    (out / "part-00003.parquet").unlink()
    assert call(out) == 0
    assert read(out).equals(read(whole))


def test_a_shard_that_is_half_written_is_no_shard(
    toy_version, users, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    write = pl.DataFrame.write_parquet

    def full(self, file, **kwargs):
        if file.parent == out:
            file.write_bytes(b"PAR1")
            raise OSError("no space left")
        write(self, file, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", full)
        assert run(toy_version, users, out, "--k", "2") == 2
    assert "no space left" in capsys.readouterr().err
    assert not list(out.glob("part-*"))
    assert run(toy_version, users, out, "--k", "2") == 0
    assert len(read(out)) == 9


@pytest.mark.parametrize(
    ("changed", "flags", "message"),
    [
        ("", ["--k", "3"], "k: was 2, is 3"),
        ("", ["--bad-rows", "set-aside"], "bad_rows: was 'stop', is 'set-aside'"),
        ("users", [], "users: was "),
        ("model", [], "version: was "),
    ],
)
def test_a_folder_of_other_answers_is_refused(
    users, tmp_path, changed, flags, message, capsys
):
    model, out = tmp_path / "model", tmp_path / "out"
    toys.save_recommender(model / "1")
    assert run(model, users, out, "--k", "2") == 0
    before = read(out)
    if changed == "users":
        pl.DataFrame({"user_id": ["other"]}).write_parquet(users)
    if changed == "model":
        toys.save_recommender(model / "2")
        (model / "2" / "variables" / "more").write_text("another version")
    capsys.readouterr()
    assert run(model, users, out, "--k", "2", *flags) == 2
    assert message in capsys.readouterr().err
    assert read(out).equals(before)


ROWS = "user_id,age,history\n1,30,i0\n2,,\n1,31,\n,5,\n2,,\n3,,\n"


def test_bad_rows_stop_the_run_or_are_set_aside(toy_version, tmp_path, capsys):
    """Users 1 and 2 stand there twice, in shards of their own, and one row has no id."""
    table, out = tmp_path / "users.csv", tmp_path / "out"
    table.write_text(ROWS)
    flags = ["--users-per-shard", "2", "--k", "2"]
    assert run(toy_version, table, out, *flags) == 2
    error = capsys.readouterr().err
    assert "3 row(s) of the tables break a rule" in error
    assert "users.csv:4, column 'user_id': '1' is the id of an earlier row" in error
    assert "users.csv:5, column 'user_id': '' is no id" in error
    assert not list(out.glob("part-*"))
    assert run(toy_version, table, out, *flags, "--bad-rows", "set-aside") == 0
    assert json.loads(capsys.readouterr().out)["bad_rows"] == 3
    found = read(out)
    assert found["user_id"].to_list() == ["1", "2", "3"]
    # The first of the two: with a history, and i1 is the best of what is left.
    assert found["item_id"][0].to_list() == ["i1", "i2"]
    assert found["score"][0].to_list() == [36.0, 35.0]
    assert pl.read_csv(out / "_rejects.csv")["line"].sort().to_list() == [4, 5, 6]


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("user_id\n", [], "no user is left to answer"),
        ("user_id\n\n", ["--bad-rows", "set-aside"], "no user is left to answer"),
        ("id\n1\n", [], "--user-column names the one with the ids"),
        ("user_id,agee\n1,3\n", [], "column 'agee' is nothing that the model reads"),
        ("user_id,age\n1,3\n2,old\n", [], "users.csv:3, user '2': "),
        (
            "user_id\n1\n",
            ["--k", "8"],
            "--k 8 is more than the version answers, which is 7",
        ),
        ("user_id\n1\n", ["--k", "0"], "--k is at least 1: received 0"),
        ("user_id\n1\n", ["--shards", "3"], "Unknown argument '--shards'"),
        ("user_id\n1\n", ["--users", "nowhere.csv"], "nowhere.csv: no such file"),
        ("user_id\n1\n", ["--model", "nowhere"], "nowhere holds no exported version"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(
    toy_version, tmp_path, content, more, message, capsys
):
    table = tmp_path / "users.csv"
    table.write_text(content)
    assert run(toy_version, table, tmp_path / "out", *more) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert message in error
    assert not list((tmp_path / "out").glob("part-*"))


def test_a_version_can_be_named(toy_version, users, tmp_path):
    # Seven items, and k is 10: nothing is answered, and other flags can be tried.
    assert run(toy_version / "1", users, tmp_path / "out") == 2
    assert run(toy_version / "1", users, tmp_path / "out", "--k", "5") == 0


def test_a_model_that_recommends_nothing_is_named(toy, users, tmp_path, capsys):
    assert run(toy, users, tmp_path / "out") == 2
    assert "serving_default of this model recommends nothing" in capsys.readouterr().err


def test_beam_that_is_not_installed_is_named(
    toy_version, users, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    # What an earlier test has loaded is not there, either.
    monkeypatch.delitem(sys.modules, "tfrec_attn.bulk.beam", raising=False)
    monkeypatch.delattr(bulk, "beam", raising=False)
    flags = ["--k", "2", "--runner", "DirectRunner"]
    assert run(toy_version, users, tmp_path / "out", *flags) == 2
    assert "--runner needs pip install 'tfrec-attn[beam]'." in capsys.readouterr().err
