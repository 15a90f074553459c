"""Each check of the doctor on a machine that has the fault it looks for."""

import collections
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfrec_attn import assets, doctor, installed
from tfrec_attn.doctor import FAIL, NOTE, OK, WARN


def only(check):
    (finding,) = check
    return finding


@pytest.fixture
def pretend(monkeypatch):
    """Replaces some of the installed versions: `pretend(numpy="1.0", polars=None)`."""
    look_up = installed.version

    def replace(**versions):
        replaced = {name.replace("_", "-"): version for name, version in versions.items()}
        get = lambda name: replaced[name] if name in replaced else look_up(name)
        monkeypatch.setattr(installed, "version", get)

    return replace


def run(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tfrec_attn.doctor", *argv],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """What the command says here, with an empty cache."""
    return run("--json", TFREC_ATTN_CACHE=str(tmp_path_factory.mktemp("cache")))


def test_this_environment_is_healthy(healthy):
    rows = json.loads(healthy.stdout)
    assert [row for row in rows if row["status"] == FAIL] == []
    assert healthy.returncode == 0
    assert healthy.stderr.count("Traceback") == 0


SUBJECTS = (
    "python, keras, import order, devices, determinism, tensorflow-text, cache, "
    "movielens-100k, all-MiniLM-L6-v2, extra serve, extra keras3, "
    "extra baselines, extra beam, extra search, extra wandb"
)


@pytest.mark.parametrize("check", SUBJECTS.split(", "))
def test_every_subject_has_a_row(healthy, check):
    assert check in [row["check"] for row in json.loads(healthy.stdout)]


def test_an_asset_that_is_not_there_is_no_failure(healthy):
    (row,) = [row for row in json.loads(healthy.stdout) if row["check"] == "movielens-100k"]
    assert row["status"] == NOTE
    assert "python -m tfrec_attn.assets" in row["do"]


def test_nothing_installed_is_a_table_and_no_traceback(tmp_path):
    """-S leaves site-packages out: not one dependency can be imported."""
    program = "import sys; from tfrec_attn import doctor; sys.exit(doctor.main([]))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "No module named 'tensorflow'" in done.stdout
    assert "pip install ." in done.stdout


def test_python(monkeypatch):
    assert only(doctor.python()).status == OK
    version = collections.namedtuple("version", "major minor")(3, 12)
    monkeypatch.setattr(sys, "version_info", version)
    finding = only(doctor.python())
    assert (finding.status, finding.do) == (
        FAIL,
        "Make an environment with Python 3.11: python3.11 -m venv .venv",
    )


def test_versions_that_differ_from_the_pins(pretend):
    pretend(numpy="1.0", polars=None)
    found = list(doctor.versions())
    assert [(row.check, row.status) for row in found] == [
        ("version of polars", FAIL),
        ("version of numpy", WARN),
    ]
    assert found[0].do.startswith("pip install 'polars==")
    assert found[1].found.startswith("1.0; the tests ran with ")


@pytest.mark.parametrize("name", ["tf-keras", "tensorflow-text", "tensorflow-serving-api"])
def test_tensorflows_family_must_agree(name, pretend):
    pretend(**{name.replace("-", "_"): "2.2.0"})
    check = doctor.extras if name == "tensorflow-serving-api" else doctor.versions
    (finding,) = [row for row in check() if row.status not in (OK, NOTE)]
    assert (finding.check, finding.status) == (f"version of {name}", FAIL)
    assert finding.found.startswith(
        "2.2.0: its minor version is not that of tensorflow 2.2"
    )
    assert finding.do == f"pip install '{name}~=2.20.0'"


@pytest.mark.parametrize(
    ("version", "status"),
    [("4.54.1", OK), ("4.53.0", WARN), ("4.55.0", FAIL), ("5.0.0", FAIL)],
)
def test_transformers_that_cannot_read_bert(version, status, pretend):
    pretend(transformers=version)
    finding = only(doctor.versions())
    assert finding.status == status
    if status == FAIL:
        assert finding.do == "pip install 'transformers>=4.53,<4.55'"


def test_a_refused_keras_tells_the_way_out(monkeypatch):
    message = "tf.keras is Keras 3: import tfrec_attn first"

    def refuse():
        raise ImportError(message)

    monkeypatch.setattr("tfrec_attn.keras_binding.require_legacy_keras", refuse)
    finding = only(doctor.keras())
    assert (finding.status, finding.found) == (FAIL, message)


def test_a_driver_without_a_visible_gpu_is_a_warning(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert only(doctor.devices()).status == OK
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    finding = only(doctor.devices())
    assert finding.status == WARN
    assert "tensorflow[and-cuda]==" in finding.do


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TFREC_ATTN_CACHE", str(tmp_path / "file/cache"))
    finding = only(doctor.cache())
    assert finding.status == FAIL
    assert "TFREC_ATTN_CACHE" in finding.do


@pytest.mark.parametrize(("free", "status"), [(4e8, FAIL), (6e8, WARN), (3e9, OK)])
def test_room_on_the_disk(monkeypatch, tmp_path, free, status):
    usage = collections.namedtuple("usage", "free")(free)
    monkeypatch.setenv("TFREC_ATTN_CACHE", str(tmp_path / "not/yet/there"))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    found = list(doctor.disk())
    assert [row.status for row in found] == [status, status]
    assert (str(tmp_path) in found[0].do) == (status != OK)


def test_damaged_assets_are_told_file_by_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TFREC_ATTN_CACHE", str(tmp_path))
    folder = assets.folder("movielens-100k")
    folder.mkdir(parents=True)
    (folder / "u.data").write_bytes(b"half")
    movielens, minilm = doctor.whole_assets()
    assert movielens.status == FAIL
    assert "u.data has 4 bytes instead of 1979173; u.item is missing" in movielens.found
    assert movielens.do == "python -m tfrec_attn.assets --check movielens-100k"
    assert minilm.status == NOTE


def test_missing_extras_are_notes(pretend):
    pretend(grpcio=None)
    (row,) = [row for row in doctor.extras() if row.check == "extra serve"]
    assert (row.status, row.found) == (NOTE, "without grpcio")
    assert "pip install '.[serve]'" in row.do


def test_a_check_that_raises_is_a_row_and_the_others_follow(monkeypatch):
    def broken():
        yield doctor.Finding("first half", OK, "fine")
        raise RuntimeError("undefined symbol\nmore")

    checks = (("broken", broken, "Do this."), ("python", doctor.python, ""))
    monkeypatch.setattr(doctor, "_CHECKS", checks)
    first, broke, last = doctor.findings()
    assert first.check == "first half"
    assert broke == doctor.Finding(
        "broken", FAIL, "RuntimeError: undefined symbol", "Do this."
    )
    assert last.check == "python"


def test_the_status_is_one_only_for_failures(monkeypatch, capsys):
    for status, code in [(OK, 0), (NOTE, 0), (WARN, 0), (FAIL, 1)]:
        finding = doctor.Finding("thing", status, "so", "Do it.")
        checks = (("thing", lambda finding=finding: iter([finding]), ""),)
        monkeypatch.setattr(doctor, "_CHECKS", checks)
        assert doctor.main([]) == code
        first, second = capsys.readouterr().out.splitlines()
        assert first.split() == [status, "thing", "so"]
        assert second.split() == ["->", "Do", "it."]


def test_tensorflow_text_that_does_not_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    checks = [check for check in doctor._CHECKS if check[0] == "tensorflow-text"]
    monkeypatch.setattr(doctor, "_CHECKS", checks)
    finding = only(doctor.findings())
    assert finding.status == FAIL
    assert "tensorflow_text" in finding.found
