"""The schema as settings: what is accepted, what is printed, what is guessed."""

import subprocess
import sys
import tomllib

import polars as pl
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrec_attn.data import inference, kinds, readers
from tfrec_attn.data.schema import (
    RESERVED,
    EntitySchema,
    FeedbackSchema,
    FileFormat,
    InteractionSchema,
    Kind,
    Schema,
    numeric_rule,
    template_parts,
)
from tfrec_attn.labels import LABELS


def test_the_schema_is_light():
    code = "import sys, tfrec_attn.data.schema; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert not {"tensorflow", "polars", "tf_keras"} & set(run.stdout.decode().split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"items": {"colums": {}}}, "colums"),
        ({"items": {"columns": {"a": "text"}}}, "categories"),
        ({"items": {"columns": {"text": "category"}}}, "cannot be called 'text'"),
        ({"users": {"columns": {"text_mask": "number"}}}, "cannot be called 'text_mask'"),
        ({"items": {"text": "{title"}}, "has no partner"),
        ({"items": {"text": "{}"}}, "braces is empty"),
        (
            {"items": {"columns": {"a": "number"}, "separators": {"a": ","}}},
            "separators is for columns of kind categories: got 'a', which is number",
        ),
        ({"items": {"file": {"encoding": "utf-9"}}}, "unknown encoding 'utf-9'"),
        ({"items": {"file": {"separator": ""}}}, "must not be empty"),
        ({"items": {"file": {"separator": "\n"}}}, "no line end"),
        (
            {"interactions": {"feedback": {"labels": {"love": ">=4"}}}},
            "unknown feedback label 'love'; known: buy, like",
        ),
        ({"interactions": {"feedback": {"labels": {"buy": "=>4"}}}}, "got '=>4'"),
        ({"interactions": {"feedback": {"labels": {"buy": ["a", "!=1"]}}}}, "got '!=1'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        Schema.model_validate(settings)


def test_settings_are_frozen():
    with pytest.raises(pydantic.ValidationError):
        Schema().items.id = "x"


def test_numeric_rules():
    assert numeric_rule(">= 4") == (">=", 4.0)
    assert numeric_rule("<-1.5e3") == ("<", -1500.0)
    assert numeric_rule("purchase") is None


def test_parts_of_a_template():
    assert template_parts("{a b} ({c:d})") == ["", "a b", " (", "c:d", ")"]


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
columns_ = names.filter(lambda name: name not in RESERVED)
plain = names.filter(lambda name: not set(name) & set("{}"))
separators = names.filter(lambda name: not set(name) & set('\n"'))
formats = st.builds(
    FileFormat,
    separator=st.none() | separators,
    encoding=st.sampled_from(["utf-8", "latin-1"]),
    header=st.lists(names, max_size=2).map(tuple),
    quoting=st.booleans(),
)
kinds_ = st.sampled_from(Kind.__args__)


@st.composite
def entities(draw):
    features = draw(st.none() | st.dictionaries(columns_, kinds_, max_size=3))
    lists = [name for name, kind in (features or {}).items() if kind == "categories"]
    return EntitySchema(
        id=draw(st.none() | names),
        text=draw(st.none() | plain),
        columns=features,
        separators={name: draw(separators) for name in lists},
        file=draw(formats),
    )


rules = plain.filter(lambda rule: rule.strip()[:1] not in set("<>=!"))
schemas = st.builds(
    Schema,
    items=entities(),
    users=st.none() | entities(),
    interactions=st.builds(
        InteractionSchema,
        user=st.none() | names,
        item=st.none() | names,
        time=st.none() | st.just("") | names,
        feedback=st.none()
        | st.builds(
            FeedbackSchema,
            column=st.none() | names,
            labels=st.none()
            | st.dictionaries(st.sampled_from(LABELS), rules | st.tuples(rules, rules)),
        ),
        weight=st.none() | names,
        file=formats,
    ),
)


@given(schemas)
def test_what_is_printed_reads_back(schema):
    read = tomllib.loads(schema.to_toml("run.schema"))["run"]["schema"]
    assert Schema.model_validate(read) == schema
    # The order of the rules has a meaning.
    feedback, again = schema.interactions.feedback, Schema.model_validate(read)
    if feedback and again.interactions.feedback:
        assert again.interactions.feedback.rules() == feedback.rules()


def test_how_it_is_printed():
    schema = Schema(
        items=EntitySchema(
            id="item_id", text="{title} ({year}).", columns={"the year": "number"}
        ),
        interactions=InteractionSchema(user="u", item="i", time=""),
    )
    assert schema.to_toml() == (
        "# Kinds of columns: category, categories, number, time, embedding, image, audio.\n"
        "\n"
        "[schema.items]\n"
        'id = "item_id"\n'
        'text = "{title} ({year})."\n'
        "\n"
        "[schema.items.columns]\n"
        '"the year" = "number"\n'
        "\n"
        "[schema.interactions]\n"
        'user = "u"\n'
        'item = "i"\n'
        'time = ""\n'
    )


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
