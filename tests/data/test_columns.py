"""One column to its canonical form: values, faults, notes; templates; feedback."""

import datetime as dt

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrec_attn.data import columns, feedback, template
from tfrec_attn.data.schema import FeedbackSchema
from tfrec_attn.labels import LABELS


def column(values, dtype=None) -> pl.Series:
    return pl.Series("x", values, dtype=dtype)


def faults(converted: columns.Column) -> dict[int, str]:
    """The rule that each bad row breaks first."""
    found: dict[int, str] = {}
    for rule, broken in converted.faults:
        for row in broken.arg_true():
            found.setdefault(row, rule)
    return found


@pytest.mark.parametrize(
    ("values", "ids"),
    [
        ([42, -3], ["42", "-3"]),
        (["42", "007", "a b"], ["42", "007", "a b"]),
        ([42.0, -0.0, 3e9], ["42", "0", "3000000000"]),
        (["42.0", "7.00"], ["42", "7"]),
        (["42.0", "x"], ["42.0", "x"]),
        ([True], ["true"]),
        ([2**63], [str(2**63)]),
    ],
)
def test_one_id_is_one_string_however_it_is_stored(values, ids):
    converted = columns.identifier(column(values))
    assert converted.values.to_list() == ids
    assert faults(converted) == {}


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_integers_floats_and_their_digits_are_the_same_id(number):
    ways = [[number], [float(number)], [str(number)], [f"{number}.0"]]
    assert {columns.identifier(column(way)).values[0] for way in ways} == {str(number)}


def test_categorical_ids():
    assert columns.identifier(column(["a"], pl.Categorical)).values.to_list() == ["a"]


@pytest.mark.parametrize("value", [None, "", "  ", "nan", "NaN", "None", "NULL", "<NA>"])
def test_missing_ids(value):
    converted = columns.identifier(column(["a", value]))
    assert converted.values.to_list() == ["a", None]
    assert faults(converted) == {1: "is no id: an id must not be empty or nan"}


def test_a_missing_id_does_not_hide_that_a_column_is_of_whole_floats():
    ids = columns.identifier(column(["42.0", "", "nan", "7.0"])).values
    assert ids.to_list() == ["42", None, None, "7"]


@pytest.mark.parametrize("value", [1.5, 2.0**53, float("inf")])
def test_ids_that_no_number_can_hold(value):
    converted = columns.identifier(column([1.0, value]))
    assert converted.values.to_list() == ["1", None]
    assert "whole and below 2^53" in faults(converted)[1]


def test_spaces_around_ids_are_counted():
    converted = columns.identifier(column([" a", "b c", "d\t", None]))
    assert converted.values.to_list() == ["a", "b c", "d", None]
    assert converted.notes == ("2 id(s) lost the spaces around them",)


@pytest.mark.parametrize("values", [[["a"]], [{"a": 1}]])
def test_ids_are_no_lists(values):
    with pytest.raises(ValueError, match="column 'x' holds"):
        columns.identifier(column(values))


def test_numbers():
    written = ["1", " 2.5 ", "-3e2", "", "nan", "N/A", None, "x", "1,5", "inf", "1e400"]
    converted = columns.number(column(written))
    assert converted.values.to_list() == [1.0, 2.5, -300.0] + [None] * 8
    assert faults(converted) == {
        7: "is not a number",
        8: "is not a number",
        9: "is infinite",
        10: "is infinite",
    }
    typed = columns.number(column([1.5, float("nan"), float("inf"), None]))
    assert typed.values.to_list() == [1.5, None, None, None]
    assert faults(typed) == {2: "is infinite"}
    assert columns.number(column([True, False])).values.to_list() == [1.0, 0.0]
    with pytest.raises(ValueError, match="is no number"):
        columns.number(column([[1.0]]))


MOMENT = 881_250_949_000  # 1997-12-04T15:55:49Z


@pytest.mark.parametrize(
    "value",
    [
        881_250_949,
        881_250_949.0,
        "881250949",
        "8.81250949e8",
        881_250_949_000,
        881_250_949_000_000,
        881_250_949_000_000_000,
        "1997-12-04T15:55:49Z",
        "1997-12-04 15:55:49",
        "1997-12-04T15:55:49.000+00:00",
        "1997-12-04T17:55:49+02:00",
        "1997-12-04T13:25:49-0230",
        "1997-12-04 15:55:49 UTC",
        dt.datetime(1997, 12, 4, 15, 55, 49),
        dt.datetime(1997, 12, 4, 17, 55, 49, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    ],
)
def test_every_way_to_write_a_time(value):
    converted = columns.time(column([value, None]))
    assert converted.values.to_list() == [MOMENT, None]
    assert converted.values.dtype == pl.Int64
    assert faults(converted) == {}


@given(st.datetimes(dt.datetime(1980, 1, 2), dt.datetime(2100, 1, 1)), st.booleans())
def test_times_agree_with_the_standard_library(moment, zone):
    offset = dt.timezone(dt.timedelta(minutes=-330)) if zone else None
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=offset)
    since = moment - dt.datetime(1970, 1, 1, tzinfo=offset)
    # An offset of -5:30 is 5.5 hours before UTC.
    expected = since // dt.timedelta(milliseconds=1) + (330 * 60_000 if zone else 0)
    assert columns.time(column([moment.isoformat()])).values.to_list() == [expected]


