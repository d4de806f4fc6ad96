"""One other region: a standing stream to one of its gateways, and what that says.

The stream is both the newest word of the region's load and the probe that tells whether
it lives. The addresses of its gateways come from its summary and are kept when that
vanishes: a control plane or a global store that is away says nothing about a region.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
from grpc import aio
from reelmesh.v1 import peer_service_pb2
from reelmesh.v1.peer_service_pb2_grpc import PeerServiceStub

from reelkit.clock import Clock
from reelkit.rpc import in_words

if TYPE_CHECKING:
    # Exists in the stubs alone.
    from reelmesh.v1.peer_service_pb2_grpc import PeerServiceAsyncStub

_log = structlog.get_logger("gateway.regions")

FIRST_WORD_S = 3.0
# The load comes every second or two; a gateway that stands still is left after this.
SILENCE_S = 5.0
RETRY_S = 0.5
MAX_RETRY_S = 2.0


class RegionLink:
    """The gateway's end of another region.

    Args:
        region: Its name.
        open_channel: Makes a channel to a gateway's peer address.
        clock: For the pauses between tries.
        on_change: Called after each change of what the link says.
    """

    def __init__(
        self,
        region: str,
        *,
        open_channel: Callable[[str], aio.Channel],
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self.region = region
        self.load: peer_service_pb2.WatchLoadResponse | None = None
        """What a gateway of it said last, on the stream that stands; None while none does."""
        self.probed = False
        """All its gateways were tried since a stream last stood."""
        self.round_trip_s = 0.0
        self._open_channel = open_channel
        self._clock = clock
        self._on_change = on_change
        self._addresses: tuple[str, ...] = ()
        self._channels: dict[str, aio.Channel] = {}
        self._turn = 0
        self._failures = 0
        self._have_addresses = asyncio.Event()

    @property
    def addresses(self) -> Sequence[str]:
        """Peer addresses of its gateways, the one that answered last first."""
        turn = self._turn % len(self._addresses) if self._addresses else 0
        return self._addresses[turn:] + self._addresses[:turn]

    def locate(self, addresses: Sequence[str]) -> None:
        """Takes the addresses of a summary; none at all leaves what was known."""
        if addresses and tuple(addresses) != self._addresses:
            self._addresses = tuple(addresses)
            self._turn = self._failures = 0
            self.probed = False
            self._have_addresses.set()

    def stub(self, address: str) -> PeerServiceAsyncStub:
        """A gateway of the region; its channel is kept warm."""
        if address not in self._channels:
            self._channels[address] = self._open_channel(address)
        return PeerServiceStub(self._channels[address])

    @property
    def units_per_second(self) -> Mapping[tuple[str, str], float]:
        """Speed of a typical worker by model version, as told last."""
        if self.load is None:
            return {}
        return {
            (each.model.name, each.model.version): each.units_per_second
            for each in self.load.models
        }

    async def run(self) -> None:
        """Follows the region's load for ever, over whichever gateway answers."""
        while True:
            await self._have_addresses.wait()
            address = self.addresses[0]
            try:
                await self._follow(address)
            except (aio.AioRpcError, TimeoutError) as error:
                code = error.code().name if isinstance(error, aio.AioRpcError) else "silent"
                why = in_words(error.details()) if isinstance(error, aio.AioRpcError) else ""
                _log.debug(
                    "region stream ended", region=self.region, peer=address, cause=code, why=why
                )
            finally:
                self._lost()
            # The next gateway at once; all of them again after a pause.
            self._turn += 1
            if self._failures >= len(self._addresses):
                self.probed = True
                self._on_change()
                delay_s = RETRY_S * 2 ** min(self._failures // len(self._addresses), 3)
                await self._clock.sleep(min(delay_s, MAX_RETRY_S))

    async def _follow(self, address: str) -> None:
        self._failures += 1
        began_s = self._clock.monotonic()
        call = self.stub(address).WatchLoad(peer_service_pb2.WatchLoadRequest())
        try:
            async with asyncio.timeout(FIRST_WORD_S) as limit:
                while isinstance(response := await call.read(), peer_service_pb2.WatchLoadResponse):
                    limit.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
                    if self.load is None:
                        self.round_trip_s = self._clock.monotonic() - began_s
                        self._failures, self.probed = 0, False
                    self.load = response
                    self._on_change()
        finally:
            call.cancel()

    def _lost(self) -> None:
        if self.load is not None:
            self.load = None
            self._on_change()

    async def close(self) -> None:
        """Closes its channels."""
        for channel in self._channels.values():
            await channel.close()
