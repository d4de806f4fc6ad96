"""The gateway's application, as its edges see it: one port for gRPC and for HTTP.

Requests and answers are messages of ``reelmesh.v1``; what goes wrong is a
:class:`gateway.errors.GatewayError`. The edges authenticate and translate, and decide
nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol, TypeAlias

from reelmesh.v1 import (
    fleet_service_pb2,
    model_pb2,
    peer_service_pb2,
    video_pb2,
    video_service_pb2,
)

ALL_FIT: Final[Mapping[str, int]] = MappingProxyType({})
"""Every number of a request fits its field."""


MP4: Final = "video/mp4"
JPEG: Final = "image/jpeg"

Variant: TypeAlias = video_service_pb2.VideoVariant.ValueType
"""Of a video: itself, or a picture that is made of it."""

FROM_REGION: Final = 1
"""The call comes from another region's gateway: it is answered here, or by the video's owner."""
FROM_PEER: Final = 2
"""It comes from a gateway of this region, which asks for what is this one's own alone."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the verified token says."""

    tenant: str
    subject: str
    scopes: frozenset[str]
    hops: int = 0
    """Gateways that the call came through: see :data:`FROM_REGION` and :data:`FROM_PEER`."""
    batch_id: str = ""
    """The batch that the call is made for; no client can name one."""
    batch_keep_until_s: float = 0.0
    """As long as that may last: its videos are kept until then. Seconds since 1970."""


class FileBytes(Protocol):
    """Bytes that are an open file of this host, for an edge that has the kernel send them.

    Deleting the video meanwhile does not take them away.
    """

    size: int

    def attach(self, socket: int) -> int:
        """Takes a duplicate of a socket's descriptor to send to; answers the duplicate."""
        ...

    async def send(self, offset: int, count: int) -> int:
        """Sends as many bytes to the socket as it takes now; answers how many, 0 at the end.

        Raises:
            BlockingIOError: It takes none now.
            ConnectionError: The client left.
            OSError: The file cannot be read, or not in time.
        """
        ...

    async def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; none at the end.

        Raises:
            OSError: The file cannot be read, or not in time.
        """
        ...

    def close(self) -> None:
        """Lets go of the file and of the duplicate."""
        ...


@dataclass(frozen=True, slots=True)
class Download:
    """The bytes of a finished video, or of a picture of it, from an offset."""

    total_bytes: int
    sha256: str
    chunks: AsyncIterator[bytes]
    content_type: str = MP4
    file: FileBytes | None = None
    """The same bytes, all of them, where they were asked for so and are a file. The caller's
    to close."""
    cache: video_pb2.CacheStatus.ValueType = video_pb2.CACHE_STATUS_UNSPECIFIED
    """How the video came to be; of another region's, whether the bytes were here (HIT)."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where a client gets a finished video, or a picture of it, from the store itself."""

    url: str
    """Good for whoever has it, until it expires or the video is deleted."""
    expires_at_s: float
    total_bytes: int
    sha256: str
    """For the client to check: nobody else does."""


