"""Protocol messages declared by their fields, without generated classes.

On the wire and in text format a message is its fields' numbers, names and types. Where the
official Python class imports TensorFlow, or where there is none, declaring the fields is
enough.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name.removeprefix("TYPE_").lower(): number for name, number in _Field.Type.items()
}


def classes(package: str, messages: Mapping[str, str]) -> dict[str, Any]:
    """Message classes of proto3, in a descriptor pool of their own.

    Args:
      package: What stands before the names of the messages.
      messages: Fields by name of message, as "name number type; …". `type*` repeats, `map
        type` is a map from strings. Enums stand as int32, which is the same on the wire.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3"
    )
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for declaration in fields.split(";"):
            _add_field(message, declaration, package)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    find = pool.FindMessageTypeByName
    return {
        name: message_factory.GetMessageClass(find(f"{package}.{name}"))
        for name in messages
    }


def _add_field(
    message: descriptor_pb2.DescriptorProto, declaration: str, package: str
) -> None:
    name, number, *kind = declaration.split()
    field = message.field.add(name=name, number=int(number))
    repeated = kind[-1].endswith("*") or kind[0] == "map"
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    if kind[0] != "map":
        _set_type(field, kind[0].rstrip("*"), package)
        return
    # A map is a repeated message of key and value; its name is fixed by the language.
    entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
    entry = message.nested_type.add(name=entry_name)
    entry.options.map_entry = True
    _add_field(entry, "key 1 string", package)
    _add_field(entry, f"value 2 {kind[1]}", package)
    _set_type(field, f"{message.name}.{entry_name}", package)


def _set_type(field: descriptor_pb2.FieldDescriptorProto, name: str, package: str) -> None:
    if name in _SCALARS:
        field.type = _SCALARS[name]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{package}.{name}"
