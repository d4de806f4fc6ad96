"""Decoding requests so that a malformed one is the client's mistake and is answered so.

grpc answers INTERNAL where a deserializer raises. Ours never does: what it cannot decode
it hands on as :class:`Undecodable`, and the handler answers INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from gateway.errors import FieldViolation, GatewayError, InvalidRequest, PayloadTooLarge

_LENGTH_DELIMITED = 2


class MalformedMessage(InvalidRequest):
    """The bytes are no message of the request's type."""

    code = "malformed_message"


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A request that could not be decoded, and what to answer."""

    error: GatewayError


def deserializer(message: type[Message], *, max_bytes: int) -> Callable[[bytes], Any]:
    """A function from bytes to a message, or to :class:`Undecodable`."""

    def deserialize(data: bytes) -> Message | Undecodable:
        if len(data) > max_bytes:
            return Undecodable(
                PayloadTooLarge(f"the message has {len(data)} bytes; at most {max_bytes} are taken")
            )
        try:
            return message.FromString(data)
        except DecodeError:
            return Undecodable(_explain(message, data))

    return deserialize


def _explain(message: type[Message], data: bytes) -> InvalidRequest:
    """Names the string that is not UTF-8, which is why well-formed wire data fails."""
    name = _not_utf8(message.DESCRIPTOR, data, depth=4)
    if name is not None:
        violation = FieldViolation(name, "must be valid UTF-8")
        return MalformedMessage((violation,))
    full_name = message.DESCRIPTOR.full_name
    return MalformedMessage((FieldViolation("message", f"the bytes are no {full_name}"),))


def _not_utf8(descriptor: Any, data: bytes, *, depth: int) -> str | None:
    try:
        # Every field is unknown to Empty: this reads the wire format alone.
        fields: Any = UnknownFieldSet(Empty.FromString(data))
    except DecodeError:
        return None
    for entry in fields:
        field = descriptor.fields_by_number.get(entry.field_number)
        if field is None or entry.wire_type != _LENGTH_DELIMITED:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                entry.data.decode("utf-8")
            except UnicodeDecodeError:
                return str(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth > 0:
            found = _not_utf8(field.message_type, entry.data, depth=depth - 1)
            if found is not None:
                return found
    return None
