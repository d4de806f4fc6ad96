"""The bytes of finished videos, from the artifact store to whoever asks."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncGenerator, Iterator
from typing import TypeVar

import structlog
from reelmesh.v1 import job_service_pb2, video_pb2
from reelmesh.v1 import video_service_pb2 as pb

from gateway.application import JPEG, Caller, Download, FileBytes, Link, Variant
from gateway.core.metrics import GatewayMetrics
from gateway.core.sources import Sources
from gateway.errors import (
    FieldViolation,
    GatewayError,
    InvalidRequest,
    PictureFailed,
    ResourceExhausted,
    Unavailable,
    VideoDamaged,
    VideoNotFound,
)
from gateway.jobs.records import no_bytes
from gateway.jobs.store import JobStore
from gateway.output.artifacts import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactMissing,
    ArtifactStore,
    picture_key,
    pieces,
)
from gateway.output.pictures import KINDS, PictureLate, Pictures, TooManyPictures, Undrawable
from reelkit.clock import Clock

T = TypeVar("T")

_log = structlog.get_logger("gateway.contents")

RETRY_AFTER_S = 5.0


class Contents:
    """Downloads, with what goes wrong in a client's words.

    Args:
        sources: Finds the records.
        artifacts: Has the bytes.
        jobs: Has the last word on whether a video is still there.
        pictures: Draws what is not kept yet.
        metrics: Counts those that are damaged.
        link_s: How long links hold; None: there are none.
    """

    def __init__(
        self,
        *,
        sources: Sources,
        jobs: JobStore,
        artifacts: ArtifactStore,
        pictures: Pictures,
        metrics: GatewayMetrics,
        clock: Clock,
        link_s: float | None,
    ) -> None:
        self._clock = clock
        self._link_s = link_s
        self._sources = sources
        self._jobs = jobs
        self._pictures = pictures
        self._artifacts = artifacts
        self._metrics = metrics

    async def download(
        self, caller: Caller, video_id: str, *, offset: int, variant: Variant, as_file: bool
    ) -> Download:
        """See :meth:`gateway.application.VideoApplication.download`."""
        record = await self._finished(caller, video_id)
        if variant in KINDS:
            return await self._picture(caller, record, variant, offset=offset)
        check_variant(variant)
        return await self._video(record, offset=offset, as_file=as_file)

    async def link(self, caller: Caller, video_id: str, *, variant: Variant) -> Link:
        """See :meth:`gateway.application.VideoApplication.link`."""
        record = await self._finished(caller, video_id)
        check_variant(variant)
        if self._link_s is None:
            raise no_links()
        key, result = record.artifact_key, record.video.result
        total, sha256 = result.size_bytes, result.sha256
        if variant in KINDS:
            # It is in the store then.
            picture = await self._picture(caller, record, variant, offset=0)
            key, total, sha256 = (
                picture_key(key, KINDS[variant]),
                picture.total_bytes,
                picture.sha256,
            )
        with self._in_clients_words(video_id):
            url = await self._artifacts.sign(key, expires_s=self._link_s)
        return Link(url, self._clock.wall() + self._link_s, total, sha256)

    async def _finished(self, caller: Caller, video_id: str) -> job_service_pb2.JobRecord:
        record = await self._sources.record(caller, video_id)
        if record.video.status != video_pb2.VIDEO_STATUS_COMPLETED:
            raise no_bytes(record.video)
        return record

    async def _video(
        self, record: job_service_pb2.JobRecord, *, offset: int, as_file: bool
    ) -> Download:
        video_id, result, key = record.video.id, record.video.result, record.artifact_key
        total = result.size_bytes
        check_offset(offset, total)
        file: FileBytes | None = None
        if as_file:
            with self._in_clients_words(video_id):
                file = await self._artifacts.open(key, sha256=result.sha256)
        chunks = pieces(self._artifacts, key, offset=offset, total=total, sha256=result.sha256)
        return Download(
            total_bytes=total,
            sha256=result.sha256,
            chunks=self.told(chunks, video_id),
            file=file,
            cache=record.video.cache,
        )

    async def _picture(
        self,
        caller: Caller,
        record: job_service_pb2.JobRecord,
        variant: Variant,
        *,
        offset: int,
    ) -> Download:
        video_id = record.video.id

        async def still_there() -> bool:
            # Not this gateway's own word: another one may have deleted it.
            return await self._jobs.get(caller.tenant, video_id) is not None

        with self._in_clients_words(video_id):
            picture = await self._pictures.of(record, variant, still_there=still_there)
        check_offset(offset, len(picture))
        return Download(
            total_bytes=len(picture),
            sha256=hashlib.sha256(picture).hexdigest(),
            chunks=_once(picture[offset:]),
            content_type=JPEG,
        )

    async def told(self, items: AsyncGenerator[T], video_id: str) -> AsyncGenerator[T]:
        """The same items; a store that fails under them is told in a client's words."""
        with self._in_clients_words(video_id):
            async with contextlib.aclosing(items):
                async for item in items:
                    yield item

    @contextlib.contextmanager
    def _in_clients_words(self, video_id: str) -> Iterator[None]:
        try:
            yield
        except GatewayError:
            raise
        except ArtifactMissing:
            raise VideoNotFound("the video has expired") from None
        except ArtifactCorrupt as error:
            self._metrics.artifact_damaged()
            _log.error("video damaged", job_id=video_id, error=str(error))
            raise VideoDamaged("the stored video is damaged; have it made again") from None
        except Undrawable as error:
            _log.error("picture not drawn", job_id=video_id, error=str(error))
            raise PictureFailed("no picture can be made of the video") from None
        except PictureLate as error:
            _log.warning("picture late", job_id=video_id, error=str(error))
            raise Unavailable("the picture took too long", retry_after_s=RETRY_AFTER_S) from None
        except TooManyPictures:
            raise ResourceExhausted(
                "too many pictures are being drawn", retry_after_s=RETRY_AFTER_S
            ) from None
        except (ArtifactError, OSError) as error:
            _log.error("video not readable", job_id=video_id, error=str(error))
            raise Unavailable("the video cannot be read now", retry_after_s=RETRY_AFTER_S) from None


def no_links() -> InvalidRequest:
    """Why a home gives none."""
    rule = "is not offered: the video's region gives its bytes itself; leave it out"
    return InvalidRequest((FieldViolation("link", rule, ("0",)),))


async def _once(data: bytes) -> AsyncGenerator[bytes]:
    if data:
        yield data


def check_variant(variant: Variant) -> None:
    """Lets a variant that is known pass.

    Raises:
        InvalidRequest: A client of another version, perhaps.
    """
    if variant not in pb.VideoVariant.values():
        names = tuple(pb.VideoVariant.keys()[1:])
        rule = f"must be one of {', '.join(names)}, not {variant}"
        raise InvalidRequest((FieldViolation("variant", rule, names),))


def check_offset(offset: int, total: int) -> None:
    """Lets an offset up to the end pass.

    Raises:
        InvalidRequest: Names the nearest.
    """
    if not 0 <= offset <= total:
        rule = f"must be 0 to {total}, the size in bytes, not {offset}"
        nearest = str(min(max(offset, 0), total))
        raise InvalidRequest((FieldViolation("offset", rule, (nearest,)),))
