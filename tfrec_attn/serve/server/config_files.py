"""The configuration files of the sockets: TF Serving's messages in protobuf text format.

`tensorflow-serving-api` has no classes for these, so their fields are declared here, with
the names and numbers of tensorflow/serving `config/ssl_config.proto`,
`config/monitoring_config.proto` and `servables/tensorflow/session_bundle_config.proto`.
"""

import pathlib
from typing import Any

from google.protobuf import text_format

from tfrec_attn.serve import declared
from tfrec_attn.serve.server import metrics
from tfrec_attn.serve.server.batching_parameters import Parameters

_classes = declared.classes(
    "tensorflow.serving",
    {
        "Int64Value": "value 1 int64",
        "StringValue": "value 1 string",
        "BoolValue": "value 1 bool",
        "SSLConfig": "server_key 1 string; server_cert 2 string; custom_ca 3 string; "
        "client_verify 4 bool",
        "PrometheusConfig": "enable 1 bool; path 2 string",
        "MonitoringConfig": "prometheus_config 1 PrometheusConfig",
        "BatchingParameters": "max_batch_size 1 Int64Value; "
        "batch_timeout_micros 2 Int64Value; max_enqueued_batches 3 Int64Value; "
        "num_batch_threads 4 Int64Value; thread_pool_name 5 StringValue; "
        "allowed_batch_sizes 6 int64*; pad_variable_length_inputs 7 bool; "
        "enable_large_batch_splitting 8 BoolValue; max_execution_batch_size 9 Int64Value",
    },
)


def read(name: str, path: pathlib.Path, source: str) -> Any:
    """The message in a file.

    Args:
      name: Of the message.
      path: Holds it in text format.
      source: What named the file, for errors.

    Raises:
      ValueError: The file cannot be read, or holds something else; with file and line.
    """
    try:
        return text_format.Parse(path.read_text("utf-8"), _classes[name]())
    except OSError as error:
        raise ValueError(f"{source}: cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: {path} is no text: {error}.") from error
    except text_format.ParseError as error:
        raise ValueError(
            f"{source}: {path}, line {error.GetLine()}, is no {name} in protobuf text "
            f"format: {error}"
        ) from error


def batching_parameters(path: pathlib.Path, source: str) -> Parameters:
    """The batching parameters in a file; what it does not say has its default.

    Raises:
      ValueError: As `read`, or a parameter breaks its rule.
    """
    message = read("BatchingParameters", path, source)
    given = {field.name: _plain(value) for field, value in message.ListFields()}
    try:
        return Parameters(**given)
    except ValueError as error:
        raise ValueError(f"{source}: {path}: {error}") from error


def _plain(value: Any) -> Any:
    """A bool as it is, a wrapper message's value, a repeated field as a tuple."""
    if isinstance(value, bool):
        return value
    return value.value if hasattr(value, "value") else tuple(value)


def metrics_path(path: pathlib.Path, source: str) -> str | None:
    """Where the metrics are served, or None if the file does not enable them.

    Raises:
      ValueError: As `read`, or the path in it is none.
    """
    prometheus = read("MonitoringConfig", path, source).prometheus_config
    if prometheus.path and not prometheus.path.startswith("/"):
        raise ValueError(
            f'{source}: {path}: prometheus_config.path must begin with "/": '
            f"received {prometheus.path!r}."
        )
    return (prometheus.path or metrics.PATH) if prometheus.enable else None
