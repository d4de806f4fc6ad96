"""The nodes of the region as this gateway knows them: the last word and its own eyes.

Which nodes exist comes from the control plane; whether one is routable comes from the
gateway's own stream to it. With the control plane gone nothing here changes: routing
goes on by the last fleet and by the streams. A node that the control plane no longer
lists is dropped only when its own stream is broken too, so that a mass expiry of leases
evicts nobody who still answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from reelmesh.v1 import control_plane_service_pb2, model_pb2

from gateway.fleet.node_link import NodeLink
from gateway.fleet.placement import ModelKey, NodeView
from gateway.validation.request import Catalog


class Fleet:
    """The region's nodes and the models they serve.

    Args:
        open_link: Makes the link to a node from its record; the link's watch is started
            by its maker.
        default_model: Name that an empty model means; "" lets the most served one be it.
    """

    def __init__(
        self,
        *,
        open_link: Callable[[control_plane_service_pb2.NodeRecord], NodeLink],
        default_model: str = "",
    ) -> None:
        self._open_link = open_link
        self._default_model = default_model
        self._links: dict[str, NodeLink] = {}
        self._unlisted: set[str] = set()
        self._models: dict[ModelKey, model_pb2.ModelInfo] = {}
        self._catalog: Catalog | None = None
        self.heard = False
        """Whether a control plane has ever told what the fleet is."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after anything that may let a job be placed."""

    def _changed(self) -> None:
        self._catalog = None
        self.on_change()

    # --- what the control plane says ---

    def replace(self, snapshot: control_plane_service_pb2.FleetSnapshot) -> None:
        """Takes a snapshot: nodes that are not in it are no longer listed."""
        self.heard = True
        listed = {record.node_id for record in snapshot.nodes}
        self._models = {(info.name, info.version): info for info in snapshot.models}
        for record in snapshot.nodes:
            self._upsert(record)
        for node_id in set(self._links) - listed:
            self._unlist(node_id)
        self._changed()

    def apply(self, delta: control_plane_service_pb2.FleetDelta) -> None:
        """Takes a change."""
        for info in delta.upserted_models:
            self._models[info.name, info.version] = info
        for record in delta.upserted_nodes:
            self._upsert(record)
        for node_id in delta.removed_node_ids:
            self._unlist(node_id)
        self._changed()

    def _upsert(self, record: control_plane_service_pb2.NodeRecord) -> None:
        self._unlisted.discard(record.node_id)
        link = self._links.get(record.node_id)
        if link is not None and link.record.address != record.address:
            self._drop(record.node_id)
            link = None
        if link is None:
            self._links[record.node_id] = self._open_link(record)
        else:
            link.record = record

    def _unlist(self, node_id: str) -> None:
        link = self._links.get(node_id)
        if link is None:
            return
        if link.connected:
            self._unlisted.add(node_id)
        else:
            self._drop(node_id)

    def _drop(self, node_id: str) -> None:
        self._unlisted.discard(node_id)
        self._links.pop(node_id).close()

    # --- what the links see ---

    def link_changed(self, link: NodeLink) -> None:
        """A link has a new status, came up or broke."""
        node_id = link.record.node_id
        if self._links.get(node_id) is not link:
            return
        if not link.connected and node_id in self._unlisted:
            self._drop(node_id)
        self._changed()

    # --- what others ask ---

    @property
    def links(self) -> Iterable[NodeLink]:
        """Every link, routable or not."""
        return self._links.values()

    def link(self, node_id: str) -> NodeLink | None:
        """The link to a node that is still known."""
        return self._links.get(node_id)

    def views(self, now_s: float) -> list[NodeView]:
        """What placement may know now."""
        return [link.view(now_s) for link in self._links.values()]

    def catalog(self) -> Catalog:
        """Every model that a listed node has, whether or not one is ready.

        Among the versions of one name the one that most ready workers serve comes
        first, then the greatest version.
        """
        if self._catalog is None:
            self._catalog = self._make_catalog()
        return self._catalog

    def _make_catalog(self) -> Catalog:
        ready: dict[ModelKey, int] = {}
        known: set[ModelKey] = set()
        for link in self._links.values():
            for key in link.models:
                known.add(key)
                ready[key] = ready.get(key, 0) + link.ready_workers
        keys = sorted(known & self._models.keys(), reverse=True)
        keys.sort(key=lambda key: -ready.get(key, 0))
        models = tuple(self._models[key] for key in keys)
        default = self._default_model or (models[0].name if models else "")
        return Catalog(models=models, default_model=default)

    def ready_models(self) -> tuple[list[model_pb2.ModelInfo], str]:
        """Every version that a ready node serves, and the default model's name."""
        ready = {key for link in self._links.values() if link.ready for key in link.models}
        catalog = self.catalog()
        return [m for m in catalog.models if (m.name, m.version) in ready], catalog.default_model

    @property
    def ready_workers(self) -> int:
        """Workers of all ready nodes."""
        return sum(link.ready_workers for link in self._links.values())
