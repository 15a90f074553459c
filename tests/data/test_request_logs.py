"""A log's lines as tables, and lines that are none."""

import json

import pytest

from tfrec_attn.data import request_logs


def line(number=0, *, users=("u1",), key=None, time=1000, inputs=None, outputs=None):
    return {
        "id": f"r{number}",
        "time": time,
        "user_key": key,
        "inputs": {"user_id": list(users), **(inputs or {})},
        "outputs": outputs or {},
    }


def write(folder, *found, name="requests-a.jsonl", end="\n"):
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in found)
    (folder / name).write_text(text + end)
    return folder


ANSWER = {
    "item_id": [["a", "b", ""], ["c", "", ""]],
    "valid": [[True, True, False], [True, False, False]],
}


def test_what_was_shown_is_what_is_no_padding(tmp_path):
    write(tmp_path, line(users=("u1", "u2"), outputs=ANSWER))
    found = request_logs.read(tmp_path)
    rows = [("u1", "a", 1000), ("u1", "b", 1000), ("u2", "c", 1000)]
    assert found.shown.rows() == rows
    assert found.key is None
    assert request_logs.read(tmp_path, first=1).shown.rows() == [rows[0], rows[2]]


def test_an_answer_without_items_shows_nothing(tmp_path):
    """As where the request had chosen among the outputs, or asked for scores."""
    write(tmp_path, line(outputs={"score": [[1.0]]}))
    assert request_logs.read(tmp_path).shown.is_empty()


def test_what_was_told_has_its_label_and_time_or_stands_before_the_request(tmp_path):
    inputs = {
        "history": [["a", "", "b", "c"]],
        "history_feedback": [["", "", "buy", "what"]],
        "history_time": [[0, 0, 70, 5000]],
    }
    write(tmp_path, line(inputs=inputs))
    assert request_logs.read(tmp_path).told.rows() == [
        ("u1", "a", "like", None, 996),
        ("u1", "b", "buy", 70, 998),
        # Later than the request cannot be; an unknown label is read as the model does.
        ("u1", "c", "like", 999, 999),
    ]


def test_one_not_given_stands_for_a_whole_row(tmp_path):
    inputs = {"history": [["a", "b"]], "history_feedback": [[""]], "history_time": [[0]]}
    write(tmp_path, line(inputs=inputs))
    told = request_logs.read(tmp_path).told
    assert told.select("item", "label", "before").rows() == [
        ("a", "like", 998),
        ("b", "like", 999),
    ]


def test_what_is_passed_over_is_counted(tmp_path):
    write(tmp_path, line(0), line(1, users=("", "u2")), '{"id": "r2", "ti', end="")
    # The same request again, as when a file was copied.
    write(tmp_path, line(1, users=("", "u2")), line(3), name="requests-b.jsonl")
    assert request_logs.read(tmp_path).counts == {
        "requests": 3,
        "repeated_lines": 1,
        "torn_lines": 1,
        "without_a_user": 1,
    }


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"id": "r2", "ti', r"requests-a.jsonl:2: is no line of a request log"),
        ('{"id": "r2"}', r"requests-a.jsonl:2: is no line .*KeyError\('time'\)"),
        ("[1]", r"requests-a.jsonl:2: is no line of a request log"),
    ],
)
def test_a_line_of_another_kind_is_named(tmp_path, bad, message):
    write(tmp_path, line(0), bad, line(1))
    with pytest.raises(ValueError, match=message):
        request_logs.read(tmp_path)


def test_a_folder_without_a_log_and_two_keys_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"folder of requests-….jsonl.* has none"):
        request_logs.read(tmp_path)
    write(tmp_path, line(0, key="k1"), line(1, key=None))
    with pytest.raises(ValueError, match=r"hashed by 2 keys .*: None, k1"):
        request_logs.read(tmp_path)
