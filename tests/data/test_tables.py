"""The three tables from files of every kind, and what each fault comes to."""

import gzip
import json
import logging
import re
import tomllib
from pathlib import Path

import polars as pl
import pytest

from tfrec_attn.data import delimited
from tfrec_attn.data.schema import EntitySchema, FeedbackSchema, InteractionSchema, Schema
from tfrec_attn.data.tables import read_tables
from tfrec_attn.labels import LABELS

ITEMS = """item_id,title,year,genres
a,Heat,1995,Action|Crime
b,"Emma, a
comedy",1996,Comedy
c,Alien,1979,
"""
USERS = """user_id,age,gender
1,24,M
2,53,F
"""
EVENTS = """user_id,item_id,rating,timestamp
1,a,5,881250949
2,b,3,881250950
2,a,1,881250951
1,c,4,881250940
2,c,2,881250952
"""


@pytest.fixture
def write(tmp_path):
    def _write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write


@pytest.fixture
def read(write):
    """Reads the tables above, with some of them replaced."""

    def _read(items=ITEMS, users=USERS, events=EVENTS, **settings):
        return read_tables(
            write("items.csv", items),
            None if users is None else write("users.csv", users),
            write("events.csv", events),
            **settings,
        )

    return _read


def _rejected(tables) -> list[tuple]:
    return [(Path(file).name, *rest) for file, *rest in tables.rejects.rows()]


def test_tables_hold_what_the_contract_says(read):
    tables = read()
    assert tables.items["id"].to_list() == ["a", "b", "c"]
    assert tables.items["text"].to_list() == [
        "Heat (1995). Action, Crime",
        "Emma, a\ncomedy (1996). Comedy",
        "Alien (1979).",
    ]
    assert tables.items["genres"].to_list() == [["Action", "Crime"], ["Comedy"], []]
    assert tables.items["year"].to_list() == [1995.0, 1996.0, 1979.0]
    assert tables.users["gender"].to_list() == ["M", "F"]
    assert dict(tables.interactions.schema) == {
        "user": pl.Int32,
        "item": pl.Int32,
        "time": pl.Int64,
        "feedback": pl.Int8,
        "weight": pl.Float32,
    }
    assert tables.interactions["user"].to_list() == [0, 1, 1, 0, 1]
    assert tables.interactions["item"].to_list() == [0, 1, 0, 2, 2]
    assert tables.interactions["time"].to_list()[0] == 881250949_000
    labels = [LABELS[i] for i in tables.interactions["feedback"]]
    assert labels == ["buy", "ignore", "not_buy", "like", "dislike"]
    assert tables.interactions["weight"].to_list() == [1.0] * 5
    assert tables.rejects.is_empty()


def _as_jsonl(csv: pl.DataFrame) -> bytes:
    return "\n".join(json.dumps(row) for row in csv.to_dicts()).encode()


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "jsonl.gz"])
def test_every_format_gives_the_same_tables(read, write, tmp_path, ending):
    expected = read()
    paths = []
    for name, text in (("i", ITEMS), ("u", USERS), ("e", EVENTS)):
        frame = pl.read_csv(text.encode())
        path = tmp_path / f"{name}.{ending}"
        kind = ending.split(".")[0]
        if kind == "parquet":
            frame.write_parquet(path)
        else:
            data = {
                "csv": text.encode(),
                "tsv": frame.write_csv(separator="\t").encode(),
                "jsonl": _as_jsonl(frame),
            }[kind]
            path.write_bytes(
                gzip.compress(data, mtime=0) if ending.endswith("gz") else data
            )
        paths.append(path)
    tables = read_tables(*paths)
    for table in ("items", "users", "interactions"):
        assert getattr(tables, table).equals(getattr(expected, table), null_equal=True), (
            table
        )


