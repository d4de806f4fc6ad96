"""Every region as this gateway sees it, its own included."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog
from grpc import aio
from reelmesh.v1 import fleet_service_pb2, peer_service_pb2, region_pb2

from gateway.regions.choice import Offer, RegionState, choose_region, local_share, region_state
from gateway.regions.link import RegionLink
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

_log = structlog.get_logger("gateway.regions")

_SHOWN = {
    RegionState.SERVING: fleet_service_pb2.REGION_STATE_SERVING,
    RegionState.NOT_SERVING: fleet_service_pb2.REGION_STATE_NOT_SERVING,
    RegionState.DRAINING: fleet_service_pb2.REGION_STATE_DRAINING,
    RegionState.UNKNOWN: fleet_service_pb2.REGION_STATE_UNKNOWN,
    RegionState.DOWN: fleet_service_pb2.REGION_STATE_NOT_SERVING,
}


class Regions:
    """The other regions' links, the policies, and the choice between regions.

    Args:
        local: This gateway's region.
        open_channel: Makes channels to peer addresses of a region's gateways.
        clock: For the ramp of a region that comes back.
        scope: Owns the links' streams.
        margin_s: By how much another region must be earlier.
        draw: Numbers of chance, 0 to 1.
    """

    def __init__(
        self,
        *,
        local: str,
        open_channel: Callable[[str], Callable[[str], aio.Channel]],
        clock: Clock,
        scope: TaskScope,
        margin_s: float,
        draw: Callable[[], float],
    ) -> None:
        self.draining = False
        """Operators want this region's new work elsewhere."""
        self._local = local
        self._open_channel = open_channel
        self._clock = clock
        self._scope = scope
        self.margin_s = margin_s
        """By how many seconds another region must be earlier."""
        self._draw = draw
        self._links: dict[str, RegionLink] = {}
        self._region_of: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._views: dict[str, region_pb2.RegionView] = {}
        self._was_able = True
        self._back_at_s: float | None = None

    # --- what the control plane says ---

    def take(self, views: Iterable[region_pb2.RegionView]) -> None:
        """Takes the whole list; a region that is not in it any more is kept, without a word.

        A list from a store that was lost must not make the mesh forget its regions.
        """
        listed = {view.region: view for view in views}
        for name in self._views.keys() | listed.keys():
            view = listed.get(name, region_pb2.RegionView(region=name))
            self._views[name] = view
            if name == self._local:
                self._drain(view.policy.draining)
                continue
            if name not in self._links:
                self._open(name)
            peers = [each.peer_address for each in view.summary.gateways if each.peer_address]
            self._links[name].locate(peers)
            self._region_of.update(dict.fromkeys(peers, name))

    def _drain(self, draining: bool) -> None:
        if draining != self.draining:
            _log.info("region policy", region=self._local, draining=draining)
        self.draining = draining

    def _open(self, name: str) -> None:
        link = RegionLink(
            name,
            open_channel=self._open_channel(name),
            clock=self._clock,
            on_change=lambda: None,
        )
        self._links[name] = link
        self._tasks[name] = self._scope.spawn(link.run(), name=f"region/{name}")

    def channel(self, address: str) -> aio.Channel:
        """A channel to a peer address that some region told of, its owner's to close."""
        return self._open_channel(self._region_of.get(address, self._local))(address)

    async def close(self) -> None:
        """Closes every channel; the scope ends the streams."""
        for link in self._links.values():
            await link.close()

    # --- what others ask ---

    def link(self, region: str) -> RegionLink | None:
        """The link to another region, None where no such region is known."""
        return self._links.get(region)

    def choose(
        self,
        model: tuple[str, str],
        *,
        units: float,
        local_wait_s: float | None,
        local_speed: float,
        rank: int = 0,
    ) -> str | None:
        """The region that should make a new video; None: none can.

        Args:
            model: (name, version).
            units: Its work.
            local_wait_s: Predicted wait here; None: this region does not serve the model.
            local_speed: Of a typical worker here; 0 where it is not known.
            rank: Of its priority; 0 goes first, everywhere.
        """
        able = local_wait_s is not None and not self.draining
        local = Offer(
            self._local,
            RegionState.SERVING if able else RegionState.NOT_SERVING,
            local_wait_s,
            local_speed,
        )
        self._note_local(able)
        back_s = None if self._back_at_s is None else self._clock.monotonic() - self._back_at_s
        return choose_region(
            local,
            [self._offer(link, model, rank) for link in self._links.values()],
            units=units,
            margin_s=self.margin_s,
            share=local_share(back_for_s=back_s),
            draw=self._draw(),
        )

    def _note_local(self, able: bool) -> None:
        if able and not self._was_able:
            self._back_at_s = self._clock.monotonic()
        elif not able:
            self._back_at_s = None
        self._was_able = able

    def _offer(self, link: RegionLink, model: tuple[str, str], rank: int) -> Offer:
        for each in link.load.models if link.load is not None else ():
            if (each.model.name, each.model.version) == model and each.ready_workers:
                batch = rank > 0 and each.HasField("predicted_batch_wait_s")
                return Offer(
                    link.region,
                    self.state(link),
                    each.predicted_batch_wait_s if batch else each.predicted_wait_s,
                    each.units_per_second,
                    link.round_trip_s,
                )
        return Offer(link.region, self.state(link), None, 0.0)

    def state(self, link: RegionLink) -> RegionState:
        """What is known of another region now."""
        view = self._views[link.region]
        load = link.load
        draining = view.policy.draining or (load is not None and load.draining)
        return region_state(
            draining=draining,
            answers=load is not None,
            ready_workers=_workers(load),
            has_summary=view.HasField("summary"),
            probed=link.probed,
        )

    def state_of(self, region: str) -> RegionState:
        """The same by its name; a region that nobody has told of is down."""
        link = self._links.get(region)
        return RegionState.DOWN if link is None else self.state(link)

    def others(self) -> list[fleet_service_pb2.Region]:
        """The other regions as clients see them, by name."""
        found = []
        for name in sorted(self._links):
            link = self._links[name]
            waits = [each.predicted_wait_s for each in link.load.models] if link.load else []
            found.append(
                fleet_service_pb2.Region(
                    name=name,
                    state=_SHOWN[self.state(link)],
                    ready_workers=_workers(link.load),
                    predicted_wait_s=min(waits, default=0.0),
                )
            )
        return found


def _workers(load: peer_service_pb2.WatchLoadResponse | None) -> int:
    """Ready workers of the region; one that serves two versions counts for each."""
    return max((each.ready_workers for each in load.models), default=0) if load else 0
