"""The synchronous client: what a script or a notebook uses."""

from __future__ import annotations

import builtins
import queue
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from wan_t2v_sdk.arguments import Priority, VideoSettings
from wan_t2v_sdk.async_client import MAX_RETRIES, TIMEOUT_S, AsyncTextToVideoGenerator, Progress
from wan_t2v_sdk.bar import make_bar
from wan_t2v_sdk.events import VideoEvent
from wan_t2v_sdk.loop_thread import shared_loop_thread
from wan_t2v_sdk.records import ModelRecord, RegionRecord, VideoRecord
from wan_t2v_sdk.regions import AUTO
from wan_t2v_sdk.result import GenerationResult
from wan_t2v_sdk.sync_batches import Batches

MAX_WAITING_EVENTS = 256

OnProgress = Callable[[VideoEvent], object]


class TextToVideoGenerator:
    """Makes videos on a mesh.

    ::

        model = TextToVideoGenerator(region="auto")
        result = model.generate(text="a red ball bouncing", resolution="480p", length_sec=6)
        result["tensor"]          # [C, T, H, W], uint8
        result.save("ball.mp4")

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

    Safe to use from several threads. Connections are made on first use.

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
        self._client = AsyncTextToVideoGenerator(
            region,
            endpoints=endpoints,
            token=token,
            ca=ca,
            model=model,
            timeout_s=timeout_s,
            max_retries=max_retries,
        )

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
        made = cls.__new__(cls)
        made.__dict__["_client"] = AsyncTextToVideoGenerator.from_mesh(
            path, region=region, model=model, timeout_s=timeout_s, max_retries=max_retries
        )
        return made

    @property
    def batches(self) -> Batches:
        """Many videos in one request."""
        return Batches(self._client.batches)

    def generate(
        self,
        text: str,
        *,
        idempotency_key: str | None = None,
        durable: bool = False,
        deadline_s: float | None = None,
        priority: Priority | None = None,
        no_cache: bool = False,
        timeout_s: float | None = None,
        on_progress: OnProgress | None = None,
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
            on_progress: Called with each event, in this thread. A slow one misses some
                of the progress; what it raises ends the call and cancels the video.
            progress: A tqdm bar; None shows one in a terminal or notebook.
            **settings: See :class:`VideoSettings`: steps, resolution, length_sec, width,
                height, num_frames, fps, guidance_scale, flow_shift, negative_prompt,
                seed, quality, model.

        Raises:
            InvalidRequestError: Names each field that the model cannot serve, with the
                nearest values that it can.
            ReelmeshError: Anything else; see :mod:`wan_t2v_sdk.errors`.

        Ctrl-C cancels the video, unless it is durable.
        """

        def start(tell: Progress) -> Any:
            return self._client.generate(
                text,
                idempotency_key=idempotency_key,
                durable=durable,
                deadline_s=deadline_s,
                priority=priority,
                no_cache=no_cache,
                timeout_s=timeout_s,
                on_progress=tell,
                progress=False,
                **settings,
            )

        return _follow(start, on_progress=on_progress, progress=progress)

    def wait(
        self,
        video_id: str,
        *,
        timeout_s: float | None = None,
        on_progress: OnProgress | None = None,
        progress: bool | None = None,
    ) -> GenerationResult:
        """Follows a video that was created before to its end and returns it.

        Giving up leaves the video as it is. Raises what :meth:`generate` raises, and
        VideoNotFoundError.
        """

        def start(tell: Progress) -> Any:
            return self._client.wait(
                video_id, timeout_s=timeout_s, on_progress=tell, progress=False
            )

        return _follow(start, on_progress=on_progress, progress=progress)

    def create(
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
        return shared_loop_thread().run(
            self._client.create(
                text,
                idempotency_key=idempotency_key,
                deadline_s=deadline_s,
                priority=priority,
                no_cache=no_cache,
                webhook_url=webhook_url,
                **settings,
            )
        )

    def get(self, video_id: str) -> VideoRecord:
        """The video as it stands; VideoNotFoundError where this tenant has none such."""
        return shared_loop_thread().run(self._client.get(video_id))

    def watch(self, video_id: str, *, after_seq: int = 0) -> Iterator[VideoEvent]:
        """Events after ``after_seq`` up to the terminal one, chunks with their bytes.

        One stream, not taken up again by itself: call it anew with the last ``seq``.
        Raises VideoNotFoundError and ConnectionLostError.
        """
        thread = shared_loop_thread()
        events = self._client.watch(video_id, after_seq=after_seq)

        async def step() -> VideoEvent | None:
            return await anext(events, None)

        async def stop() -> None:
            await events.aclose()

        try:
            while (event := thread.run(step())) is not None:
                yield event
        finally:
            thread.run(stop())

    def list(self, *, limit: int = 20) -> builtins.list[VideoRecord]:
        """The newest videos of every region in reach, newest first, at most ``limit``."""
        return shared_loop_thread().run(self._client.list(limit=limit))

    def cancel(self, video_id: str) -> VideoRecord:
        """Stops a video; the record says what won, the cancel or the finish. Idempotent."""
        return shared_loop_thread().run(self._client.cancel(video_id))

    def delete(self, video_id: str) -> None:
        """Cancels it where it runs, then removes record and bytes."""
        shared_loop_thread().run(self._client.delete(video_id))

    def download(self, video_id: str) -> GenerationResult:
        """A finished video with its bytes; NotFinishedError while there is none."""
        return shared_loop_thread().run(self._client.download(video_id))

    def models(self) -> builtins.list[ModelRecord]:
        """What the nearest region's models can do."""
        return shared_loop_thread().run(self._client.models())

    def regions(self) -> builtins.list[RegionRecord]:
        """Every region, measured now, nearest first."""
        return shared_loop_thread().run(self._client.regions())

    def close(self) -> None:
        """Closes every connection; idempotent."""
        shared_loop_thread().run(self._client.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _follow(
    start: Callable[[Progress], Any], *, on_progress: OnProgress | None, progress: bool | None
) -> GenerationResult:
    """Runs a generation in the loop's thread and shows its events in the caller's."""
    events: queue.Queue[VideoEvent] = queue.Queue(MAX_WAITING_EVENTS)

    def tell(event: VideoEvent) -> None:
        # The loop must never wait for a slow callback, nor the queue grow for it.
        if not events.full():
            events.put_nowait(event)

    with make_bar(progress) as bar:

        def show(wait_s: float) -> None:
            try:
                event = events.get(timeout=wait_s)
            except queue.Empty:
                return
            bar.update(event)
            if on_progress is not None:
                on_progress(event)

        result: GenerationResult = shared_loop_thread().run(start(tell), meanwhile=show)
        while not events.empty():
            show(0)
        return result
