"""The benchmark on the toy: a line for every number of rows, and a mistake's one line."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "serve"))
import toys

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "batch_sizes.py"


def run(*flags):
    command = [sys.executable, BENCHMARK, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_line_for_every_number_of_rows(tmp_path):
    toys.save_recommender(tmp_path / "toy" / "1")
    done = run("--model", tmp_path / "toy", "--seconds", "0.001")
    assert done.returncode == 0, done.stderr
    _, _, *lines = done.stdout.splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines]
    for signature in ("serving_default", "embed_item"):
        found = [int(rows) for name, rows, *_ in cells if name == signature]
        assert found == [1, 2, 4, 8, 16, 32, 64, 128]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "holds no exported version"),
        (("--cores", "0"), "--cores must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, flags, words):
    done = run("--model", tmp_path, *flags)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
