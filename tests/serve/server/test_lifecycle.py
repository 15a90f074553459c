import logging
import os
import shutil
import threading

import pytest
import toys
from google.protobuf import text_format

from tfrec_attn.serve.server.lifecycle import Model, Retries
from tfrec_attn.serve.server.servable import Servable, ServingError
from tfrec_attn.serve.versions import LATEST

CANCELLED, UNKNOWN = 1, 2


def touch(base, name, content="model"):
    (base / name).mkdir(parents=True, exist_ok=True)
    (base / name / "saved_model.pb").write_text(content)


class Loads:
    """Loads nothing; a file that says "broken" fails. Notes what was tried, in order."""

    def __init__(self):
        self.tried = []

    def __call__(self, path, version):
        self.tried.append(version)
        if (path / "saved_model.pb").read_text() == "broken":
            raise OSError("broken on purpose")
        return Servable(version, {}, {}, None)


class Clock:
    """A clock that stands until it is moved."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def loads():
    return Loads()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def model(tmp_path, loads, clock):
    return Model("m", tmp_path, loads, retries=Retries(0), clock=clock)


def policy(text):
    return text_format.Parse(text, type(LATEST)())


def states(model):
    return {version: state.state for version, state in model.states.items()}


def answering(model, *versions):
    """Which of some versions answer."""
    found = []
    for version in versions:
        try:
            found.append(model.servable(version).version)
        except ServingError:
            continue
    return found


def test_nothing_is_served_before_a_version_is_there(model, tmp_path, caplog):
    for _ in range(2):
        model.poll()
    assert caplog.text.count("No versions of servable m found under base path") == 1
    with pytest.raises(ServingError, match=r"Servable not found for request: Latest\(m\)"):
        model.servable(None)
    assert not model.ready
    touch(tmp_path, "3")
    model.poll()
    assert model.ready
    assert model.servable(None).version == model.servable(3).version == 3
    with pytest.raises(ServingError, match=r"Specific\(m, 4\)"):
        model.servable(4)


def test_the_highest_version_replaces_the_one_before(model, tmp_path, loads):
    touch(tmp_path, "9")
    model.poll()
    held = model.servable(None)
    touch(tmp_path, "10")
    model.poll()
    assert model.servable(None).version == 10
    # A request that still runs keeps its version, and the state says so.
    assert states(model) == {10: "AVAILABLE", 9: "UNLOADING"}
    assert held.version == 9
    del held
    assert states(model) == {10: "AVAILABLE", 9: "END"}
    # Taking the newest away goes back.
    shutil.rmtree(tmp_path / "10")
    model.poll()
    assert model.servable(None).version == 9
    assert loads.tried == [9, 10, 9]
    assert states(model) == {10: "END", 9: "AVAILABLE"}


def test_a_version_that_is_held_and_loaded_again_stays_available(model, tmp_path):
    touch(tmp_path, "1")
    model.poll()
    held = model.servable(1)
    touch(tmp_path, "2")
    model.poll()
    shutil.rmtree(tmp_path / "2")
    model.poll()
    assert model.servable(1) is not held
    del held
    assert states(model)[1] == "AVAILABLE"


def test_an_emptied_folder_unloads_and_a_missing_one_does_not(model, tmp_path, caplog):
    touch(tmp_path, "1")
    model.poll()
    away = tmp_path.with_name("away")
    tmp_path.rename(away)
    for _ in range(2):
        model.poll()
    assert caplog.text.count(f"Could not find base path {tmp_path} for servable m") == 1
    assert model.servable(None).version == 1
    away.rename(tmp_path)
    shutil.rmtree(tmp_path / "1")
    model.poll()
    assert not model.ready
    assert states(model) == {1: "END"}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", [4]),
        ("latest { num_versions: 2 }", [3, 4]),
        ("all {}", [1, 2, 3, 4]),
        ("specific { versions: 1 versions: 3 }", [1, 3]),
    ],
)
def test_what_a_policy_asks_for_is_served(tmp_path, loads, text, want):
    for version in "1234":
        touch(tmp_path, version)
    model = Model("m", tmp_path, loads, policy=policy(text))
    model.poll()
    assert answering(model, 1, 2, 3, 4) == want
    assert model.available == set(want)
    # Without a version in the request the latest one answers.
    assert model.servable(None).version == want[-1]
    assert loads.tried == want[::-1]


def test_a_specific_version_that_is_missing_is_warned_of(tmp_path, loads, caplog):
    touch(tmp_path, "1")
    wanted = policy("specific { versions: 1 versions: 7 }")
    model = Model("m", tmp_path, loads, policy=wanted)
    model.poll()
    assert "Versions [7] of servable m are not in" in caplog.text
    assert answering(model, 1, 7) == [1]


def test_a_new_version_is_loaded_before_an_old_one_is_unloaded(tmp_path):
    """Two of three are replaced; at each load a version of the model answers."""
    alive = []

    def load(path, version):
        alive.append(sorted(model.available))
        return Servable(version, {}, {}, None)

    model = Model("m", tmp_path, load, policy=policy("specific {versions: 1 versions: 2}"))
    for version in "123":
        touch(tmp_path, version)
    model.poll()
    model.configure(tmp_path, policy("specific { versions: 3 }"))
    model.poll()
    # Of two that go, one stays until the new one is there.
    assert alive == [[], [2], [2]]
    assert model.available == {3}


def test_a_version_that_fails_leaves_the_old_one_and_is_tried_again_when_changed(
    model, tmp_path, caplog
):
    touch(tmp_path, "1")
    model.poll()
    touch(tmp_path, "2", "broken")
    with caplog.at_level(logging.ERROR):
        model.poll()
        model.poll()
    assert caplog.text.count("model m version 2 did not load: broken on purpose") == 1
    assert model.servable(None).version == 1
    assert states(model) == {2: "END", 1: "AVAILABLE"}
    assert "broken on purpose" in model.states[2].message
    assert model.states[2].code == UNKNOWN
    assert "{name: m version: 2} due to error: broken on purpose" in model.unavailable
    touch(tmp_path, "2")
    os.utime(tmp_path / "2" / "saved_model.pb", (1e9, 1e9))
    model.poll()
    assert model.servable(None).version == 2
    assert model.unavailable == ""


def test_a_failed_load_is_tried_again_as_often_as_asked(tmp_path, loads, clock):
    model = Model("m", tmp_path, loads, retries=Retries(2, 60.0), clock=clock)
    touch(tmp_path, "5", "broken")
    model.poll()
    clock.now += 59.0
    model.poll()
    assert loads.tried == [5]
    assert states(model) == {5: "LOADING"}
    assert model.states[5].message == "broken on purpose"
    clock.now += 1.0
    model.settle()
    assert loads.tried == [5, 5]
    clock.now += 60.0
    model.poll()
    assert states(model) == {5: "END"}
    clock.now += 1e9
    model.poll()
    assert loads.tried == [5, 5, 5]


def test_a_retry_may_succeed(tmp_path, clock):
    tries = []

    def load(path, version):
        tries.append(version)
        if len(tries) < 3:
            raise RuntimeError("not yet")
        return Servable(version, {}, {}, None)

    touch(tmp_path, "1")
    # A negative interval does not wait.
    model = Model("m", tmp_path, load, retries=Retries(5, -1.0), clock=clock)
    model.poll()
    assert len(tries) == 3
    assert states(model) == {1: "AVAILABLE"}
    assert model.states[1].message == ""


def test_retries_end_when_the_version_is_no_longer_wanted(tmp_path, loads, clock):
    model = Model("m", tmp_path, loads, retries=Retries(5, 60.0), clock=clock)
    touch(tmp_path, "1")
    touch(tmp_path, "2", "broken")
    model.poll()
    shutil.rmtree(tmp_path / "2")
    model.poll()
    clock.now += 60.0
    model.poll()
    assert loads.tried == [2, 1]
    assert (model.states[2].state, model.states[2].code) == ("END", CANCELLED)


def test_requests_are_answered_while_a_version_loads(tmp_path):
    """A lock held over a load would make each of them wait."""
    loading, go = threading.Event(), threading.Event()

    def load(path, version):
        if version == 2:
            loading.set()
            assert go.wait(10)
        return Servable(version, {}, {}, None)

    touch(tmp_path, "1")
    touch(tmp_path, "3", "waits for its turn")
    model = Model("m", tmp_path, load, policy=policy("specific {versions: 1 versions: 3}"))
    model.poll()
    touch(tmp_path, "2")
    model.configure(tmp_path, policy("all {}"))
    poll = threading.Thread(target=model.poll)
    poll.start()
    try:
        assert loading.wait(10)
        assert model.servable(None).version == 3
        assert model.servable(1).version == 1
        assert states(model) == {3: "AVAILABLE", 2: "LOADING", 1: "AVAILABLE"}
        assert model.ready
    finally:
        go.set()
        poll.join(10)
    assert model.servable(2).version == 2


def test_versions_that_wait_for_their_turn_are_at_the_start(tmp_path):
    seen = []

    def load(path, version):
        seen.append(states(model))
        return Servable(version, {}, {}, None)

    touch(tmp_path, "1")
    touch(tmp_path, "2")
    model = Model("m", tmp_path, load, policy=policy("all {}"))
    model.poll()
    assert seen[0] == {2: "LOADING", 1: "START"}


def test_a_retired_model_answers_no_more_and_may_come_back(model, tmp_path, loads):
    touch(tmp_path, "1")
    model.poll()
    model.retire()
    assert model.retired
    assert answering(model, None, 1) == []
    assert model.available == set()
    assert states(model) == {1: "END"}
    model.poll()
    assert loads.tried == [1]
    assert model.configure(tmp_path, LATEST)
    assert not model.configure(tmp_path, LATEST)
    model.poll()
    assert answering(model, None, 1) == [1, 1]


def test_a_folder_that_is_no_model(tmp_path):
    toys.save_toy(tmp_path / "1")
    touch(tmp_path, "2", "no protocol buffer")
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    shutil.rmtree(tmp_path / "3" / "variables")
    model = Model("m", tmp_path, retries=Retries(0))
    model.poll()
    assert states(model) == {3: "END"}
    shutil.rmtree(tmp_path / "3")
    model.poll()
    assert states(model) == {3: "END", 2: "END"}
    shutil.rmtree(tmp_path / "2")
    model.poll()
    assert model.servable(None).version == 1
