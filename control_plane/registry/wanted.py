"""Keeps the plan of this region's weights, and wakes the streams whose node is told anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import registry_pb2 as reg

from control_plane.registry.book import ModelRegistry
from control_plane.registry.plan import Plan, plan
from reelkit.clock import Clock

# A thousand nodes that come into possession at once are one plan, not a thousand.
SETTLE_S: Final = 0.1


class WantedWeightsPlan:
    """The plan as it follows from the registry and the fleet; run :meth:`run` beside it.

    Args:
        nodes: The region's fleet.
    """

    def __init__(
        self, *, region: str, nodes: Callable[[], Sequence[cp.NodeRecord]], clock: Clock
    ) -> None:
        self._region = region
        self._nodes = nodes
        self._clock = clock
        self._registry: ModelRegistry | None = None
        self._plan: Plan = {}
        self._dirty = asyncio.Event()
        self._planned = False
        self._watchers: dict[str, set[asyncio.Event]] = {}

    def follow(self, registry: ModelRegistry) -> None:
        """Says whose orders count; call it once."""
        self._registry = registry

    def touch(self) -> None:
        """The registry or the fleet changed."""
        self._dirty.set()

    @contextlib.contextmanager
    def waking(self, node_id: str, wake: asyncio.Event) -> Iterator[None]:
        """Sets ``wake`` when what the node is told changes, while the block runs."""
        watchers = self._watchers.setdefault(node_id, set())
        watchers.add(wake)
        try:
            yield
        finally:
            watchers.discard(wake)
            if not watchers:
                self._watchers.pop(node_id, None)

    def of(self, node_id: str) -> reg.NodeWeights | None:
        """What the node should have; None before the registry was read."""
        if not self._planned:
            return None
        return reg.NodeWeights(wanted=self._plan.get(node_id, ()))

    async def run(self) -> None:
        """Plans anew after changes; for ever."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self._replan()
            await self._clock.sleep(SETTLE_S)

    def _replan(self) -> None:
        if self._registry is None or not self._registry.loaded:
            return
        wanted = list(self._registry.wanted())
        before, first = self._plan, not self._planned
        # Nearly always nothing is ordered, and the fleet changes all the time.
        self._plan = plan(wanted, self._nodes(), region=self._region) if wanted else {}
        self._planned = True
        for node_id, watchers in self._watchers.items():
            if first or before.get(node_id) != self._plan.get(node_id):
                for wake in watchers:
                    wake.set()