def test_fractions_and_days():
    assert columns.time(
        column(["1970-01-02", "1970-01-01T00:00:00,5"])
    ).values.to_list() == [
        86_400_000,
        500,
    ]
    assert columns.time(column([dt.date(1970, 1, 2)])).values.to_list() == [86_400_000]
    assert columns.time(column([881250949.25])).values.to_list() == [881250949_250]


@pytest.mark.parametrize(
    "value", ["yesterday", "2020-02-30", "2020-01-01T25:00", "1/2/2020"]
)
def test_times_that_are_none(value):
    converted = columns.time(column(["2020-01-01", value]))
    assert converted.values.null_count() == 1
    assert faults(converted) == {1: "is not seconds, milliseconds or ISO 8601"}


@pytest.mark.parametrize(
    ("pattern", "value", "wanted"),
    [
        ("%d.%m.%Y %H:%M:%S", " 04.12.1997 15:55:49 ", MOMENT),
        ("%m/%d/%Y %I:%M:%S %p", "12/4/1997 3:55:49 PM", MOMENT),
        ("%d %b %Y %H:%M:%S %z", "04 Dec 1997 17:55:49 +0200", MOMENT),
        ("%Y%m%d", 19971204, MOMENT // 86_400_000 * 86_400_000),
        ("%d.%m.%Y", dt.datetime(1997, 12, 4, 15, 55, 49), MOMENT),
    ],
)
def test_times_that_are_written_as_one_says(pattern, value, wanted):
    converted = columns.time_as(column([value, None]), pattern)
    assert converted.values.to_list() == [wanted, None]
    assert faults(converted) == {}


def test_times_that_are_not_written_as_one_says():
    converted = columns.time_as(column(["04.12.1997", "1997-12-04", ""]), "%d.%m.%Y")
    assert converted.values.null_count() == 2
    assert faults(converted) == {1: "is not written as %d.%m.%Y"}


@pytest.mark.parametrize(
    ("values", "odd", "unit"),
    [
        (["881250949", "881250950", "881250951000"], 2, "seconds"),
        (["881250949000", "881250950", "881250951000"], 1, "milliseconds"),
        (["881250949", "1997-12-04", "1997-12-05"], 0, "ISO 8601"),
    ],
)
def test_mixed_units_are_faults_of_the_minority(values, odd, unit):
    converted = columns.time(column(values))
    rule = f"has another unit than most of the column, which is {unit}"
    assert faults(converted) == {odd: rule}
    assert converted.values.is_null().arg_true().to_list() == [odd]


def test_infinite_and_missing_times():
    converted = columns.time(column(["881250949", "inf", "nan", ""]))
    assert converted.values.to_list() == [MOMENT, None, None, None]
    assert faults(converted) == {1: "is infinite"}
    assert columns.time(column([None, ""], pl.String)).values.to_list() == [None, None]


def test_what_is_noted_about_times():
    assert columns.time(column(["2020-01-01T10:00", "2020-01-01T10:00Z"])).notes == (
        "1 time(s) have no zone and are read as UTC",
    )
    (note,) = columns.time(column([0, 1, 2])).notes
    assert note.startswith("3 time(s), read as seconds since 1970, lie before 1980")
    assert columns.time(column([881250949])).notes == ()


def test_category():
    converted = columns.category(column([" a ", "", None, "None", "1"]))
    assert converted.values.to_list() == ["a", None, None, "None", "1"]
    assert columns.category(column([3.0, 2.5])).values.to_list() == ["3", "2.5"]
    with pytest.raises(ValueError, match="holds Struct"):
        columns.category(column([{"a": 1}]))


@pytest.mark.parametrize(
    ("values", "separator", "lists"),
    [
        (["a|b| a ", "", None, "|"], "|", [["a", "b"], [], [], []]),
        (["a, b", "c"], ",", [["a", "b"], ["c"]]),
        (["a b", "c"], " ", [["a", "b"], ["c"]]),
        ([["x", None, ""], None, []], "|", [["x"], [], []]),
        ([[1, 2], [3]], "|", [["1", "2"], ["3"]]),
        ([1, None], "|", [["1"], []]),
    ],
)
def test_categories(values, separator, lists):
    converted = columns.categories(column(values), separator)
    assert converted.values.to_list() == lists
    assert converted.values.dtype == pl.List(pl.String)


@pytest.mark.parametrize(
    "values", [["[0.5, 2]", ""], ["0.5 2", ""], ["0.5|2", None], [[0.5, 2.0], []]]
)
def test_embeddings(values):
    converted = columns.embedding(column(values))
    assert converted.values.dtype == pl.Array(pl.Float32, 2)
    assert converted.values.to_list() == [[0.5, 2.0], None]
    assert faults(converted) == {}


def test_faulty_embeddings():
    written = ["1 2 3", "4 5 6", "1 2", "1 x 3", "1 inf 3", "nan 2 3", "1e300 2 3"]
    converted = columns.embedding(column(written))
    assert converted.values.to_list()[:2] == [[1, 2, 3], [4, 5, 6]]
    assert converted.values.null_count() == 5
    infinite = "has an element that is infinite or nan"
    assert faults(converted) == {
        2: "is not as wide as most of the column, which is 3 wide",
        3: "has an element that is not a number",
        4: infinite,
        5: infinite,
        6: infinite,  # beyond float32
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [([None, ""], "no row has a value"), ([1, 2], "a list of numbers")],
)
def test_columns_that_are_no_embedding(values, message):
    with pytest.raises(ValueError, match=message):
        columns.embedding(column(values))


@pytest.mark.parametrize(
    ("text", "fields", "filled"),
    [
        ("{t} ({y}). {g}", ("A", "1", "g"), "A (1). g"),
        ("{t} ({y}). {g}", ("A", None, "g"), "A. g"),
        ("{t} ({y}). {g}", ("A", "1", " "), "A (1)."),
        ("{t} ({y}). {g}", ("A", "nan", None), "A."),
        ("{t} ({y}). {g}", (None, "1", "g"), "(1). g"),
        ("{t} ({y}). {g}", (None, None, "g"), "g"),
        ("{t} ({y}). {g}", (None, None, None), ""),
        ("{t}, {y}, {g}", ("A", None, "g"), "A, g"),
        ("{t}, {y}, {g}", (None, "1", None), "1"),
        ("{t}: {g}", ("A", None, None), "A"),
        ("{t} - {y} - {g}", ("A", None, "g"), "A - g"),
        ("{t} (by {y}, {g})", ("A", None, None), "A"),
        ("{t} (by {y} & {g})", ("A", "1", "g"), "A (by 1 & g)"),
        ("[{t}; {y}] {g}", (None, "1", "g"), "[1] g"),
        ('"{t}" {y}', (None, "1", None), "1"),
        # Values are never changed, whatever punctuation they have.
        ("{t} ({y})", ("A () -", None, None), "A () -"),
        ("{t}, {y} {g}", (None, "(1),", ": g"), "(1), : g"),
        ("no field", (None, None, None), "no field"),
    ],
)
def test_templates(text, fields, filled):
    series = {
        name: column([value], pl.String) for name, value in zip("tyg", fields, strict=True)
    }
    assert template.fill(text, series, 1).to_list() == [filled]


BLANK = ("nan", "NaN", "<NA>")
# Python and polars do not agree on which control characters are blanks; noncharacters are
# the template's own marks.
words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), max_size=4
)


