"""Pictures of finished videos: drawn once by a process of their own, and kept as artifacts.

A picture's key is its video's with another ending, so whatever deletes the video's artifact
knows the pictures', and the sweeper sees them beside it. They have no digest of their own:
a lost or spoilt one is drawn again from the video, which has.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import IO, Final

import structlog
from reelmesh.v1 import job_service_pb2
from reelmesh.v1 import video_service_pb2 as pb

from gateway.application import Variant
from gateway.output.artifacts import (
    PICTURE_ENDINGS,
    ArtifactError,
    ArtifactMissing,
    ArtifactStore,
    picture_key,
    pieces,
)
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.pictures")

# A sheet of 16 frames of 320 x 320 takes a third of that at worst.
MAX_PICTURE_BYTES: Final = 4 * 1024 * 1024
# For each thread that draws; the next is told to come back.
_WAITING_PER_DRAWN: Final = 16

KINDS: Final[dict[Variant, str]] = {
    pb.VIDEO_VARIANT_THUMBNAIL: "thumbnail",
    pb.VIDEO_VARIANT_SPRITESHEET: "spritesheet",
}
assert {*KINDS.values()} == {*PICTURE_ENDINGS}  # noqa: S101 - two halves of one table


class Undrawable(Exception):  # noqa: N818 - named for what it says
    """The video is there, and no picture can be made of it."""


class TooManyPictures(Exception):  # noqa: N818 - likewise
    """As many are being drawn, and wait to be, as may."""


class PictureLate(Exception):  # noqa: N818 - likewise
    """It was not drawn in time; this machine may be busy."""


class Pictures:
    """Draws and keeps pictures of videos.

    Args:
        artifacts: Where videos are, and where pictures are kept.
        folder: For the copy of a video that is in no file of this host; made if need be.
        executor: Draws: as many at once as it has threads.
        parallel: How many that are.
        timeout_s: For one picture, from the moment its drawing begins.
        scope: Owns a drawing, which those who wait for it share.
    """

    def __init__(
        self,
        *,
        artifacts: ArtifactStore,
        folder: Path,
        executor: Executor,
        parallel: int,
        timeout_s: float,
        scope: TaskScope,
    ) -> None:
        self._artifacts = artifacts
        self._folder = folder
        self._executor = executor
        self._max_drawn = parallel * (1 + _WAITING_PER_DRAWN)
        self._timeout_s = timeout_s
        self._scope = scope
        self._drawn: dict[str, asyncio.Task[bytes]] = {}

    async def of(
        self,
        record: job_service_pb2.JobRecord,
        variant: Variant,
        *,
        still_there: Callable[[], Awaitable[bool]],
    ) -> bytes:
        """The picture of a completed video, from the store or drawn now.

        Args:
            record: The video's.
            variant: Which.
            still_there: Whether its record is; asked when the picture was stored, so that one
                of a video that was deleted meanwhile does not stay.

        Raises:
            ArtifactMissing: The video is not there, or not any more.
            ArtifactCorrupt: It is not what was drawn.
            ArtifactError: The store failed.
            Undrawable: The video cannot be decoded.
            PictureLate: It took too long.
            TooManyPictures: Come back in a moment.
        """
        kind = KINDS[variant]
        key = picture_key(record.artifact_key, kind)
        try:
            return await self._artifacts.fetch(key, max_bytes=MAX_PICTURE_BYTES)
        except ArtifactMissing:
            pass
        drawing = self._drawn.get(key)
        if drawing is None:
            if len(self._drawn) >= self._max_drawn:
                raise TooManyPictures
            drawing = self._scope.spawn(
                self._draw_and_keep(record, kind, key, still_there),
                name=f"picture/{key}",
                fatal=False,
            )
            self._drawn[key] = drawing
            drawing.add_done_callback(partial(self._forget, key))
        return await asyncio.shield(drawing)

    def _forget(self, key: str, drawing: asyncio.Task[bytes]) -> None:
        del self._drawn[key]
        # Whoever waited for it may have left: retrieved, its error is no warning.
        _ = drawing.cancelled() or drawing.exception()

    async def _draw_and_keep(
        self,
        record: job_service_pb2.JobRecord,
        kind: str,
        key: str,
        still_there: Callable[[], Awaitable[bool]],
    ) -> bytes:
        picture = await self._draw(record, kind)
        try:
            await self._artifacts.put(key, picture)
        except ArtifactError as error:
            # It is drawn again next time; or another gateway was faster.
            _log.info("picture not kept", key=key, error=str(error))
        if not await still_there():
            await self._artifacts.delete(key)
            raise ArtifactMissing(f"{key}: its video was deleted meanwhile")
        return picture

    async def _draw(self, record: job_service_pb2.JobRecord, kind: str) -> bytes:
        result = record.video.result
        file = await self._artifacts.open(record.artifact_key, sha256=result.sha256)
        if file is None:
            with tempfile.TemporaryFile(dir=self._made_folder()) as copy:
                await self._copy(record, copy)
                descriptor = os.dup(copy.fileno())
        else:
            try:
                descriptor = file.duplicate()
            finally:
                file.close()
        drawn = self._executor.submit(
            _drawn_by_child, descriptor, kind, result.num_frames, self._timeout_s
        )
        drawn.add_done_callback(lambda _: os.close(descriptor))
        return await asyncio.wrap_future(drawn)

    def _made_folder(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    async def _copy(self, record: job_service_pb2.JobRecord, copy: IO[bytes]) -> None:
        """Brings the video here, checked as it comes."""
        result = record.video.result
        source = pieces(
            self._artifacts,
            record.artifact_key,
            offset=0,
            total=result.size_bytes,
            sha256=result.sha256,
        )
        async for piece in source:
            await asyncio.wrap_future(self._executor.submit(copy.write, piece))
        await asyncio.wrap_future(self._executor.submit(copy.flush))


def _drawn_by_child(descriptor: int, kind: str, num_frames: int, timeout_s: float) -> bytes:
    """Blocks until the child has drawn, and kills it when it takes too long."""
    arguments = [kind, str(num_frames), str(max(1, round(timeout_s)))]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gateway.output.picture_child", *arguments],
            stdin=descriptor,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PictureLate(f"no {kind} within {timeout_s:g} s") from None
    if done.returncode < 0:
        raise Undrawable(f"signal {-done.returncode} ended the process that drew a {kind}")
    if done.returncode or not done.stdout:
        raise Undrawable(done.stderr[-400:].decode(errors="replace").strip() or "nothing came")
    return done.stdout
