"""What is kept: whole at each moment, readable, and said where it is not."""

import errno
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.killing import Killed, dying
from tfrec_attn import atomic
from tfrec_attn.model import replicas
from tfrec_attn.training import checkpoints, distribution


def made(value):
    """A checkpoint of variables that were written together, and so are equal."""
    return tf.train.Checkpoint(a=tf.Variable([value] * 5), b=tf.Variable([value] * 7))


def read(prefix):
    kept = made(0)
    kept.read(str(prefix)).assert_consumed()
    return of(kept)


def of(kept):
    assert len({*kept.a.numpy(), *kept.b.numpy()}) == 1
    return int(kept.a[0])


def states(folder, value=0):
    return checkpoints.States(made(value), folder)


OPERATIONS = [(Path, "replace"), (Path, "unlink"), (tf.train.Checkpoint, "write")]
EVERYWHERE = [(*one, at) for one in OPERATIONS for at in range(1, 5)]


@pytest.mark.parametrize(("owner", "name", "at"), EVERYWHERE)
def test_a_kill_leaves_the_old_state_or_the_new_one(tmp_path, owner, name, at):
    """At each operation on a file, before it and after it."""
    for after in (False, True):
        folder = tmp_path / str(after)
        for value in (1, 2):
            states(folder, value).save(value)
        with dying(owner, name, at, after=after) as died:
            states(folder, 3).save(3)
        atomic.sweep(folder)
        again = states(folder)
        assert again.restore()
        assert of(again.checkpoint) in ((2, 3) if died else (3,))
        states(folder, 4).save(4)
        assert [read(folder / f"last-{n}") for n in again.numbers[1:]] == [4]
        assert not list(folder.glob("partial*"))


@pytest.mark.parametrize(("owner", "name", "at"), EVERYWHERE)
def test_a_kill_leaves_no_mixture_of_weights(tmp_path, owner, name, at):
    place = tmp_path / "best"
    checkpoints.write(made(1), place)
    checkpoints.write(made(2), tmp_path / "other")
    with dying(owner, name, at) as died:
        checkpoints.copy(tmp_path / "other", place)
    if place.with_suffix(".index").exists():
        assert read(place) in ((1, 2) if died else (2,))
    checkpoints.copy(tmp_path / "other", place)
    assert read(place) == read(tmp_path / "other") == 2


def test_two_states_are_kept(tmp_path):
    for number in (3, 5, 40, 200):
        states(tmp_path, number).save(number)
    assert states(tmp_path).numbers == [40, 200]


@pytest.mark.parametrize(("owner", "name", "at"), EVERYWHERE)
def test_states_that_are_numbered_anew_leave_one_to_go_on_from(tmp_path, owner, name, at):
    """By a number below that of the last one, above it, and the same."""
    for number in (6, 10, 8):
        folder = tmp_path / str(number)
        for value, old in ((1, 4), (2, 8)):
            states(folder, value).save(old)
        with dying(owner, name, at) as died:
            states(folder, 3).restart(number)
        again = states(folder)
        assert again.restore()
        # What is written over the last one is not there for a moment.
        assert of(again.checkpoint) in ((1, 2, 3) if died else (3,))
        assert died or again.numbers == [number]


@pytest.mark.parametrize("suffix", [".data-00000-of-00001", ".index"])
def test_of_a_damaged_state_the_one_before_is_taken(tmp_path, caplog, suffix):
    for number in (1, 2):
        states(tmp_path, number).save(number)
    newest, oldest = (tmp_path / f"last-{number}{suffix}" for number in (2, 1))
    newest.write_bytes(newest.read_bytes()[:20])
    again = states(tmp_path)
    assert again.restore()
    assert of(again.checkpoint) == 1
    assert f"{newest.with_suffix('')} cannot be read: " in caplog.text
    oldest.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"None of the states in {tmp_path} can be read"):
        again.restore()


def test_where_there_is_no_state_there_is_nothing_to_go_on_from(tmp_path):
    assert not states(tmp_path / "none").restore()


