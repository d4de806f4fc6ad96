"""What a region says of itself to the others. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2, region_pb2


def summarize(
    region: str,
    *,
    nodes: Iterable[cp.NodeRecord],
    gateways: Iterable[cp.GatewayHello],
    fleet_version: int,
) -> region_pb2.RegionSummary:
    """The summary of a fleet; equal fleets give equal ones, but for the version.

    ``changed_at`` is left to whoever publishes it.
    """
    known = list(nodes)
    ready = [node for node in known if node.state == node_pb2.NODE_STATE_READY]
    versions = {
        (model.name, model.version, model.manifest_sha256): model
        for node in ready
        for model in node.models
    }
    return region_pb2.RegionSummary(
        region=region,
        ready_nodes=len(ready),
        ready_workers=sum(node.worker_count for node in ready),
        known_nodes=len(known),
        models=[versions[key] for key in sorted(versions)],
        gateways=[
            region_pb2.GatewayAddress(
                gateway_id=gateway.gateway_id,
                peer_address=gateway.peer_address,
                grpc_address=gateway.grpc_address,
                http_address=gateway.http_address,
            )
            for gateway in sorted(gateways, key=lambda each: each.gateway_id)
        ],
        fleet_version=fleet_version,
    )


def says_the_same(old: region_pb2.RegionSummary, new: region_pb2.RegionSummary) -> bool:
    """Whether nothing changed but the figures that tell when it was made."""
    return _timeless(old) == _timeless(new)


def _timeless(summary: region_pb2.RegionSummary) -> region_pb2.RegionSummary:
    compared = region_pb2.RegionSummary()
    compared.CopyFrom(summary)
    compared.ClearField("changed_at")
    compared.fleet_version = 0
    return compared


def newest(summaries: Iterable[region_pb2.RegionSummary]) -> region_pb2.RegionSummary | None:
    """The one to believe of those that a region's replicas published."""
    return max(
        summaries,
        key=lambda each: (each.fleet_version, each.changed_at.ToNanoseconds()),
        default=None,
    )
