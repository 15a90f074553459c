"""What a user can do wrong at the command, and the words that come back."""

import json
from pathlib import Path

import pytest

from tests import killing
from tfrec_attn import claims, train
from tfrec_attn.run import pipeline, runs
from tfrec_attn.settings import config as config_lib

EVENTS = [
    f"u{u},i{(5 * u + 3 * t) % 13},{1000000000 + 100 * t + u}"
    for u in range(7)
    for t in range(6)
]


@pytest.fixture
def tables(tmp_path):
    write(tmp_path, "items", ["item_id,price", *(f"i{i},{i}.5" for i in range(13))])
    write(tmp_path, "interactions", ["user_id,item_id,timestamp", *EVENTS])
    return tmp_path


def write(place, name, lines):
    (place / f"{name}.csv").write_text("\n".join(lines) + "\n")


def overrides(tables):
    names = ("items", "interactions")
    return [
        *(f"data.{name}={json.dumps(str(tables / f'{name}.csv'))}" for name in names),
        "text.backbone=",
        "model.dim=8",
    ]


def call(tables, out, *more, sets=()):
    settings = [x for s in (*overrides(tables), *sets) for x in ("--set", s)]
    return train.main(["--out", str(out), "--strategy", "one", *settings, *more])


@pytest.fixture
def begun(tables):
    """A run folder as a training leaves it after its first epoch, but for the weights."""
    out = tables / "run"
    runs.claim(out, resume=False)
    config = config_lib.load(overrides=[*overrides(tables), 'train.strategy="one"'])
    runs.begin(out, pipeline.prepare(config, out))
    (out / "history.jsonl").write_text('{"epoch": 1}\n')
    return out


def files(folder):
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != "_lock")
    return {p: p.read_bytes() for p in found}


def test_a_config_that_is_not_there(tmp_path, capsys):
    assert train.main(["--config", "nope.toml", "--out", str(tmp_path / "run")]) == 2
    assert "nope.toml: No such file or directory." in capsys.readouterr().err


def test_a_run_folder_that_is_a_file(tables, capsys):
    assert call(tables, tables / "items.csv") == 2
    assert f"--out names a folder: {tables}/items.csv is a file" in capsys.readouterr().err


def test_two_at_work_in_one_folder(tables, capsys):
    out = tables / "run"
    out.mkdir()
    (out / "of-another.partial").write_text("")
    with claims.alone(out):
        assert call(tables, out) == 2
    assert f"Another process is at work in {out}" in capsys.readouterr().err
    assert (out / "of-another.partial").exists()


def test_no_tables(tmp_path, capsys):
    assert train.main(["--out", str(tmp_path / "run")]) == 2
    assert "give --items and --interactions, or set data.source" in capsys.readouterr().err


def test_a_training_is_not_trained_over(tables, begun, capsys):
    before = files(begun)
    assert call(tables, begun) == 2
    assert "holds a training already. Go on with it by --resume" in capsys.readouterr().err
    assert files(begun) == before


def test_resuming_with_other_settings_names_them(tables, begun, capsys):
    before = files(begun)
    assert call(tables, begun, "--resume", sets=["model.dim=16", "train.seed=3"]) == 2
    message = capsys.readouterr().err
    assert "model.dim: was 8, is 16" in message
    assert "train.seed: was 0, is 3" in message
    assert "text.backbone" not in message
    assert files(begun) == before


@pytest.mark.parametrize(
    ("name", "line"),
    [("interactions", "u1,i2,1000000001"), ("items", "i99,1.5")],
)
def test_resuming_with_other_tables(tables, begun, capsys, name, line):
    with (tables / f"{name}.csv").open("a") as file:
        file.write(line + "\n")
    assert call(tables, begun, "--resume") == 2
    assert "The tables are not those that" in capsys.readouterr().err


def test_a_changed_feature_is_a_changed_table(tables, begun, capsys):
    text = (tables / "items.csv").read_text()
    (tables / "items.csv").write_text(text.replace("i3,3.5", "i3,4.5"))
    (begun / "checkpoints").mkdir()
    (begun / "checkpoints" / "best.index").touch()
    with pytest.raises(ValueError, match="The tables are not those that"):
        runs.load(begun)


