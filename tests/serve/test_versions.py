import os

import pytest
from google.protobuf import text_format

from tfrec_attn.serve.versions import LATEST, chosen, last_change, missing, versions


def touch(base, name):
    (base / name).mkdir(parents=True)
    (base / name / "saved_model.pb").write_text("model")


def test_version_folders_are_numbers_with_a_model_in_them(tmp_path):
    for name in ("1", "001", "00000123", "x", "7.tmp", "-2", "9223372036854775808"):
        touch(tmp_path, name)
    (tmp_path / "9").mkdir()
    assert versions(tmp_path) == {1: tmp_path / "1", 123: tmp_path / "00000123"}
    assert versions(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("policy", "wanted", "lacking"),
    [
        ("", [9], []),
        ("latest {}", [9], []),
        ("latest { num_versions: 2 }", [7, 9], []),
        ("latest { num_versions: 8 }", [2, 7, 9], []),
        ("all {}", [2, 7, 9], []),
        ("specific { versions: 7 versions: 2 }", [2, 7], []),
        ("specific { versions: 4 versions: 7 versions: 3 }", [7], [3, 4]),
        ("specific {}", [], []),
    ],
)
def test_a_policy_chooses(policy, wanted, lacking):
    found = {number: f"folder {number}" for number in (9, 2, 7)}
    parsed = text_format.Parse(policy, type(LATEST)())
    assert chosen(found, parsed) == {number: found[number] for number in wanted}
    assert missing(found, parsed) == lacking


def test_the_last_change_is_that_of_the_newest_file(tmp_path):
    assert last_change(tmp_path) == 0.0
    (tmp_path / "a").mkdir()
    for name, seconds in (("a/old", 2e9), ("a/new", 3e9), ("a", 1e9)):
        if name != "a":
            (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (seconds, seconds))
    assert last_change(tmp_path) == 3e9
    # A link into nowhere is a file as any other.
    (tmp_path / "a" / "link").symlink_to(tmp_path / "gone")
    assert last_change(tmp_path) > 0
