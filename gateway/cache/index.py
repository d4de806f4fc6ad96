"""Finished videos that may answer requests: which there are, and which are worth knowing.

It holds no bytes. An entry names an artifact, which is some job's own and goes with that one's
deletion or time; whoever finds it gone says so. Lost with the gateway, which costs nothing but
time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from reelmesh.v1 import job_service_pb2, tenant_pb2, video_pb2

from gateway.cache.keys import video_key
from gateway.cache.permission import may_use, shelf_of, shelves
from gateway.cache.worth import Worth
from gateway.tenants import Policies

Place = tuple[str, str]
"""A shelf and a key."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A video that lies in the artifact store."""

    shelf: str
    key: str
    """Of requests with its seed."""
    any_key: str
    """Of those without one."""
    tenant: str
    """Whose job the artifact is."""
    artifact_key: str
    spec: video_pb2.ResolvedSpec
    result: video_pb2.CompletedEvent

    @property
    def name(self) -> str:
        """No two entries have the same."""
        return f"{self.shelf}\0{self.key}"


class Index:
    """Finished videos by what was asked for.

    Args:
        policies: Who may use whose.
        max_bytes: Of the artifacts that are named.
        max_entries: How many of those.
        on_evict: Told how many gave way to others.
    """

    def __init__(
        self,
        *,
        policies: Policies,
        max_bytes: int,
        max_entries: int,
        on_evict: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._policies = policies
        self._worth = Worth(max_bytes=max_bytes, max_entries=max_entries)
        self._on_evict = on_evict
        self._entries: dict[str, Finished] = {}
        # The newest last.
        self._by_any: dict[Place, dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes_held(self) -> int:
        """Bytes of the artifacts that are named."""
        return self._worth.bytes_held

    def add(self, record: job_service_pb2.JobRecord) -> None:
        """Takes a job's finished video, in place of an older one of the same."""
        tenant = record.tenant
        shelf = shelf_of(tenant, self._policies.of(tenant))
        if shelf is None or not record.execution_key:
            return
        spec = record.video.spec
        self._put(
            Finished(
                shelf=shelf,
                key=video_key(spec, seeded=True),
                any_key=video_key(spec, seeded=False),
                tenant=tenant,
                artifact_key=record.artifact_key,
                spec=spec,
                result=record.video.result,
            )
        )

    def _put(self, entry: Finished) -> None:
        name = entry.name
        if name in self._entries:
            self._forget(name)
            self._remember(entry)
            self._worth.touch(name)
            return
        self._remember(entry)
        lost = self._worth.offer(name, entry.result.size_bytes)
        for each in lost:
            self._forget(each)
        evicted = len(lost) - (name in lost)
        if evicted:
            self._on_evict(evicted)

    def _remember(self, entry: Finished) -> None:
        self._entries[entry.name] = entry
        self._by_any.setdefault((entry.shelf, entry.any_key), {})[entry.name] = None

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name)
        place = (entry.shelf, entry.any_key)
        self._by_any[place].pop(name)
        if not self._by_any[place]:
            del self._by_any[place]

    def find(self, tenant: str, execution_key: str) -> Finished | None:
        """A video that may answer a tenant's request, the newest where any will do."""
        policy = self._policies.of(tenant)
        for shelf in shelves(tenant, policy):
            entry = self._at(shelf, execution_key)
            if entry is not None and self._may_use(tenant, policy, entry):
                return entry
        return None

    def _at(self, shelf: str, key: str) -> Finished | None:
        entry = self._entries.get(f"{shelf}\0{key}")
        if entry is not None:
            return entry
        newest = next(reversed(self._by_any.get((shelf, key), {})), None)
        return None if newest is None else self._entries[newest]

    def _may_use(self, tenant: str, policy: tenant_pb2.TenantPolicy, entry: Finished) -> bool:
        return may_use(tenant, policy, entry.tenant, self._policies.of(entry.tenant))

    def used(self, entry: Finished, record: job_service_pb2.JobRecord) -> None:
        """A job was answered with it, and has an artifact of its own, which lasts longer."""
        if self._entries.get(entry.name) is entry:
            self._entries[entry.name] = replace(
                entry, tenant=record.tenant, artifact_key=record.artifact_key
            )
            self._worth.touch(entry.name)

    def drop(self, entry: Finished) -> None:
        """Its artifact is gone, unless another has taken its place."""
        if self._entries.get(entry.name) is entry:
            self._forget(entry.name)
            self._worth.drop(entry.name)

    def purge(self, model: str, version: str) -> int:
        """Forgets everything that a version drew, and says how much; a rollback's."""
        bad = [
            entry
            for entry in self._entries.values()
            if (entry.spec.model, entry.spec.model_version) == (model, version)
        ]
        for entry in bad:
            self.drop(entry)
        return len(bad)