def test_shards_of_a_folder_in_natural_order(write, read):
    header, *rows = EVENTS.splitlines()
    for number, row in zip((10, 2, 1), rows, strict=False):
        write(f"shards/part-{number}.csv", f"{header}\n{row}\n")
    write("shards/_SUCCESS", "")
    tables = read_tables(
        write("items.csv", ITEMS), write("users.csv", USERS), write("shards/x", "").parent
    )
    assert tables.interactions["time"].to_list() == [
        881250951_000,
        881250950_000,
        881250949_000,
    ]


def test_shards_name_their_own_lines(write):
    write("shards/1.csv", EVENTS)
    write(
        "shards/2.csv",
        "user_id,item_id,rating,timestamp\n1,a,5,881250949\n1,zz,5,881250949\n",
    )
    with pytest.raises(ValueError, match=r"2\.csv:3, column 'item_id': 'zz'"):
        read_tables(write("items.csv", ITEMS), None, write("shards/1.csv", EVENTS).parent)


def test_the_schema_printed_reads_back(read):
    tables = read()
    back = Schema.model_validate(tomllib.loads(tables.schema.to_toml())["schema"])
    assert back == tables.schema
    assert read(schema=back).items.equals(tables.items, null_equal=True)
    assert back.items.text == "{title} ({year}). {genres}"
    assert back.items.columns == {"year": "number", "genres": "categories"}
    assert back.users is not None
    assert back.users.columns == {"age": "number", "gender": "category"}


def test_the_schema_is_logged(read, caplog):
    caplog.set_level(logging.INFO)
    tables = read()
    assert tables.schema.to_toml() in caplog.text


def test_bad_rows_stop_the_run_and_name_everything(read, tmp_path):
    items = ITEMS.replace("1979", "soon")
    path = tmp_path / "out" / "rejects.csv"
    schema = Schema(items=EntitySchema(columns={"year": "number"}, text="{title}"))
    with pytest.raises(ValueError, match="break a rule") as error:
        read(items, schema=schema, rejects_path=path)
    assert f"{tmp_path}/items.csv:5, column 'year': 'soon' is not a number" in str(
        error.value
    )
    assert "set-aside" in str(error.value)
    assert str(path) in str(error.value)
    # Only the cause, not the two interactions of the item.
    assert pl.read_csv(path).rows() == [
        (f"{tmp_path}/items.csv", 5, "year", "soon", "is not a number")
    ]


def test_bad_rows_set_aside(read, tmp_path):
    schema = Schema(items=EntitySchema(columns={"year": "number"}, text="{title}"))
    path = tmp_path / "rejects.csv"
    tables = read(
        ITEMS.replace("1979", "soon"),
        schema=schema,
        bad_rows="set-aside",
        rejects_path=path,
    )
    assert tables.items["id"].to_list() == ["a", "b"]
    unknown = "is no id of an item that was kept"
    assert _rejected(tables) == [
        ("items.csv", 5, "year", "soon", "is not a number"),
        ("events.csv", 5, "item_id", "c", unknown),
        ("events.csv", 6, "item_id", "c", unknown),
    ]
    assert tables.interactions["item"].to_list() == [0, 1, 0]
    assert pl.read_csv(path).rows() == tables.rejects.rows()


def test_no_rejects_leave_an_empty_rejects_file(read, tmp_path):
    path = tmp_path / "rejects.csv"
    read(rejects_path=path)
    assert path.read_text() == "file,line,column,value,rule\n"


def test_bad_rows_has_two_values(read):
    with pytest.raises(ValueError, match="'skip'"):
        read(bad_rows="skip")


def test_identical_rows_count_once(read, caplog):
    tables = read(ITEMS + "a,Heat,1995,Action|Crime\n")
    assert tables.items["id"].to_list() == ["a", "b", "c"]
    assert "1 row(s) repeat an earlier row and are left out" in caplog.text


def test_one_id_with_two_contents_is_a_fault(read):
    items = ITEMS + "a,Heat,1986,Action|Crime\n"
    with pytest.raises(
        ValueError, match=r"items\.csv:6, column 'item_id': 'a' is an id that"
    ):
        read(items)
    tables = read(items, bad_rows="set-aside")
    assert tables.items["year"].to_list() == [1995.0, 1996.0, 1979.0]
    assert tables.interactions.height == 5  # the first of the two is kept


