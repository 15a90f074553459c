"""Runs side by side: of made-up ranks; of trained ones in test_evaluate."""

import json

import numpy as np
import polars as pl
import pytest

from tfrec_attn import evaluate, metrics
from tfrec_attn.evaluation import run_comparison
from tfrec_attn.run import runs

USERS = ["a", "b", "c", "c"]


def made(folder, ranks, *, digest="d1", items=("1", "2", "3", "4"), rate=0.1, fold="test"):
    """A run as far as a comparison reads it, with the ranks of the four queries."""
    folder.mkdir()
    about = {"split": "leave-last-out", "digest": digest}
    (folder / "metrics.json").write_text(json.dumps(about))
    rows = {"random": {}, "retrieval": {}}
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.index").write_bytes(bytes(ranks))
    about["weights"] = runs.weights_digest(folder)
    (folder / "evaluation.json").write_text(
        json.dumps({"fold": fold, "rows": rows, **about})
    )
    (folder / "config.toml").write_text(f"[train]\nlearning_rate = {rate}\n")
    columns = {"user_id": USERS, "item_id": items, "random": [9] * 4, "retrieval": ranks}
    pl.DataFrame(columns).write_csv(folder / "ranks.csv")
    return folder


def test_figures_and_differences_are_of_users(tmp_path, capsys):
    """User c has two queries. By hand: hits at 2 of a 1, 1, ½; of b 1, 0, 1."""
    one = made(tmp_path / "one", [1, 2, 1, 5])
    two = made(tmp_path / "two", [2, 7, 1, 2], rate=0.2)
    flags = ["--compare", str(one), str(two), "--k", "2"]
    assert evaluate.main([*flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["queries"], result["users"], result["digest"]) == (4, 3, "d1")
    first, second = result["runs"]
    assert first["metrics"]["hit@2"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert second["metrics"]["hit@2"] == pytest.approx((1 + 0 + 1) / 3)
    want = metrics.bootstrap(np.array([1.0, 0, 1]), np.array([1.0, 1, 0.5]))
    assert second["differences"]["hit@2"] == pytest.approx(want._asdict())
    assert second["settings"] == {"train.learning_rate": [0.1, 0.2]}
    assert (first["settings"], first["differences"]) == ({}, {})
    assert evaluate.main(flags) == 0
    text = capsys.readouterr().out
    assert f"{two} has 1 setting of its own:\n  train.learning_rate: 0.1 → 0.2" in text
    assert "-0.1667 [" in text


def test_a_difference_that_is_sure_is_marked(tmp_path):
    one, two = made(tmp_path / "one", [5] * 4), made(tmp_path / "two", [1] * 4)
    same = made(tmp_path / "same", [5] * 4)
    text = run_comparison.text(run_comparison.compare([one, two, same], "test", [3]))
    assert "+1.0000 [+1.0000, +1.0000] *" in text
    assert "+0.0000 [+0.0000, +0.0000]" in text
    assert "+0.0000 [+0.0000, +0.0000] *" not in text
    assert f"{same} has 0 settings of its own" in text


@pytest.mark.parametrize(
    ("file", "content"),
    [("checkpoints/best.index", "others"), ("evaluation.json", "")],
    ids=["trained on since", "never asked"],
)
def test_ranks_of_another_model_are_not_taken(tmp_path, monkeypatch, file, content):
    one, two = made(tmp_path / "one", [5] * 4), made(tmp_path / "two", [5] * 4)
    (two / file).write_text(content) if content else (two / file).unlink()
    asked = []

    def ask(run, fold):
        asked.append(run)
        return np.array(USERS), np.array(["1", "2", "3", "4"]), np.array([1] * 4)

    monkeypatch.setattr(run_comparison, "_asked", ask)
    found = run_comparison.compare([one, two], "test", [3])
    assert asked == [two]
    assert [run["metrics"]["hit@3"] for run in found["runs"]] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "d2"}, "of different splits, leave-last-out d1 and leave-last-out d2"),
        ({"items": ("1", "2", "3", "9")}, "asked for different events of the test fold, 4"),
    ],
)
def test_runs_of_unlike_folds_are_refused(tmp_path, changes, message, capsys):
    one = made(tmp_path / "one", [1] * 4)
    two = made(tmp_path / "two", [1] * 4, **changes)
    assert evaluate.main(["--compare", str(one), str(two)]) == 2
    assert message in capsys.readouterr().err


def test_too_few_runs_and_unfinished_ones_are_named(tmp_path, capsys):
    one = made(tmp_path / "one", [1] * 4)
    assert evaluate.main(["--compare", str(one)]) == 2
    assert "--compare takes two runs or more: received 1" in capsys.readouterr().err
    assert evaluate.main(["--compare", str(one), str(tmp_path)]) == 2
    assert f"{tmp_path} holds no finished training" in capsys.readouterr().err
