"""Settings: read, overridden, checked, written and read again."""

import pytest
import tomli_w

from tfrec_attn.labels import LABELS
from tfrec_attn.settings import config, sections


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.epoch=3"], r"Unknown setting train.epoch; known here: epochs.* epochs\?"),
        (["trian.epochs=3"], r"Unknown setting trian; known here: data, .* mean train\?"),
        (["train.zzz=3"], r"Unknown setting train.zzz; known here: [^?]*$"),
        (["schema.itemz.id=x"], r"Unknown setting schema.itemz; .*Did you mean items\?"),
        (["schema.items.idd=x"], r"Unknown setting schema.items.idd; .*mean id\?"),
        (["model.heads=3"], "Setting model: heads must divide dim: got heads=3, dim=64"),
        (["loss.distillation=1"], "loss.distillation needs train.ranking_epochs=0: .*=8"),
        (["scorer.heads=3"], "Setting scorer: heads must divide dim: got heads=3, dim=128"),
        (
            ["regularization.consistency=1", "loss.negatives=0"],
            "needs loss.negatives above 0: .* Received: regularization.consistency=1",
        ),
        (
            ["regularization.average=0.9", "bert.tuning=adalora"],
            "regularization.average must be 0 with bert.tuning=adalora.* Received: 0.9",
        ),
        (["regularization.event_crop=1.5"], "regularization.event_crop: .* Received: 1.5"),
        (["train.epochs=0"], r"Setting train.epochs: .* greater than 0. Received: 0"),
        (["train.epochs=many"], "Setting train.epochs: .* Received: 'many'"),
        (["train.seed=-1"], r"Setting train.seed: .* equal to 0. Received: -1"),
        (["split.seed=4294967296"], r"Setting split.seed: .* Received: 4294967296"),
        (["train.epochs=2.5"], r"Setting train.epochs: .* Received: 2.5"),
        (["model.dropout=1"], r"Setting model.dropout: .* less than 1. Received: 1"),
        (["text.max_length=2"], "Setting text.max_length: .* Received: 2"),
        (["bert.tuning=lor"], "bert.tuning: is frozen, all.*or last:N.* Received: 'lor'"),
        (["bert.tuning=last:0"], "Setting bert.tuning: .* Received: 'last:0'"),
        (["split.name=leave-one-out"], "Setting split.name: .*'leave-last-out'"),
        (["split.share=0.5"], r"Setting split.share: .* less than 0.5. Received: 0.5"),
        (["examples.positives=[]"], "names one or more of buy, like, ignore, dislike, "),
        (["examples.positives=['buy','buy']"], "Setting examples.positives: .* each once"),
        (["examples.positives=['love']"], r"examples.positives.0: .*Received: 'love'"),
        (["data.items=a.csv"], "Setting data: items and interactions are both needed"),
        (
            ["data.source=movielens-100k", "data.items=a.csv", "data.interactions=b.csv"],
            "source='movielens-100k' brings its own tables: remove it or the paths",
        ),
        (
            ["split.name=cold-users", "split.validation=0.2"],
            "validation is for split.name=global-time or random. Received: validation=0.2",
        ),
        (
            ["split.name=global-time", "split.by_user=true"],
            "by_user is for split.name=random. Received: by_user=True",
        ),
        (["split.validation=0"], "Setting split.validation: "),
        (["train.own_shards=true"], "there are none: .* or set train.own_shards=false"),
        (["train.epochs"], "An override reads section.field=value: got 'train.epochs'"),
        (["epochs=3"], "An override reads section.field=value: got 'epochs=3'"),
        (["train.epochs=3", "train.epochs.more=4"], "epochs is a value, it has no fields"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(overrides, message):
    with pytest.raises(ValueError, match=message):
        config.load(overrides=overrides)


def test_all_faults_are_told_at_once():
    with pytest.raises(
        ValueError, match=r"Setting model.dim: .*\n?.*Setting train.epochs: "
    ):
        config.load(overrides=["train.epochs=0", "model.dim=0"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.learning_rate=1e-3", 1e-3),
        ("train.monitor=hr@10", "hr@10"),
        ("train.monitor = 'mrr'", "mrr"),
        ("loss.logq=false", False),
        ('examples.positives=["like", "buy"]', ("like", "buy")),
        ("examples.positives=[like, buy]", ("like", "buy")),
        ("examples.positives=[like]", ("like",)),
        ("text.backbone=", ""),
        ("data.users=a=b.csv", "a=b.csv"),
    ],
)
def test_an_override_is_a_toml_value_or_the_text_itself(override, value):
    section, field = override.partition("=")[0].strip().split(".")
    assert getattr(getattr(config.load(overrides=[override]), section), field) == value


def test_overrides_come_after_the_file_and_in_order(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[train]\nepochs = 3\npatience = 4\n")
    found = config.load(path, ["train.epochs=5", "train.epochs=6"]).train
    assert (found.epochs, found.patience) == (6, 4)
    assert config.load(path).train.epochs == 3


def test_what_is_no_toml_is_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[train\n")
    with pytest.raises(ValueError, match=r"run.toml is not TOML: .*line 1"):
        config.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"run.toml is not TOML"):
        config.load(path)
    with pytest.raises(FileNotFoundError):
        config.load(tmp_path / "nowhere.toml")


def test_what_is_written_reads_back_equal(tmp_path):
    """As a run writes it: with its schema, and without what is None."""
    given = config.load(
        overrides=[
            "data.items=i.csv",
            "data.interactions=e.csv",
            "schema.items.id=item",
            "schema.items.columns={price = 'number'}",
            "schema.interactions.feedback={column = 'stars', labels = {buy = '==5'}}",
            "examples.positives=['like']",
            "loss.temperature=0.1",
        ]
    )
    assert given.schema_.items.columns == {"price": "number"}
    path = tmp_path / "config.toml"
    plain = given.model_dump(mode="json", by_alias=True, exclude_none=True)
    path.write_text(tomli_w.dumps(plain), "utf-8")
    assert config.load(path) == given


def test_settings_do_not_change_and_are_all_explained():
    found = config.load()
    with pytest.raises(ValueError, match="frozen"):
        found.train.epochs = 3
    for name, field in config.Config.model_fields.items():
        section = field.annotation
        if name in ("schema_", "scorer"):
            continue
        for setting in section.model_fields:
            assert f"{setting}:" in section.__doc__ or f", {setting}:" in section.__doc__


def test_labels_are_those_of_the_package():
    assert sections.Label.__args__ == LABELS
