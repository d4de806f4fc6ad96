"""A batch's videos as one zip, made while it is sent: bounded memory, no temporary file.

Members are stored, not compressed: H.264 does not get smaller. Their sizes and checksums
follow them (data descriptors), as a stream has to have it, and the directory at the end has
them too.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from reelmesh.v1 import batch_pb2, video_pb2

from gateway.application import Download
from gateway.edge.streams import closing
from gateway.errors import GatewayError, NotFinished, VideoNotFound

MANIFEST: Final = "manifest.jsonl"
# Of every member, so that the same results make the same bytes.
_DATE: Final = (1980, 1, 1, 0, 0, 0)

Open = Callable[[str], Awaitable[Download]]
"""The bytes of a finished video by its id."""
Describe = Callable[[batch_pb2.BatchItem], dict[str, Any]]


@dataclass
class _Sink:
    """What a zip file is written to; taken out again as it grows."""

    data: bytearray
    position: int = 0

    def write(self, data: bytes) -> int:
        self.data += data
        self.position += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing to do."""

    def take(self) -> bytes:
        taken = bytes(self.data)
        self.data.clear()
        return taken


def file_name(item: batch_pb2.BatchItem) -> str:
    """An item's name in the zip; its number makes it unique, whatever its custom id."""
    name = f"-{item.custom_id}" if item.custom_id else ""
    return f"{item.index:05d}{name}.mp4"


async def zipped(
    items: AsyncGenerator[batch_pb2.BatchItem], open_video: Open, describe: Describe
) -> AsyncGenerator[bytes]:
    """The zip of the items that are complete now, piece by piece, with a manifest of all.

    Raises:
        GatewayError: A video could not be read; the zip is broken off then.
    """
    sink, lines = _Sink(bytearray()), bytearray()
    async with closing(items):
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:  # type: ignore[call-overload] # it writes, flushes and no more
            async for item in items:
                described = {**describe(item), "file": None}
                if item.status == video_pb2.VIDEO_STATUS_COMPLETED:
                    name = file_name(item)
                    try:
                        download = await open_video(item.video_id)
                    except (VideoNotFound, NotFinished) as error:
                        # Deleted by itself: the others are good all the same.
                        described["error"] = _error(error)
                    else:
                        described["file"] = name
                        async for piece in _member(archive, sink, name, download):
                            yield piece
                lines += json.dumps(described, ensure_ascii=False).encode() + b"\n"
            archive.writestr(_info(MANIFEST), bytes(lines))
            yield sink.take()
    yield sink.take()


def _error(error: GatewayError) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "retryable": error.retryable}


async def _member(
    archive: zipfile.ZipFile, sink: _Sink, name: str, download: Download
) -> AsyncGenerator[bytes]:
    info = _info(name)
    info.file_size = download.total_bytes
    async with closing(download.chunks) as chunks:
        with archive.open(info, "w", force_zip64=download.total_bytes >= 2**31) as member:
            async for chunk in chunks:
                member.write(chunk)
                yield sink.take()
    yield sink.take()


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_STORED
    info.external_attr = 0o644 << 16
    return info
