"""Who may call what: one table, and what is not in it is refused.

The HTTP middleware and the gRPC handlers both ask :func:`required_scope`. A route or
an RPC that is missing here stops the gateway from starting
(:class:`UnlistedEndpoint`), so a new one cannot be opened by forgetting it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from gateway.application import Caller
from gateway.errors import PermissionDenied


class Scope(StrEnum):
    """What a token may be good for."""

    VIDEO_GENERATE = "video:generate"
    VIDEO_READ = "video:read"
    FLEET_READ = "fleet:read"


class UnlistedEndpoint(LookupError):  # noqa: N818 - a mistake in the program, not an answer
    """An endpoint that the access table does not name."""


PUBLIC: Final = None
"""No token is asked for."""

# HTTP endpoints are "METHOD template", RPCs are "/package.Service/Method".
ACCESS: Mapping[str, Scope | None] = MappingProxyType(
    {
        "POST /v1/videos": Scope.VIDEO_GENERATE,
        "GET /v1/videos": Scope.VIDEO_READ,
        "GET /v1/videos/{video_id}": Scope.VIDEO_READ,
        "DELETE /v1/videos/{video_id}": Scope.VIDEO_GENERATE,
        "GET /v1/videos/{video_id}/content": Scope.VIDEO_READ,
        "GET /v1/videos/{video_id}/events": Scope.VIDEO_READ,
        "POST /v1/videos/{video_id}/cancel": Scope.VIDEO_GENERATE,
        "POST /v1/videos/{video_id}/remix": Scope.VIDEO_GENERATE,
        "POST /v1/batches": Scope.VIDEO_GENERATE,
        "GET /v1/batches": Scope.VIDEO_READ,
        "GET /v1/batches/{batch_id}": Scope.VIDEO_READ,
        "DELETE /v1/batches/{batch_id}": Scope.VIDEO_GENERATE,
        "POST /v1/batches/{batch_id}/cancel": Scope.VIDEO_GENERATE,
        "GET /v1/batches/{batch_id}/items": Scope.VIDEO_READ,
        "GET /v1/batches/{batch_id}/results": Scope.VIDEO_READ,
        "GET /v1/models": Scope.FLEET_READ,
        "GET /v1/models/{name}": Scope.FLEET_READ,
        "GET /v1/regions": Scope.FLEET_READ,
        "GET /healthz": PUBLIC,
        "GET /readyz": PUBLIC,
        "GET /metrics": PUBLIC,
        "GET /openapi.json": PUBLIC,
        "GET /docs": PUBLIC,
        "/reelmesh.v1.VideoService/GenerateVideo": Scope.VIDEO_GENERATE,
        "/reelmesh.v1.VideoService/CreateVideo": Scope.VIDEO_GENERATE,
        "/reelmesh.v1.VideoService/GetVideo": Scope.VIDEO_READ,
        "/reelmesh.v1.VideoService/WatchVideo": Scope.VIDEO_READ,
        "/reelmesh.v1.VideoService/ListVideos": Scope.VIDEO_READ,
        "/reelmesh.v1.VideoService/CancelVideo": Scope.VIDEO_GENERATE,
        "/reelmesh.v1.VideoService/DeleteVideo": Scope.VIDEO_GENERATE,
        "/reelmesh.v1.VideoService/DownloadVideo": Scope.VIDEO_READ,
        "/reelmesh.v1.BatchService/SubmitBatch": Scope.VIDEO_GENERATE,
        "/reelmesh.v1.BatchService/GetBatch": Scope.VIDEO_READ,
        "/reelmesh.v1.BatchService/ListBatches": Scope.VIDEO_READ,
        "/reelmesh.v1.BatchService/ListBatchItems": Scope.VIDEO_READ,
        "/reelmesh.v1.BatchService/CancelBatch": Scope.VIDEO_GENERATE,
        "/reelmesh.v1.BatchService/DeleteBatch": Scope.VIDEO_GENERATE,
        "/reelmesh.v1.BatchService/DownloadBatch": Scope.VIDEO_READ,
        "/reelmesh.v1.FleetService/ListRegions": Scope.FLEET_READ,
        "/reelmesh.v1.FleetService/ListModels": Scope.FLEET_READ,
        "/grpc.health.v1.Health/Check": PUBLIC,
        "/grpc.health.v1.Health/List": PUBLIC,
        "/grpc.health.v1.Health/Watch": PUBLIC,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": PUBLIC,
    }
)


def http_endpoint(method: str, template: str) -> str:
    """The table's name of a route; a HEAD is let in where its GET is."""
    return f"{'GET' if method == 'HEAD' else method} {template}"


def required_scope(endpoint: str) -> Scope | None:
    """The scope that an endpoint asks for, or :data:`PUBLIC`.

    Raises:
        UnlistedEndpoint: The table does not name it: nobody may call it.
    """
    try:
        return ACCESS[endpoint]
    except KeyError:
        raise UnlistedEndpoint(f"{endpoint} is not in the access table") from None


def require(caller: Caller, scope: Scope) -> None:
    """Lets a caller with the scope pass.

    Raises:
        PermissionDenied: Names the scope that the token lacks.
    """
    if scope.value not in caller.scopes:
        raise PermissionDenied(f"the token lacks the scope {scope.value}; ask for one that has it")
