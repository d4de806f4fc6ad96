"""What this gateway tells other regions that its own could take."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from reelmesh.v1 import node_pb2, peer_service_pb2

from gateway.core.lifetimes import Lifetimes
from gateway.fleet.nodes import Fleet
from gateway.fleet.order import Standing
from gateway.fleet.placement import serving, typical_speed
from gateway.fleet.waiting import WaitingRoom
from gateway.priority import ORDER, rank
from reelkit.clock import Clock

# Told after changes, at most this often, and in any case so often.
_LOOK_EVERY_S = 0.5
_TELL_EVERY_S = 2.0
# A smaller change of a wait moves no work from one region to another.
_WAIT_STEP_S = 0.5

# A tenant's first job of each priority.
_STANDINGS = tuple(Standing(rank=rank(each)) for each in ORDER)


class LoadReporter:
    """Says, for each version that a ready node serves, how long a new job would wait."""

    def __init__(
        self,
        *,
        region: str,
        gateway_id: str,
        fleet: Fleet,
        waiting: WaitingRoom,
        lifetimes: Lifetimes,
        clock: Clock,
    ) -> None:
        self._region = region
        self._gateway_id = gateway_id
        self._fleet = fleet
        self._waiting = waiting
        self._lifetimes = lifetimes
        self._clock = clock

    def load(self) -> peer_service_pb2.WatchLoadResponse:
        """The load now."""
        views = self._fleet.views(self._clock.monotonic())
        response = peer_service_pb2.WatchLoadResponse(
            region=self._region, gateway_id=self._gateway_id, draining=self._lifetimes.draining
        )
        for info in self._fleet.ready_models()[0]:
            key = (info.name, info.version)
            able = serving(views, key)
            waits = [self._waiting.predicted_wait_s(key, standing) for standing in _STANDINGS]
            if not able or waits[0] is None or waits[-1] is None:
                continue
            response.models.add(
                model=node_pb2.ModelVersion(
                    name=info.name, version=info.version, manifest_sha256=info.manifest_sha256
                ),
                predicted_wait_s=_rounded(waits[0]),
                predicted_batch_wait_s=_rounded(waits[-1]),
                ready_workers=sum(view.workers for view in able),
                units_per_second=typical_speed(able),
            )
        return response

    async def loads(self) -> AsyncGenerator[peer_service_pb2.WatchLoadResponse]:
        """The load at once, after changes, and every few seconds; for ever."""
        told: peer_service_pb2.WatchLoadResponse | None = None
        due_s = 0.0
        while True:
            load, now_s = self.load(), self._clock.monotonic()
            if load != told or now_s >= due_s:
                told, due_s = load, now_s + _TELL_EVERY_S
                yield load
            await self._clock.sleep(_LOOK_EVERY_S)


def _rounded(wait_s: float) -> float:
    return round(wait_s / _WAIT_STEP_S) * _WAIT_STEP_S
