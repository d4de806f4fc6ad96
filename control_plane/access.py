"""Who may call the internal listener: the region's nodes and gateways, each for itself."""

from __future__ import annotations

from typing import Final

from reelmesh.v1 import (
    batch_record_service_pb2,
    control_plane_service_pb2,
    job_service_pb2,
    quota_service_pb2,
)

from reelkit.mtls.access import COMMON, AccessTable, Rule, service_rules
from reelkit.mtls.identity import Role

_GATEWAY = Rule(frozenset({Role.GATEWAY}))


def _gateway(claim: str) -> Rule:
    return Rule(frozenset({Role.GATEWAY}), claim=claim)


ACCESS: Final[AccessTable] = {
    **COMMON,
    **service_rules(
        control_plane_service_pb2.DESCRIPTOR.services_by_name["ControlPlaneService"].full_name,
        {
            "Attach": Rule(frozenset({Role.NODE}), claim="hello.node_id"),
            "AttachGateway": _gateway("hello.gateway_id"),
            "WatchFleet": _GATEWAY,
            "WatchRegions": _GATEWAY,
        },
    ),
    **service_rules(
        job_service_pb2.DESCRIPTOR.services_by_name["JobService"].full_name,
        {
            # A record is its owner's; who has lost it may read it and nothing else.
            "CreateJob": _gateway("job.owner_gateway"),
            "UpdateJob": _gateway("job.owner_gateway"),
            "ClaimJob": _gateway("gateway_id"),
            "WatchOrphans": _gateway("gateway_id"),
            "GetJob": _GATEWAY,
            "FindJobByKey": _GATEWAY,
            "AssignKey": _GATEWAY,
            "SupersedeJob": _GATEWAY,
            # Of what has ended, or expired.
            "DeleteJob": _GATEWAY,
            "ListJobs": _GATEWAY,
            "ListExpiredJobs": _GATEWAY,
            "KnownJobs": _GATEWAY,
            "ListOwned": _gateway("gateway_id"),
            "ClaimWebhook": _gateway("gateway_id"),
            "FinishWebhook": _gateway("gateway_id"),
        },
    ),
    **service_rules(
        quota_service_pb2.DESCRIPTOR.services_by_name["QuotaService"].full_name,
        {
            # A gateway that could ask in another's name would take its part away.
            "LeaseShares": _gateway("gateway_id"),
            "ReleaseShares": _gateway("gateway_id"),
        },
    ),
    **service_rules(
        batch_record_service_pb2.DESCRIPTOR.services_by_name["BatchRecordService"].full_name,
        {
            "CreateBatchRecord": _gateway("record.owner_gateway"),
            "UpdateBatchRecord": _gateway("record.owner_gateway"),
            "ClaimBatchRecord": _gateway("gateway_id"),
            "GetBatchRecord": _GATEWAY,
            "FindBatchRecordByKey": _GATEWAY,
            "ListBatchRecords": _GATEWAY,
            # Whichever gateway a client asks.
            "CancelBatchRecord": _GATEWAY,
            # Of what has ended, or expired.
            "DeleteBatchRecord": _GATEWAY,
            "ListExpiredBatchRecords": _GATEWAY,
            "PurgeBatchRecord": _GATEWAY,
            "KnownBatchRecords": _GATEWAY,
        },
    ),
}
