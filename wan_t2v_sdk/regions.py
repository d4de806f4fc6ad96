"""Which gateway to ask: regions are measured, the nearest that serves comes first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from reelmesh.v1 import fleet_service_pb2

from wan_t2v_sdk.connection import Connection
from wan_t2v_sdk.errors import (
    AuthenticationError,
    ConfigurationError,
    PermissionDeniedError,
    ReelmeshError,
    UnavailableError,
)
from wan_t2v_sdk.records import RegionRecord, RegionState, region_state_of

AUTO = "auto"
PROBES = 3
PROBE_TIMEOUT_S = 3.0
MEASUREMENT_TTL_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one gateway answered, and how fast."""

    address: str
    region: str | None
    state: RegionState
    round_trip_s: float | None
    """None: it did not answer."""
    predicted_wait_s: float = 0.0
    ready_workers: int = 0
    known: tuple[fleet_service_pb2.Region, ...] = ()
    """Every region that it told of."""
    error: ReelmeshError | None = None


def rank(measurements: Iterable[Measurement], *, region: str) -> list[Measurement]:
    """The gateways worth asking, best first.

    A region that serves comes before one that does not, a near one before a far one;
    gateways that did not answer are left out. A named region leaves the others out:
    whoever names one may have to keep data there.
    """
    reached = [
        each
        for each in measurements
        if each.round_trip_s is not None and region in (AUTO, each.region)
    ]
    return sorted(reached, key=lambda each: (_unfitness(each.state), each.round_trip_s))


def _unfitness(state: RegionState) -> int:
    return {"serving": 0, "unknown": 1, "draining": 2, "not_serving": 3}[state]


class RegionRouter:
    """Measures the gateways and keeps the order for a minute.

    Args:
        connections: Every gateway that is known.
        region: ``auto`` or the one region to use.
        monotonic: For tests.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        *,
        region: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connections = {each.endpoint.address: each for each in connections}
        self._region = region
        self._monotonic = monotonic
        self.reached = False
        """Whether any gateway ever answered."""
        self._order: list[Connection] = []
        self._measured_s = 0.0
        self._lock = asyncio.Lock()

    async def order(self) -> list[Connection]:
        """The gateways to ask, best first; at least one.

        Raises:
            UnavailableError: None answered; the message says why for each.
            ConfigurationError: No gateway is in the region that was named.
            AuthenticationError: The token is not believed.
        """
        async with self._lock:
            age_s = self._monotonic() - self._measured_s
            if not self._order or age_s > MEASUREMENT_TTL_S:
                self._order = self._choose(await self.measure())
                self._measured_s = self._monotonic()
            return list(self._order)

    def forget(self) -> None:
        """Measures anew at the next call: a gateway turned out to be gone."""
        self._order = []

    async def measure(self) -> list[Measurement]:
        """Asks every gateway at once."""
        return list(await asyncio.gather(*map(_measure, self._connections.values())))

    def for_video(self, video_id: str, order: list[Connection]) -> list[Connection]:
        """``order`` with the home region of a video first: its id begins with it."""
        return sorted(order, key=lambda each: not is_home(each.region, video_id))

    def _choose(self, measurements: list[Measurement]) -> list[Connection]:
        ranked = rank(measurements, region=self._region)
        if ranked:
            self.reached = True
            return [self._connections[each.address] for each in ranked]
        for each in measurements:
            if isinstance(each.error, AuthenticationError):
                raise each.error
        answered = [each for each in measurements if each.round_trip_s is not None]
        if answered:
            names = sorted({each.region or "(unnamed)" for each in answered})
            raise ConfigurationError(
                f"no gateway of region {self._region!r} answers; there is {', '.join(names)}, "
                f"or {AUTO!r} for the nearest"
            )
        reasons = "; ".join(str(each.error) for each in measurements)
        raise UnavailableError(f"no gateway answers: {reasons}", code="no_gateway")


def is_home(region: str | None, video_id: str) -> bool:
    """Whether a video lives in a region."""
    # An id is <region>-<ulid>, and a region's name may hold a hyphen too.
    return region is not None and video_id.rpartition("-")[0] == region


async def _measure(connection: Connection) -> Measurement:
    """Round trips on a standing connection; the least counts, since noise only adds."""
    address = connection.endpoint.address
    try:
        await connection.connect(timeout_s=PROBE_TIMEOUT_S)
        best_s, answer = await _probe(connection)
    except PermissionDeniedError:
        # A token without fleet:read may still make videos.
        return Measurement(
            address=address, region=connection.region, state="unknown", round_trip_s=1.0
        )
    except ReelmeshError as error:
        return Measurement(
            address=address,
            region=connection.region,
            state="unknown",
            round_trip_s=None,
            error=error,
        )
    local = next((each for each in answer.regions if each.local), fleet_service_pb2.Region())
    connection.region = local.name or connection.region
    return Measurement(
        address=address,
        region=connection.region,
        state=region_state_of(local.state),
        round_trip_s=best_s,
        predicted_wait_s=local.predicted_wait_s,
        ready_workers=local.ready_workers,
        known=tuple(answer.regions),
    )


async def _probe(connection: Connection) -> tuple[float, fleet_service_pb2.ListRegionsResponse]:
    best_s = float("inf")
    for _ in range(PROBES):
        started_s = time.perf_counter()
        answer = await connection.call(
            lambda: connection.fleet.ListRegions(
                fleet_service_pb2.ListRegionsRequest(),
                metadata=connection.metadata(),
                timeout=PROBE_TIMEOUT_S,
            )
        )
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s, answer


def region_records(measurements: Sequence[Measurement]) -> list[RegionRecord]:
    """Every region that was measured or told of, nearest first."""
    records: dict[str, RegionRecord] = {}
    for each in rank(measurements, region=AUTO):
        name = each.region or each.address
        if name not in records:
            records[name] = RegionRecord(
                name=name,
                state=each.state,
                ready_workers=each.ready_workers,
                predicted_wait_s=each.predicted_wait_s,
                endpoint=each.address,
                round_trip_s=each.round_trip_s,
            )
    for each in measurements:
        for told in each.known:
            if told.name not in records:
                records[told.name] = RegionRecord(
                    name=told.name,
                    state=region_state_of(told.state),
                    ready_workers=told.ready_workers,
                    predicted_wait_s=told.predicted_wait_s,
                )
    for each in measurements:
        name = each.region or each.address
        if each.error is not None and name not in records:
            records[name] = RegionRecord(
                name=name, state="unknown", endpoint=each.address, error=each.error.message
            )
    return list(records.values())
