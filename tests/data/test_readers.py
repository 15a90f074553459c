"""Files to raw columns: formats, faults of the structure, lines, encodings, shards."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tfrec_attn.data import delimited, jsonlines, readers
from tfrec_attn.data.schema import FileFormat

SETTINGS = {"separator": ",", "header": (), "quoting": True, "name": "file"}


def parse(text: str, **settings):
    data = text.rstrip("\n").encode() + b"\n"
    frame, lines, faults = delimited.parse(data, {}, **{**SETTINGS, **settings})
    return frame.rows(), lines.to_list(), [(line, text) for line, text, _ in faults]


def careful(text: str, fields: int, separator: str = ","):
    """The same by the way that names faults."""
    names = [f"c{i}" for i in range(fields)]
    data = text.rstrip("\n").encode() + b"\n"
    frame, lines, _ = delimited._careful(data, 0, {}, separator, names, True)
    return frame.rows(), lines.to_list()


@pytest.mark.parametrize(
    ("text", "rows", "lines"),
    [
        ("a,b\n1,2\n3,4\n", [("1", "2"), ("3", "4")], [2, 3]),
        ("a,b\n1,2\n3,4", [("1", "2"), ("3", "4")], [2, 3]),
        ('a,b\n1,"x\ny\nz"\n3,4', [("1", "x\ny\nz"), ("3", "4")], [2, 5]),
        ('a,b\n"1,5","say ""so"""\n', [("1,5", 'say "so"')], [2]),
        ('"a\nb",c\n1,2\n', [("1", "2")], [3]),
        ("a,b\n1,\n,2\n", [("1", None), (None, "2")], [2, 3]),
        ('a,b\n1,""\n', [("1", None)], [2]),
        ("a,b\n\n1,2\n\n\n3,4\n\n", [("1", "2"), ("3", "4")], [3, 6]),
        ("a\n1\n\n2\n", [("1",), ("2",)], [2, 4]),
        ('a,b\n1,5" disc\n2,x"y"\n', [("1", '5" disc'), ("2", 'x"y"')], [2, 3]),
        ("a,b\n1, x \n", [("1", " x ")], [2]),
        ("a,b\n1,x\ry\n", [("1", "x\ry")], [2]),
        ("a,b", [], []),
    ],
)
def test_records_and_their_lines(text, rows, lines):
    assert parse(text) == (rows, lines, [])


@pytest.mark.parametrize(
    ("text", "kept", "faults"),
    [
        ("a,b\n1,2\n3\n4,5\n", [2, 4], [(3, "3")]),
        ("a,b\n1,2\n3,4,5\n6,7\n", [2, 4], [(3, "3,4,5")]),
        # Equal numbers of separators in the whole file do not make it right.
        ("a,b\n1\n2,3,4\n5,6\n", [4], [(2, "1"), (3, "2,3,4")]),
        # An open quote takes its own line only, also where a later quote would close it.
        ('a,b\n1,"x\n2,y\n3,z\n', [3, 4], [(2, '1,"x')]),
        ('a,b\n1,"x\n2,"y"\n3,z\n', [3, 4], [(2, '1,"x')]),
        ('a,b\n1,"x" y\n2,z\n', [3], [(2, '1,"x" y')]),
        ('a,b\n"1\n2,"3" x\n4,y\n', [4], [(2, '"1'), (3, '2,"3" x')]),
        ('a,b\n"1\n2","3" x\n4,y\n', [4], [(2, '"1'), (3, '2","3" x')]),
        ('a,b\n1,"x\ny",z\n2,w\n', [4], [(2, '1,"x\ny",z')]),
    ],
)
def test_faulty_lines_are_named_and_the_others_kept(text, kept, faults):
    _, lines, found = parse(text)
    assert (lines, found) == (kept, faults)


def test_a_ragged_line_says_how_many_fields_it_has():
    _, _, faults = delimited.parse(b"a,b\n1,2,3\n", {}, **SETTINGS)
    assert faults == [(2, "1,2,3", "has 3 field(s) where the header has 2")]


def test_quotes_as_ordinary_characters():
    rows, lines, faults = parse(
        'a\tb\n1\t"Weird Al" Y\n2\t"x\n', separator="\t", quoting=False
    )
    assert rows == [("1", '"Weird Al" Y'), ("2", '"x')]
    assert (lines, faults) == ([2, 3], [])


def test_a_separator_of_two_characters():
    assert parse("a::b\n1::x:y\n", separator="::")[0] == [("1", "x:y")]