class VideoApplication(Protocol):
    """What can be done with videos. Every method sees the caller's own tenant alone."""

    async def create(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
        unfit: Mapping[str, int] = ALL_FIT,
    ) -> video_pb2.Video:
        """Validates, admits and starts a video; answers its record as it stands.

        Args:
            caller: The verified caller.
            spec: What is asked for; every rule of the model is checked. ``resolution``
                is an alias of the model or the WIDTHxHEIGHT of one of its sizes.
            options: Idempotency key, durability and deadline of the job. Where it names a video
                that is remixed, that video's settings are taken where ``spec`` leaves them
                out: all but the prompt.
            streamed: The caller will :meth:`watch` it at once, and gives it up by
                leaving; it is then cancelled after a grace time unless durable.
            unfit: By the spec's field, whole numbers that were asked for and that it
                cannot hold, such as -1 frames: refused in the words of the model's rule.

        Raises:
            InvalidRequest: Names each field that breaks a rule.
            VideoNotFound: The video that is remixed is none of this tenant; likewise OtherRegion.
            IdempotencyConflict: The key was used with another request.
            ResourceExhausted: The queue is full or the wait passes the deadline.
            Unavailable: No ready node serves the model.
        """
        ...

    async def get(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """The record of a video.

        Raises:
            VideoNotFound: There is none of this tenant.
            OtherRegion: There is none here, and the id names another region.
        """
        ...

    def watch(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncIterator[video_pb2.VideoEvent]:
        """Events after ``after_seq`` up to and including the terminal one.

        The first step of the iterator raises VideoNotFound or OtherRegion. Closing the
        iterator ends the subscription.
        """
        ...

    def watch_encoded(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncIterator[bytes]:
        """The events of :meth:`watch`, each as an encoded ``WatchVideoResponse``.

        (A ``GenerateVideoResponse`` has the same encoding.) The bytes of a chunk are
        copied once on their way through; this is what the gRPC edge streams.
        """
        ...

    async def list_page(
        self, caller: Caller, *, page_size: int, page_token: str, oldest_first: bool = False
    ) -> tuple[list[video_pb2.Video], str]:
        """A page of the tenant's videos and the token of the next page, "" on the last.

        Args:
            caller: The verified caller.
            page_size: 1 to 100; 0 is 20.
            page_token: The id of the last video of the page before, or "" for the first
                page. (OpenAI's ``after`` is that id, so the token is no other thing.)
            oldest_first: The order; newest first by default.

        Raises:
            InvalidRequest: The page size or token is not valid.
        """
        ...

    async def cancel(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """Stops a video; the record says what won, the cancel or the finish.

        Raises:
            VideoNotFound: There is none of this tenant.
            OtherRegion: There is none here, and the id names another region.
        """
        ...

    async def delete(self, caller: Caller, video_id: str) -> None:
        """Cancels where it runs, then removes record and bytes.

        Raises:
            VideoNotFound: There is none of this tenant.
            OtherRegion: There is none here, and the id names another region.
        """
        ...

    async def download(
        self,
        caller: Caller,
        video_id: str,
        *,
        offset: int,
        variant: Variant = video_service_pb2.VIDEO_VARIANT_UNSPECIFIED,
        as_file: bool = False,
    ) -> Download:
        """The finished MP4, or a picture of it, from ``offset``.

        A whole one is checked against its digest as it passes: the last bytes of a damaged one
        do not come, but VideoDamaged.

        Args:
            caller: The verified caller.
            video_id: Of a completed video.
            offset: In bytes.
            variant: What of it.
            as_file: The caller wants an open file, and closes it, where there is one.

        Raises:
            VideoNotFound: There is none of this tenant.
            OtherRegion: There is none here, and the id names another region.
            NotFinished: It still runs or waits.
            VideoFailed: It failed.
            VideoCancelled: It was cancelled.
            InvalidRequest: The offset is past the end, or there is no such variant.
            VideoDamaged: What is stored is not what was drawn.
        """
        ...

    async def link(
        self,
        caller: Caller,
        video_id: str,
        *,
        variant: Variant = video_service_pb2.VIDEO_VARIANT_UNSPECIFIED,
    ) -> Link:
        """A URL of the finished MP4, or of a picture of it, that holds for a short while.

        Raises:
            VideoNotFound: There is none of this tenant.
            OtherRegion: There is none here, and the id names another region.
            NotFinished: It still runs or waits; VideoFailed, VideoCancelled as for a download.
            InvalidRequest: Its home gives no links (field ``link``); or no such variant.
        """
        ...

    def models(self) -> tuple[list[model_pb2.ModelInfo], str]:
        """Every version that a ready node serves, and the default model's name."""
        ...

    def regions(self) -> list[fleet_service_pb2.Region]:
        """The regions of the mesh as this gateway knows them, its own marked."""
        ...

    def loads(self) -> AsyncIterator[peer_service_pb2.WatchLoadResponse]:
        """What this region could take: at once, after changes, and every few seconds."""
        ...

    def ready(self) -> tuple[bool, str]:
        """Whether this region can take a request now, and why not."""
        ...