def test_a_position_is_part_of_a_state(tmp_path):
    history = [{"epoch": 1, "stage": "both", "loss": 0.1 + 0.2}]
    position = checkpoints.Position(history)
    position.step, position.divided = 7, 3
    checkpoints.write(tf.train.Checkpoint(position=position), tmp_path / "last-1")
    mine = [{"epoch": 9}]
    again = checkpoints.Position(mine)
    kept = tf.train.Checkpoint(position=again)
    kept.read(str(tmp_path / "last-1")).assert_consumed()
    assert (mine, again.step, again.divided) == (history, 7, 3)
    again.deserialize(b'{"history": [], "step": 2}')
    assert again.divided == 1


FULL = tf.errors.ResourceExhaustedError(None, None, "best_temp; No space left on device")


@pytest.mark.parametrize(
    ("error", "way"),
    [
        (FULL, ": No space left on device. Free space there, and go on by --resume"),
        (OSError(errno.ENOSPC, "No space left on device"), "Free space there"),
        (tf.errors.UnknownError(None, None, "Input/output error"), "Look at its disk"),
    ],
)
def test_what_cannot_be_written_is_named_and_the_old_one_kept(
    tmp_path, monkeypatch, error, way
):
    place = tmp_path / "best"
    checkpoints.write(made(1), place)

    def half(self, prefix):
        Path(f"{prefix}.data-00000-of-00001").write_bytes(b"half")
        raise error

    monkeypatch.setattr(tf.train.Checkpoint, "write", half)
    with pytest.raises(OSError, match=way) as told:
        checkpoints.write(made(2), place)
    assert str(told.value).startswith(f"{place} could not be written: ")
    assert read(place) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best.data-00000-of-00001",
        "best.index",
    ]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    file = tmp_path / "history.jsonl"
    atomic.write(file, "old")

    def stop(error):
        with atomic.replacing(file) as new:
            new.write_text("ne")
            raise error

    with pytest.raises(OSError, match="No space left") as told:
        stop(OSError(errno.ENOSPC, "No space left on device"))
    assert told.value.filename == str(file)
    with pytest.raises(Killed):
        stop(Killed)
    assert file.read_text() == "old"
    atomic.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    for text in ("old", "new"):
        with atomic.replacing(tmp_path / "bert") as folder:
            folder.mkdir()
            (folder / text).write_text(text)
    assert [file.name for file in tmp_path.rglob("*")] == ["bert", "new"]


def test_what_is_kept_is_bit_for_bit_what_was_written(tmp_path):
    value = np.nextafter(np.float32(1), np.float32(2))
    checkpoints.write(tf.train.Checkpoint(v=tf.Variable(value)), tmp_path / "a")
    checkpoints.copy(tmp_path / "a", tmp_path / "b")
    (name, _), *_ = tf.train.list_variables(str(tmp_path / "b"))
    assert name.startswith("_CHECKPOINTABLE")
    found = tf.train.load_variable(str(tmp_path / "b"), "v/.ATTRIBUTES/VARIABLE_VALUE")
    assert found == value


def local(variable):
    """What each replica has."""
    return [v.numpy().tolist() for v in variable.values]


@pytest.mark.parametrize("meter", [True, False], ids=["a meter", "draws"])
def test_each_replica_goes_on_with_its_own(tmp_path, meter):
    """Read back alone, it has what TensorFlow keeps: half of a sum, or the first one's."""
    strategy = distribution.strategy("mirrored")
    kind = {"synchronization": tf.VariableSynchronization.ON_READ}
    kind |= {"aggregation": tf.VariableAggregation.SUM}
    with strategy.scope():
        variable = tf.Variable([1.0, 7.0], trainable=False, **kind if meter else {})
    own = checkpoints.OfReplicas(strategy, [variable])
    strategy.run(lambda: variable.assign_add([3.0 * replicas.place(), 5.0]))
    before, position = local(variable), checkpoints.Position([])
    position.own = {"it": own.read()}
    kept = tf.train.Checkpoint(it=variable, position=position)
    checkpoints.write(kept, tmp_path / "it")
    position.own = {}
    checkpoints.read(kept, tmp_path / "it").assert_consumed()
    assert local(variable) == [[2.5, 12.0] if meter else before[0]] * 2
    own.put(position.own["it"][:1])
    assert local(variable) != before
    own.put(position.own["it"])
    assert local(variable) == before == [[1.0, 12.0], [4.0, 12.0]]


def test_one_replica_has_nothing_of_its_own():
    own = checkpoints.OfReplicas(distribution.strategy("one"), [tf.Variable(3)])
    assert own.read() == []
    own.put([[7]])
