"""etcd's methods by path, and what its error texts mean (R1)."""

from __future__ import annotations

import dataclasses
import re
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import Message
from grpc import aio

from control_plane.errors import (
    CompactedError,
    LeaseNotFoundError,
    OutcomeUnknownError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
    StoreUnavailableError,
)
from control_plane.store.etcdpb import reelmesh_etcd_pb2 as pb

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


@dataclasses.dataclass(frozen=True, slots=True)
class Method(Generic[Req, Resp]):
    """One of etcd's calls."""

    path: str
    request: type[Req]
    response: type[Resp]
    # A write that was sent must not be sent again (R4).
    write: bool = False
    # Its header follows the store's history and can only rise (R7).
    linearizable: bool = False


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse, linearizable=True)
PUT = Method("/etcdserverpb.KV/Put", pb.PutRequest, pb.PutResponse, write=True, linearizable=True)
DELETE_RANGE = Method(
    "/etcdserverpb.KV/DeleteRange",
    pb.DeleteRangeRequest,
    pb.DeleteRangeResponse,
    write=True,
    linearizable=True,
)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse, write=True, linearizable=True)
COMPACT = Method("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)
# Granting twice leaves a lease that nobody renews and that runs out: harmless.
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
LEASE_REVOKE = Method(
    "/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse
)
LEASE_KEEP_ALIVE = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse
)
LEASE_TIME_TO_LIVE = Method(
    "/etcdserverpb.Lease/LeaseTimeToLive", pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse
)
AUTHENTICATE = Method(
    "/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse
)

# The server answered: it did not run the request, and no doubt about it.
_DEFINITE = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.ALREADY_EXISTS,
}
_FULL_TEXTS = ("etcdserver: mvcc: database space exceeded", "etcdserver: too many requests")
_EXPIRED_TOKEN_TEXTS = ("invalid auth token", "revision of auth store is old")


def token_expired(text: str) -> bool:
    """Whether etcd's error says that a fresh token would help (R8)."""
    return any(part in text for part in _EXPIRED_TOKEN_TEXTS)


def is_definite(error: aio.AioRpcError) -> bool:
    """Whether the server itself refused, so that the request surely was not run."""
    return error.code() in _DEFINITE or _says_full(error)


def _says_full(error: aio.AioRpcError) -> bool:
    # RESOURCE_EXHAUSTED is also what gRPC says of an answer above the size limit.
    return (error.details() or "") in _FULL_TEXTS


def to_store_error(error: aio.AioRpcError, *, write: bool) -> StoreError:
    """What etcd answered, as one of our errors."""
    code, text = error.code(), error.details() or ""
    if not is_definite(error):
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and not write:
            return StoreRefusedError(f"etcd's answer is too large: {text}")
        kind = OutcomeUnknownError if write else StoreUnavailableError
        return kind(f"{code.name}: {text}")
    if _says_full(error):
        return StoreFullError(text)
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED) or (
        "authentication failed" in text or "user name is empty" in text or token_expired(text)
    ):
        return StoreDeniedError(text)
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in text:
        return CompactedError(_number_in(text))
    if code is grpc.StatusCode.NOT_FOUND and "lease not found" in text:
        return LeaseNotFoundError(0)
    return StoreRefusedError(f"{code.name}: {text}")


def _number_in(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found.group()) if found else 0
