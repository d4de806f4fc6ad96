"""Removes model infos that no node has named for a long time."""

from __future__ import annotations

import structlog

from control_plane.errors import StoreError
from control_plane.fleet import FleetView
from control_plane.keys import Keys
from control_plane.store.port import Delete, Store, unchanged
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.model_sweep")

# A region whose nodes are all away for a night still knows its models in the morning.
KEEP_UNNAMED_S = 24 * 3600.0
SWEEP_EVERY_S = 600.0


class ModelSweep:
    """Model infos lie under no lease, since many nodes share them; this collects them.

    Every attach and every change of a node's record writes its model infos anew, and
    the removal compares their revision: an info that a node is just about to name is
    never removed, whichever replica does the sweep.
    """

    def __init__(
        self, *, view: FleetView, store: Store, writer: FencedWriter, keys: Keys, clock: Clock
    ) -> None:
        self._view = view
        self._store = store
        self._writer = writer
        self._keys = keys
        self._clock = clock
        # Digest and since when nobody has named it.
        self._unnamed_since_s: dict[str, float] = {}

    async def run(self) -> None:
        """Sweeps for ever, from time to time."""
        while True:
            await self._clock.sleep(SWEEP_EVERY_S)
            try:
                await self.sweep()
            except StoreError as error:
                _log.info("sweep waits for the store", error=str(error))

    async def sweep(self) -> None:
        """Removes what is due.

        Raises:
            StoreError: The store is away; sweep again later.
        """
        for digest in self.due():
            key = self._keys.model(digest)
            found = await self._store.get(key)
            if found is None or digest not in self._view.unnamed_models():
                continue
            result = await self._writer.txn([unchanged(key, found.mod_revision)], [Delete(key)])
            if result.succeeded:
                _log.info("model info removed", manifest_sha256=digest)

    def due(self) -> list[str]:
        """Digests that nobody has named for long enough; takes note of the others."""
        now_s = self._clock.monotonic()
        unnamed = self._view.unnamed_models()
        self._unnamed_since_s = {
            digest: self._unnamed_since_s.get(digest, now_s) for digest in unnamed
        }
        return [
            digest
            for digest, since_s in self._unnamed_since_s.items()
            if now_s - since_s >= KEEP_UNNAMED_S
        ]
