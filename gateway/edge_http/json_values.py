"""Messages of ``reelmesh.v1`` as plain JSON values, the way HTTP clients expect them."""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def dumps(value: Any) -> bytes:
    """UTF-8 JSON without spaces; NaN and infinity are a mistake of the caller."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def to_json(message: Message) -> dict[str, Any]:
    """A message by its proto field names.

    Unlike protobuf's own JSON mapping, 64-bit integers are numbers, enums are the
    lower-case name without its type (``serving``), timestamps are whole seconds since the
    epoch and a figure that is not finite is null. Optional fields and messages that are
    not set are left out; bytes are base64.
    """
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value, enum = getattr(message, field.name), field.enum_type
        if field.is_repeated:
            found[field.name] = [_value(item, enum) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            found[field.name] = _value(value, enum)
    return found


def finite(value: float) -> float | None:
    """The figure, or None (null) where JSON has no word for it."""
    return value if math.isfinite(value) else None


def _value(value: Any, enum: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.seconds
    if isinstance(value, Message):
        return to_json(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, float):
        return finite(value)
    return value if enum is None else _enum_name(enum, value)


def _enum_name(enum: EnumDescriptor, number: int) -> str:
    found = enum.values_by_number.get(number)
    if found is None:
        # A newer peer's value: say the number rather than guess.
        return str(number)
    prefix = _CAPITAL.sub("_", enum.name).upper() + "_"
    return str(found.name).removeprefix(prefix).lower()
