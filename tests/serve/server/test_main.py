"""The command's flags about models, and what it does again and again until it stops."""

import threading

import pytest
import tensorflow as tf

import tfrec_attn
from tfrec_attn.serve import __main__ as command
from tfrec_attn.serve.server import flags as flags_lib
from tfrec_attn.serve.server.servable import invalid


def config(base_path, more=""):
    entry = f'name: "m" base_path: "{base_path}" model_platform: "tensorflow" {more}'
    return f"model_config_list {{ config {{ {entry} }} }}"


@pytest.fixture
def file(tmp_path):
    """Writes the configuration file and gives its path."""

    def write(text):
        path = tmp_path / "models.config"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "Give --model_base_path, or --model_config_file for several"),
        (["--model_config_file=x", "--model_name=m"], "leave out --model_base_path and"),
        (["--model_config_file=none"], "No such file or directory: 'none'"),
        (["--model_base_path=.", "--prefer_tflite_model"], "TensorFlow Lite is not served"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
    assert command.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("tfrec_attn.serve: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_mistake_in_the_configuration_is_one_line(file, tmp_path, capsys):
    path = file(config("relative"))
    assert command.main(["--model_config_file", str(path)]) == 2
    assert f"{path}:1: Expected model m to have an absolute path" in capsys.readouterr().err


def configured(*flags):
    args = command.parser().parse_args(flags)
    return command.configured(args, flags_lib.loader(args, flags_lib.options(args)))


def test_a_label_at_the_start_needs_its_flag(file, toy):
    flag = "--allow_version_labels_for_unavailable_models"
    path = file(config(toy, 'version_labels { key: "stable" value: 1 }'))
    with pytest.raises(ValueError, match=f"models.config: .*label to version 1.*{flag}"):
        configured(f"--model_config_file={path}")
    models = configured(f"--model_config_file={path}", flag)
    models.poll()
    assert models.ready


def test_one_folder_is_served_by_its_name_and_may_be_relative(toy, monkeypatch):
    monkeypatch.chdir(toy)
    for flags, name in (([], "toy"), (["--model_name=other"], "other")):
        models = configured("--model_base_path=.", *flags)
        models.poll()
        assert list(models._models) == [name]
        assert models.ready


def test_loads_are_made_as_the_flags_say(toy, monkeypatch):
    from tfrec_attn.serve.server import saved_model

    told = []

    def load(path, version, *, replays):
        told.append(replays)
        raise OSError("not today")

    monkeypatch.setattr(saved_model, "load", load)
    for flags in (
        ["--num_request_iterations_for_warmup=3", "--max_num_load_retries=2"],
        ["--enable_model_warmup=false", "--max_num_load_retries=0"],
        ["--num_request_iterations_for_warmup=0", "--max_num_load_retries=1"],
    ):
        wait = "--load_retry_interval_micros=-1"
        configured(f"--model_base_path={toy}", wait, *flags).poll()
    assert told == [3, 3, 3, 0, 1, 1]


class Models:
    """Notes the configurations it is given; the first one fails."""

    def __init__(self, stop, until):
        self.given = []
        self.stop = stop
        self.until = until

    def apply(self, config):
        self.given.append(config.model_config_list.config[0].base_path)
        if len(self.given) == self.until:
            self.stop.set()
        if len(self.given) < 3:
            raise invalid("not this one")


def test_a_configuration_file_is_read_again_and_again(file, caplog):
    stop = threading.Event()
    models = Models(stop, until=4)
    path = file(config("/somewhere"))
    flags = [f"--model_config_file={path}", "--model_config_file_poll_wait_seconds=0.001"]
    command.watch_config(models, command.parser().parse_args(flags), stop)
    assert models.given == ["/somewhere"] * 4
    # Said once, not at each reading.
    assert caplog.text.count("the model configuration was not taken: not this one") == 1


def test_a_file_that_breaks_a_rule_leaves_what_is_served(file, caplog):
    path = file("model_config_list { config { ")

    class Once:
        """Stops after one reading."""

        waits = 0

        def wait(self, seconds):
            assert seconds == 5.0
            self.waits += 1
            return self.waits > 1

    flags = [f"--model_config_file={path}", "--model_config_file_poll_wait_seconds=5"]
    models = Models(None, until=0)
    command.watch_config(models, command.parser().parse_args(flags), Once())
    assert models.given == []
    assert "was not taken: Error parsing text-format" in caplog.text


@pytest.mark.parametrize(
    "flags", [["--model_base_path=x"], ["--model_config_file=x"]], ids=["folder", "once"]
)
def test_no_configuration_is_read_again_unless_asked_to(flags):
    # Nothing would end it.
    command.watch_config(None, command.parser().parse_args(flags), threading.Event())


def test_loads_are_tried_again_without_another_look():
    """Where one look was asked for, the loads that fail must not be left alone."""
    stop, done = threading.Event(), []

    class Unready:
        ready = False

        def poll(self):
            done.append("poll")

        def settle(self):
            done.append("settle")
            self.ready = True
            stop.set()

    class Running:
        def set_ready(self, ready):
            done.append(ready)

    command.watch(Unready(), Running(), 0, stop)
    assert done == ["poll", False, "settle", True]


def test_versions_are_told(capsys):
    assert command.main(["--version"]) == 0
    told = capsys.readouterr().out
    assert f"tfrec_attn {tfrec_attn.__version__}, TensorFlow {tf.__version__}" in told


def test_a_folder_without_a_name_needs_one():
    with pytest.raises(ValueError, match="/ has no name: give --model_name"):
        configured("--model_base_path=/")
