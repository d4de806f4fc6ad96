"""The bytes of a finished video, taken up again where a connection broke."""

from __future__ import annotations

import asyncio
import contextlib

from reelmesh.v1 import video_service_pb2

from wan_t2v_sdk.buffer import VideoBuffer
from wan_t2v_sdk.connection import Connection, responses
from wan_t2v_sdk.errors import ConnectionLostError

RESUME_ATTEMPTS = 5
STREAM_TIMEOUT_S = 3_600.0


async def fetch(
    connection: Connection, video_id: str, buffer: VideoBuffer, *, traceparent: str | None = None
) -> None:
    """Fills ``buffer`` with the video's bytes and checks them.

    Raises:
        VideoNotFoundError: There is no such video of this tenant.
        NotFinishedError: It is not complete.
        ConnectionLostError: The gateway stayed away.
        IntegrityError: The bytes are not those that were made.
    """
    buffer.reset()
    breaks = 0
    while True:
        before = buffer.size_bytes
        try:
            await connection.connect()
            sha256, total_bytes = await _stream(connection, video_id, buffer, traceparent)
        except ConnectionLostError:
            breaks = 1 if buffer.size_bytes > before else breaks + 1
            if breaks > RESUME_ATTEMPTS:
                raise
            await asyncio.sleep(resume_delay_s(breaks))
            continue
        buffer.verify(sha256=sha256, size_bytes=total_bytes)
        return


def resume_delay_s(breaks: int) -> float:
    """How long to wait before a stream is taken up again for the ``breaks``-th time."""
    return min(0.1 * float(2**breaks), 2.0)


async def _stream(
    connection: Connection, video_id: str, buffer: VideoBuffer, traceparent: str | None
) -> tuple[str, int]:
    call = connection.videos.DownloadVideo(
        video_service_pb2.DownloadVideoRequest(video_id=video_id, offset=buffer.size_bytes),
        metadata=connection.metadata(traceparent),
        timeout=STREAM_TIMEOUT_S,
    )
    sha256, total_bytes = "", 0
    async with contextlib.aclosing(responses(call, connection=connection)) as messages:
        async for message in messages:
            if message.sha256:
                sha256, total_bytes = message.sha256, message.total_bytes
            buffer.append(message.offset, message.data)
    return sha256, total_bytes
