"""Chunks between two wire formats without going through message objects.

A chunk is most of what a gateway moves. Decoding it into a message, copying that into
the public one and encoding it again costs five copies of its bytes; this costs one. It
reads only what protobuf's own encoders write (fields in order, data last) and answers
None to everything else, which the caller then decodes the ordinary way. The tests hold
both directions against the generated code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from reelmesh.v1 import node_service_pb2, video_pb2, video_service_pb2

# RunResponse.event
_EVENT: Final = 0x12
# NodeEvent.attempt, .n, .chunk
_ATTEMPT: Final = 0x08
_N: Final = 0x10
_CHUNK: Final = 0x3A
# ChunkEvent.attempt, .offset, .data
_CHUNK_ATTEMPT: Final = 0x08
_CHUNK_OFFSET: Final = 0x10
_CHUNK_DATA: Final = 0x1A

# WatchVideoResponse.event, VideoEvent.seq
_WATCH_EVENT: Final = 0x0A
_SEQ: Final = 0x08


@dataclass(frozen=True, slots=True)
class NodeChunk:
    """A chunk as a node sent it; ``data`` is a view into the message."""

    attempt: int
    n: int
    offset: int
    data: memoryview


def decode_run_response(raw: bytes) -> node_service_pb2.RunResponse | NodeChunk:
    """A message of ``NodeService.Run``; a chunk without its bytes being copied.

    Raises:
        google.protobuf.message.DecodeError: The bytes are no RunResponse.
    """
    chunk = _chunk_of(raw)
    return node_service_pb2.RunResponse.FromString(raw) if chunk is None else chunk


def _chunk_of(raw: bytes) -> NodeChunk | None:
    try:
        at = _enter(raw, 0, _EVENT)
        attempt, at = _number(raw, at, _ATTEMPT)
        n, at = _number(raw, at, _N)
        at = _enter(raw, at, _CHUNK)
        _, at = _number(raw, at, _CHUNK_ATTEMPT)
        offset, at = _number(raw, at, _CHUNK_OFFSET)
        at = _enter(raw, at, _CHUNK_DATA)
    except (_OtherShape, IndexError):
        return None
    return NodeChunk(attempt, n, offset, memoryview(raw)[at:])


class _OtherShape(Exception):  # noqa: N818 - control flow between the functions here
    """Not a chunk as protobuf's encoders write it."""


def _enter(raw: bytes, at: int, tag: int) -> int:
    """The start of a length-delimited field that is the last of its message."""
    if raw[at] != tag:
        raise _OtherShape
    length, at = _varint(raw, at + 1)
    if at + length != len(raw):
        raise _OtherShape
    return at


def _number(raw: bytes, at: int, tag: int) -> tuple[int, int]:
    """A number field, 0 where it is left out."""
    return _varint(raw, at + 1) if raw[at] == tag else (0, at)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise _OtherShape


def encode_event(event: video_pb2.VideoEvent) -> bytes:
    """A ``GenerateVideoResponse`` or ``WatchVideoResponse`` with the event; they are alike."""
    return video_service_pb2.WatchVideoResponse(event=event).SerializeToString()


def encode_chunk(
    seq: int, video_id: str, attempt: int, offset: int, data: bytes | memoryview
) -> bytes:
    """The same with a chunk, its bytes copied once."""
    size = memoryview(data).nbytes
    chunk = b"".join(
        (
            _field(_CHUNK_ATTEMPT, attempt),
            _field(_CHUNK_OFFSET, offset),
            bytes((_CHUNK_DATA,)) + _encoded(size),
        )
    )
    name = video_id.encode()
    event = b"".join(
        (
            _field(0x08, seq),
            b"\x12" + _encoded(len(name)) + name,
            bytes((_CHUNK,)) + _encoded(len(chunk) + size),
            chunk,
        )
    )
    return b"".join((b"\x0a", _encoded(len(event) + size), event, data))


def seq_of_encoded(message: bytes) -> int:
    """The seq of an event that is an encoded ``WatchVideoResponse``, 0 where it has none."""
    try:
        if message[0] != _WATCH_EVENT:
            return 0
        _, at = _varint(message, 1)
        return _number(message, at, _SEQ)[0]
    except (IndexError, _OtherShape):
        return 0


def _field(tag: int, value: int) -> bytes:
    return bytes((tag,)) + _encoded(value) if value else b""


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
