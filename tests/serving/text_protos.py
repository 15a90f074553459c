"""TF Serving's configuration files as messages.

`tensorflow-serving-api` has the class of ModelServerConfig only. The others are declared
here as in their .proto files at tag 2.20.0 (config/monitoring_config.proto,
config/ssl_config.proto, servables/tensorflow/session_bundle_config.proto).
"""

from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

_PACKAGE = "declared"
_DECLARED = {
    "PrometheusConfig": "enable 1 bool; path 2 string",
    "MonitoringConfig": "prometheus_config 1 .declared.PrometheusConfig",
    "SSLConfig": "server_key 1 string; server_cert 2 string; custom_ca 3 string; "
    "client_verify 4 bool",
    "BatchingParameters": "max_batch_size 1 .google.protobuf.Int64Value; "
    "batch_timeout_micros 2 .google.protobuf.Int64Value; "
    "max_enqueued_batches 3 .google.protobuf.Int64Value; "
    "num_batch_threads 4 .google.protobuf.Int64Value; "
    "thread_pool_name 5 .google.protobuf.StringValue; "
    "allowed_batch_sizes 6 int64*; pad_variable_length_inputs 7 bool; "
    "enable_large_batch_splitting 8 .google.protobuf.BoolValue; "
    "max_execution_batch_size 9 .google.protobuf.Int64Value",
}


def parse(name: str, path: Path) -> Any:
    """Reads a file as the message `name`; an unknown field is an error."""
    return text_format.Parse(path.read_text("utf-8"), _CLASSES[name]())


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="declared.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, fields in _DECLARED.items():
        message = file.message_type.add(name=name)
        for declaration in fields.split("; "):
            _add(message, *declaration.split())
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    found = {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
        )
        for name in _DECLARED
    }
    return found | {"ModelServerConfig": model_server_config_pb2.ModelServerConfig}


def _add(
    message: descriptor_pb2.DescriptorProto, name: str, number: str, kind: str
) -> None:
    kinds = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number), label=kinds.LABEL_OPTIONAL)
    if kind.startswith("."):
        field.type, field.type_name = kinds.TYPE_MESSAGE, kind
        return
    if kind.endswith("*"):
        field.label = kinds.LABEL_REPEATED
    field.type = kinds.Type.Value(f"TYPE_{kind.rstrip('*').upper()}")


_CLASSES = _classes()
