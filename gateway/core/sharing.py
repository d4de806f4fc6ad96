"""Single flight: jobs that ask for the same share one run.

The first leads and holds the run; the others follow. A run ends at its node when no job waits
for it any more, so a leader whose own job has ended goes on with it for the others. Where the
run itself comes to nothing that is nobody's verdict (another gateway has the leader's job, say),
the first of the followers leads another.

Who pays: the leader. A follower's record names it (``follows``) and holds no reservation. When
the job that pays ends while the run goes on, the first of the rest pays: :meth:`Sharing.pays`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog
from reelmesh.v1 import job_service_pb2, tenant_pb2, video_pb2

from gateway.cache.keys import video_key
from gateway.cache.permission import may_use, shelf_of, shelves
from gateway.core.execution import Execution
from gateway.errors import ResourceExhausted
from gateway.tenants import Policies

_log = structlog.get_logger("gateway.sharing")

LEADER_LOST: Final = "leader_lost"
"""Why an attempt is no more whose run another gateway's job has taken along."""
RETRY_AFTER_S: Final = 5.0
# A record is written within milliseconds, or its store is away.
_COMING_S: Final = 2.0

Place = tuple[str, str]
"""A shelf and a key."""


class Sharing:
    """The runs that others may share.

    Args:
        policies: Who shares with whom.
        enabled: Whether anybody does.
        max_followers: Jobs at once that share another's run; more are refused.
    """

    def __init__(self, *, policies: Policies, enabled: bool, max_followers: int) -> None:
        self._policies = policies
        self._enabled = enabled
        self._max_followers = max_followers
        self._leaders: dict[Place, Execution] = {}
        self._places: dict[Execution, tuple[Place, ...]] = {}
        # Leaders-to-be whose records are being written.
        self._coming: dict[Place, asyncio.Event] = {}
        self._comers: dict[str, tuple[asyncio.Event, tuple[Place, ...]]] = {}
        self._followers: set[Execution] = set()
        self.on_pays: Callable[[Execution], None] = lambda _execution: None
        """Called with a job that pays for its run from now on."""

    @property
    def following(self) -> int:
        """Jobs that share another's run now."""
        return len(self._followers)

    def execution_key(self, tenant: str, spec: video_pb2.ResolvedSpec, *, seeded: bool) -> str:
        """What a record says of the run that may answer it; "" where none may."""
        if not self._enabled or not shelves(tenant, self._policies.of(tenant)):
            return ""
        return video_key(spec, seeded=seeded)

    # --- leading ---

    def open(self, execution: Execution) -> None:
        """Lets others share a run that begins."""
        places = self._places_of(execution.record)
        if places:
            self._places[execution] = places
        for place in places:
            # The newest of several: its run lasts longest.
            self._leaders[place] = execution
        self.came(execution.record)

    def _places_of(self, record: job_service_pb2.JobRecord) -> tuple[Place, ...]:
        """Where others find it: under its seed, and where any will do."""
        shelf = shelf_of(record.tenant, self._policies.of(record.tenant))
        if not self._enabled or shelf is None or not record.execution_key:
            return ()
        spec = record.video.spec
        return tuple((shelf, video_key(spec, seeded=seeded)) for seeded in (True, False))

    def close(self, execution: Execution) -> None:
        """Lets nobody share it any more."""
        for place in self._places.pop(execution, ()):
            if self._leaders.get(place) is execution:
                del self._leaders[place]

    # --- those that are about to lead ---

    def comes(self, record: job_service_pb2.JobRecord) -> None:
        """A job will lead once its record stands, if that is made; :meth:`came` follows."""
        event = asyncio.Event()
        places = self._places_of(record)
        self._comers[record.video.id] = (event, places)
        for place in places:
            self._coming.setdefault(place, event)

    def came(self, record: job_service_pb2.JobRecord) -> None:
        """It does, or will not; nothing where that was said."""
        comer = self._comers.pop(record.video.id, None)
        if comer is None:
            return
        event, places = comer
        for place in places:
            if self._coming.get(place) is event:
                del self._coming[place]
        event.set()

    async def settled(self, record: job_service_pb2.JobRecord) -> None:
        """Waits for a job that is about to lead where this one would look; not for long."""
        tenant = record.tenant
        for shelf in shelves(tenant, self._policies.of(tenant)):
            event = self._coming.get((shelf, record.execution_key))
            if event is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_COMING_S):
                        await event.wait()
                return

    # --- joining ---

    def leader_for(self, tenant: str, execution_key: str) -> Execution | None:
        """A run that may answer a request; None: there is none.

        Raises:
            ResourceExhausted: There is, and too many share runs already.
        """
        leader = self._find(tenant, execution_key)
        if leader is not None and self.following >= self._max_followers:
            raise ResourceExhausted(
                f"{self.following} videos wait for one that is drawn for others already",
                retry_after_s=RETRY_AFTER_S,
            )
        return leader

    def has(self, tenant: str, execution_key: str) -> bool:
        """Whether there is such a run."""
        return self._find(tenant, execution_key) is not None

    def same_run(self, record: job_service_pb2.JobRecord) -> Execution | None:
        """A run that draws the very video of a job that shared one; None: there is none."""
        if not record.execution_key:
            return None
        return self._find(record.tenant, video_key(record.video.spec, seeded=True))

    def _find(self, tenant: str, key: str) -> Execution | None:
        if not key:
            return None
        policy = self._policies.of(tenant)
        for shelf in shelves(tenant, policy):
            leader = self._leaders.get((shelf, key))
            if leader is not None and self._may_join(tenant, policy, leader):
                return leader
        return None

    def _may_join(self, tenant: str, policy: tenant_pb2.TenantPolicy, leader: Execution) -> bool:
        owner = leader.record.tenant
        if leader.disowned or leader.delivered or not leader.jobs:
            return False
        return may_use(tenant, policy, owner, self._policies.of(owner))

    # --- following ---

    def join(self, execution: Execution, leader: Execution, *, now_s: float) -> None:
        """Makes a job one of those that share a run; its log reads it already."""
        first = leader.jobs[0]
        execution.record.video.status = first.record.video.status
        execution.progress_percent = first.progress_percent
        execution.leader = leader
        execution.outcome = asyncio.get_running_loop().create_future()
        leader.followers.append(execution)
        self._followers.add(execution)
        if leader.link is not None:
            attempt = execution.log.number_of(leader.attempt)
            execution.join_attempt(attempt, leader.link.node_id, now_s)

    def left(self, execution: Execution) -> Execution | None:
        """A job's task has ended; answers the leader of a run that nobody waits for any more."""
        self._followers.discard(execution)
        leader, execution.leader = execution.leader, None
        if leader is None:
            return None
        leader.followers.remove(execution)
        if not leader.ended or leader.disowned or self.hand_on(leader):
            return None
        return leader

    def hand_on(self, leader: Execution) -> bool:
        """A leader's own job is over; whether its run goes on, which the next one pays for."""
        others = [job for job in leader.followers if not job.ended]
        if others:
            self.pays(others[0])
        return bool(others)

    def pays(self, execution: Execution) -> None:
        """The job pays for the run that it shares, from now on; nothing where it does already."""
        if execution.record.follows:
            _log.info("pays for the run it shares", job_id=execution.video_id)
            execution.record.follows = ""
            self.on_pays(execution)

    def regroup(self, leader: Execution) -> None:
        """A run is over without an outcome: those who shared it have another."""
        followers, leader.followers = [job for job in leader.followers if not job.ended], []
        if not followers:
            return
        first, *rest = followers
        _log.info("leads anew", job_id=first.video_id, followers=len(rest))
        self.lead(first)
        for job in rest:
            job.leader = first
            job.log.follow(first.log.run, LEADER_LOST)
            first.followers.append(job)
        if first.outcome is not None and not first.outcome.done():
            first.outcome.set_result(None)

    def lead(self, execution: Execution) -> None:
        """Makes a job that shared a run the leader of one of its own."""
        execution.leader = None
        self._followers.discard(execution)
        execution.log.lead(LEADER_LOST)
        execution.record.video.cache = video_pb2.CACHE_STATUS_MISS
        self.pays(execution)
        self.open(execution)


def cache_status(execution_key: str, *, no_cache: bool) -> video_pb2.CacheStatus.ValueType:
    """Of a video that is drawn for its request."""
    if not execution_key:
        return video_pb2.CACHE_STATUS_BYPASSED
    return video_pb2.CACHE_STATUS_REFRESHED if no_cache else video_pb2.CACHE_STATUS_MISS
