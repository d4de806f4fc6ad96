"""OperatorService: what there is, how it came to be so, and what operators want of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.desired import DesiredStates
from control_plane.errors import NotFoundError, NotReadyError, StoreError
from control_plane.keys import Keys
from control_plane.operator.access import Operator
from control_plane.operator.models import ModelMethods, ModelRegistry
from control_plane.operator.regions import RegionBook, RegionMethods
from control_plane.operator.revocations import RevocationBook, RevocationMethods
from control_plane.operator.status import StatusAsker
from control_plane.operator.tenants import TenantBook, TenantMethods, UsageReader
from control_plane.records import decoded_node
from control_plane.store.mirror import list_all
from control_plane.store.port import Delete, Op, Put, Store
from control_plane.store.writer import FencedWriter
from control_plane.validation import check_id

_log = structlog.get_logger("control_plane.operator")


class OperatorService(ModelMethods, RegionMethods, RevocationMethods, TenantMethods):
    """The methods, behind :func:`~control_plane.operator.gate.guarded_service`.

    Args:
        store: The regional one.
        writer: On it.
        keys: Of the region.
        region: Its name.
        nodes: The fleet's records as this replica sees them.
        gateways: Likewise the live gateways.
        desired: What operators want of nodes.
        ready: Whether this replica has read the store.
        asker: Asks nodes for their statuses.
        revocations: Of tokens.
        tenants: Their policies.
        usage: What they have here.
        registry: Of models.
        regions: None where there is no global store.
    """

    def __init__(
        self,
        *,
        store: Store,
        writer: FencedWriter,
        keys: Keys,
        region: str,
        nodes: Callable[[], Iterable[cp.NodeRecord]],
        gateways: Callable[[], Iterable[cp.GatewayHello]],
        desired: DesiredStates,
        ready: Callable[[], bool],
        asker: StatusAsker,
        revocations: RevocationBook,
        tenants: TenantBook,
        usage: UsageReader,
        registry: ModelRegistry,
        regions: RegionBook | None = None,
    ) -> None:
        ModelMethods.__init__(self, registry)
        RegionMethods.__init__(self, regions)
        RevocationMethods.__init__(self, revocations)
        TenantMethods.__init__(self, tenants, usage)
        self._store = store
        self._writer = writer
        self._keys = keys
        self._region = region
        self._nodes = nodes
        self._gateways = gateways
        self._desired = desired
        self._ready = ready
        self._asker = asker

    async def list_nodes(
        self, request: op.ListNodesRequest, _operator: Operator
    ) -> op.ListNodesResponse:
        """The fleet, and the nodes that are lost; while the store is away, the fleet alone."""
        records = await self._records()
        statuses: dict[str, node_pb2.NodeStatus] = {}
        if request.with_status:
            statuses = await self._asker.statuses(
                {record.node_id: record.address for record in records if record.address}
            )
        views = [self._view(record, statuses.get(record.node_id)) for record in records]
        return op.ListNodesResponse(nodes=sorted(views, key=lambda view: view.node_id))

    async def list_gateways(
        self, _request: op.ListGatewaysRequest, _operator: Operator
    ) -> op.ListGatewaysResponse:
        """The gateways that are attached."""
        self._check_ready()
        response = op.ListGatewaysResponse()
        for gateway in sorted(self._gateways(), key=lambda each: each.gateway_id):
            response.gateways.add(
                gateway_id=gateway.gateway_id,
                region=gateway.region,
                grpc_address=gateway.grpc_address,
                http_address=gateway.http_address,
                peer_address=gateway.peer_address,
            )
        return response

    async def list_node_events(
        self, request: op.ListNodeEventsRequest, _operator: Operator
    ) -> op.ListNodeEventsResponse:
        """How the node's state changed, the newest last; of nodes gone for a day nothing."""
        check_id("node_id", request.node_id)
        found = await self._store.get(self._keys.history(request.node_id))
        if found is None:
            await self._known(request.node_id)
            return op.ListNodeEventsResponse()
        history = op.NodeHistory.FromString(found.value)
        return op.ListNodeEventsResponse(events=history.events)

    async def set_node_policy(
        self, request: op.SetNodePolicyRequest, operator: Operator
    ) -> op.SetNodePolicyResponse:
        """Writes what is wanted of the node, which hears it through Attach."""
        check_id("node_id", request.node_id)
        record = await self._known(request.node_id)
        wanted = cp.DesiredNodeState(cordoned=request.cordoned, draining=request.draining)
        key = self._keys.desired(request.node_id)
        write: Op = Delete(key)
        if wanted.cordoned or wanted.draining:
            write = Put(key, wanted.SerializeToString(deterministic=True))
        await self._writer.txn([], [write])
        _log.info(
            "node policy",
            node=request.node_id,
            cordoned=wanted.cordoned,
            draining=wanted.draining,
            operator=operator.subject,
        )
        view = self._view(record, None)
        view.cordoned, view.draining = wanted.cordoned, wanted.draining
        return op.SetNodePolicyResponse(node=view)

    async def _records(self) -> list[cp.NodeRecord]:
        """The fleet's records, and those that are left of nodes that are gone."""
        self._check_ready()
        records = {record.node_id: record for record in self._nodes()}
        try:
            departed, _ = await list_all(self._store, self._keys.departed_nodes)
        except StoreError as error:
            _log.info("lost nodes are not listed: the store is away", error=str(error))
            departed = []
        for kv in departed:
            record = decoded_node(kv.value)
            # One that said goodbye is not missed.
            if record is None or record.state == node_pb2.NODE_STATE_DRAINING:
                continue
            if record.node_id not in records:
                record.region = record.region or self._region
                records[record.node_id] = record
        return list(records.values())

    def _check_ready(self) -> None:
        if not self._ready():
            raise NotReadyError("this replica has not read the fleet yet; try again")

    async def _known(self, node_id: str) -> cp.NodeRecord:
        """The node's record, be it in the fleet or gone.

        Raises:
            NotFoundError: Neither.
        """
        for record in await self._records():
            if record.node_id == node_id:
                return record
        raise NotFoundError(f"there is no node {node_id!r} in region {self._region}")

    def _view(self, record: cp.NodeRecord, status: node_pb2.NodeStatus | None) -> op.NodeView:
        desired = self._desired.of(record.node_id)
        return op.NodeView(
            node_id=record.node_id,
            region=record.region,
            address=record.address,
            state=record.state,
            reason=record.reason,
            models=record.models,
            worker_count=record.worker_count,
            pid=record.pid,
            state_since=record.state_since if record.HasField("state_since") else None,
            cordoned=desired.cordoned,
            draining=desired.draining,
            status=status,
        )