def test_a_file_without_header():
    assert parse("1,2\n3,4\n", header=("x", "y"))[:2] == ([("1", "2"), ("3", "4")], [1, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,a\n1,2,3\n", "file: two columns are called 'a'"),
        ('a,"b\n1,2\n', "file:1: the header has a quoted field that does not end"),
    ],
)
def test_a_header_that_cannot_be_used(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_column_without_a_name_is_called_by_its_place():
    frame, _, _ = delimited.parse(b",b\n0,x\n", {}, **SETTINGS)
    assert frame.columns == ["column_1", "b"]


fields = st.text(st.characters(codec="utf-8", exclude_characters="\r\x1f"), max_size=6)
tables = st.integers(1, 3).flatmap(
    lambda width: st.lists(
        st.lists(fields, min_size=width, max_size=width), min_size=1, max_size=5
    )
)


def _written(rows: list[list[str]], separator: str) -> str:
    quote = lambda field: '"' + field.replace('"', '""') + '"'
    return "".join(separator.join(map(quote, row)) + "\n" for row in rows)


@given(tables, st.sampled_from([",", "\t", ";"]))
@example([['"'], ["\n"], [""], ['",']], ",")
def test_the_fast_and_the_careful_way_agree(rows, separator):
    text = _written(rows, separator)
    names = tuple(f"c{i}" for i in range(len(rows[0])))
    data = text.encode()
    fast = delimited.record_lines(data, separator, len(names), True)
    assert fast is not None  # or this test would compare the careful way with itself
    frame, lines, faults = delimited.parse(
        data, {}, separator=separator, header=names, quoting=True, name="file"
    )
    assert frame.rows() == [tuple(field or None for field in row) for row in rows]
    assert (frame.rows(), lines.to_list()) == careful(text, len(names), separator)
    assert faults == []


@given(st.text(st.sampled_from('ab",\n'), max_size=30), st.integers(1, 3))
@example('a\n"', 1)
def test_no_line_is_lost_whatever_the_file(text, width):
    """Records tile the file, and each that is not blank is a row or a fault."""
    text = text.rstrip("\n") + "\n"
    spans = [(begin, end) for begin, end, _ in delimited._records(text, 0, ",", True)]
    assert [0, *(end for _, end in spans)] == [*(begin for begin, _ in spans), len(text)]
    filled = [text.count("\n", 0, a) + 1 for a, b in spans if text[a:b] != "\n"]
    frame, lines, faults = delimited.parse(
        text.encode(),
        {},
        separator=",",
        header=tuple(f"c{i}" for i in range(width)),
        quoting=True,
        name="file",
    )
    assert sorted([*lines.to_list(), *(line for line, _, _ in faults)]) == filled
    assert frame.height == len(lines)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"a":1}\n{"a":"x"}', [("1",), ("x",)]),
        ('{"a":1}\n\n{"b":2.5}', [(1, None), (None, 2.5)]),
        ('{"a":"x"}\n{"a":["x","y"]}', [(["x"],), (["x", "y"],)]),
        ('{"a":1}\n{"a":[2.5]}', [([1.0],), ([2.5],)]),
        ('{"a":123456789012345678901}', [(123456789012345678901,)]),
        ('{"a":""}\n{"a":null}\n{"a":"z"}', [(None,), (None,), ("z",)]),
        ('{"a":[]}\n{"a":["x"]}', [([],), (["x"],)]),
    ],
)
def test_json_lines(text, rows):
    frame, lines, faults = jsonlines.parse(text.encode() + b"\n", {})
    assert frame.rows() == rows
    assert lines.to_list() == [n for n, line in enumerate(text.split("\n"), 1) if line]
    assert faults == []


def test_faulty_json_lines():
    text = '{"a":1}\n{"a":\n[1]\n\n{"a":2}\n7\n'
    frame, lines, faults = jsonlines.parse(text.encode(), {})
    assert (frame.rows(), lines.to_list()) == ([(1,), (2,)], [1, 5])
    assert [(line, text) for line, text, _ in faults] == [
        (2, '{"a":'),
        (3, "[1]"),
        (6, "7"),
    ]
    assert [rule.split(":")[0] for _, _, rule in faults] == [
        "is not JSON",
        "is not a JSON object",
        "is not a JSON object",
    ]


