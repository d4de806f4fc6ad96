"""Words and colours for states and times. Pure."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from reelmesh.v1 import node_pb2
from rich.text import Text

_STYLES = {
    "ready": "green",
    "starting": "cyan",
    "loading": "cyan",
    "warming": "cyan",
    "draining": "yellow",
    "cordoned": "yellow",
    "unhealthy": "red",
    "lost": "bold red",
    "unknown": "magenta",
    "serving": "green",
    "not serving": "red",
    "active": "green",
    "retired": "yellow",
    "waiting": "cyan",
    "fetching": "cyan",
    "verified": "green",
    "failed": "red",
}
_PREFIX = "NODE_STATE_"
_ENUMS = (_PREFIX, "WORKER_STATE_", "WEIGHTS_STATE_", "REGISTRATION_STATE_", "MODEL_KIND_")


def state_word(state: int) -> str:
    """A node's state as people say it; "unknown" for one that vanished with many others."""
    try:
        name = node_pb2.NodeState.Name(state)  # type: ignore[arg-type]  # any int that came
    except ValueError:
        # Of a server that is newer than this.
        return f"state {state}"
    return "unknown" if name.endswith("UNSPECIFIED") else name.removeprefix(_PREFIX).lower()


def styled(word: str) -> Text:
    """A state in its colour; the word says it too."""
    return Text(word, style=_STYLES.get(word, ""))


def age(since: Timestamp, now_s: float) -> str:
    """How long ago, in its largest unit: "3 m"; "-" where it is not known."""
    since_s = since.ToNanoseconds() / 1e9
    if since_s <= 0:
        return "-"
    return span(max(now_s - since_s, 0.0))


def span(seconds: float) -> str:
    """A time in its largest unit, rounded down."""
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("m", 60)):
        # Two of a unit are needed before it is used: "90 s" says more than "1 m".
        if seconds >= 2 * length_s:
            return f"{int(seconds // length_s)} {unit}"
    return f"{int(seconds)} s"


def size(size_bytes: int) -> str:
    """Bytes in the unit that has one to three digits before the point."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= length:
            return f"{size_bytes / length:.1f} {unit}"
    return f"{size_bytes} B"


def gib(size_bytes: int) -> str:
    """Bytes in GiB with one digit."""
    return f"{size_bytes / 2**30:.1f}"


def plain(message: Message) -> dict[str, Any]:
    """A message as JSON has it, with the proto's names and states in small letters."""
    told: dict[str, Any] = _lowered(
        MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    )
    return told


def _lowered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lowered(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_lowered(each) for each in value]
    if isinstance(value, str):
        for prefix in _ENUMS:
            if value.startswith(prefix):
                word = value.removeprefix(prefix).lower()
                return "unknown" if word == "unspecified" else word
    return value
