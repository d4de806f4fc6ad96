"""The versions that the control plane wants on this node, one after the other onto its disk.

What serves goes on meanwhile. A version that was fetched stays for as long as it is wanted; one
that cannot be fetched is tried again, with growing pauses.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from reelmesh.v1 import registry_pb2 as reg

from node_agent.config import ModelSettings, RegistrySettings
from node_agent.content import ContentStore, Pins
from node_agent.errors import WeightsError
from node_agent.fetch_child import FetchChild, fetch_child
from node_agent.trust import check_version, read_trusted_keys
from reelkit.clock import Clock
from reelkit.mtls.config import MutualTlsSettings

_log = structlog.get_logger("node_agent.prefetch")

_RETRY_FIRST_S: Final = 1.0
_RETRY_MAX_S: Final = 60.0
# A peer that sent wrong bytes is asked again after so long: its disk may have been mended.
_AVOID_S: Final = 600.0
_TIDY_S: Final = 3600.0
_MAX_REASON_CHARS: Final = 300

_VERIFIED: Final = reg.WEIGHTS_STATE_VERIFIED


@dataclass
class _Entry:
    """A wanted version and how far it is."""

    wanted: reg.WantedWeights
    status: reg.WeightsStatus
    retry_at_s: float = 0.0
    delay_s: float = _RETRY_FIRST_S


@dataclass
class Prefetcher:
    """Follows what is wanted; :meth:`run` does the work.

    Args:
        node_id: Whose agent it is.
        region: Of its peers.
        model: Where the cache is, and how stores are reached.
        registry: Whom it trusts, and its bounds.
        mtls: What its peers are shown.
        clock: For pauses.
        on_change: Called when a status changed; with False where only progress did.
    """

    node_id: str
    region: str
    model: ModelSettings
    registry: RegistrySettings
    mtls: MutualTlsSettings | None
    clock: Clock
    on_change: Callable[[bool], None]
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _child: tuple[str, FetchChild] | None = None
    _avoided: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = ContentStore(self.model.cache_dir, max_bytes=self.registry.max_bytes)
        self._pins = Pins(self.store, node_id=self.node_id)
        self._kept: Collection[str] = ()

    def statuses(self) -> list[reg.WeightsStatus]:
        """How far each wanted version is, in the order in which they are fetched."""
        return [entry.status for entry in self._entries.values()]

    def folder_of(self, digest: str) -> Path | None:
        """The folder of a wanted version that is here whole; it stays while it is wanted."""
        entry = self._entries.get(digest)
        if entry is None or entry.status.state != _VERIFIED:
            return None
        return self.store.find(digest)

    def keep(self, digests: Collection[str]) -> None:
        """Says what must stay though it be wanted no more: what is being served."""
        self._kept = digests
        self._news.set()

    def want(self, weights: reg.NodeWeights) -> None:
        """Takes over what should be here; what is not named any more may go."""
        entries: dict[str, _Entry] = {}
        for wanted in weights.wanted:
            digest = wanted.model.manifest_sha256
            known = self._entries.get(digest)
            if known is None:
                status = reg.WeightsStatus(
                    manifest_sha256=digest,
                    name=wanted.model.name,
                    version=wanted.model.version,
                    state=reg.WEIGHTS_STATE_WAITING,
                    total_bytes=wanted.model.size_bytes,
                )
                known = _Entry(wanted, status)
            elif known.wanted != wanted:
                # Somebody else has it now, or it is this node's turn: worth another try.
                known.wanted = wanted
                soon_s = self.clock.monotonic() + known.delay_s / 4
                known.retry_at_s = min(known.retry_at_s, soon_s)
            entries[digest] = known
        self._entries = entries
        self._news.set()
        self._tell_child()
        self.on_change(True)

    async def run(self) -> None:
        """Fetches what is wanted and missing; for ever."""
        await self._on_disk(self.store.tidy)
        tidied_s = self.clock.monotonic()
        try:
            while True:
                self._news.clear()
                digest = self._next()
                if digest is None:
                    await self._on_disk(self._hold)
                    await self._pause()
                else:
                    await self._bring(digest)
                if self.clock.monotonic() - tidied_s > _TIDY_S:
                    await self._on_disk(self.store.tidy)
                    tidied_s = self.clock.monotonic()
        finally:
            self._pins.close()

    async def _on_disk(self, work: Callable[[], None]) -> None:
        """Housekeeping: a disk that fails is no reason to stop what serves."""
        try:
            await asyncio.to_thread(work)
        except OSError as error:
            _log.warning("weights cache cannot be kept in order", error=str(error))

    def _hold(self) -> None:
        self._pins.hold({*self._entries, *self._kept})

    def _next(self) -> str | None:
        now_s = self.clock.monotonic()
        for digest, entry in self._entries.items():
            if entry.status.state != _VERIFIED and entry.retry_at_s <= now_s:
                return digest
        return None

    async def _pause(self) -> None:
        """Until something is wanted anew, or is to be tried again."""
        lacking = [e.retry_at_s for e in self._entries.values() if e.status.state != _VERIFIED]
        now_s = self.clock.monotonic()
        wait_s = min([_TIDY_S, *(at_s - now_s for at_s in lacking)])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(wait_s, 0.0)):
                await self._news.wait()

    async def _bring(self, digest: str) -> None:
        """One try at a version."""
        entry = self._entries[digest]
        try:
            await asyncio.to_thread(self._hold)
            if not await asyncio.to_thread(self._is_here, entry.wanted.model):
                await self._fetch(digest, entry)
        except (WeightsError, OSError) as error:
            if self._entries.get(digest) is not entry:
                # It was given up because nobody wants it any more.
                return
            entry.retry_at_s = self.clock.monotonic() + entry.delay_s
            entry.delay_s = min(2 * entry.delay_s, _RETRY_MAX_S)
            self._set(entry, reg.WEIGHTS_STATE_FAILED, reason=str(error))
            _log.error("version not fetched", model=_said(entry), error=str(error))
            return
        entry.status.done_bytes = entry.status.total_bytes
        self._set(entry, _VERIFIED)
        _log.info("version is here", model=_said(entry), digest=digest)

    def _is_here(self, model: reg.RegisteredModel) -> bool:
        """Whether it was fetched before; it must be trusted now.

        Raises:
            WeightsError: It is not.
        """
        folder = self.store.find(model.manifest_sha256)
        if folder is None:
            return False
        check_version(
            model,
            (folder / "manifest.json").read_bytes(),
            keys=read_trusted_keys(self.registry.trusted_keys),
            required=self.registry.require_signature,
        )
        self.store.use(model.manifest_sha256)
        return True

    async def _fetch(self, digest: str, entry: _Entry) -> None:
        """By a child; given up where the version is wanted no more."""
        self._set(entry, reg.WEIGHTS_STATE_FETCHING)
        try:
            async with (
                fetch_child("node_agent.fetch_version", self._request(entry)) as child,
                asyncio.timeout(self.model.fetch_timeout_s),
            ):
                if await self._listen(digest, entry, child):
                    return
        except TimeoutError:
            raise WeightsError(f"was not fetched within {self.model.fetch_timeout_s:g} s") from None
        except ConnectionError:
            pass
        raise WeightsError("the fetching process died; its error is in the log")

    async def _listen(self, digest: str, entry: _Entry, child: FetchChild) -> bool:
        """Whether the child says that all is there; False where it ends without a word."""
        self._child = (digest, child)
        try:
            self._tell_child()
            async for told in child.lines():
                if "folder" in told:
                    return True
                self._take(entry, told)
        finally:
            self._child = None
        return False

    def _take(self, entry: _Entry, told: dict[str, Any]) -> None:
        if "error" in told:
            raise WeightsError(str(told["error"]))
        if "bad_peer" in told:
            address = str(told["bad_peer"])
            self._avoided[address] = self.clock.monotonic() + _AVOID_S
            _log.warning("a peer sent wrong bytes and is avoided", peer=address, model=_said(entry))
            return
        status = entry.status
        for field_name in ("done_bytes", "total_bytes", "origin_bytes", "peer_bytes"):
            setattr(status, field_name, int(told[field_name]))
        waiting = bool(told["waiting"])
        state = reg.WEIGHTS_STATE_WAITING if waiting else reg.WEIGHTS_STATE_FETCHING
        if state != status.state:
            self._set(entry, state)
        else:
            self.on_change(False)

    def _request(self, entry: _Entry) -> dict[str, Any]:
        model, registry = self.model, self.registry
        return {
            **model.model_dump(
                mode="json",
                include={"cache_dir", "store_options", "client_options", "fetch_stall_s"},
            ),
            **registry.model_dump(
                mode="json",
                include={
                    *("trusted_keys", "require_signature", "max_bytes"),
                    *("parallel_files", "max_bytes_per_s"),
                },
            ),
            **self._routes(entry),
            "model": base64.b64encode(entry.wanted.model.SerializeToString()).decode(),
            "region": self.region,
            "mtls": None if self.mtls is None else self.mtls.model_dump(mode="json"),
            "avoided": self._avoided_now(),
        }

    def _avoided_now(self) -> list[str]:
        now_s = self.clock.monotonic()
        self._avoided = {peer: at_s for peer, at_s in self._avoided.items() if at_s > now_s}
        return list(self._avoided)

    def _routes(self, entry: _Entry) -> dict[str, Any]:
        peers = list(entry.wanted.peers) if self.registry.from_peers else []
        # Whoever may ask nobody else has to go to the source.
        alone = not self.registry.from_peers
        return {"peers": peers, "may_use_origin": entry.wanted.may_use_origin or alone}

    def _tell_child(self) -> None:
        if self._child is None:
            return
        digest, child = self._child
        entry = self._entries.get(digest)
        if entry is not None:
            child.tell(self._routes(entry))
        else:
            child.kill()

    def _set(self, entry: _Entry, state: reg.WeightsState.ValueType, *, reason: str = "") -> None:
        entry.status.state, entry.status.reason = state, reason[:_MAX_REASON_CHARS]
        self.on_change(True)


def _said(entry: _Entry) -> str:
    return f"{entry.status.name}@{entry.status.version}"
