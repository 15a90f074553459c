"""What the columns of tables are taken for where nobody says what they are."""

import re

import polars as pl
import pytest

from tfrec_attn.data import inference, kinds, readers
from tfrec_attn.data.schema import EntitySchema, FeedbackSchema, InteractionSchema, Schema


def raw(frame: pl.DataFrame, hints: dict[str, str] | None = None) -> readers.RawTable:
    place = pl.DataFrame({"file": ["f"] * frame.height, "line": range(frame.height)})
    return readers.RawTable("f.csv", frame, place, pl.DataFrame(), hints or {})


MANY = 60  # more than a small table, where all columns of words are categories


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("gender", ["M", "F"] * 30, "category"),
        ("age", [str(i) for i in range(MANY)], "number"),
        ("age", [*(str(i) for i in range(MANY)), "young"], "number"),
        ("age", list(range(MANY)), "number"),
        ("zip_code", [f"{i:05}" for i in range(MANY)], "category"),
        ("brand_id", list(range(MANY)), "category"),
        ("premium", [True, False], "category"),
        ("genres", ["a|b", "c"] * 30, "categories"),
        ("genres", ["a, b", "c"] * 30, "categories"),
        ("tags", [["a"], ["b", "c"]], "categories"),
        ("vector", [[0.5, 1.5], [2.5, 3.5]], "embedding"),
        ("released", ["2020-01-01", "2021-01-01"] * 30, "time"),
        ("timestamp", [881250949, 881250950], "time"),
        ("released", pl.Series([0], dtype=pl.Datetime("us")), "time"),
        ("poster", [f"p/{i}.jpg" for i in range(MANY)], "image"),
        ("poster", [f"http://p/{i}.jpg" for i in range(MANY)], None),
        ("clip", [f"p/{i}.MP3" for i in range(MANY)], "audio"),
        ("nickname_", [f"n{i}" for i in range(MANY)], None),
        ("nothing", [None, None], None),
        ("nested", [{"a": 1}], None),
    ],
)
def test_kinds_that_are_guessed(name, values, kind):
    table = raw(pl.DataFrame({name: values}))
    assert kinds.guess(table, set(), "users").features.get(name) == kind


def test_a_guessed_separator_is_written_down():
    table = raw(pl.DataFrame({"genres": ["a, b", "c"]}))
    assert kinds.guess(table, set(), "items").separators == {"genres": ","}


def test_hints_of_the_header_come_first():
    frame = pl.DataFrame(
        {"class": ["a b", "c"], "v": ["1 2", "3 4"], "title": ["x y", "z"]}
    )
    hints = {"class": "token_seq", "v": "float_seq", "title": "token_seq"}
    guess = kinds.guess(raw(frame, hints), set(), "items")
    assert guess.features == {"class": "categories", "v": "embedding"}
    assert (guess.separators, guess.texts) == ({"class": " "}, ["title"])


ITEMS = pl.DataFrame(
    {
        "item_id": ["1", "2"],
        "overview": ["long", "longer"],
        "title": ["A", "B"],
        "year": ["1990", "1991"],
        "genres": ["x|y", "z"],
    }
)


def resolve(schema=None, items=ITEMS, users=None, events=None):
    events = (
        pl.DataFrame({"user_id": ["1"], "item_id": ["1"]}) if events is None else events
    )
    return inference.resolve(
        schema or Schema(), raw(items), None if users is None else raw(users), raw(events)
    )


def test_the_text_of_an_item():
    assert resolve().items.text == "{title} ({year}). {genres}. {overview}"


def test_a_table_in_chinese():
    items = pl.DataFrame(
        {
            "电影ID": [str(i) for i in range(30)],
            "标题": [f"电影{i}" for i in range(30)],
            "故事": [f"这是一部关于第{i}个城市的影片，很长的描述。" for i in range(30)],
        }
    )
    events = pl.DataFrame(
        {"用户ID": ["1"], "电影ID": ["1"], "评分": ["5"], "时间": ["2020-01-01"]}
    )
    resolved = resolve(items=items, events=events)
    assert (resolved.items.id, resolved.items.text) == ("电影ID", "{标题}. {故事}")
    found = resolved.interactions
    assert (found.user, found.item, found.time) == ("用户ID", "电影ID", "时间")
    assert found.feedback is not None
    assert found.feedback.column == "评分"


def test_spaces_are_no_words_where_none_are_written():
    short = pl.DataFrame(
        {"a": [f"很长的城市名称{i}" for i in range(30)], "b": ["x" * 40] * 30}
    )
    assert kinds.guess(raw(short), set(), "items").texts == []


def test_no_text_is_said(caplog):
    assert resolve(items=pl.DataFrame({"item_id": ["1"], "price": ["2"]})).items.text == ""
    assert "name the text's columns in schema.items.text" in caplog.text


def test_what_is_written_is_kept():
    schema = Schema(items=EntitySchema(text="{overview}", columns={"year": "category"}))
    resolved = resolve(schema).items
    assert (resolved.id, resolved.text, resolved.columns) == (
        "item_id",
        "{overview}",
        {"year": "category"},
    )


