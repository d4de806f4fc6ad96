"""The application across regions.

New videos go where they are predicted to be done first, and a video is answered for by its
home, whichever gateway is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Final, TypeVar

import structlog
from reelmesh.v1 import (
    fleet_service_pb2,
    model_pb2,
    peer_service_pb2,
    video_pb2,
    video_service_pb2,
)

from gateway.application import ALL_FIT, Caller, Download, Link, Variant
from gateway.cache.copy import Fetch
from gateway.cache.kept import Ask, KeptVideos
from gateway.core.load import LoadReporter
from gateway.core.new_videos import NewVideos
from gateway.core.videos import Videos
from gateway.errors import HomeUnreachable, OtherRegion, VideoNotFound
from gateway.jobs.ids import region_of
from gateway.output.artifacts import ArtifactError
from gateway.output.wire import encode_event, seq_of_encoded
from gateway.peers.client import NotItsOwn, PeerGone, Peers
from gateway.regions.link import RegionLink
from gateway.regions.regions import Regions
from gateway.validation.remix import remixed
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

T = TypeVar("T")

_log = structlog.get_logger("gateway.mesh")

# A stream from another region that breaks is taken up again, over each of its gateways, for
# two seconds; a client that can have the video made elsewhere is told then.
MAX_BREAKS: Final = 4
BREAK_DELAY_S: Final = 0.2
RETRY_AFTER_S: Final = 5.0

_THE_VIDEO: Final = (
    video_service_pb2.VIDEO_VARIANT_UNSPECIFIED,
    video_service_pb2.VIDEO_VARIANT_VIDEO,
)


class MeshVideos:
    """A :class:`gateway.application.VideoApplication` over this region and the others.

    Args:
        region: This gateway's.
        home: The application of this region.
        regions: What is known of the others.
        peers: Calls to their gateways.
        loads: What this region tells them.
        kept: Copies of their videos; None: there are none.
        scope: Owns what goes on after an answer.
        key_keep_s: How long it is remembered that a key's video was made elsewhere.
        job_keep_s: And that a client went on elsewhere; as long as a job may live.
    """

    def __init__(
        self,
        *,
        region: str,
        home: Videos,
        regions: Regions,
        peers: Peers,
        loads: LoadReporter,
        kept: KeptVideos | None,
        clock: Clock,
        scope: TaskScope,
        key_keep_s: int,
        job_keep_s: int,
    ) -> None:
        self._region = region
        self._home = home
        self._regions = regions
        self._peers = peers
        self._loads = loads
        self._kept = kept
        self._clock = clock
        self._new = NewVideos(
            region=region,
            home=home,
            regions=regions,
            peers=peers,
            cancel=self.cancel,
            clock=clock,
            scope=scope,
            key_keep_s=key_keep_s,
            job_keep_s=job_keep_s,
        )

    # --- new videos ---

    async def create(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
        unfit: Mapping[str, int] = ALL_FIT,
    ) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.create`."""
        if options.remixed_from_video_id and not caller.hops:
            # Whoever it is forwarded to need not know the original.
            original = await self.get(caller, options.remixed_from_video_id)
            spec = remixed(spec, original.spec, unfit)
        return await self._new.create(caller, spec, options, streamed=streamed, unfit=unfit)

    # --- videos of any region ---

    async def get(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.get`."""
        link = self._away(caller, video_id)
        if link is None:
            return await self._home.get(caller, video_id)
        return await self._ask(link, lambda address: self._peers.get(address, caller, video_id))

    async def cancel(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.cancel`."""
        link = self._away(caller, video_id)
        if link is None:
            return await self._home.cancel(caller, video_id)
        return await self._ask(link, lambda address: self._peers.cancel(address, caller, video_id))

    async def delete(self, caller: Caller, video_id: str) -> None:
        """See :meth:`gateway.application.VideoApplication.delete`."""
        link = self._away(caller, video_id)
        if link is None:
            await self._home.delete(caller, video_id)
        else:
            await self._ask(link, lambda address: self._peers.delete(address, caller, video_id))
            if self._kept is not None:
                self._kept.forget(video_id)

    async def download(
        self,
        caller: Caller,
        video_id: str,
        *,
        offset: int,
        variant: Variant = video_service_pb2.VIDEO_VARIANT_UNSPECIFIED,
        as_file: bool = False,
    ) -> Download:
        """See :meth:`gateway.application.VideoApplication.download`."""
        link = self._away(caller, video_id)
        if link is None:
            return await self._home.download(
                caller, video_id, offset=offset, variant=variant, as_file=as_file
            )
        if self._kept is not None and variant in _THE_VIDEO:
            return await self._kept.download(
                video_id,
                offset=offset,
                as_file=as_file,
                ask=self._ask_of(link, caller, video_id),
                fetch=self._fetch_of(link, caller, video_id),
            )
        return await self._ask(
            link,
            lambda address: self._peers.download(
                address, caller, video_id, offset=offset, variant=variant
            ),
        )

    def _ask_of(self, link: RegionLink, caller: Caller, video_id: str) -> Ask:
        return lambda: self._ask(link, lambda address: self._peers.get(address, caller, video_id))

    def _fetch_of(self, link: RegionLink, caller: Caller, video_id: str) -> Fetch:
        return lambda offset: self._ask(
            link,
            lambda address: self._peers.download(
                address, caller, video_id, offset=offset, variant=_THE_VIDEO[0]
            ),
        )

    async def link(
        self,
        caller: Caller,
        video_id: str,
        *,
        variant: Variant = video_service_pb2.VIDEO_VARIANT_UNSPECIFIED,
    ) -> Link:
        """See :meth:`gateway.application.VideoApplication.link`."""
        link = self._away(caller, video_id)
        if link is None:
            return await self._home.link(caller, video_id, variant=variant)
        return await self._ask(
            link, lambda address: self._peers.link(address, caller, video_id, variant=variant)
        )

    async def watch(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[video_pb2.VideoEvent]:
        """See :meth:`gateway.application.VideoApplication.watch`."""
        link = self._away(caller, video_id)
        if link is None:
            events = self._home.watch(caller, video_id, after_seq=after_seq)
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
            return
        relayed = self._from_away(link, caller, video_id, after_seq)
        async with contextlib.aclosing(relayed):
            async for message in relayed:
                yield video_service_pb2.WatchVideoResponse.FromString(message).event

    async def watch_encoded(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[bytes]:
        """See :meth:`gateway.application.VideoApplication.watch_encoded`."""
        link = self._away(caller, video_id)
        if link is None:
            messages = self._home.watch_encoded(caller, video_id, after_seq=after_seq)
        else:
            messages = self._from_away(link, caller, video_id, after_seq)
        async with contextlib.aclosing(messages):
            async for message in messages:
                yield message

    def _away(self, caller: Caller, video_id: str) -> RegionLink | None:
        """The home of a video where that is another region.

        Raises:
            OtherRegion: It is one that nobody has told of, or the call came from a gateway.
        """
        home = region_of(video_id)
        if home is None or home == self._region:
            return None
        link = self._regions.link(home)
        if link is None or caller.hops:
            raise OtherRegion(home)
        return link

    async def _ask(self, link: RegionLink, ask: Callable[[str], Awaitable[T]]) -> T:
        """The answer of the first of a region's gateways that gives one.

        Raises:
            HomeUnreachable: None does.
            VideoNotFound: It does not.
        """
        for address in link.addresses:
            try:
                return await ask(address)
            except PeerGone as error:
                _log.info("region's gateway does not answer", region=link.region, cause=str(error))
            except NotItsOwn as error:
                raise VideoNotFound(str(error)) from None
        raise _unreachable(link)

    async def _from_away(
        self, link: RegionLink, caller: Caller, video_id: str, seq: int
    ) -> AsyncGenerator[bytes]:
        """The events of another region's video, of a copy where there is one."""
        kept, from_the_start, last = self._kept, seq == 0, b""
        if kept is not None and kept.holds(video_id):
            ask = self._ask_of(link, caller, video_id)
            copied = kept.events(video_id, after_seq=seq, ask=ask)
            try:
                async with contextlib.aclosing(copied) as events:
                    async for event in events:
                        yield encode_event(event)
                        seq = max(seq, event.seq)
            except ArtifactError:
                from_the_start = False
            else:
                return
        async with contextlib.aclosing(self._relay(link, caller, video_id, seq)) as messages:
            async for message in messages:
                yield message
                last = message
        end = video_service_pb2.WatchVideoResponse.FromString(last).event
        if kept is not None and from_the_start and end.HasField("completed"):
            kept.watched(video_id, end.completed, self._fetch_of(link, caller, video_id))

    async def _relay(
        self, link: RegionLink, caller: Caller, video_id: str, seq: int
    ) -> AsyncGenerator[bytes]:
        breaks = 0
        while True:
            addresses = link.addresses
            if not addresses:
                raise _unreachable(link)
            address = addresses[breaks % len(addresses)]
            relayed = self._peers.watch(address, caller, video_id, after_seq=seq)
            try:
                async with contextlib.aclosing(relayed):
                    async for message in relayed:
                        yield message
                        seq, breaks = max(seq, seq_of_encoded(message)), 0
            except NotItsOwn as error:
                raise VideoNotFound(str(error)) from None
            except PeerGone:
                breaks += 1
                if breaks > MAX_BREAKS:
                    raise _unreachable(link) from None
                await self._clock.sleep(BREAK_DELAY_S * breaks)
            else:
                return

    # --- what is told of here ---

    async def list_page(
        self, caller: Caller, *, page_size: int, page_token: str, oldest_first: bool = False
    ) -> tuple[list[video_pb2.Video], str]:
        """See :meth:`gateway.application.VideoApplication.list_page`: this region's."""
        return await self._home.list_page(
            caller, page_size=page_size, page_token=page_token, oldest_first=oldest_first
        )

    def models(self) -> tuple[list[model_pb2.ModelInfo], str]:
        """See :meth:`gateway.application.VideoApplication.models`."""
        return self._home.models()

    def regions(self) -> list[fleet_service_pb2.Region]:
        """See :meth:`gateway.application.VideoApplication.regions`."""
        (local,) = self._home.regions()
        if self._regions.draining:
            local.state = fleet_service_pb2.REGION_STATE_DRAINING
        return [local, *self._regions.others()]

    def ready(self) -> tuple[bool, str]:
        """See :meth:`gateway.application.VideoApplication.ready`."""
        if self._regions.draining:
            return False, "drained by an operator"
        return self._home.ready()

    def loads(self) -> AsyncGenerator[peer_service_pb2.WatchLoadResponse]:
        """See :meth:`gateway.application.VideoApplication.loads`."""
        return self._loads.loads()


def _unreachable(link: RegionLink) -> HomeUnreachable:
    return HomeUnreachable(
        f"region {link.region}, the video's home, cannot be reached now",
        retry_after_s=RETRY_AFTER_S,
    )
