"""Rows of a users table as requests, and the rows that are none."""

import json

import polars as pl
import pytest

from tfrec_attn.bulk import asked
from tfrec_attn.data import blocks
from tfrec_attn.data.schema import FileFormat

READING = asked.Reading("user_id", ["age", "kinds", "since", "vector"], times=["since"])


def read(path, content, reading=READING):
    """The rows and the rejects of a table with this text, or these columns."""
    if isinstance(content, str):
        path.write_text(content)
    else:
        pl.DataFrame(content).write_parquet(path)
    (raw,) = blocks.tables(path, FileFormat(), 100)
    return asked.read(raw, reading)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_says_the_same(tmp_path, kind):
    path = tmp_path / f"users.{kind}"
    rows = {
        "user_id": ["7", "u8"],
        "history": [["1", "b"], None],
        "history_feedback": [["like", ""], None],
        "history_time": [[1000000001, 1000000002], None],
        "time": [1000000003, None],
        "exclude": [["c"], None],
        "age": [30, None],
        "kinds": [["x", "y"], None],
    }
    content = rows
    if kind == "csv":
        content = (
            "user_id,history,history_feedback,history_time,time,exclude,age,kinds\n"
            "7,1|b,like|,1000000001|1000000002,1000000003,c,30,x|y\n"
            "u8,,,,,,,\n"
        )
    if kind == "jsonl":
        lines = [{name: values[u] for name, values in rows.items()} for u in (0, 1)]
        content = "".join(json.dumps(line) + "\n" for line in lines)
    found = read(path, content)
    assert found.rejects.is_empty()
    first, second = found.frame.drop("file", "line").rows(named=True)
    assert first == {
        "user_id": "7",
        "history": ["1", "b"],
        "exclude": ["c"],
        "candidates": None,
        "history_feedback": ["like", ""],
        "history_time": [1000000001000, 1000000002000],
        "time": 1000000003000,
        "user_age": "30",
        "user_kinds": "x|y",
        **dict.fromkeys(asked.RULES),
    }
    empty = dict.fromkeys(first) | {"user_age": "", "user_kinds": ""}
    assert second == empty | {"user_id": "u8"}


def test_ids_alone(tmp_path):
    """Whole numbers are the ids that text writes so."""
    found = read(tmp_path / "u.parquet", {"user_id": [3.0, 11.0]})
    assert found.frame["user_id"].to_list() == ["3", "11"]
    assert found.frame.columns == list(asked.SCHEMA)


def test_a_profile_is_written_as_the_model_reads_it(tmp_path):
    found = read(
        tmp_path / "u.parquet",
        {
            "user_id": ["a"],
            "vector": [[0.5, -1.0]],
            "since": ["2001-09-09T01:46:41Z"],
            "kinds": [["x", "z"]],
        },
    )
    row = found.frame.row(0, named=True)
    assert row["user_vector"] == "0.5 -1.0"
    assert row["user_since"] == "1000000001000"
    assert row["user_kinds"] == "x|z"


@pytest.mark.parametrize(
    ("row", "column", "rule"),
    [
        (",,,", "user_id", "is no id: an id must not be empty"),
        ("a,1||2,,", "history", "is no id: an id must not be empty"),
        ("a,1|2,like,", "history_feedback", "must have one entry for each item of history"),
        ("a,1,liked,", "history_feedback", "is none of the labels buy, like, ignore"),
        ("a,1,,yesterday", "history_time", "is not seconds, milliseconds or ISO 8601"),
        ("a,,,1000000001", "history_time", "must have one entry for each item of history"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named(tmp_path, row, column, rule):
    head = "user_id,history,history_feedback,history_time\n"
    found = read(tmp_path / "u.csv", f"{head}good,1,like,1000000001\n{row}\n")
    assert found.frame["user_id"].to_list() == ["good"]
    (line,) = found.rejects.unique("column").rows(named=True)
    assert (line["line"], line["column"]) == (3, column)
    assert line["rule"].startswith(rule)


@pytest.mark.parametrize(
    ("row", "column", "rule"),
    [
        ("a,p>=1,,", "boost", "must have one entry for each number of boost_by"),
        ("a,,0.5,", "boost_by", "must have one entry for each condition of boost"),
        ("a,p>=1,0.5|2,", "boost_by", "must have one entry for each condition of boost"),
        ("a,p>=1,much,", "boost_by", "is not a number"),
        ("a,,,1.5", "diversity", "must be from 0 to 1"),
        ("a,,,-0.1", "diversity", "must be from 0 to 1"),
        ("a,,,some", "diversity", "is not a number"),
    ],
)
def test_a_row_that_breaks_a_rule_about_items_is_named(tmp_path, row, column, rule):
    reading = READING._replace(rules=asked.RULES)
    head = "user_id,boost,boost_by,diversity\n"
    found = read(tmp_path / "u.csv", f"{head}good,p>=1|2,0.5,0.2\n{row}\n", reading)
    (good,) = found.frame.select("user_id", "boost", "boost_by", "diversity").rows()
    assert good == ("good", ["p>=1|2"], [0.5], 0.2)
    assert (column, rule) in found.rejects.select("column", "rule").rows()


@pytest.mark.parametrize("given", [["boost"], ["boost_by"]])
def test_a_boost_needs_both_of_its_columns(tmp_path, given):
    values = {"boost": [["p>=1"], []], "boost_by": [[0.5], []]}
    content = {"user_id": ["a", "b"], **{name: values[name] for name in given}}
    reading = READING._replace(rules=asked.RULES)
    found = read(tmp_path / "u.parquet", content, reading)
    assert found.frame["user_id"].to_list() == ["b"]
    assert found.rejects["column"].to_list() == given


def test_rules_are_read_only_by_a_version_that_has_them(tmp_path):
    content = "user_id,require,diversity\na,p>=1,0.5\n"
    with pytest.raises(ValueError, match="column 'require' is nothing that the model"):
        read(tmp_path / "u.csv", content)
    reading = READING._replace(rules=["require", "forbid", "boost", "boost_by"])
    with pytest.raises(ValueError, match="column 'diversity' is nothing that the model"):
        read(tmp_path / "u.csv", content, reading)


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (
            READING,
            "column 'histroy' is nothing that the model reads, which is history, exc",
        ),
        (READING._replace(user="id"), "no column 'id'. Its columns are: user_id, histroy"),
        (READING._replace(wanted=["age"]), "no column 'age'. Its columns are: user_id"),
    ],
)
def test_a_wrong_column_is_named(tmp_path, reading, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "u.csv", "user_id,histroy\na,1\n", reading)


def test_columns_that_are_not_wanted_are_not_read(tmp_path):
    found = read(
        tmp_path / "u.csv", "user_id,age,what\na,1,2\n", READING._replace(wanted=[])
    )
    assert found.frame.columns == list(asked.SCHEMA)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_blocks_are_the_table(tmp_path, kind, monkeypatch):
    path = tmp_path / f"users.{kind}"
    frame = pl.DataFrame({"user_id": [f"u{n}" for n in range(40)], "age": ["7"] * 40})
    write = {"csv": frame.write_csv, "jsonl": frame.write_ndjson}
    write.get(kind, frame.write_parquet)(path)
    whole = asked.read(next(blocks.tables(path, FileFormat(), 100)), READING).frame
    assert whole["user_id"].to_list() == frame["user_id"].to_list()
    monkeypatch.setattr(blocks, "BYTES", 64)
    parts = [asked.read(raw, READING).frame for raw in blocks.tables(path, FileFormat(), 9)]
    assert len(parts) > 3
    assert pl.concat(parts).equals(whole)