def test_interactions_of_unknown_items(read):
    events = EVENTS + "1,zebra,5,881250953\n"
    with pytest.raises(ValueError, match=r"events\.csv:7, column 'item_id': 'zebra'"):
        read(events=events)
    assert read(events=events, bad_rows="set-aside").interactions.height == 5


def test_users_that_the_table_lacks_are_kept(read, caplog):
    tables = read(events=EVENTS + "nine,a,5,881250953\n")
    assert tables.users["id"].to_list() == ["1", "2", "nine"]
    assert tables.users["age"].to_list() == [24.0, 53.0, None]
    assert tables.users["text"].to_list() == ["", "", ""]
    assert tables.interactions["user"].to_list()[-1] == 2
    assert "1 user(s) of the interactions have no row" in caplog.text


def test_lists_of_added_users_are_empty_not_null(read):
    users = "user_id,tags\n1,x|y\n"
    assert read(users=users).users["tags"].to_list() == [["x", "y"], []]


def test_no_users_table(read):
    tables = read(users=None)
    assert tables.users.rows() == [("1", ""), ("2", "")]
    assert tables.schema.users is None


@pytest.mark.parametrize(
    "times",
    [
        ("881250949", "881250950"),
        ("881250949000", "881250950000"),
        ("1997-12-04T15:55:49Z", "1997-12-04 16:55:50+01:00"),
    ],
)
def test_seconds_milliseconds_and_iso_are_one_time(read, times):
    first, second = times
    tables = read(events=f"user_id,item_id,timestamp\n1,a,{first}\n2,b,{second}\n")
    assert tables.interactions["time"].to_list() == [881250949_000, 881250950_000]


def test_without_a_time_column_the_order_of_the_file_counts(read, caplog):
    tables = read(events="user_id,item_id\n1,b\n2,a\n")
    assert tables.interactions["time"].to_list() == [1, 2]
    assert "the order of the file is time" in caplog.text


def test_a_missing_time_is_a_fault(read):
    with pytest.raises(
        ValueError, match=r"events\.csv:3, column 'timestamp': '' is missing"
    ):
        read(events="user_id,item_id,timestamp\n1,b,881250949\n2,a,\n")


def test_byte_order_mark_and_windows_line_ends(read):
    expected = read()
    tables = read(*("\ufeff" + t.replace("\n", "\r\n") for t in (ITEMS, USERS, EVENTS)))
    assert tables.items.equals(expected.items, null_equal=True)
    assert tables.interactions.equals(expected.interactions)


def test_ids_with_spaces_inside_and_around(read, caplog):
    tables = read(
        "item_id,title\nred shoe,One\n blue shoe ,Two\n",
        None,
        "user_id,item_id\nann b, red shoe\nann b,blue shoe\n",
    )
    assert tables.items["id"].to_list() == ["red shoe", "blue shoe"]
    assert tables.users["id"].to_list() == ["ann b"]
    assert tables.interactions["item"].to_list() == [0, 1]
    assert "1 id(s) lost the spaces around them" in caplog.text


@pytest.mark.parametrize("bad", ["", "  ", "nan", "NULL"])
def test_empty_and_nan_ids_are_faults(read, bad):
    with pytest.raises(ValueError, match=r"items\.csv:6, column 'item_id'.* is no id"):
        read(ITEMS + f"{bad},Ghost,1990,Drama\n")


def test_numbers_strings_and_floats_are_the_same_id(tmp_path):
    pl.DataFrame({"item_id": [7, 42], "title": ["x", "y"]}).write_parquet(
        tmp_path / "i.parquet"
    )
    pl.DataFrame({"user_id": [1.0, 1.0], "item_id": ["42", "7"]}).write_parquet(
        tmp_path / "e.parquet"
    )
    tables = read_tables(tmp_path / "i.parquet", None, tmp_path / "e.parquet")
    assert tables.users["id"].to_list() == ["1"]
    assert tables.interactions["item"].to_list() == [1, 0]


