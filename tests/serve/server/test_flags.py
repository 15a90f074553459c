import os

import pytest

from tfrec_attn.serve import __main__ as command
from tfrec_attn.serve.server import flags
from tfrec_attn.serve.server.batching_parameters import Parameters

CPUS = os.cpu_count()


@pytest.fixture
def parsed(toy):
    return lambda *given: command.parser().parse_args(
        ["--model_base_path", str(toy), *given]
    )


def test_the_defaults_are_those_of_the_model_server(parsed):
    options = flags.options(parsed())
    assert options.grpc_max_threads == options.rest_threads == 4 * CPUS
    assert options.rest_timeout == 30
    assert (options.cors, options.credentials, options.metrics_path) == (False, None, None)
    loader = flags.loader(parsed(), options)
    assert loader.scheduler is None


def test_every_flag_arrives(parsed, tmp_path):
    monitoring, batching = tmp_path / "monitoring.txt", tmp_path / "batching.txt"
    monitoring.write_text("prometheus_config { enable: true }")
    batching.write_text("num_batch_threads { value: 3 } max_batch_size { value: 5 }")
    args = parsed(
        "--grpc_socket_path=/tmp/s",
        "--grpc_max_threads=3",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.name=x",
        "--enable_grpc_healthcheck_service=false",
        "--rest_api_num_threads=5",
        "--rest_api_timeout_in_ms=1500",
        "--rest_api_max_request_bytes=99",
        "--rest_api_enable_cors_support",
        "--max_waiting_calls=7",
        f"--monitoring_config_file={monitoring}",
        "--enable_batching=true",
        f"--batching_parameters_file={batching}",
        "--enable_per_model_batching_parameters",
    )
    options = flags.options(args)
    assert options.grpc_socket_path == "/tmp/s"
    assert options.grpc_channel_arguments == (
        ("grpc.max_connection_age_ms", 2000),
        ("grpc.name", "x"),
    )
    assert (options.grpc_max_threads, options.rest_threads) == (3, 5)
    assert (options.rest_timeout, options.rest_bytes, options.waiting) == (1.5, 99, 7)
    assert (options.grpc_health, options.cors) == (False, True)
    assert options.metrics_path == "/monitoring/prometheus/metrics"
    loader = flags.loader(args, options)
    assert loader.parameters == Parameters(num_batch_threads=3, max_batch_size=5)
    assert (loader.per_model, loader.metrics) == (True, options.metrics)
    loader.scheduler.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--batching_parameters_file=x", "--batching_parameters_file needs --enable_batch"),
        ("--enable_per_model_batching_parameters", "batching_parameters needs --enable_b"),
        ("--ssl_config_file=none", "--ssl_config_file: cannot read none: No such file"),
        ("--monitoring_config_file=none", "--monitoring_config_file: cannot read none"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(toy, capsys, given, message):
    assert command.main(["--model_base_path", str(toy), given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("tfrec_attn.serve: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--enable_batching=maybe", "it is true or false: received 'maybe'"),
        ("--grpc_max_threads=-1", "it is a whole number from 0: received '-1'"),
        ("--rest_api_timeout_in_ms=0", "it is a whole number from 1: received '0'"),
        ("--grpc_channel_arguments=a", "name=value,name=value: received 'a'"),
    ],
)
def test_a_value_that_is_none(parsed, capsys, given, message):
    with pytest.raises(SystemExit) as caught:
        parsed(given)
    assert caught.value.code == 2
    assert f"argument {given.partition('=')[0]}: {message}" in capsys.readouterr().err
