"""What a search may set."""

import pytest

from tfrec_attn.training.space import Space


class Trial:
    """An Optuna trial that takes the last value, and keeps what it was asked."""

    def __init__(self):
        self.asked = {}

    def suggest_categorical(self, name, choices):
        self.asked[name] = choices
        return choices[-1]

    def suggest_int(self, name, low, high, step=1, log=False):
        self.asked[name] = (low, high, step, log)
        return high

    def suggest_float(self, name, low, high, step=None, log=False):
        self.asked[name] = (low, high, step, log)
        return high


def test_a_file_is_read_however_it_nests_its_settings(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(
        '"model.dim" = [32, 64]\n"loss.order" = ["listwise", "pointwise"]\n'
        '"train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }\n'
        "[model]\nblocks = { low = 1, high = 3 }\ndropout = { low = 0, high = 0.5 }\n"
        "[scorer.events]\nlow = 10\nhigh = 30\nstep = 5\n"
    )
    space, trial = Space.read(path), Trial()
    assert space.suggest(trial) == [
        "model.dim=64",
        'loss.order="pointwise"',
        "train.learning_rate=0.01",
        "model.blocks=3",
        "model.dropout=0.5",
        "scorer.events=30",
    ]
    assert trial.asked == {
        "model.dim": [32, 64],
        "loss.order": ["listwise", "pointwise"],
        "train.learning_rate": (1e-4, 1e-2, None, True),
        "model.blocks": (1, 3, 1, False),
        "model.dropout": (0, 0.5, None, False),
        "scorer.events": (10, 30, 5, False),
    }
    assert space.each_alone()[::3] == ["model.dim=32", "model.blocks=1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names at least one setting"),
        ("a = ", "is not TOML"),
        ('"split.seed" = [1, 2]', "split.seed is no setting to search"),
        ('"train.monitor" = ["mrr"]', "train.monitor is no setting to search"),
        ('"data.items" = ["a"]', "data.items is no setting to search"),
        ('"model.dim" = []', "model.dim takes a list of plain values"),
        ('"model.dim" = [[1]]', "model.dim takes a list of plain values"),
        ('"model.dim" = 3', "model.dim takes a list of values, or a range such as"),
        ('"model.dim" = { low = 4, high = 4 }', "model.dim needs low < high"),
        ('"model.dim" = { high = 4 }', "model.dim needs low < high, both numbers"),
        (
            '"model.dim" = { low = 0, high = 4, log = true }',
            "log needs low > 0 and no step",
        ),
        ('"model.dim" = { low = 1, high = 4, log = true, step = 2 }', "and no step"),
        ('"model.dim" = { low = 1, high = 4, step = 0 }', "model.dim needs step > 0"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, message):
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as told:
        Space.read(path)
    assert str(told.value).startswith(str(path))