@pytest.mark.parametrize("at", range(1, 9))
def test_a_run_that_is_killed_as_it_begins_is_none_yet(tables, at):
    """The config comes last: what a resumed run reads is whole."""
    config = config_lib.load(overrides=overrides(tables))
    out, other = tables / "run", tables / "other"
    for place in (out, other):
        runs.claim(place, resume=False)
        prepared = pipeline.prepare(config, place)
        with killing.dying(Path, "replace", at if place == out else 0) as died:
            runs.begin(place, prepared)
        if place == out:
            assert runs.claim(out, resume=True) == (not died)
            assert bool(died) == (at < 7)
            runs.begin(out, prepared)
    one, two = ({f.relative_to(p): c for f, c in files(p).items()} for p in (out, other))
    assert one == two
    assert runs.claim(out, resume=True)


def test_weights_of_another_attempt_are_not_taken(begun):
    (begun / "history.jsonl").unlink()
    (begun / "checkpoints").mkdir()
    (begun / "checkpoints" / "start.index").touch()
    assert not runs.claim(begun, resume=False)
    config = config_lib.load(begun / "config.toml")
    runs.begin(begun, pipeline.prepare(config))
    assert not (begun / "checkpoints").exists()


def test_a_state_within_the_first_epoch_is_a_training(tables, begun, capsys):
    (begun / "history.jsonl").unlink()
    (begun / "checkpoints" / "retrieval").mkdir(parents=True)
    (begun / "checkpoints" / "retrieval" / "last-3.index").touch()
    assert call(tables, begun) == 2
    assert "holds a training already" in capsys.readouterr().err


def test_a_training_without_its_settings_is_left_alone(tables, begun, capsys):
    (begun / "config.toml").unlink()
    before = files(begun)
    given = "--resume", "--items", str(tables / "items.csv")
    assert call(tables, begun, *given) == 2
    assert "whose config.toml is missing: put it back" in capsys.readouterr().err
    assert files(begun) == before


def test_resume_alone_needs_a_run(tmp_path, capsys):
    assert train.main(["--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "holds no run to go on with, as config.toml is mis" in capsys.readouterr().err


def test_resume_alone_reads_the_config_of_the_run(begun):
    args = train.parser().parse_args(["--out", str(begun), "--resume"])
    found = train.settings(args)
    assert (found.model.dim, found.train.strategy) == (8, "one")
    assert runs.claim(begun, resume=True)


def test_a_cut_in_time_needs_times(tables, tmp_path, capsys):
    write(
        tables, "interactions", ["user_id,item_id", *(e.rsplit(",", 1)[0] for e in EVENTS)]
    )
    assert call(tables, tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert 'split.name="global-time" cuts at points in time' in message
    assert "split.name=leave-last-out" in message


def test_a_fold_without_targets(tables, tmp_path, capsys):
    again = [f"u{u},i{u},{1000000000 + 100 * t}" for u in range(7) for t in range(6)]
    write(tables, "interactions", ["user_id,item_id,timestamp", *again])
    assert call(tables, tmp_path / "run", sets=["split.name=leave-last-out"]) == 2
    message = capsys.readouterr().err
    assert "The validation fold of split.name='leave-last-out' has no target" in message
    assert "Widen examples.positives" in message


def test_one_item(tables, tmp_path, capsys):
    write(tables, "items", ["item_id,price", "i0,1.5"])
    write(tables, "interactions", ["user_id,item_id,timestamp", "u0,i0,1000000000"])
    assert call(tables, tmp_path / "run", sets=["split.name=random"]) == 2
    assert "The items table has one item, 'i0'" in capsys.readouterr().err


def test_an_unknown_metric_is_found_before_training(tables, tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        call(tables, out, sets=["train.monitor=ndcg@7", "split.name=leave-last-out"]) == 2
    )
    assert "train.monitor='ndcg@7' is none of the validation's" in capsys.readouterr().err
    assert not (out / "history.jsonl").exists()
