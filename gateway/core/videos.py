"""The application behind the edges: what can be done with videos in this region."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping

from reelmesh.v1 import (
    fleet_service_pb2,
    model_pb2,
    video_pb2,
    video_service_pb2,
)

from gateway.application import ALL_FIT, Caller, Download, Link, Variant
from gateway.core.admission import Admission
from gateway.core.commit import Committer
from gateway.core.contents import Contents
from gateway.core.execution import Execution
from gateway.core.lifetimes import Lifetimes
from gateway.core.room import Outlook
from gateway.core.sources import Remote, Sources
from gateway.errors import FieldViolation, InvalidRequest
from gateway.fleet.nodes import Fleet
from gateway.fleet.order import Standing
from gateway.fleet.waiting import WaitingRoom
from gateway.jobs.ids import not_here, region_of
from gateway.jobs.store import JobStore
from gateway.peers.client import PeerGone, Peers
from gateway.validation.fields import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from gateway.validation.remix import remixed


class Videos:
    """A :class:`gateway.application.VideoApplication` over the region's nodes.

    Args:
        region: Home of the videos made here.
        admission: Makes new ones.
        lifetimes: Holds the executions of this gateway.
    """

    def __init__(
        self,
        *,
        region: str,
        admission: Admission,
        fleet: Fleet,
        waiting: WaitingRoom,
        lifetimes: Lifetimes,
        committer: Committer,
        jobs: JobStore,
        contents: Contents,
        sources: Sources,
        peers: Peers,
    ) -> None:
        self._region = region
        self._admission = admission
        self._fleet = fleet
        self._waiting = waiting
        self._lifetimes = lifetimes
        self._committer = committer
        self._jobs = jobs
        self._contents = contents
        self._sources = sources
        self._peers = peers

    # --- create ---

    async def create(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
        *,
        streamed: bool,
        unfit: Mapping[str, int] = ALL_FIT,
        over_assignment: bool = False,
        merged: bool = False,
    ) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.create`.

        Args as there, and:
            over_assignment: It is made here though its key was assigned to another region.
            merged: The spec has the settings of the video that is remixed, where there is one.

        Raises:
            KeyElsewhere: Its key was, and ``over_assignment`` was not given.
        """
        if options.remixed_from_video_id and not merged:
            original = await self.get(caller, options.remixed_from_video_id)
            spec = remixed(spec, original.spec, unfit)
        return await self._admission.create(
            caller,
            spec,
            options,
            streamed=streamed,
            unfit=unfit,
            over_assignment=over_assignment,
        )

    async def assign_key(
        self, caller: Caller, key: str, *, region: str, over_region: str, keep_s: int
    ) -> str | None:
        """See :meth:`gateway.jobs.store.JobStore.assign_key`."""
        return await self._jobs.assign_key(
            caller.tenant, key, region=region, over_region=over_region, keep_s=keep_s
        )

    async def supersede(self, caller: Caller, video_id: str, *, keep_s: int) -> bool:
        """See :meth:`gateway.jobs.store.JobStore.supersede`."""
        return await self._jobs.supersede(caller.tenant, video_id, keep_s=keep_s)

    def outlook(
        self,
        caller: Caller,
        spec: video_pb2.VideoSpec,
        options: video_service_pb2.CreateOptions,
    ) -> Outlook | None:
        """See :meth:`gateway.core.admission.Admission.outlook`."""
        return self._admission.outlook(caller, spec, options)

    # --- read ---

    async def get(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.get`."""

        async def own(execution: Execution) -> video_pb2.Video:
            return execution.video()

        async def remote(found: Remote) -> video_pb2.Video:
            try:
                return await self._peers.get(found.address, caller, video_id)
            except PeerGone:
                # Reading needs no claim: the record says less of the progress, and is true.
                return found.record.video

        return await self._sources.answer(
            caller, video_id, own=own, remote=remote, ended=lambda record: record.video
        )

    async def watch(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[video_pb2.VideoEvent]:
        """See :meth:`gateway.application.VideoApplication.watch`."""
        events = self._sources.events(caller, video_id, after_seq=after_seq)
        async with contextlib.aclosing(self._contents.told(events, video_id)) as told:
            async for event in told:
                yield event

    async def watch_encoded(
        self, caller: Caller, video_id: str, *, after_seq: int
    ) -> AsyncGenerator[bytes]:
        """See :meth:`gateway.application.VideoApplication.watch_encoded`."""
        encoded = self._sources.encoded(caller, video_id, after_seq=after_seq)
        async with contextlib.aclosing(self._contents.told(encoded, video_id)) as told:
            async for message in told:
                yield message

    async def list_page(
        self, caller: Caller, *, page_size: int, page_token: str, oldest_first: bool = False
    ) -> tuple[list[video_pb2.Video], str]:
        """See :meth:`gateway.application.VideoApplication.list_page`."""
        violations = []
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            rule = f"must be 1 to {MAX_PAGE_SIZE}, or 0 for {DEFAULT_PAGE_SIZE}, not {page_size}"
            violations.append(FieldViolation("page_size", rule, (str(MAX_PAGE_SIZE),)))
        if page_token and region_of(page_token) is None:
            violations.append(FieldViolation("page_token", "must be the id of a video"))
        if violations:
            raise InvalidRequest(tuple(violations))
        found, more = await self._jobs.list_page(
            caller.tenant,
            limit=page_size or DEFAULT_PAGE_SIZE,
            after=page_token,
            oldest_first=oldest_first,
        )
        videos = []
        for record in found:
            execution = self._lifetimes.get(record.video.id)
            videos.append(record.video if execution is None else execution.video())
        return videos, videos[-1].id if more else ""

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
        return await self._contents.download(
            caller, video_id, offset=offset, variant=variant, as_file=as_file
        )

    async def link(
        self,
        caller: Caller,
        video_id: str,
        *,
        variant: Variant = video_service_pb2.VIDEO_VARIANT_UNSPECIFIED,
    ) -> Link:
        """See :meth:`gateway.application.VideoApplication.link`."""
        return await self._contents.link(caller, video_id, variant=variant)

    # --- end ---

    async def cancel(self, caller: Caller, video_id: str) -> video_pb2.Video:
        """See :meth:`gateway.application.VideoApplication.cancel`."""

        async def own(execution: Execution) -> video_pb2.Video:
            await self._lifetimes.cancel(execution, "client")
            return execution.video()

        return await self._sources.answer(
            caller,
            video_id,
            own=own,
            remote=lambda found: self._peers.cancel(found.address, caller, video_id),
            ended=lambda record: record.video,
        )

    async def delete(self, caller: Caller, video_id: str) -> None:
        """See :meth:`gateway.application.VideoApplication.delete`."""

        async def own(execution: Execution) -> bool:
            await self._lifetimes.cancel(execution, "client")
            return False

        async def remote(found: Remote) -> bool:
            await self._peers.delete(found.address, caller, video_id)
            return True

        deleted = await self._sources.answer(
            caller, video_id, own=own, remote=remote, ended=lambda _record: False
        )
        if deleted:
            return
        removed = await self._jobs.delete(caller.tenant, video_id)
        self._lifetimes.forget(video_id)
        if removed is None:
            raise not_here(video_id, region=self._region)
        if removed.artifact_key:
            self._committer.discard(removed.artifact_key)
        self._sources.forget_elsewhere(caller, removed)

    # --- the region ---

    def models(self) -> tuple[list[model_pb2.ModelInfo], str]:
        """See :meth:`gateway.application.VideoApplication.models`."""
        return self._fleet.ready_models()

    def regions(self) -> list[fleet_service_pb2.Region]:
        """See :meth:`gateway.application.VideoApplication.regions`."""
        workers = self._fleet.ready_workers
        if self._lifetimes.draining:
            state = fleet_service_pb2.REGION_STATE_DRAINING
        elif workers:
            state = fleet_service_pb2.REGION_STATE_SERVING
        else:
            state = fleet_service_pb2.REGION_STATE_NOT_SERVING
        wait_s = self.predicted_wait_s()
        return [
            fleet_service_pb2.Region(
                name=self._region,
                state=state,
                ready_workers=workers,
                predicted_wait_s=wait_s,
                local=True,
            )
        ]

    def predicted_wait_s(self) -> float:
        """Seconds that an interactive job for the default model would wait now.

        0 where no node serves it.
        """
        catalog = self._fleet.catalog()
        for info in catalog.models:
            if info.name == catalog.default_model:
                return self._waiting.predicted_wait_s((info.name, info.version), Standing()) or 0.0
        return 0.0

    def ready(self) -> tuple[bool, str]:
        """See :meth:`gateway.application.VideoApplication.ready`."""
        if self._lifetimes.draining:
            return False, "shutting down"
        if not self._fleet.ready_workers:
            heard = self._fleet.heard
            return False, "no ready node" if heard else "no word from the control plane yet"
        return True, ""
