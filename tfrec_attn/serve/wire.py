"""The serving protocol's messages, without TensorFlow.

The official Python classes (`tensorflow_serving.apis`) import TensorFlow: three seconds
and half a gigabyte for a client that only sends a few strings. On the wire a message is
its field numbers and types, so the few messages that a client needs are declared here
with the official numbers; the tests compare the bytes with those of the official classes.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name.removeprefix("TYPE_").lower(): number for name, number in _Field.Type.items()
}
_PACKAGE = "tfrec_attn.serve.wire"

# "name number type"; `type*` repeats, `map type` is a map from strings. Enums stand as
# int32, which is the same on the wire.
_MESSAGES = {
    "Dim": "size 1 int64; name 2 string",
    "TensorShape": "dim 2 Dim*; unknown_rank 3 bool",
    "Tensor": "dtype 1 int32; tensor_shape 2 TensorShape; tensor_content 4 bytes; "
    "float_val 5 float*; double_val 6 double*; int_val 7 int32*; string_val 8 bytes*; "
    "int64_val 10 int64*; bool_val 11 bool*; half_val 13 int32*; uint32_val 16 uint32*; "
    "uint64_val 17 uint64*",
    "Int64Value": "value 1 int64",
    "ModelSpec": "name 1 string; version 2 Int64Value; signature_name 3 string; "
    "version_label 4 string",
    "PredictRequest": "model_spec 1 ModelSpec; inputs 2 map Tensor; "
    "output_filter 3 string*",
    "PredictResponse": "outputs 1 map Tensor; model_spec 2 ModelSpec",
    "GetModelMetadataRequest": "model_spec 1 ModelSpec; metadata_field 2 string*",
    "Any": "type_url 1 string; value 2 bytes",
    "GetModelMetadataResponse": "model_spec 1 ModelSpec; metadata 2 map Any",
    "TensorInfo": "name 1 string; dtype 2 int32; tensor_shape 3 TensorShape",
    "SignatureDef": "inputs 1 map TensorInfo; outputs 2 map TensorInfo; "
    "method_name 3 string",
    "SignatureDefMap": "signature_def 1 map SignatureDef",
}


def _set_type(field: descriptor_pb2.FieldDescriptorProto, name: str) -> None:
    if name in _SCALARS:
        field.type = _SCALARS[name]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{name}"


def _add_field(message: descriptor_pb2.DescriptorProto, declaration: str) -> None:
    name, number, *kind = declaration.split()
    field = message.field.add(name=name, number=int(number))
    repeated = kind[-1].endswith("*") or kind[0] == "map"
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    if kind[0] != "map":
        _set_type(field, kind[0].rstrip("*"))
        return
    # A map is a repeated message of key and value; its name is fixed by the language.
    entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
    entry = message.nested_type.add(name=entry_name)
    entry.options.map_entry = True
    _add_field(entry, "key 1 string")
    _add_field(entry, f"value 2 {kind[1]}")
    _set_type(field, f"{message.name}.{entry_name}")


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="tfrec_attn/serve/wire.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for declaration in fields.split(";"):
            _add_field(message, declaration)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {
        name: message_factory.GetMessageClass(find(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_built = _classes()
GetModelMetadataRequest = _built["GetModelMetadataRequest"]
GetModelMetadataResponse = _built["GetModelMetadataResponse"]
ModelSpec = _built["ModelSpec"]
PredictRequest = _built["PredictRequest"]
PredictResponse = _built["PredictResponse"]
SignatureDefMap = _built["SignatureDefMap"]
Tensor = _built["Tensor"]
