"""The flags of sockets and load; names, defaults and meaning of tensorflow_model_server.

Source: tensorflow/serving `model_servers/main.cc` and `server.h`.
"""

import argparse
import pathlib
from typing import TYPE_CHECKING

from tfrec_attn.serve.server import config_files, model_flags, tls
from tfrec_attn.serve.server import options as options_lib
from tfrec_attn.serve.server.batching_parameters import Parameters
from tfrec_attn.serve.server.options import Options

if TYPE_CHECKING:
    from tfrec_attn.serve.server.loading import Loader


def add(parser: argparse.ArgumentParser) -> None:
    """Adds them as groups of their own."""
    _add_sockets(parser.add_argument_group("sockets"))
    _add_limits(parser.add_argument_group("limits (0 threads: four a processor)"))
    batching = parser.add_argument_group("batching")
    model_flags.switch(
        batching.add_argument, "--enable_batching", False, "join requests into batches"
    )
    batching.add_argument(
        "--batching_parameters_file",
        type=pathlib.Path,
        help="BatchingParameters in protobuf text format",
    )
    model_flags.switch(
        batching.add_argument,
        "--enable_per_model_batching_parameters",
        False,
        "read them from batching_params.pbtxt in each version's folder",
    )


def _add_sockets(group) -> None:
    group.add_argument(
        "--grpc_socket_path", default="", help="Unix socket to serve gRPC on too"
    )
    group.add_argument(
        "--grpc_channel_arguments",
        type=channel_arguments,
        default=(),
        help="of the gRPC server: name=value,name=value",
    )
    model_flags.switch(
        group.add_argument,
        "--enable_grpc_healthcheck_service",
        True,
        "serve grpc.health.v1.Health",
    )
    group.add_argument(
        "--ssl_config_file",
        type=pathlib.Path,
        help="SSLConfig in protobuf text format: TLS on gRPC",
    )
    group.add_argument(
        "--monitoring_config_file",
        type=pathlib.Path,
        help="MonitoringConfig in protobuf text format: metrics for Prometheus",
    )
    model_flags.switch(
        group.add_argument,
        "--rest_api_enable_cors_support",
        False,
        "let pages of other origins call REST",
    )


def _add_limits(group) -> None:
    for name, default, what in (
        ("--grpc_max_threads", 0, "gRPC calls that run at once"),
        ("--rest_api_num_threads", 0, "REST calls that run at once"),
        (
            "--rest_api_timeout_in_ms",
            int(options_lib.REST_TIMEOUT * 1e3),
            "until a REST call is given up",
        ),
        (
            "--rest_api_max_request_bytes",
            options_lib.REST_BYTES,
            "longest body; not TF Serving's flag",
        ),
        (
            "--max_waiting_calls",
            options_lib.WAITING,
            "of each protocol; not TF Serving's flag",
        ),
    ):
        group.add_argument(
            name,
            type=positive if default else model_flags.count,
            default=default,
            help=what,
        )


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"it is a whole number from 1: received {text!r}")
    return int(text)


def channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    """`name=value,…`, for argparse; a value that is a number is passed as one."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise argparse.ArgumentTypeError(
                f"name=value,name=value: received {text!r} (see gRPC's grpc_types.h)"
            )
    return tuple((name, _int_or_text(value)) for name, _, value in pairs)


def _int_or_text(value: str) -> int | str:
    return int(value) if value.removeprefix("-").isdecimal() else value


def options(args: argparse.Namespace) -> Options:
    """What the sockets are told.

    Raises:
      ValueError: A configuration file cannot be read or breaks a rule.
    """
    given: dict = {}
    if args.ssl_config_file:
        given["credentials"] = tls.credentials(args.ssl_config_file, "--ssl_config_file")
    if args.monitoring_config_file:
        given["metrics_path"] = config_files.metrics_path(
            args.monitoring_config_file, "--monitoring_config_file"
        )
    return Options(
        grpc_socket_path=args.grpc_socket_path,
        grpc_max_threads=args.grpc_max_threads or options_lib.THREADS,
        grpc_channel_arguments=args.grpc_channel_arguments,
        grpc_health=args.enable_grpc_healthcheck_service,
        rest_threads=args.rest_api_num_threads or options_lib.THREADS,
        rest_timeout=args.rest_api_timeout_in_ms / 1e3,
        rest_bytes=args.rest_api_max_request_bytes,
        cors=args.rest_api_enable_cors_support,
        waiting=args.max_waiting_calls,
        profiling=args.enable_profiler,
        **given,
    )


def loader(args: argparse.Namespace, told: Options) -> "Loader":
    """How versions are loaded: with or without batching.

    Raises:
      ValueError: The flags or the parameters break a rule.
    """
    # TensorFlow loads here.
    from tfrec_attn.serve.server import batching
    from tfrec_attn.serve.server.loading import Loader

    if not args.enable_batching:
        for flag in ("batching_parameters_file", "enable_per_model_batching_parameters"):
            if getattr(args, flag):
                raise ValueError(f"--{flag} needs --enable_batching.")
        return Loader(told.metrics)
    parameters = Parameters(thread_pool_name="model_server_batch_threads")
    if args.batching_parameters_file:
        parameters = config_files.batching_parameters(
            args.batching_parameters_file, "--batching_parameters_file"
        )
    scheduler = batching.Scheduler(
        parameters.num_batch_threads, parameters.thread_pool_name, told.metrics
    )
    per_model = args.enable_per_model_batching_parameters
    return Loader(told.metrics, scheduler, parameters, per_model)