@given(st.tuples(words, words))
def test_a_full_template_is_string_formatting(values):
    first, second = values
    series = {"a": column([first]), "b": column([second])}
    (filled,) = template.fill("{a} ({b})!", series, 1)
    there = [value for value in values if value.strip() and value not in BLANK]
    if len(there) == 2:
        assert filled == f"{first} ({second})!".strip()
    assert all(value.strip() in filled for value in there)
    assert there or filled == ""


STARS = FeedbackSchema(
    column="x",
    labels={
        "buy": ">=5",
        "like": ">=4",
        "ignore": ">=3",
        "dislike": ">=2",
        "not_buy": "<2",
    },
)


def labels(values, schema):
    converted = feedback.label(column(values), schema)
    names = [None if i is None else LABELS[i] for i in converted.values]
    return names, sorted(faults(converted))


@pytest.mark.parametrize("kind", [float, str, lambda value: f" {value} "])
def test_stars(kind):
    values = [kind(value) for value in (5, 4.5, 4, 3.9, 2, 1.9, 0)]
    expected = ["buy", "like", "like", "ignore", "dislike", "not_buy", "not_buy"]
    assert labels(values, STARS) == (expected, [])


def test_the_order_of_the_rules_decides():
    wide_first = FeedbackSchema(column="x", labels={"like": ">=1", "buy": "==5"})
    assert labels([5, 1], wide_first) == (["like", "like"], [])
    narrow_first = FeedbackSchema(column="x", labels={"buy": "==5", "like": ">=1"})
    assert labels([5, 1], narrow_first) == (["buy", "like"], [])


def test_each_comparison_has_its_border():
    for rule, held in {
        ">2": [3],
        ">=2": [2, 3],
        "==2": [2],
        "<=2": [1, 2],
        "<2": [1],
    }.items():
        names, bad = labels([1, 2, 3], FeedbackSchema(column="x", labels={"like": rule}))
        assert [value for value, name in zip([1, 2, 3], names, strict=True) if name] == held
        assert len(bad) == 3 - len(held)


def test_events_numbers_and_the_unknown():
    schema = FeedbackSchema(
        column="x", labels={"buy": ("purchase", "order"), "like": ">=4", "ignore": "1"}
    )
    values = ["order", "purchase ", "4.5", "1", "Purchase", "nan", "", None]
    names = ["buy", "buy", "like", "ignore", None, None, None, None]
    assert labels(values, schema) == (names, [4, 5, 6, 7])