def test_empty_and_huge_texts(read, caplog):
    long = "word " * 20_000
    tables = read(
        f"item_id,title\na,{long}\nb,\nc,x\n", events="user_id,item_id\n1,a\n1,b\n1,c\n"
    )
    assert tables.items["text"].to_list() == [long.strip(), "", "x"]
    assert "1 row(s) have an empty text" in caplog.text


def test_an_infinite_weight_and_a_negative_one(read):
    events = "user_id,item_id,w\n1,a,2.5\n1,b,inf\n2,b,-1\n2,a,\n"
    schema = Schema(interactions=InteractionSchema(weight="w"))
    tables = read(events=events, schema=schema, bad_rows="set-aside")
    assert tables.interactions["weight"].to_list() == [2.5]
    assert [(line, rule) for _, line, _, _, rule in _rejected(tables)] == [
        (3, "is infinite"),
        (5, "is missing"),
        (4, "is a negative weight"),
    ]


def test_an_embedding_of_the_wrong_width(read):
    items = "item_id,title,vector\na,x,0.5 1\nb,y,2 3\nc,z,4 5 6\n"
    schema = Schema(items=EntitySchema(columns={"vector": "embedding"}))
    tables = read(items, schema=schema, bad_rows="set-aside")
    assert tables.items["vector"].dtype == pl.Array(pl.Float32, 2)
    assert tables.items["vector"].to_list() == [[0.5, 1.0], [2.0, 3.0]]
    assert _rejected(tables)[0] == (
        "items.csv", 4, "vector", "4 5 6",
        "is not as wide as most of the column, which is 2 wide",
    )  # fmt: skip


def test_unknown_feedback(read):
    feedback = FeedbackSchema(
        column="event", labels={"buy": "purchase", "like": ("view", "cart")}
    )
    schema = Schema(interactions=InteractionSchema(feedback=feedback))
    events = "user_id,item_id,event\n1,a,purchase\n1,b,cart\n2,a,dance\n2,b,\n"
    tables = read(events=events, schema=schema, bad_rows="set-aside")
    assert [LABELS[i] for i in tables.interactions["feedback"]] == ["buy", "like"]
    rules = {line: rule for _, line, _, _, rule in _rejected(tables)}
    assert rules == {
        4: "is no known feedback; the rules are: buy purchase, like view, like cart",
        5: "is missing; every interaction needs its feedback",
    }


def test_a_missing_file(write):
    events = write("events.csv", EVENTS)
    place = re.escape(str(Path.cwd()))
    with pytest.raises(FileNotFoundError, match=rf"^nowhere\.csv: .* in {place}\. A rel"):
        read_tables("nowhere.csv", None, events)
    gone = events.with_name("gone.csv")
    with pytest.raises(FileNotFoundError, match=r"gone\.csv: no such file or folder\.$"):
        read_tables(gone, None, events)


@pytest.mark.parametrize(
    ("schema", "setting"),
    [
        (Schema(items=EntitySchema(id="key")), "items.id"),
        (Schema(items=EntitySchema(text="{name}")), "items.text"),
        (Schema(users=EntitySchema(columns={"job": "category"})), "users.columns"),
        (Schema(interactions=InteractionSchema(time="when")), "interactions.time"),
        (
            Schema(interactions=InteractionSchema(feedback=FeedbackSchema(column="stars"))),
            "interactions.feedback.column",
        ),
    ],
)
def test_a_missing_column_names_its_setting_and_the_columns_there_are(
    read, schema, setting
):
    with pytest.raises(ValueError, match=rf"schema\.{setting}\)") as error:
        read(schema=schema)
    assert "Its columns are: " in str(error.value)


@pytest.mark.parametrize("text", ["", "\n\n", "item_id,title\n"])
def test_an_empty_table(read, text):
    with pytest.raises(
        ValueError, match=r"items\.csv: the (file is empty|table has no rows)"
    ):
        read(items=text)


