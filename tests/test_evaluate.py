"""The command, on a small shop made here."""

import json
import sys

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import ndcg_score

from tfrec_attn import evaluate, metrics, train
from tfrec_attn.evaluation import baselines, run_comparison

USERS, LENGTH, GOODS = 29, 9, 31
LABELS = {1: "buy", 2: "like", 3: "dislike"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run; each user's first three events have one time, and so the last two."""
    place, draw = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    items = ["item_id,kind", *(f"i{i},{'ab'[i % 2]}" for i in range(GOODS))]
    lines = ["user_id,item_id,timestamp,rating"]
    for u in range(USERS):
        for t, i in enumerate(draw.permutation(GOODS)[:LENGTH]):
            moment = {1: 0, 2: 0, LENGTH - 1: LENGTH - 2}.get(t, t)
            lines.append(f"u{u},i{i},{10**9 + 60 * moment},{1 + draw.integers(3)}")
    (place / "items.csv").write_text("\n".join(items) + "\n")
    (place / "interactions.csv").write_text("\n".join(lines) + "\n")
    rules = ", ".join(f'{label} = "=={rating}"' for rating, label in LABELS.items())
    (place / "run.toml").write_text(
        f"""
        [schema.items]
        id = "item_id"
        columns = {{ kind = "category" }}
        [schema.interactions]
        user = "user_id"
        item = "item_id"
        time = "timestamp"
        feedback = {{ column = "rating", labels = {{ {rules} }} }}
        [split]
        name = "leave-last-out"
        [examples]
        history = 4
        [text]
        backbone = ""
        [model]
        dim = 8
        [index]
        shortlist = 5
        [loss]
        group = 16
        negatives = 16
        hard_negatives = 3
        [train]
        epochs = 2
        batch_size = 8
        learning_rate = 0.05
        strategy = "one"
        """
    )
    out = place / "<b>run"
    tables = [f"--{n}={place / n}.csv" for n in ("items", "interactions")]
    assert train.main([f"--config={place / 'run.toml'}", f"--out={out}", *tables]) == 0
    return out


@pytest.fixture(scope="module")
def result(run):
    assert evaluate.main(["--run", str(run), "--k", "3", "1"]) == 0
    return json.loads((run / "evaluation.json").read_text())


def test_every_row_is_measured_by_the_training_s_protocol(run, result):
    assert list(result["rows"]) == [
        *baselines.METHODS,
        "untrained",
        "retrieval",
        "retrieval + ranking",
    ]
    trained = json.loads((run / "metrics.json").read_text())["test"]
    for name, row in trained.items():
        assert result["rows"][name]["metrics"]["mrr"]["mean"] == pytest.approx(row["mrr"])
    means = {name: row["metrics"]["mrr"]["mean"] for name, row in result["rows"].items()}
    assert means["untrained"] != means["retrieval + ranking"]
    assert result["rows"]["constant"]["metrics"]["hit@3"]["high"] == 0
    assert (result["ks"], result["k"]) == ([1, 3], 3)


def test_ranks_give_the_same_ndcg_by_scikit_learn(run, result):
    ranks = pl.read_csv(run / "ranks.csv")
    for name, row in result["rows"].items():
        scores = -np.abs(np.arange(1, GOODS + 1) - np.zeros((len(ranks), 1)))
        relevant = np.arange(1, GOODS + 1) == ranks[name].to_numpy()[:, None]
        assert row["metrics"]["ndcg@3"]["mean"] == pytest.approx(
            ndcg_score(relevant, scores, k=3)
        )


def test_the_head_is_asked_for_events_of_all_labels(result):
    found = result["feedback"]
    assert found["events"] == USERS
    support = {name: found["report"][name]["support"] for name in LABELS.values()}
    assert sum(support.values()) == USERS
    assert support["dislike"] > 0
    assert found["most_frequent"] == max(support.values()) / USERS


def test_the_protocol_is_counted(result):
    """Two of each user's events have the time of the one before, and so has the last."""
    text, queries = " ".join(result["protocol"]), result["queries"]
    disliked = int(result["feedback"]["report"]["dislike"]["support"])
    assert queries == USERS - disliked
    assert f"{disliked} of {USERS} events for their label" in text
    assert f"{3 * USERS} of {LENGTH * USERS} events have the time" in text
    assert f"in {queries} of {queries} queries the model is not shown" in text
    assert f"({queries} in all), in 0 of {queries} not those of later times" in text
    assert "Within a user, nothing later than a target is trained on" in text


def test_the_report_is_written_and_escaped(run, result):
    text, page = ((run / f"report.{kind}").read_text() for kind in ("md", "html"))
    for name in ("methods.png", "groups_1.png", "learning_curves.png"):
        assert f"({name})" in text
        assert f'src="{name}"' in page
        assert (run / name).read_bytes()[:4] == b"\x89PNG"
    tables = [line for line in text.splitlines() if line.startswith("|--")]
    # The main one, two lengths of the list, settings, labels and AUC.
    assert page.count("<table>") == len(tables) == 6
    assert "&lt;b&gt;run" in page
    assert "<b>" not in page


def test_a_comparison_asks_a_run_that_was_not_evaluated(run, result):
    """It finds what an evaluation keeps, and takes none of another fold."""
    kept = run_comparison.measured(run, "test")
    text = (run / "evaluation.json").read_text()
    (run / "evaluation.json").write_text(text.replace('"test"', '"validation"', 1))
    asked = run_comparison.measured(run, "test")
    (run / "evaluation.json").write_text(text)
    assert (kept.name, kept.digest) == (asked.name, asked.digest)
    for name in ("user", "item", "rank"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(asked, name))
    found, rows = metrics.summary(kept.by_user([1, 3])), result["rows"]
    want = rows["retrieval + ranking"]["metrics"]
    assert found == pytest.approx({name: want[name]["mean"] for name in found})


def test_a_baseline_that_is_not_installed_is_named(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    assert evaluate.main(["--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "No row for implicit ALS: Needs pip install 'tfrec-attn[baselines]'" in out
    assert "| EASE " in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--k", "5", "0"], "--k takes lengths of 1 or more. Received: 0"),
        (["--run", "nowhere"], "nowhere holds no trained model"),
    ],
)
def test_a_mistake_is_named(run, flags, message, capsys):
    assert evaluate.main(["--run", str(run), *flags]) == 2
    assert message in capsys.readouterr().err
