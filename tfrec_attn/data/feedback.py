"""Ratings and events to the feedback labels."""

import itertools

import polars as pl

from tfrec_attn.data import columns
from tfrec_attn.data.schema import FeedbackSchema, numeric_rule
from tfrec_attn.labels import LABELS

LIKE = LABELS.index("like")


def label(series: pl.Series, schema: FeedbackSchema) -> columns.Column:
    """Int8 indices into `LABELS`: the first rule that holds for the value decides.

    Comparisons look at the value as a number and never hold for a value that is none; names
    of events are compared exactly, but for the spaces around them.
    """
    text = columns.as_text(series).str.strip_chars()
    numbers = pl.Series("number", text.cast(pl.Float64, strict=False)).fill_nan(None)
    found = pl.lit(None, dtype=pl.Int8)
    # Backwards, so that the first rule has the last word.
    for name, rule in reversed(schema.rules()):
        index = pl.lit(LABELS.index(name), dtype=pl.Int8)
        found = pl.when(_holds(rule)).then(index).otherwise(found)
    frame = pl.DataFrame({"text": text, "number": numbers})
    values = frame.select(found.alias(series.name))[series.name]
    missing = text.is_null() | (text == "")
    shown = ", ".join(f"{name} {rule}" for name, rule in schema.rules())
    return columns.Column(
        values,
        (
            ("is missing; every interaction needs its feedback", missing),
            (f"is no known feedback; the rules are: {shown}", values.is_null() & ~missing),
        ),
    )


def value_of(name: str, schema: FeedbackSchema) -> str:
    """A value of the feedback column that the rules read as the label `name`.

    Raises:
      ValueError: There is none.
    """
    comparisons = [numeric_rule(rule) for _, rule in schema.rules()]
    bounds = sorted({found[1] for found in comparisons if found})
    # Between and beside all bounds: no rule tells two numbers of one of these apart.
    numbers = [low - 1 for low in bounds[:1]]
    for low, high in itertools.pairwise([*bounds, *(b + 2 for b in bounds[-1:])]):
        numbers += [low, (low + high) / 2]
    named = [rule.strip() for _, rule in schema.rules() if numeric_rule(rule) is None]
    tried = pl.Series("value", [*named, *(f"{number:g}" for number in numbers)])
    for value, found in zip(tried, label(tried, schema).values, strict=True):
        if found == LABELS.index(name):
            return value
    shown = ", ".join(f"{label} {rule}" for label, rule in schema.rules())
    raise ValueError(
        f"No value of the column {schema.column!r} is read as {name!r}; the rules are: "
        f"{shown}. Train a model whose schema.interactions.feedback.labels has one."
    )


def _holds(rule: str) -> pl.Expr:
    comparison = numeric_rule(rule)
    if comparison is None:
        return pl.col("text") == rule.strip()
    operator, bound = comparison
    number = pl.col("number")
    return {
        ">=": number >= bound,
        "<=": number <= bound,
        "==": number == bound,
        ">": number > bound,
        "<": number < bound,
    }[operator]