def test_no_row_left(read):
    with pytest.raises(ValueError, match=r"events\.csv: no row is left"):
        read(events="user_id,item_id\n1,x\n2,y\n", bad_rows="set-aside")


def test_columns_whose_meaning_is_unclear_ask_for_a_setting(read):
    with pytest.raises(ValueError, match=r"Set schema\.interactions\.user to one of: who"):
        read(events="who,item_id\n1,a\n")


@pytest.fixture
def records(monkeypatch):
    """Counts the records that are read one at a time, in Python."""
    count, one_by_one = [], delimited._records

    def counted(*args):
        for record in one_by_one(*args):
            count.append(record)
            yield record

    monkeypatch.setattr(delimited, "_records", counted)
    return count


@pytest.mark.parametrize("fault", ["", "1,i0,4\n"])
def test_only_a_file_with_a_fault_is_read_record_by_record(write, records, fault):
    items = write("items.csv", "item_id\n" + "".join(f"i{i}\n" for i in range(1009)))
    rows = (f"{n % 997},i{n % 1009},{n % 5 + 1},{881250949 + n}\n" for n in range(10_000))
    header = "user_id,item_id,rating,timestamp\n"
    events = write("events.csv", header + "".join(rows) + fault)
    tables = read_tables(items, None, events, bad_rows="set-aside")
    assert tables.interactions.height == 10_000
    last = (9_999 % 997, 9_999 % 1009, 881260948_000)
    assert tables.interactions.row(9_999)[:3] == last
    assert tables.rejects.height == bool(fault)
    headers = 2
    assert len(records) == headers + (10_001 if fault else 0)


def test_an_open_quote_is_a_fault_of_its_line_alone(write, records):
    """Each is read once, and the rest of the file is not read for it again."""
    items = write("items.csv", "item_id\na\n")
    rows = "".join(f'{n},"a\n' for n in range(3_001))
    events = write("events.csv", "user_id,item_id\n1,a\n" + rows + "2,a\n")
    tables = read_tables(items, None, events, bad_rows="set-aside")
    assert tables.rejects["line"].to_list() == list(range(3, 3_004))
    assert tables.interactions.height == 2
    headers = 2
    assert len(records) == headers + 3_003


def test_the_error_shows_the_first_faults_and_counts_rows(read):
    schema = Schema(items=EntitySchema(columns={"year": "number"}, text="{title}"))
    items = "item_id,title,year\n" + "nan,x,soon\n" * 7
    with pytest.raises(ValueError, match="7 row") as error:
        read(items, schema=schema)
    lines = str(error.value).splitlines()
    # One rule is broken in each of the seven rows, the other in six: three of each are
    # shown.
    assert lines[0] == "7 row(s) of the tables break a rule:"
    assert len(lines) == 1 + 2 * 3 + 1 + 2 + 1
    assert lines[7] == "In all:"
    assert [line.partition("items.csv: ")[2][:9] for line in lines[8:10]] == [
        "7 row(s),"
    ] * 2


def test_times_that_are_written_otherwise_have_a_way_out(read):
    events = "user_id,item_id,timestamp\nu,a,31.12.1999 08:15\nu,b,1.1.2000 08:15\n"
    with pytest.raises(ValueError, match=r"time_format is for times that are"):
        read(events=events)
    given = InteractionSchema(time_format="%d.%m.%Y %H:%M")
    found = read(events=events, schema=Schema(interactions=given))
    first, second = found.interactions["time"].to_list()
    assert second - first == 24 * 60 * 60 * 1000
    assert found.schema.interactions.time_format == "%d.%m.%Y %H:%M"


def test_an_error_about_a_whole_column_names_the_file(read):
    schema = Schema(items=EntitySchema(columns={"year": "embedding"}, text=""))
    with pytest.raises(ValueError, match=r"items\.csv: column 'year' is an embedding, but"):
        read("item_id,year\na,\nb,\nc,\n", schema=schema)
