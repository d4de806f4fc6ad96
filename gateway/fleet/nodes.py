"""The nodes of the region as this gateway knows them: the last word and its own eyes.

Which nodes exist comes from the control plane; whether one is routable comes from the
gateway's own stream to it, unless the control plane knows better
(:mod:`gateway.fleet.candidates`). With the control plane gone routing goes on by the last
fleet and by the streams. A node that the control plane no longer
lists is dropped only when its own stream is broken too, so that a mass expiry of leases
evicts nobody who still answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import structlog
from reelmesh.v1 import control_plane_service_pb2, model_pb2

from gateway.fleet.candidates import Candidates, Sight, candidates
from gateway.fleet.node_link import NodeLink
from gateway.fleet.placement import ModelKey, NodeView
from gateway.validation.request import Catalog
from reelkit.clock import Clock

_log = structlog.get_logger("gateway.fleet")

# What the control plane said of nodes holds for so long after its stream broke: another
# replica needs no more to say it again.
WORD_HOLDS_S: Final = 10.0


class Fleet:
    """The region's nodes and the models they serve.

    Args:
        open_link: Makes the link to a node from its record; the link's watch is started
            by its maker.
        clock: For rests, and for how old the control plane's word is.
        default_model: Name that an empty model means; "" lets the most served one be it.
    """

    def __init__(
        self,
        *,
        open_link: Callable[[control_plane_service_pb2.NodeRecord], NodeLink],
        clock: Clock,
        default_model: str = "",
    ) -> None:
        self._open_link = open_link
        self._clock = clock
        self._default_model = default_model
        self._links: dict[str, NodeLink] = {}
        self._unlisted: set[str] = set()
        self._models: dict[ModelKey, model_pb2.ModelInfo] = {}
        self._catalog: Catalog | None = None
        self._sights: dict[str, Sight] = {}
        self._candidates: Candidates | None = None
        self._own_eyes = False
        self._word_until_s: float | None = None
        self._word_holds = True
        self.heard = False
        """Whether a control plane has ever told what the fleet is."""
        self.on_change: Callable[[], None] = lambda: None
        """Called after anything that may let a job be placed."""

    def _changed(self) -> None:
        """Everything may be different."""
        self._catalog = None
        self._sights.clear()
        self._candidates = None
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

    def hear(self) -> None:
        """A control plane's stream is open: its word holds."""
        if self._word_until_s is not None:
            self._word_until_s = None
            self._changed()

    def miss(self) -> None:
        """That stream broke, or could not be opened again: call it each time."""
        if self._word_until_s is None:
            self._word_until_s = self._clock.monotonic() + WORD_HOLDS_S
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
            return
        # A status comes with every step of every run: what it seldom changes is kept.
        if self._sights.get(node_id) != self._see(link):
            self._sights.pop(node_id, None)
            self._candidates = None
        self._catalog = None
        self.on_change()

    # --- what others ask ---

    @property
    def links(self) -> Iterable[NodeLink]:
        """Every link, routable or not."""
        return self._links.values()

    @property
    def sighted(self) -> bool:
        """Whether it is known of every node what it runs, or that it does not answer."""
        return self.heard and all(link.seen for link in self._links.values())

    def link(self, node_id: str) -> NodeLink | None:
        """The link to a node that is still known."""
        return self._links.get(node_id)

    def views(self, now_s: float) -> list[NodeView]:
        """What placement may know now."""
        found = self._judge(now_s)
        return [
            link.view(now_s, routable=node_id in found.routable, on_trial=node_id in found.on_trial)
            for node_id, link in self._links.items()
        ]

    def view(self, node_id: str, now_s: float) -> NodeView | None:
        """What placement may know now of a node that is still known."""
        link = self._links.get(node_id)
        if link is None:
            return None
        found = self._judge(now_s)
        return link.view(
            now_s, routable=node_id in found.routable, on_trial=node_id in found.on_trial
        )

    def _judge(self, now_s: float) -> Candidates:
        """Who may get work; figured anew after a change and when a time has come."""
        word_holds = self._word_until_s is None or now_s < self._word_until_s
        if word_holds != self._word_holds:
            self._word_holds = word_holds
            self._sights.clear()
            self._candidates = None
        found = self._candidates
        if found is not None and now_s < found.until_s:
            return found
        for node_id, link in self._links.items():
            if node_id not in self._sights:
                self._sights[node_id] = self._see(link)
        self._candidates = found = candidates(self._sights.values(), now_s)
        if found.own_eyes != self._own_eyes:
            self._own_eyes = found.own_eyes
            _log.warning(
                "too many nodes are called unfit to be believed: going by what is seen here"
                if found.own_eyes
                else "what the control plane says of nodes is believed again"
            )
        return found

    def _see(self, link: NodeLink) -> Sight:
        return link.sight(listed=link.node_id not in self._unlisted, word_holds=self._word_holds)

    def _open_links(self) -> list[NodeLink]:
        """Those that may get work."""
        routable = self._judge(self._clock.monotonic()).routable
        return [link for node_id, link in self._links.items() if node_id in routable]

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
            known |= link.models
        for link in self._open_links():
            for key in link.models:
                ready[key] = ready.get(key, 0) + link.ready_workers
        keys = sorted(known & self._models.keys(), reverse=True)
        keys.sort(key=lambda key: -ready.get(key, 0))
        models = tuple(self._models[key] for key in keys)
        default = self._default_model or (models[0].name if models else "")
        return Catalog(models=models, default_model=default)

    def ready_models(self) -> tuple[list[model_pb2.ModelInfo], str]:
        """Every version that a ready node serves, and the default model's name."""
        ready = {key for link in self._open_links() for key in link.models}
        catalog = self.catalog()
        return [m for m in catalog.models if (m.name, m.version) in ready], catalog.default_model

    @property
    def ready_workers(self) -> int:
        """Workers of all nodes that may get work."""
        return sum(link.ready_workers for link in self._open_links())
