"""From a label back to a value that is read as it."""

import polars as pl
import pytest

from tfrec_attn.data import feedback
from tfrec_attn.data.schema import FeedbackSchema
from tfrec_attn.labels import LABELS


@pytest.mark.parametrize(
    "labels",
    [
        {"buy": ">=5", "like": ">=4", "ignore": ">=3", "dislike": ">=2", "not_buy": "<2"},
        {"buy": "==5", "like": "==4", "ignore": "==3", "dislike": "==2", "not_buy": "<2"},
        {"like": ">0.5", "ignore": ">0.25", "dislike": "<=0.25"},
        # Only between two bounds is anything left for it.
        {"buy": ">3", "dislike": "<2", "ignore": ">=0"},
        {"like": "<=1", "ignore": ">1"},
        {"buy": "purchase", "like": ["view", "cart"], "ignore": ["impression", "skip"]},
        {"buy": "purchase", "ignore": ["impression", "==0"], "like": ">0"},
    ],
)
def test_a_value_is_read_as_its_label(labels):
    schema = FeedbackSchema(column="c", labels=labels)
    for name in labels:
        value = feedback.value_of(name, schema)
        found = feedback.label(pl.Series("c", [value]), schema).values
        assert LABELS[found[0]] == name


def test_a_label_without_a_value_is_named():
    schema = FeedbackSchema(column="event", labels={"buy": "purchase", "like": "view"})
    message = r"No value of the column 'event' is read as 'ignore'; the rules are: buy pur"
    with pytest.raises(ValueError, match=message):
        feedback.value_of("ignore", schema)