values = st.one_of(st.none(), st.text(st.characters(codec="utf-8"), min_size=1, max_size=5))
rows_of_two = st.lists(st.tuples(values, values), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
@given(rows=rows_of_two)
@example(rows=[("[x", "{"), ("\n", "\r\n")])
def test_typed_formats_give_back_what_was_written(folder, ending, rows):
    frame = pl.DataFrame(rows, schema={"a": pl.String, "b": pl.String}, orient="row")
    path = folder / f"table.{ending}"
    if ending == "parquet":
        frame.write_parquet(path)
    else:
        data = "\n".join(json.dumps(row) for row in frame.to_dicts()).encode()
        path.write_bytes(gzip.compress(data, mtime=0) if ending.endswith("gz") else data)
    raw = readers.read(path)
    assert raw.frame.rows() == rows
    assert raw.place["line"].to_list() == list(range(1, len(rows) + 1))


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes('\ufeffa,b\r\n1,"x\r\ny"\r\n2,z\r\n'.encode())
    raw = readers.read(path)
    assert raw.frame.columns == ["a", "b"]
    assert raw.frame.rows() == [("1", "x\ny"), ("2", "z")]
    assert raw.place["line"].to_list() == [2, 4]


def test_bytes_that_are_not_utf8_name_their_line(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes('a,b\n1,"x\ncaf\xe9"\n2,ol\xe9\n3,\u00e9t\u00e9\n'.encode("latin-1"))
    whole = readers.read(path, FileFormat(encoding="latin-1"))
    assert whole.frame["b"].to_list() == ["x\ncaf\xe9", "ol\xe9", "\u00e9t\u00e9"]

    path.write_bytes(b'a,b\n1,"x\ncaf\xe9"\n2,ol\xe9\n3,\xc3\xa9t\n')
    raw = readers.read(path)
    assert raw.frame.rows() == [("3", "ét")]
    assert raw.place["line"].to_list() == [5]
    faults = raw.rejects.select("line", "value", "rule").rows()
    # The record of line 2 has its faulty byte on line 3.
    assert [fault[:2] for fault in faults] == [(2, 'caf\\xe9"'), (4, "2,ol\\xe9")]
    assert "encoding" in faults[0][2]


def test_json_that_is_not_utf8_names_its_line(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_bytes(b'{"a":"x"}\n{"a":"\xe9"}\n{"a":"y"}\n')
    raw = readers.read(path)
    assert raw.frame.rows() == [("x",), ("y",)]
    assert raw.place["line"].to_list() == [1, 3]
    assert raw.rejects["line"].to_list() == [2]


def test_utf16_has_a_way_out(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes("a,b\n1,é\n".encode("utf-16"))
    with pytest.raises(ValueError, match='set encoding = "utf-16" in'):
        readers.read(path)
    assert readers.read(path, FileFormat(encoding="utf-16")).frame.rows() == [("1", "é")]


def test_another_encoding_that_does_not_fit(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"a\n\xe9\n")
    with pytest.raises(ValueError, match=r"table\.csv: is not ascii"):
        readers.read(path, FileFormat(encoding="ascii"))


@pytest.mark.parametrize("name", ["table.csv.gz", "table.csv"])
def test_gzip_is_known_by_its_first_bytes(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"a\n1\n", mtime=0))
    assert readers.read(tmp_path / name).frame.rows() == [("1",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv.gz", gzip.compress(b"a\n1\n" * 99, mtime=0)[:-9], "damaged gzip"),
        ("a.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("a.xlsx", b"x", r"the name must end in one of .*\.csv.*: got \.xlsx"),
        ("a.csv", b"", "the file is empty"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        readers.read(tmp_path / name)
    assert name in str(error.value)


def test_types_in_the_header(tmp_path):
    path = tmp_path / "table.item"
    path.write_text("item_id:token\ttitle:token_seq\tage:float\n1\tToy Story\t3.0\n")
    raw = readers.read(path)
    assert raw.frame.columns == ["item_id", "title", "age"]
    assert raw.hints == {"item_id": "token", "title": "token_seq", "age": "float"}


def _folder(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_shards_in_natural_order_and_what_is_no_shard(tmp_path, caplog):
    files = {
        "p10.csv": "b,a\n5,4\n",
        "p9.csv": "a,b\n1,2\n",
        "_SUCCESS": "",
        "notes.md": "x",
    }
    raw = readers.read(_folder(tmp_path, files))
    assert raw.frame.select("a", "b").rows() == [("1", "2"), ("4", "5")]
    places = [(Path(file).name, line) for file, line in raw.place.rows()]
    assert places == [("p9.csv", 2), ("p10.csv", 2)]
    assert "notes.md" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.csv": "x,y\n1,2\n", "b.csv": "x,z\n1,2\n"}, r"b\.csv.*: y, z is in one"),
        ({"a.csv": "x\n1\n", "b.tsv": "x\n1\n"}, r"one format: got \.csv, \.tsv"),
        ({"_SUCCESS": ""}, "no table in this folder"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        readers.read(_folder(tmp_path, files))


def test_shards_of_several_types_become_canonical_strings(tmp_path):
    for name, ids in (("a", [7, 8]), ("b", [9.0, None]), ("c", ["x", "07"])):
        pl.DataFrame({"id": ids}).write_parquet(tmp_path / f"{name}.parquet")
    raw = readers.read(tmp_path)
    assert raw.frame["id"].to_list() == ["7", "8", "9", None, "x", "07"]


def test_json_shards_may_lack_keys(tmp_path):
    files = {"a.jsonl": '{"x":1}\n', "b.jsonl": '{"x":2,"y":"z"}\n'}
    assert readers.read(_folder(tmp_path, files)).frame.rows() == [(1, None), (2, "z")]
