"""The search: trials made up but for one, which is trained."""

import json
import sys
import types

import polars as pl
import pytest

from tests.small import SMALL
from tfrec_attn import search, train
from tfrec_attn.evaluation import comparison
from tfrec_attn.settings import config
from tfrec_attn.training import trials

SPACE = '"model.dim" = [8, 16, 24]\n"train.learning_rate" = { low = 0.001, high = 0.1 }\n'


class Trained:
    """In place of `train.run`: a trial's epochs are worth its learning rate times 1 … 3.

    Args:
      fails: What each trial in turn raises before its first epoch, if anything.
    """

    def __init__(self, *fails):
        self.fails, self.configs, self.calls = list(fails), [], []

    def __call__(self, settings, out, **given):
        self.configs.append(settings)
        self.calls.append(given)
        if self.fails and (failed := self.fails.pop(0)):
            raise failed
        (out / "config.toml").write_text(f"[model]\ndim = {settings.model.dim}\n")
        (watch,) = given["monitors"].others
        pruning, worth = watch("retrieval", 1.0), settings.train.learning_rate
        for epoch in range(3):
            pruning.on_epoch_end(epoch, {"val_ndcg@10": worth * (epoch + 1)})
        watch("ranking", 1.0).on_epoch_end(0, {"val_ndcg@10": worth})
        return {"best_validation": worth * 3, "epochs": 4}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Runs the command on made-up trials: `made(Trained(), "--trials", "3")`."""
    (tmp_path / "base.toml").write_text("[text]\nbackbone = ''\n[train]\nepochs = 7\n")
    (tmp_path / "space.toml").write_text(SPACE)

    def call(trained, *flags):
        monkeypatch.setattr(train, "run", trained)
        names = {"--config": "base.toml", "--space": "space.toml", "--out": "found"}
        given = [str(x) for flag, name in names.items() for x in (flag, tmp_path / name)]
        return search.main([*given, *flags])

    return call


def table(out):
    return pl.read_csv(out / "trials.csv")


def test_the_best_trial_is_written_as_a_config(made, tmp_path, capsys):
    trained = Trained()
    assert made(trained, "--trials", "4", "--pruner", "none") == 0
    found, out = json.loads(capsys.readouterr().out), tmp_path / "found"
    rates = [settings.train.learning_rate for settings in trained.configs]
    best = max(range(4), key=lambda number: rates[number])
    assert len(set(rates)) == 4
    assert found["best"] == best
    assert found["ndcg@10"] == pytest.approx(3 * rates[best])
    dim = trained.configs[best].model.dim
    assert found["settings"] == {"model.dim": dim, "train.learning_rate": rates[best]}
    assert config.load(out / "best.toml").model.dim == dim
    rows = table(out)
    assert rows["trial"][0] == best
    assert rows["validation"].to_list() == pytest.approx(
        [3 * r for r in sorted(rates)[::-1]]
    )
    assert set(rows["state"]) == {"complete"}
    assert str(dim) in (out / "trials.md").read_text().splitlines()[2]
    # What is not searched is the base's.
    assert {settings.train.epochs for settings in trained.configs} == {7}


def test_no_trial_asks_the_test_fold(made):
    trained = Trained()
    assert made(trained, "--trials", "2") == 0
    assert [call["tested"] for call in trained.calls] == [False, False]


@pytest.mark.parametrize(("pruner", "pruned"), [("median", True), ("none", False)])
def test_a_hopeless_trial_is_ended(made, tmp_path, pruner, pruned):
    """Four trials are awaited; those after them that are below their median end early."""
    assert made(Trained(), "--trials", "9", "--pruner", pruner) == 0
    rows = table(tmp_path / "found").sort("trial")
    early = rows.filter(pl.col("state") == "pruned")
    assert bool(len(early)) == pruned
    assert set(rows["state"][:4]) == {"complete"}
    # The first epoch is not judged, the second is.
    assert set(early["epochs"]) <= {2}
    assert set(early["validation"]) <= {None}


def test_epochs_are_compared_with_the_same_of_other_trials():
    said = []
    trial = types.SimpleNamespace(
        report=lambda value, step: said.append((value, step)), should_prune=lambda: False
    )
    make = trials.pruning(trial, "ndcg@10", longest=7)
    make("retrieval", 1.0).on_epoch_end(2, {"val_ndcg@10": 0.5})
    make("ranking", 1.0).on_epoch_end(0, {"val_ndcg@10": 0.6})
    make("both", 1.0).on_epoch_end(0, {"val_ndcg@10": 0.4})
    assert said == [(0.5, 2), (0.6, 7), (0.4, 0)]


def test_a_trial_that_fails_is_told_and_the_others_go_on(made, tmp_path):
    trained = Trained(
        FloatingPointError("The loss is nan\nand more"), None, MemoryError("x")
    )
    assert made(trained, "--trials", "4") == 0
    rows = table(tmp_path / "found").sort("trial")
    assert rows["state"].to_list() == ["fail", "complete", "fail", "complete"]
    assert rows["reason"].to_list() == ["The loss is nan", "", "x", ""]


def test_a_search_without_an_end_is_a_mistake(made, capsys):
    assert made(Trained(ValueError("no"), ValueError("no")), "--trials", "2") == 2
    assert "No trial came to its end; the first: no" in capsys.readouterr().err


def test_the_same_command_goes_on(made, tmp_path):
    """The third trial is stopped: its settings are tried again, and new ones are new."""
    more = ["--trials", "5", "--pruner", "none"]
    killed = Trained(None, None, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        made(killed, *more)
    again = Trained()
    assert made(again, *more) == 0
    assert len(again.configs) == 3
    assert again.configs[0] == killed.configs[2]
    rates = {one.train.learning_rate for one in [*killed.configs[:2], *again.configs]}
    assert len(rates) == 5
    assert made(Trained(AssertionError()), *more) == 0
    assert len(table(tmp_path / "found").filter(pl.col("state") == "complete")) == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "train.epochs=9"], "config train.epochs: was 7, is 9"),
        (["--pruner", "asha"], "--pruner: was 'median', is 'asha'"),
        (["--seed", "1"], "--seed: was 0, is 1"),
    ],
)
def test_a_folder_of_another_search_is_refused(made, flags, message, capsys):
    assert made(Trained(), "--trials", "1") == 0
    assert made(Trained(), "--trials", "2", *flags) == 2
    assert message in capsys.readouterr().err


def test_mistakes_are_named_before_anything_is_trained(made, tmp_path, capsys):
    nothing = Trained(AssertionError())
    assert made(nothing, "--trials", "0") == 2
    assert "--trials is at least 1" in capsys.readouterr().err
    (tmp_path / "space.toml").write_text('"model.dims" = [8]')
    assert made(nothing, "--trials", "1") == 2
    assert "Unknown setting model.dims" in capsys.readouterr().err
    (tmp_path / "space.toml").write_text(SPACE)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "mine.txt").write_text("")
    assert made(nothing, "--trials", "1") == 2
    assert "holds something else" in capsys.readouterr().err


def test_a_search_that_was_killed_as_it_began_is_begun_again(tmp_path):
    for name in ("_lock", "config.toml", "partial-search.json"):
        (tmp_path / name).write_text("")
    search._claim(tmp_path)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="holds something else"):
        search._claim(tmp_path)
    (tmp_path / "search.json").write_text("{}")
    search._claim(tmp_path)


def test_optuna_that_is_not_installed_is_named(made, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert made(Trained(), "--trials", "1") == 2
    assert "Needs pip install 'tfrec-attn[search]'." in capsys.readouterr().err


def test_a_trial_is_a_training_that_sees_no_test_fold(tables, tmp_path, monkeypatch):
    asked, fold = [], comparison.fold

    def record(prepared, name, *rest):
        asked.append(name)
        return fold(prepared, name, *rest)

    monkeypatch.setattr(comparison, "fold", record)
    sets = [*SMALL, "train.ranking_epochs=0", "loss.ranking=0", "train.strategy=one"]
    sets += [f"data.{file.stem}={file}" for file in tables.glob("*.csv")]
    given = [x for one in sets for x in ("--set", one)]
    for name, text in (("base", ""), ("space", '"train.learning_rate" = [0.01]')):
        (tmp_path / f"{name}.toml").write_text(text)
    flags = ["--config", tmp_path / "base.toml", "--space", tmp_path / "space.toml"]
    flags += ["--out", tmp_path / "found", "--trials", "1"]
    assert search.main([*map(str, flags), *given]) == 0
    assert set(asked) == {"validation"}
    run = tmp_path / "found" / "trials" / "0000"
    assert "test" not in json.loads((run / "metrics.json").read_text())
    best = tmp_path / "found" / "best.toml"
    assert config.load(best) == config.load(run / "config.toml")
    assert config.load(best).train.learning_rate == 0.01
