"""New videos go to the region where they are predicted to be done first.

One with an idempotency key is made once, wherever that is: before it leaves this region the
key is assigned to the other one, and whoever uses it here again is sent there too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from reelmesh.v1 import video_pb2, video_service_pb2

from gateway.application import Caller
from gateway.core.room import Outlook
from gateway.core.videos import Videos
from gateway.errors import (
    GatewayError,
    JobStoreAway,
    OtherRegion,
    ResourceExhausted,
    Unavailable,
    VideoNotFound,
)
from gateway.jobs.ids import region_of
from gateway.jobs.store import KeyElsewhere
from gateway.peers.client import NotItsOwn, PeerFailed, PeerGone, Peers
from gateway.regions.choice import RegionState
from gateway.regions.link import RegionLink
from gateway.regions.regions import Regions
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.new_videos")

RETRY_AFTER_S: Final = 5.0
# A region that was lost is back within minutes, or its jobs' deadlines end them.
SUPERSEDE_FOR_S: Final = 900.0
SUPERSEDE_EVERY_S: Final = 5.0

Cancel = Callable[[Caller, str], Awaitable[video_pb2.Video]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    caller: Caller
    spec: video_pb2.VideoSpec
    options: video_service_pb2.CreateOptions
    streamed: bool
    unfit: Mapping[str, int]
    outlook: Outlook | None
    """What it would find here; None where nothing can be said."""

    @property
    def key(self) -> str:
        return self.options.idempotency_key


class NewVideos:
    """Has new videos made, here or in another region.

    Args:
        region: This gateway's.
        home: The application of this region.
        regions: What is known of the others.
        peers: Calls to their gateways.
        cancel: Cancels a video of any region.
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
        cancel: Cancel,
        clock: Clock,
        scope: TaskScope,
        key_keep_s: int,
        job_keep_s: int,
    ) -> None:
        self._region = region
        self._home = home
        self._regions = regions
        self._peers = peers
        self._cancel = cancel
        self._clock = clock
        self._scope = scope
        self._key_keep_s = key_keep_s
        self._job_keep_s = job_keep_s

    async def create(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
        unfit: Mapping[str, int],
    ) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.create`."""
        outlook = None if caller.hops or unfit else self._home.outlook(caller, spec, options)
        request = _Request(caller, spec, options, streamed, unfit, outlook)
        if caller.hops:
            # Another region sent it: whatever was said of its key before, it is made here.
            return await self._make_here(request, over_assignment=True)
        if request.key:
            video = await self._create_keyed(request)
        else:
            video = await self._create(request)
        # A region that was sent the client's key may answer with the very video.
        if options.supersedes and options.supersedes != video.id:
            superseding = self._supersede(caller, options.supersedes)
            self._scope.spawn(superseding, name="supersede", fatal=False)
        return video

    async def _create(self, request: _Request) -> video_pb2.Video:
        elsewhere = self._elsewhere(request)
        if elsewhere is not None:
            try:
                return await self._forward(elsewhere, elsewhere.addresses[0], request)
            except (PeerGone, NotItsOwn) as error:
                _log.info("not forwarded", region=elsewhere.region, cause=str(error))
        return await self._make_here(request)

    # --- with a key ---

    async def _create_keyed(self, request: _Request) -> video_pb2.Video:
        elsewhere = self._elsewhere(request)
        region = None if elsewhere is None else await self._assign(request, elsewhere.region)
        if region is None:
            try:
                return await self._make_here(request)
            except KeyElsewhere as assigned:
                region = assigned.region
        return await self._make_at(region, request)

    async def _assign(self, request: _Request, region: str, *, over: str = "") -> str | None:
        """The region that the key stands for; None: a video of this region."""
        try:
            return await self._home.assign_key(
                request.caller,
                request.key,
                region=region,
                over_region=over,
                keep_s=self._key_keep_s,
            )
        except JobStoreAway:
            if self._can_serve(request):
                raise
            # Nothing can be written here and nobody can draw here: it is made there or nowhere.
            return region

    async def _make_at(self, region: str, request: _Request) -> video_pb2.Video:
        """Has the region that a key is assigned to make its video, or say which it made."""
        link = self._regions.link(region)
        # The client has given up on that region's video.
        given_up = region_of(request.options.supersedes) == region
        try:
            if link is not None and not given_up:
                return await self._forward_to_any(link, request)
        except (ResourceExhausted, Unavailable) as refused:
            # It has no video of that key, or it would have named it; one whose records are away,
            # or that failed, may have.
            unsure = isinstance(refused, (JobStoreAway, PeerFailed))
            if unsure or not self._can_serve(request):
                raise
        except PeerGone:
            if self._regions.state_of(region) is not RegionState.DOWN:
                raise Unavailable(
                    f"region {region}, which has this key, does not answer now; "
                    "try again with the same key",
                    retry_after_s=RETRY_AFTER_S,
                ) from None
        _log.info("key taken back", region=region)
        other = self._elsewhere(request)
        if other is None or other.region == region or (given_up and self._can_serve(request)):
            return await self._make_here(request, over_assignment=True)
        standing = await self._assign(request, other.region, over=region)
        if standing != other.region:
            raise Unavailable(
                "the key was used again meanwhile; try again with the same key",
                retry_after_s=RETRY_AFTER_S,
            )
        return await self._forward_to_any(other, request)

    async def _forward_to_any(self, link: RegionLink, request: _Request) -> video_pb2.Video:
        """Asks one gateway after the other, which a key allows.

        Raises:
            PeerGone: None answered; the video may have been made.
        """
        for address in link.addresses:
            try:
                return await self._forward(link, address, request)
            except (PeerGone, NotItsOwn) as error:
                _log.info("region's gateway does not answer", region=link.region, cause=str(error))
        raise PeerGone(f"no gateway of {link.region} answers")

    # --- here or there ---

    def _can_serve(self, request: _Request) -> bool:
        outlook = request.outlook
        able = outlook is not None and (outlook.answered or outlook.wait_s is not None)
        return able and not self._regions.draining

    def _elsewhere(self, request: _Request) -> RegionLink | None:
        """The other region that should make it, None: this one should, or nobody can."""
        if request.outlook is None or request.outlook.answered:
            return None
        chosen = self._regions.choose(
            request.outlook.model,
            units=request.outlook.units,
            local_wait_s=request.outlook.wait_s,
            local_speed=request.outlook.units_per_second,
            rank=request.outlook.rank,
        )
        return self._regions.link(chosen) if chosen not in (None, self._region) else None

    async def _make_here(
        self, request: _Request, *, over_assignment: bool = False
    ) -> video_pb2.Video:
        if self._regions.draining and not request.caller.hops:
            raise Unavailable(
                f"region {self._region} is being drained; use another", retry_after_s=RETRY_AFTER_S
            )
        return await self._home.create(
            request.caller,
            request.spec,
            request.options,
            streamed=request.streamed,
            unfit=request.unfit,
            over_assignment=over_assignment,
            merged=True,
        )

    async def _forward(self, link: RegionLink, address: str, request: _Request) -> video_pb2.Video:
        video = await self._peers.create(
            address, request.caller, request.spec, request.options, streamed=request.streamed
        )
        _log.info("forwarded", region=link.region, job_id=video.id)
        return video

    # --- copies ---

    async def _supersede(self, caller: Caller, video_id: str) -> None:
        """Sees to the copy that a client left behind in a region it lost.

        It is cancelled where that region answers. Else its home is told, which does so
        when it is back, though this gateway be gone by then.
        """
        give_up_s = self._clock.monotonic() + SUPERSEDE_FOR_S
        while self._clock.monotonic() < give_up_s:
            try:
                video = await self._cancel(caller, video_id)
            except (VideoNotFound, OtherRegion):
                return
            except GatewayError as error:
                _log.debug("copy not cancelled yet", job_id=video_id, cause=error.code)
            else:
                _log.info("superseded copy", job_id=video_id, status=video.status)
                return
            with contextlib.suppress(JobStoreAway):
                if await self._home.supersede(caller, video_id, keep_s=self._job_keep_s):
                    _log.info("copy left to its home", job_id=video_id)
                    return
            await self._clock.sleep(SUPERSEDE_EVERY_S)
