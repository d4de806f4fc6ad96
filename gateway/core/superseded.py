"""Jobs of this region whose clients lost it and went on elsewhere: they are not run any more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import structlog
from reelmesh.v1 import control_plane_service_pb2

from gateway.core.execution import Disowned, Execution
from gateway.core.lifetimes import Lifetimes
from gateway.errors import GatewayError
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.superseded")

REASON: Final = "superseded"
# As many as a region that was lost may have had live; the oldest are forgotten first.
_MAX_KNOWN: Final = 20_000
_AGAIN_S: Final = 2.0


class Superseded:
    """What the control plane says of them, and the end of those that this gateway owns.

    Args:
        scope: Owns the cancels.
    """

    def __init__(self, *, lifetimes: Lifetimes, clock: Clock, scope: TaskScope) -> None:
        self._lifetimes = lifetimes
        self._clock = clock
        self._scope = scope
        self._tenants: OrderedDict[str, str] = OrderedDict()

    def holds(self, tenant: str, job_id: str) -> bool:
        """Whether a client of the job's tenant said so; another tenant's word counts nothing."""
        return self._tenants.get(job_id) == tenant

    def take(self, jobs: Iterable[control_plane_service_pb2.SupersededJob]) -> None:
        """Takes those that are new on the stream."""
        for job in jobs:
            self._tenants[job.job_id] = job.tenant
            execution = self._lifetimes.get(job.job_id)
            if (
                execution is not None
                and not execution.ended
                and self.holds(execution.record.tenant, job.job_id)
            ):
                # A copy that runs on is waste, and no reason to end the gateway.
                name = f"superseded/{job.job_id}"
                self._scope.spawn(self._cancel(execution), name=name, fatal=False)
        while len(self._tenants) > _MAX_KNOWN:
            self._tenants.popitem(last=False)

    async def _cancel(self, execution: Execution) -> None:
        while not execution.ended:
            try:
                await self._lifetimes.cancel(execution, REASON)
            except Disowned:
                return
            except GatewayError as error:
                _log.info("copy not cancelled yet", job_id=execution.video_id, cause=error.code)
                await self._clock.sleep(_AGAIN_S)
