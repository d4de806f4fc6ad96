"""The asynchronous client."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

from reelmesh.v1 import video_service_pb2

from wan_t2v_sdk.arguments import (
    Priority,
    VideoSettings,
    check_key,
    check_priority,
    request_of,
)
from wan_t2v_sdk.bar import make_bar
from wan_t2v_sdk.batches import AsyncBatches
from wan_t2v_sdk.calls import (
    cancel_video,
    create_video,
    delete_video,
    download_video,
    get_video,
    list_models,
    newest_videos,
)
from wan_t2v_sdk.config import MeshAccess, read_mesh, resolve_access
from wan_t2v_sdk.connection import Connection, responses
from wan_t2v_sdk.errors import OtherRegionError, ReelmeshError, UnavailableError
from wan_t2v_sdk.events import VideoEvent, event_of
from wan_t2v_sdk.generation import Generation, GenerationOrder, Notify
from wan_t2v_sdk.records import ModelRecord, RegionRecord, VideoRecord, video_of
from wan_t2v_sdk.regions import AUTO, RegionRouter, region_records
from wan_t2v_sdk.result import GenerationResult
from wan_t2v_sdk.tracing import new_traceparent

T = TypeVar("T")

TIMEOUT_S = 1_800.0
# Pauses of 1, 2, 4, 8 and 16 s: a gateway that is started again is back by then.
MAX_RETRIES = 5

Progress = Callable[[VideoEvent], Awaitable[None] | None]


class AsyncTextToVideoGenerator:
    """Makes videos on a mesh; the asynchronous twin of ``TextToVideoGenerator``.

    Args:
        region: ``auto`` measures the regions and takes the nearest that serves, falling
            to the next when one is gone; a name uses that region alone.
        endpoints: Gateways, each ``host:port`` or ``region=host:port``; by default those
            of ``REELMESH_ENDPOINTS``.
        token: The bearer token; by default ``REELMESH_TOKEN``.
        ca: PEM file of the authority that signed the gateways' certificates.
        model: The model that requests which name none mean.
        timeout_s: Seconds that a ``generate`` or ``wait`` may take in all.
        max_retries: How often all regions are asked again, or a failed video is run again.

    Connections are made on first use. Use it as an async context, or ``await close()``.

    Raises:
        ConfigurationError: No gateway or no token is named.
    """

    def __init__(
        self,
        region: str = AUTO,
        *,
        endpoints: str | Iterable[str] | None = None,
        token: str | None = None,
        ca: str | Path | None = None,
        model: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        self._access = resolve_access(endpoints=endpoints, token=token, ca=ca)
        self._region = region
        self._model = model
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._session: _Session | None = None
        self.batches = AsyncBatches(first=self._first, download=self.download, model=model)
        """Many videos in one request."""

    @classmethod
    def from_mesh(
        cls,
        path: str | Path,
        *,
        region: str = AUTO,
        model: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_retries: int = MAX_RETRIES,
    ) -> Self:
        """A client of the mesh that a ``mesh.json`` of ``reelmesh up`` describes.

        Raises:
            ConfigurationError: The file is missing or is no mesh.json.
        """
        access = read_mesh(path)
        client = cls(
            region,
            endpoints=[str(each) for each in access.endpoints],
            token=access.token,
            model=model,
            timeout_s=timeout_s,
            max_retries=max_retries,
        )
        client._access = access
        return client

    async def generate(
        self,
        text: str,
        *,
        idempotency_key: str | None = None,
        durable: bool = False,
        deadline_s: float | None = None,
        priority: Priority | None = None,
        no_cache: bool = False,
        timeout_s: float | None = None,
        on_progress: Progress | None = None,
        progress: bool | None = None,
        **settings: Unpack[VideoSettings],
    ) -> GenerationResult:
        """Makes a video and returns it.

        Args:
            text: The prompt.
            idempotency_key: The same key and request give the same video, also from
                another process; a fresh one by default, which covers this call's retries.
            durable: The video runs on when this call is given up.
            deadline_s: Seconds after which the mesh itself drops the job.
            priority: ``interactive`` goes before ``batch``; the tenant's by default, which
                is the highest that it may ask for.
            no_cache: A video that is drawn for this call. Without it one that was drawn
                for the same request may answer, of any seed where none is given; the
                result's ``cache`` says so.
            timeout_s: Seconds for this call, instead of the client's.
            on_progress: Called with each event; may be a coroutine function. What it
                raises ends the call and cancels the video.
            progress: A tqdm bar; None shows one in a terminal or notebook.
            **settings: See :class:`VideoSettings`: steps, resolution, length_sec, width,
                height, num_frames, fps, guidance_scale, flow_shift, negative_prompt,
                seed, quality, model.

        Raises:
            InvalidRequestError: Names each field that the model cannot serve, with the
                nearest values that it can.
            ReelmeshError: Anything else; see :mod:`wan_t2v_sdk.errors`.

        Cancelling it (also by Ctrl-C) cancels the video, unless it is durable.
        """
        request = request_of(text, settings, default_model=self._model)
        order = GenerationOrder(
            spec=request.to_spec(),
            idempotency_key=check_key(idempotency_key),
            key_is_drawn=idempotency_key is None,
            durable=durable,
            deadline_s=deadline_s,
            priority=check_priority(priority),
            no_cache=no_cache,
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
            max_retries=self._max_retries,
            traceparent=new_traceparent(),
        )
        return await self._run(order, on_progress=on_progress, progress=progress)

    async def wait(
        self,
        video_id: str,
        *,
        timeout_s: float | None = None,
        on_progress: Progress | None = None,
        progress: bool | None = None,
    ) -> GenerationResult:
        """Follows a video that was created before to its end and returns it.

        Giving up leaves the video as it is. Raises what :meth:`generate` raises, and
        VideoNotFoundError.
        """
        record = await self.get(video_id)
        if record.status == "completed":
            return await self.download(video_id)
        order = GenerationOrder(
            spec=None,
            video_id=video_id,
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
            max_retries=self._max_retries,
            traceparent=new_traceparent(),
        )
        return await self._run(order, on_progress=on_progress, progress=progress)

    async def create(
        self,
        text: str,
        *,
        idempotency_key: str | None = None,
        deadline_s: float | None = None,
        priority: Priority | None = None,
        no_cache: bool = False,
        webhook_url: str = "",
        **settings: Unpack[VideoSettings],
    ) -> VideoRecord:
        """Starts a video and returns at once; it runs whether anybody watches or not.

        ``webhook_url`` is told of its end, where the mesh allows that. Takes the settings of
        :meth:`generate` and raises what it raises.
        """
        request = video_service_pb2.CreateVideoRequest(
            spec=request_of(text, settings, default_model=self._model).to_spec(),
            options=video_service_pb2.CreateOptions(
                idempotency_key=check_key(idempotency_key),
                durable=True,
                deadline_s=deadline_s,
                priority=check_priority(priority),
                no_cache=no_cache,
                webhook_url=webhook_url,
            ),
        )

        return await self._first(lambda each: create_video(each, request))

    async def get(self, video_id: str) -> VideoRecord:
        """The video as it stands.

        Raises:
            VideoNotFoundError: There is no such video of this tenant.
        """
        return video_of(
            await self._first(lambda each: get_video(each, video_id), video_id=video_id)
        )

    async def watch(self, video_id: str, *, after_seq: int = 0) -> AsyncGenerator[VideoEvent, None]:
        """Events after ``after_seq`` up to the terminal one, chunks with their bytes.

        One stream, not taken up again by itself: call it anew with the last ``seq``.

        Raises:
            VideoNotFoundError: There is no such video of this tenant.
            ConnectionLostError: The stream broke.
        """
        order = await self._open().router.order()
        connection = self._open().router.for_video(video_id, order)[0]
        await connection.connect()
        call = connection.videos.WatchVideo(
            video_service_pb2.WatchVideoRequest(video_id=video_id, after_seq=after_seq),
            metadata=connection.metadata(new_traceparent()),
            timeout=self._timeout_s,
        )
        async with contextlib.aclosing(responses(call, connection=connection)) as answers:
            async for answer in answers:
                if answer.event.WhichOneof("event") is not None:
                    yield event_of(answer.event, with_data=True)

    async def list(self, *, limit: int = 20) -> builtins.list[VideoRecord]:
        """The newest videos of every region in reach, newest first, at most ``limit``."""
        connections = await self._open().router.order()
        by_region = {each.region: each for each in reversed(connections)}
        pages = await asyncio.gather(*(newest_videos(each, limit) for each in by_region.values()))
        videos = [video for page in pages for video in page]
        videos.sort(key=lambda each: each.created_at.timestamp() if each.created_at else 0.0)
        return videos[::-1][:limit]

    async def cancel(self, video_id: str) -> VideoRecord:
        """Stops a video; the record says what won, the cancel or the finish. Idempotent.

        Raises:
            VideoNotFoundError: There is no such video of this tenant.
        """
        return await self._first(lambda each: cancel_video(each, video_id), video_id=video_id)

    async def delete(self, video_id: str) -> None:
        """Cancels it where it runs, then removes record and bytes.

        Raises:
            VideoNotFoundError: There is no such video of this tenant.
        """
        await self._first(lambda each: delete_video(each, video_id), video_id=video_id)

    async def download(self, video_id: str) -> GenerationResult:
        """A finished video with its bytes.

        Raises:
            VideoNotFoundError: There is no such video of this tenant.
            NotFinishedError: It still waits or runs, failed or was cancelled.
        """
        return await self._first(lambda each: download_video(each, video_id), video_id=video_id)

    async def models(self) -> builtins.list[ModelRecord]:
        """What the nearest region's models can do."""
        return await self._first(list_models)

    async def regions(self) -> builtins.list[RegionRecord]:
        """Every region, measured now, nearest first."""
        return region_records(await self._open().router.measure())

    async def close(self) -> None:
        """Closes every connection; idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(
        self, order: GenerationOrder, *, on_progress: Progress | None, progress: bool | None
    ) -> GenerationResult:
        with make_bar(progress) as bar:

            async def notify(event: VideoEvent) -> None:
                bar.update(event)
                if on_progress is not None:
                    waited = on_progress(event)
                    if inspect.isawaitable(waited):
                        await waited

            notified: Notify = notify
            generation = Generation(order, router=self._open().router, notify=notified)
            return await generation.run()

    async def _first(self, ask: Callable[[Connection], Awaitable[T]], *, video_id: str = "") -> T:
        """The answer of the first gateway that can give one, a video's home first."""
        router = self._open().router
        connections = await router.order()
        if video_id:
            connections = router.for_video(video_id, connections)
        elsewhere: OtherRegionError | None = None
        last: ReelmeshError | None = None
        for connection in connections:
            try:
                return await ask(connection)
            except OtherRegionError as error:
                elsewhere = error
            except UnavailableError as error:
                router.forget()
                last = error
        # That the home is lost tells more than a neighbour's word that the video lives there.
        raise last or elsewhere or UnavailableError("no gateway is known")

    def _open(self) -> _Session:
        """The connections of the running loop; a client may outlive the loop it began in."""
        loop = asyncio.get_running_loop()
        if self._session is None or self._session.loop is not loop:
            self._session = _Session(self._access, region=self._region, loop=loop)
        return self._session


class _Session:
    """Connections, bound to the loop that they were made in."""

    def __init__(self, access: MeshAccess, *, region: str, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._connections = [Connection(each, access) for each in access.endpoints]
        self.router = RegionRouter(self._connections, region=region)

    async def close(self) -> None:
        if self.loop is asyncio.get_running_loop():
            await asyncio.gather(*(each.close() for each in self._connections))
