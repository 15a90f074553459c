"""The schema as settings: what is accepted, what is printed."""

import subprocess
import sys
import tomllib

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
