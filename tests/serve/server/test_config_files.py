import pytest

from tfrec_attn.serve.server import config_files
from tfrec_attn.serve.server.batching_parameters import Parameters


@pytest.fixture
def written(tmp_path):
    """A file with a text in it."""

    def write(text):
        (tmp_path / "file.txt").write_text(text)
        return tmp_path / "file.txt"

    return write


def test_batching_parameters(written):
    text = """
        max_batch_size { value: 64 } batch_timeout_micros { value: 2000 }
        max_enqueued_batches { value: 3 } num_batch_threads { value: 2 }
        thread_pool_name { value: "pool" } allowed_batch_sizes: 16
        allowed_batch_sizes: 64 pad_variable_length_inputs: true
        enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 32 }
    """
    assert config_files.batching_parameters(written(text), "--f") == Parameters(
        max_batch_size=64,
        batch_timeout_micros=2000,
        max_enqueued_batches=3,
        num_batch_threads=2,
        thread_pool_name="pool",
        allowed_batch_sizes=(16, 64),
        pad_variable_length_inputs=True,
        enable_large_batch_splitting=True,
        max_execution_batch_size=32,
    )


def test_what_a_file_does_not_say_has_its_default(written):
    assert config_files.batching_parameters(written(""), "--f") == Parameters()
    zero = written("batch_timeout_micros { value: 0 }")
    assert config_files.batching_parameters(zero, "--f").batch_timeout_micros == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 0 }", "max_batch_size must be at least 1: received 0"),
        ("allowed_batch_sizes: 8", "must match max_batch_size; last entry was 8; expected"),
        ("allowed_batch_sizes: [4, 2]", r"positive and increasing: received \[4, 2\]"),
        (
            "max_batch_size { value: 4 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 8 }",
            "max_execution_batch_size must be at most max_batch_size, 4: received 8",
        ),
        (
            "\nmax_batch_siz { value: 1 }",
            'line 2, is no BatchingParameters .*"max_batch_siz"',
        ),
        ("max_batch_size: 64", "line 1, is no BatchingParameters in protobuf text format"),
    ],
)
def test_a_mistake_is_named_with_its_file(written, text, message):
    path = written(text)
    with pytest.raises(ValueError, match=message) as caught:
        config_files.batching_parameters(path, "--batching_parameters_file")
    assert str(caught.value).startswith(f"--batching_parameters_file: {path}")


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    path = tmp_path / "none"
    with pytest.raises(ValueError, match=f"--f: cannot read {path}: No such file"):
        config_files.batching_parameters(path, "--f")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=f"--f: {path} is no text"):
        config_files.batching_parameters(path, "--f")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", None),
        ('prometheus_config { path: "/m" }', None),
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { enable: true, path: "/m" }', "/m"),
    ],
)
def test_where_the_metrics_are(written, text, path):
    assert config_files.metrics_path(written(text), "--f") == path


def test_a_path_of_metrics_that_is_none(written):
    path = written('prometheus_config { enable: true, path: "metrics" }')
    with pytest.raises(ValueError, match="must begin with \"/\": received 'metrics'"):
        config_files.metrics_path(path, "--f")
