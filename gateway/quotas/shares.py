"""Asks the control plane for parts of tenants' limits, and tells what this gateway has.

One call at a time: an answer to an earlier one is never gone by. Those tenants that ask for
something are asked for with every call, the others in turn, so that what they hold and do
not use is given back when others want it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from grpc import aio
from reelmesh.v1 import quota_service_pb2 as pb
from reelmesh.v1.quota_service_pb2_grpc import QuotaServiceStub

from gateway.quotas.demand import Demand
from gateway.quotas.parts import Mode, Parts
from gateway.tenants import Policies
from reelkit.clock import Clock
from reelkit.rpc import internal_channel

_log = structlog.get_logger("gateway.quotas")

CALL_TIMEOUT_S: Final = 1.0
# Somebody waits for an answer; nobody is asked more often than this.
LEAST_GAP_S: Final = 0.1
# And not again for one who was told a moment ago that there is no more.
HURRY_AGAIN_S: Final = 0.25
# Calls wait for its place while a gateway is as young as this; later they are refused.
NEW_FOR_S: Final = 5.0
FORGET_AFTER_S: Final = 3600.0
MAX_TENANTS: Final = 10_000
MAX_ASKS: Final = 256
_MAX_DROPS: Final = 64
_NEARLY_ALL: Final = 1 - 1e-6
_ACTIVE_S: Final = 15.0


class Shares:
    """What this gateway may go by; :meth:`run` keeps it so.

    Args:
        gateway_id: This gateway's.
        endpoints: The control plane's replicas.
        policies: What tenants may do.
        every_s: Between calls, where nobody is in a hurry.
    """

    def __init__(
        self,
        *,
        gateway_id: str,
        endpoints: Sequence[str],
        policies: Policies,
        clock: Clock,
        every_s: float = 1.0,
        open_channel: Callable[[str], aio.Channel] = internal_channel,
    ) -> None:
        self._gateway_id = gateway_id
        self._policies = policies
        self._clock = clock
        self._every_s = every_s
        self._channels = [open_channel(endpoint) for endpoint in endpoints]
        # Any: by its name alone the stub's type is that of blocking calls.
        self._stubs: list[Any] = [QuotaServiceStub(channel) for channel in self._channels]
        self._turn = 0
        self._parts = Parts()
        self._fresh: set[str] = set()
        # The longest unasked first.
        self._demands: OrderedDict[str, Demand] = OrderedDict()
        self._waiting: dict[str, float] = {}
        self._dropped: list[str] = []
        self._number = 0
        self._wish = asyncio.Event()
        self._began = self._ended = 0
        self._began_s = float("-inf")
        self._started_s = clock.monotonic()
        self._news = asyncio.Event()
        self.failing = False
        """Whether the last call found nobody who could answer."""

    # --- what there is ---

    @property
    def mode(self) -> Mode:
        """What this gateway goes by now."""
        return self._parts.mode(self._clock.monotonic())

    def part(self, tenant: str) -> float:
        """The part of each of a tenant's divided limits to go by now; 0: none."""
        return self._parts.part(tenant, self._clock.monotonic())

    def take_fresh(self, tenant: str) -> bool:
        """Whether nobody had a part of the tenant before this one; said once."""
        if tenant in self._fresh:
            self._fresh.discard(tenant)
            return True
        return False

    # --- what is wanted ---

    def note_call(self, tenant: str) -> None:
        """A call of the tenant came."""
        now_s = self._clock.monotonic()
        if tenant not in self._demands:
            self._demands[tenant] = Demand(now_s)
            if len(self._demands) > MAX_TENANTS:
                self._forget(next(iter(self._demands)))
        self._demands[tenant].note(now_s)
        self._demands.move_to_end(tenant)

    def note_waiting(self, tenant: str, part: float) -> None:
        """So much of the limit on waiting videos the tenant could use here; 0: nothing."""
        if part > 0:
            self._waiting[tenant] = part
        else:
            self._waiting.pop(tenant, None)

    async def settle(self, tenant: str, *, more: bool) -> None:
        """Returns when the control plane was asked, where that can help now.

        Args:
            tenant: Whose part is wanted.
            more: What there is was not enough.
        """
        now_s = self._clock.monotonic()
        leased = self._parts.leased(tenant, now_s)
        if leased and (not more or self._parts.part(tenant, now_s) >= _NEARLY_ALL):
            return
        if self.failing and self._parts.mode(now_s) is not Mode.NONE:
            # Nobody answers; the safe part is there at once.
            return
        if leased and now_s - self._began_s < HURRY_AGAIN_S:
            return
        await self._asked_once()
        # Those before it make room for a new gateway within a second or two.
        while self._is_new() and not self.failing and not self.part(tenant):
            await self._asked_once()

    def _is_new(self) -> bool:
        return self._clock.monotonic() - self._started_s < NEW_FOR_S

    async def _asked_once(self) -> None:
        goal = self._began + 1
        self._wish.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CALL_TIMEOUT_S + LEAST_GAP_S):
                while self._ended < goal:
                    await self._news.wait()

    # --- asking ---

    async def run(self) -> None:
        """Asks for ever, from time to time and when somebody waits for it."""
        self._wish.set()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._wish.wait()
            gap_s = self._began_s + LEAST_GAP_S - self._clock.monotonic()
            if gap_s > 0:
                await self._clock.sleep(gap_s)
            self._wish.clear()
            await self._ask()
            news, self._news = self._news, asyncio.Event()
            news.set()

    async def close(self) -> None:
        """Gives everything back, then closes the channels."""
        request = pb.ReleaseSharesRequest(
            gateway_id=self._gateway_id, number=self._next(), lease_id=self._parts.lease_id
        )
        lease_id, self._parts = self._parts.lease_id, Parts()
        if lease_id:
            with contextlib.suppress(aio.AioRpcError):
                await self._stubs[self._turn].ReleaseShares(request, timeout=CALL_TIMEOUT_S)
        for channel in self._channels:
            await channel.close()

    async def _ask(self) -> None:
        self._began += 1
        self._began_s = sent_s = self._clock.monotonic()
        asks = self._asks(sent_s)
        request = pb.LeaseSharesRequest(
            gateway_id=self._gateway_id,
            number=self._next(),
            lease_id=self._parts.lease_id,
            asks=asks,
        )
        try:
            answer = await self._stubs[self._turn].LeaseShares(request, timeout=CALL_TIMEOUT_S)
        except aio.AioRpcError as error:
            self._turn = (self._turn + 1) % len(self._stubs)
            if not self.failing:
                _log.warning("limits: the control plane does not answer", code=error.code().name)
            self.failing = True
        else:
            if self.failing:
                _log.info("limits: the control plane answers again")
            self.failing = False
            self._take(answer, sent_s, asks)
        finally:
            self._ended = self._began

    def _take(
        self, answer: pb.LeaseSharesResponse, sent_s: float, asks: Sequence[pb.ShareAsk]
    ) -> None:
        asked = [ask.tenant for ask in asks]
        self._parts.take(answer, sent_s=sent_s, now_s=self._clock.monotonic(), asked=asked)
        self._fresh.update(share.tenant for share in answer.shares if share.fresh)
        told = {ask.tenant for ask in asks if ask.dropped}
        self._dropped = [tenant for tenant in self._dropped if tenant not in told]

    def _asks(self, now_s: float) -> list[pb.ShareAsk]:
        """Those in use first, then as many of the others as fit, in turn."""
        for tenant in [t for t, d in self._demands.items() if now_s - d.asked_s > FORGET_AFTER_S]:
            self._forget(tenant)
        # Who came back meanwhile is asked for as usual.
        self._dropped = [tenant for tenant in self._dropped if tenant not in self._demands]
        asks = [pb.ShareAsk(tenant=t, dropped=True) for t in self._dropped[:_MAX_DROPS]]
        active: list[str] = []
        idle: list[str] = []
        for tenant, demand in reversed(self._demands.items()):
            used = tenant in self._waiting or now_s - demand.asked_s < _ACTIVE_S
            (active if used else idle).append(tenant)
        room = MAX_ASKS - len(asks)
        start = (self._began * room) % len(idle) if idle else 0
        chosen = [*active, *idle[start:], *idle[:start]][:room]
        asks += [self._ask_of(tenant, now_s) for tenant in chosen]
        return asks

    def _ask_of(self, tenant: str, now_s: float) -> pb.ShareAsk:
        policy, demand = self._policies.of(tenant), 0.0
        if policy.HasField("requests_per_second"):
            demand = self._demands[tenant].rate(now_s) / policy.requests_per_second
        elif now_s - self._demands[tenant].asked_s < _ACTIVE_S:
            demand = 1.0
        demand = max(demand, self._waiting.get(tenant, 0.0))
        return pb.ShareAsk(tenant=tenant, held=self.part(tenant), demand=min(demand, 1e6))

    def _forget(self, tenant: str) -> None:
        self._demands.pop(tenant, None)
        self._waiting.pop(tenant, None)
        self._parts.drop(tenant)
        self._dropped.append(tenant)

    def _next(self) -> int:
        """Rises through restarts too, as far as the wall clock does not go back."""
        self._number = max(self._number + 1, int(self._clock.wall() * 1e6))
        return self._number
