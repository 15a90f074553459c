"""From a served request log to `train --from`, on a small shop; and what is refused."""

import json
import pathlib
import sys
import time

import polars as pl
import pytest

from tests import small
from tfrec_attn import impressions, train
from tfrec_attn.labels import LABELS
from tfrec_attn.run import runs
from tfrec_attn.user_keys import UserKey

sys.path.insert(0, str(pathlib.Path(__file__).parent / "serve"))
import toys

HOUR = 3_600_000
LABEL_RULES = '{buy = "purchase", like = "view", ignore = ["impression", "skip"]}'
SETS = (
    "split.name=global-time",
    "train.epochs=1",
    "train.ranking_epochs=0",
    "loss.ranking=0",
    "schema.interactions.feedback.column=event",
    f"schema.interactions.feedback.labels={LABEL_RULES}",
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Tables of 31 items and 23 users whose events have names."""
    place = tmp_path_factory.mktemp("tables")
    items = ["item_id,kind", *(f"i{i},{'ab'[i % 2]}" for i in range(31))]
    users = ["user_id,age", *(f"u{u},{20 + u}" for u in range(23))]
    events = ["user_id,item_id,event,timestamp"]
    events += [
        f"u{u},i{(7 * u + 3 * n) % 31},{name},{10**9 + 60 * n + u}"
        for u in range(23)
        for n, name in enumerate(["purchase", "view", "view"] * 3)
    ]
    for name, lines in (("items", items), ("users", users), ("interactions", events)):
        (place / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def base(shop, tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    assert train.main(small.arguments(shop, out, sets=SETS)) == 0
    return out


@pytest.fixture(scope="module")
def key_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("key") / "user.key"
    path.write_text("0123456789abcdef0123456789abcdef\n")
    return path


@pytest.fixture(scope="module")
def served(key_file, tmp_path_factory):
    """The log of a server with hashed users, and what it answered to u1, u2 and u3.

    u3 brings a history: a purchase of an hour ago, and an event without a time.
    """
    from tfrec_attn.serve.client import Client
    from tfrec_attn.serve.server import model_server
    from tfrec_attn.serve.server import sockets as server
    from tfrec_attn.serve.server.logged import LoggedModelServer
    from tfrec_attn.serve.server.request_log import RequestLog

    place = tmp_path_factory.mktemp("served")
    toys.save_recommender(place / "shop" / "1")
    log = RequestLog(place / "log", key=UserKey.read(key_file))
    models = LoggedModelServer([model_server.Model("shop", place / "shop")], log=log)
    running = server.start(models, "127.0.0.1", 0, 0)
    models.poll()
    now = int(time.time() * 1000)
    try:
        with Client(f"127.0.0.1:{running.grpc_port}", "shop") as client:
            shown = client.recommend(["u1", "u2"], k=[3, 2])
            told = client.recommend(
                "u3",
                ["i30", "i29"],
                history_feedback=["buy", ""],
                history_time=[now - HOUR, 0],
                k=2,
            )
            # Somebody without an id: nothing can be learned of them.
            client.recommend("", k=2)
    finally:
        running.stop(grace=5)
        log.close()
    return log.folder, [[item.id for item in one.items] for one in [*shown, told]], now


@pytest.fixture(scope="module")
def today(shop, served, tmp_path_factory):
    """Today's events: u1 has bought what was shown second; others go on for two hours."""
    _, shown, now = served
    later = [f"u1,{shown[0][1]},purchase,{now // 1000 + 60}"]
    later += [
        f"u{u},i{(5 * u + n) % 31},view,{now // 1000 + 600 * n + u}"
        for u in range(6, 23)
        for n in range(1, 13)
    ]
    path = tmp_path_factory.mktemp("today") / "events.csv"
    path.write_text((shop / "interactions.csv").read_text() + "\n".join(later) + "\n")
    return path


def command(base, served, today, out, *more):
    given = {"--log": served[0], "--interactions": today, "--out": out}
    given["--config"] = base / "config.toml"
    return [str(x) for pair in given.items() for x in pair] + list(more)


@pytest.fixture(scope="module")
def made(shop, base, served, today, key_file, tmp_path_factory):
    """The interactions, and a run that went on with them."""
    place = tmp_path_factory.mktemp("made")
    table = place / "interactions.parquet"
    more = ["--window", "1", "--key-file", str(key_file)]
    more += ["--items", str(shop / "items.csv")]
    assert impressions.main(command(base, served, today, table, *more)) == 0
    tables = {"--items": shop / "items.csv", "--users": shop / "users.csv"}
    tables |= {"--interactions": table, "--out": place / "run", "--from": base}
    assert train.main([str(x) for pair in tables.items() for x in pair]) == 0
    return table, place / "run"


def test_what_was_shown_and_not_taken_is_in_the_table(made, served, today):
    _, shown, now = served
    table = pl.read_parquet(made[0])
    assert table.columns == ["user_id", "item_id", "timestamp", "event"]
    new = table.filter(pl.col("event") == "impression")
    assert set(new.select("user_id", "item_id").iter_rows()) == {
        *(("u1", shown[0][at]) for at in (0, 2)),
        *(("u2", item) for item in shown[1]),
        *(("u3", item) for item in shown[2]),
    }
    # An hour after the impression, which is the window; in order, behind what was before.
    assert new["timestamp"].is_between(now + HOUR, now + HOUR + 600_000).all()
    assert table["timestamp"].is_sorted()
    assert len(table) - len(new) - 2 == len(today.read_text().splitlines()) - 1


def test_what_was_told_is_in_the_table(made, served):
    now = served[2]
    table = pl.read_parquet(made[0])
    told = table.filter(pl.col("user_id") == "u3", pl.col("timestamp") >= now - HOUR)
    assert told.filter(pl.col("event") != "impression").select(
        "item_id", "event"
    ).rows() == [("i30", "purchase"), ("i29", "view")]
    assert told["timestamp"][0] == now - HOUR


def test_a_training_goes_on_with_it(made, served):
    """The labels reach the model's events, under the users' own rows."""
    _, prepared = runs.untrained(made[1])
    events, ids = prepared.tables.interactions, prepared.users.ids
    ignored = events.filter(pl.col("feedback") == LABELS.index("ignore"))
    assert {ids[row] for row in ignored["user"]} == {"u1", "u2", "u3"}
    assert len(prepared.users) == 23
    assert len(ignored) == 6
    assert json.loads((made[1] / "metrics.json").read_text())["test"]


def counts(capsys, given):
    assert impressions.main(given) == 0
    return json.loads(capsys.readouterr().out)


def test_what_is_done_is_counted(base, served, today, key_file, tmp_path, capsys):
    more = ["--key-file", str(key_file), "--window", "1"]
    given = command(base, served, today, tmp_path / "a.csv", *more)
    found = counts(capsys, given)
    assert found == {
        "requests": 3,
        "repeated_lines": 0,
        "torn_lines": 0,
        "without_a_user": 1,
        "bad_rows": 0,
        "of_unknown_items": 0,
        "events": 23 * 9 + 1 + 17 * 12,
        "events_told": 2,
        "taken": 1,
        "open": 0,
        "ignored": 6,
    }
    # Of each answer the first item only: what u1 took is not among them.
    assert counts(capsys, [*given, "--shown", "1"])["ignored"] == 3
    with (today.parent / "bad.csv").open("w") as file:
        file.write(today.read_text() + "u1,i1,sing,1000000000\n")
    bad = ["--interactions", file.name, "--bad-rows", "set-aside"]
    assert counts(capsys, [*given, *bad]) == {**found, "bad_rows": 1}
    # In a window that is not over nothing is ignored yet.
    wide = counts(capsys, [*given, "--window", "9"])
    assert (wide["taken"], wide["open"], wide["ignored"]) == (1, 6, 0)


def test_an_ignore_stands_where_it_is_known_at_the_end_of_its_window(
    base, served, today, key_file, tmp_path
):
    tables = []
    for hours in (0.5, 1):
        more = ["--key-file", str(key_file), "--window", str(hours)]
        out = tmp_path / f"{hours}.parquet"
        assert impressions.main(command(base, served, today, out, *more)) == 0
        found = pl.read_parquet(out).filter(pl.col("event") == "impression")
        tables.append(found.sort("user_id", "item_id")["timestamp"])
    assert (tables[1] - tables[0]).to_list() == [HOUR / 2] * 6


def test_items_that_the_table_lacks_are_left_out(
    base, served, today, key_file, tmp_path, capsys
):
    (tmp_path / "items.csv").write_text("item_id,kind\ni30,a\n")
    more = ["--key-file", str(key_file), "--items", str(tmp_path / "items.csv")]
    found = counts(capsys, command(base, served, today, tmp_path / "a.csv", *more))
    # Seven were shown and two told; i30 was told, so it was not shown to u3.
    shown = sum(item == "i30" for one in served[1] for item in one)
    assert found["of_unknown_items"] == 9 - 1 - shown
    assert found["events_told"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"--out": "table.txt"}, "--out ends in .parquet or .csv: received table.txt"),
        ({"--window": "0"}, "--window is a positive number of hours: received 0.0"),
        ({"--window": "nan"}, "--window is a positive number of hours: received nan"),
        ({"--shown": "0"}, "--shown is at least 1: received 0"),
        ({"--log": "{empty}"}, "--log names a folder of requests-….jsonl"),
        ({"--key-file": "{other}"}, "hashed by the key named"),
        ({"--config": "{open}"}, "needs schema.interactions.user, which is open or none"),
        ({"--config": "{unable}"}, "is read as 'ignore'; the rules are"),
        ({"--interactions": "{bad}"}, "no column 'item_id' (schema.interactions.item)"),
        ({"--interactions": "{wrong}"}, ":2, column 'event': 'sing' is no known feedback"),
        ({"--items": "{bad}"}, "no column 'item_id' (schema.items.id)"),
    ],
)
def test_a_mistake_is_named(
    base, served, today, key_file, tmp_path, capsys, flags, message
):
    files = {name: tmp_path / f"{name}.toml" for name in ("other", "open", "unable")}
    files |= {"empty": tmp_path}
    files |= {name: tmp_path / f"{name}.csv" for name in ("bad", "wrong")}
    files["other"].write_text("another key of enough bytes")
    files["open"].write_text('[schema.interactions]\nitem = "item_id"\n')
    text = (base / "config.toml").read_text()
    cut = text.replace('"impression"', '"nothing"').replace("ignore = [", "dislike = [")
    files["unable"].write_text(cut)
    files["bad"].write_text("user_id,event,timestamp\nu1,sing,5\n")
    files["wrong"].write_text(
        "user_id,item_id,event,timestamp\nu1,i1,sing,5\nu1,i1,view,1000000000\n"
    )
    given = {"--key-file": str(key_file), "--window": "1", **flags}
    more = [flag for pair in given.items() for flag in pair]
    out = tmp_path / "table.parquet"
    given = [one.format(**files) for one in command(base, served, today, out, *more)]
    assert impressions.main(given) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_hashed_log_needs_its_key(base, served, today, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TFREC_ATTN_USER_KEY", raising=False)
    out = tmp_path / "table.parquet"
    assert impressions.main(command(base, served, today, out)) == 2
    assert "name its file, or set TFREC_ATTN_USER_KEY" in capsys.readouterr().err