def test_resolving_again_changes_nothing():
    once = resolve(users=pl.DataFrame({"user_id": ["1"], "gender": ["M"]}))
    assert resolve(once, users=pl.DataFrame({"user_id": ["1"], "gender": ["M"]})) == once


@pytest.mark.parametrize(
    ("item", "events", "identity"),
    [
        ("asin", ("reviewerID", "asin"), "asin"),
        ("id", ("userID", "artistID"), "id"),
        ("gadget_id", ("uid", "gadget_id"), "gadget_id"),
    ],
)
def test_ids_by_their_names(item, events, identity):
    resolved = resolve(
        items=pl.DataFrame({item: ["1"], "title": ["x"]}),
        events=pl.DataFrame({name: ["1"] for name in events}),
    )
    assert (resolved.interactions.user, resolved.interactions.item) == events
    assert resolved.items.id == identity


def test_ids_that_nothing_tells():
    with pytest.raises(ValueError, match=r"Set schema\.items\.id to one of: thing, title"):
        resolve(items=pl.DataFrame({"thing": ["1"], "title": ["x"]}))


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_another_separator_is_told(sign):
    frame = pl.DataFrame({f"user_id{sign}item_id": [f"1{sign}2"]})
    rule = re.escape(f"If {sign!r} parts its columns, set schema.interactions.file.sep")
    with pytest.raises(ValueError, match=rule):
        resolve(events=frame)


def test_an_array_of_objects_is_told():
    with pytest.raises(ValueError, match=r"no line of it is a JSON object\. One object a"):
        resolve(items=pl.DataFrame())


@pytest.mark.parametrize(
    ("values", "rules"),
    [
        (["1", "2.5", "5"], [("buy", ">=5"), ("like", ">=4"), ("not_buy", "<2")]),
        ([1, 10], [("buy", ">=9"), ("like", ">=7"), ("not_buy", "<3")]),
        (["0", "1"], [("like", "==1"), ("ignore", "==0")]),
        ([-1, 0, 1], [("like", "==1"), ("ignore", "==0"), ("dislike", "==-1")]),
        (
            ["Purchase", "add_to_cart", "view"],
            [("buy", "Purchase"), ("like", "add_to_cart"), ("like", "view")],
        ),
    ],
)
def test_feedback_that_is_guessed(values, rules):
    events = pl.DataFrame(
        {"user_id": ["1"] * len(values), "item_id": ["1"] * len(values), "rating": values}
    )
    feedback = resolve(events=events).interactions.feedback
    assert feedback is not None
    assert feedback.column == "rating"
    assert set(rules) <= set(feedback.rules())


def test_a_slip_does_not_change_the_scale_of_all_ratings(caplog):
    rows = pl.DataFrame({"user_id": "1", "item_id": "1", "rating": [1, 5, 3, 4] * 10 + [9]})
    feedback = resolve(events=rows).interactions.feedback
    assert feedback is not None
    assert ("like", ">=4") in feedback.rules()
    assert "ratings from 0 to 5, but for 1 such as 9" in caplog.text


def test_a_word_among_the_ratings_is_for_the_row_checks():
    rows = pl.DataFrame(
        {"user_id": "1", "item_id": "1", "rating": ["1", "5", "3"] * 10 + ["nan"]}
    )
    feedback = resolve(events=rows).interactions.feedback
    assert feedback is not None
    assert ("like", ">=4") in feedback.rules()


def test_a_missing_thumb_leaves_thumbs():
    rows = pl.DataFrame(
        {"user_id": "1", "item_id": "1", "rating": ["0", "1"] * 15 + ["nan"]}
    )
    feedback = resolve(events=rows).interactions.feedback
    assert feedback is not None
    assert feedback.rules() == [("like", "==1"), ("ignore", "==0")]


@pytest.mark.parametrize(
    ("values", "column"),
    [
        (["2001-09-09T01:46:40Z", "2001-09-10"], "when"),
        (["soon", "later"], ""),
        (["1", "2"], ""),  # A number may be anything.
    ],
)
def test_a_time_of_an_unknown_name(values, column):
    rows = pl.DataFrame({"user_id": "1", "item_id": "1", "when": values})
    assert resolve(events=rows).interactions.time == column


def test_a_row_taken_for_a_header_has_a_way_out():
    with pytest.raises(
        ValueError, match=r"name the columns in schema\.items\.file\.header"
    ):
        resolve(items=pl.DataFrame({"1": ["2"], "Toy Story (1995)": ["x"]}))


@pytest.mark.parametrize("values", [["dance"], ["0", "98"], [None]])
def test_feedback_that_must_be_told(values):
    events = pl.DataFrame(
        {"user_id": ["1"] * len(values), "item_id": ["1"] * len(values), "rating": values}
    )
    with pytest.raises(ValueError, match=r"Say it in schema\.interactions\.feedback"):
        resolve(events=events)
    silent = Schema(interactions=InteractionSchema(feedback=FeedbackSchema(column="")))
    assert resolve(silent, events=events).interactions.feedback == FeedbackSchema(column="")


def test_unused_columns_are_logged(caplog):
    caplog.set_level("INFO")
    resolve(events=pl.DataFrame({"user_id": ["1"], "item_id": ["1"], "plays": [3]}))
    assert "columns not used: plays" in caplog.text
