"""Watches that lose nothing: each resumes on another stream where the last one ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import structlog
from grpc import aio

from control_plane.errors import (
    CompactedError,
    OutcomeUnknownError,
    StoreDeniedError,
    StoreRestoredError,
    StoreUnavailableError,
)
from control_plane.store.etcd.caller import Caller
from control_plane.store.etcd.convert import prefix_end, to_event
from control_plane.store.etcd.methods import RANGE, WATCH, to_store_error
from control_plane.store.etcdpb import reelmesh_etcd_pb2 as pb
from control_plane.store.port import WatchBatch, WatchEvent

_log = structlog.get_logger("control_plane.store.watch")

_AUTH_TEXTS = ("permission denied", "invalid auth token", "revision of auth store is old")


class _StreamEndedError(Exception):
    """The stream ended in a way that another one can heal."""


async def watch(
    caller: Caller, *, prefix: str, from_revision: int
) -> AsyncGenerator[WatchBatch, None]:
    """See :meth:`control_plane.store.port.Store.watch`."""
    generation = caller.history.generation
    position = _Position(from_revision)
    denials = 0
    while True:
        try:
            async with contextlib.aclosing(
                _stream(caller, prefix, position, generation)
            ) as batches:
                async for batch in batches:
                    denials = 0
                    yield batch
        except StoreDeniedError:
            # R8. etcd 3.5 says "permission denied" of an expired token too, so a fresh
            # one gets a try; a second denial in a row is meant.
            denials += 1
            if denials > 1:
                raise
            caller.forget_token()
            continue
        except (
            StoreUnavailableError,
            OutcomeUnknownError,
            _StreamEndedError,
            aio.AioRpcError,
        ) as error:
            _log.info(
                "watch waits and resumes", prefix=prefix, next=position.next, error=str(error)
            )
        await caller.endpoints.rest()


class _Position:
    """The next revision that has not been delivered."""

    def __init__(self, next_revision: int) -> None:
        self.next = next_revision


async def _stream(
    caller: Caller, prefix: str, position: _Position, generation: int
) -> AsyncGenerator[WatchBatch, None]:
    """Batches from one stream until it ends; moves ``position`` as it goes."""
    # R7. A watch from a revision that a restored store has not reached yet would wait
    # in silence, so a linearizable read checks the history first.
    key = prefix.encode()
    await caller.unary(RANGE, pb.RangeRequest(key=key))
    _check_generation(caller, generation)
    create = pb.WatchCreateRequest(
        key=key,
        range_end=prefix_end(key),
        start_revision=position.next,
        progress_notify=True,
        # A long replay comes in pieces below the message limit.
        fragment=True,
    )
    async with caller.endpoints.connected() as connection:
        metadata = await caller.metadata(connection)
        call: Any = connection.channel.stream_stream(
            WATCH.path,
            request_serializer=WATCH.request.SerializeToString,
            response_deserializer=WATCH.response.FromString,
        )(metadata=(*metadata, ("hasleader", "true")))
        try:
            async with asyncio.timeout(caller.timeout_s):
                await call.write(pb.WatchRequest(create_request=create))
                created = await call.read()
            _check_response(created)
            async with contextlib.aclosing(_batches(call, position)) as batches:
                async for batch in batches:
                    _check_generation(caller, generation)
                    yield batch
        except (TimeoutError, _StreamEndedError) as error:
            await caller.endpoints.failed(connection)
            raise _StreamEndedError(str(error) or "no answer to the creation of a watch") from None
        except aio.AioRpcError as error:
            await caller.endpoints.failed(connection)
            raise to_store_error(error, write=False) from None
        finally:
            call.cancel()


async def _batches(call: Any, position: _Position) -> AsyncGenerator[WatchBatch, None]:
    pending: list[WatchEvent] = []
    while True:
        response = await call.read()
        _check_response(response)
        pending.extend(map(to_event, response.events))
        if response.fragment:
            # The rest of this response is on its way; a revision is never split.
            continue
        if pending:
            # R2. The header may be ahead of the events that were delivered.
            revision = pending[-1].kv.mod_revision
            # A replay may begin with what an earlier stream delivered already.
            events = tuple(e for e in pending if e.kv.mod_revision >= position.next)
        elif not response.created:
            revision, events = response.header.revision, ()
        else:
            continue
        pending = []
        if revision >= position.next:
            position.next = revision + 1
            yield WatchBatch(events, revision)


def _check_response(response: pb.WatchResponse | Any) -> None:
    if response is aio.EOF:
        raise _StreamEndedError("the server ended the stream")
    if not response.canceled:
        return
    if response.compact_revision:
        raise CompactedError(response.compact_revision)
    if any(text in response.cancel_reason for text in _AUTH_TEXTS):
        raise StoreDeniedError(response.cancel_reason)
    raise _StreamEndedError(f"the server cancelled the watch: {response.cancel_reason}")


def _check_generation(caller: Caller, generation: int) -> None:
    if caller.history.generation != generation:
        raise StoreRestoredError("the store was restored: relist")
