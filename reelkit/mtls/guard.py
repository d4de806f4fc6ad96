"""The interceptor that holds a server to its access table.

On a listener without certificates, which is one of this host, every caller is believed; but
what the table lacks is served nowhere.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import structlog
from grpc import aio

from reelkit.clock import Clock
from reelkit.mtls.access import AccessTable, Rule, false_claim, refusal
from reelkit.mtls.identity import Identity, IdentityError, identity_of

_log = structlog.get_logger("reelkit.mtls")

# Refusals are logged one by one up to this many in the time, and counted beyond.
LOGGED_AT_ONCE: Final = 10
LOG_WINDOW_S: Final = 10.0

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


def peer_identity(context: Any) -> Identity:
    """Who calls, by the certificate of the connection.

    Raises:
        IdentityError: There is none, or it names nobody of this mesh.
    """
    uris = (context.auth_context() or {}).get("peer_uri", ())
    return identity_of(uri.decode("utf-8", "replace") for uri in uris)


class Guard(aio.ServerInterceptor):
    """Lets through what the table allows.

    Args:
        table: Of the listener.
        region: Of this part.
        mutual: Whether callers show certificates.
        clock: For the bound on what is logged.
    """

    def __init__(self, table: AccessTable, *, region: str, mutual: bool, clock: Clock) -> None:
        self._table = table
        self._region = region
        self._mutual = mutual
        self._log = _BoundedLog(clock)
        self._made: dict[str, tuple[_Handler, _Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """See :class:`grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        made = self._made.get(method)
        if made is None or made[0] is not handler:
            made = self._made[method] = (handler, self._guarded(method, handler))
        return made[1]

    def _guarded(self, method: str, handler: _Handler) -> _Handler:
        rule = self._table.get(method)
        if rule is None:
            return _refusing(handler, self._unlisted(method))
        return _checked(handler, _Gate(self, method, rule)) if self._mutual else handler

    def _unlisted(self, method: str) -> Callable[[Any], Awaitable[None]]:
        async def refuse(context: Any) -> None:
            reason = f"{method} is in no access table, so nobody may call it"
            await self.refuse(context, grpc.StatusCode.PERMISSION_DENIED, method, "", reason)

        return refuse

    async def admit(self, context: Any, method: str, rule: Rule) -> Identity:
        """Who calls, where it may; ends the call where it may not."""
        try:
            caller = peer_identity(context)
        except IdentityError as error:
            await self.refuse(
                context, grpc.StatusCode.UNAUTHENTICATED, method, context.peer(), str(error)
            )
        reason = refusal(rule, caller, region=self._region)
        if reason is not None:
            await self.deny(context, method, caller, reason)
        return caller

    async def deny(self, context: Any, method: str, caller: Identity, reason: str) -> NoReturn:
        """Ends a call of somebody who is known and may not."""
        await self.refuse(
            context, grpc.StatusCode.PERMISSION_DENIED, method, caller.uri, f"{caller}: {reason}"
        )

    async def refuse(
        self, context: Any, code: grpc.StatusCode, method: str, caller: str, reason: str
    ) -> NoReturn:
        """Ends a call and logs it."""
        self._log.refused(method=method, caller=caller, reason=reason)
        await context.abort(code, f"{method.rpartition('/')[2]}: {reason}")
        raise AssertionError("abort always raises")


class _Gate:
    """What one method's calls go through."""

    def __init__(self, guard: Guard, method: str, rule: Rule) -> None:
        self._guard = guard
        self._method = method
        self._rule = rule

    async def enter(self, context: Any, request: Any, *, streaming: bool) -> Any:
        """The request, or the requests, of a caller that may call."""
        caller = await self._guard.admit(context, self._method, self._rule)
        if streaming:
            return self._each(context, caller, request) if self._rule.claim else request
        await self._check(context, caller, request)
        return request

    async def _each(self, context: Any, caller: Identity, requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            await self._check(context, caller, request)
            yield request

    async def _check(self, context: Any, caller: Identity, request: Any) -> None:
        reason = false_claim(self._rule, caller, request)
        if reason is not None:
            await self._guard.deny(context, self._method, caller, reason)


def _checked(handler: _Handler, gate: _Gate) -> _Handler:
    """The handler behind a gate."""
    work, streaming = _behaviour(handler), bool(handler.request_streaming)

    async def unary(request: Any, context: Any) -> Any:
        return await work(await gate.enter(context, request, streaming=streaming), context)

    # A coroutine that writes: grpc leaves a generator whose call was cancelled to the garbage
    # collector, and what it holds with it.
    async def streamed(request: Any, context: Any) -> None:
        admitted = await gate.enter(context, request, streaming=streaming)
        if not inspect.isasyncgenfunction(work):
            await work(admitted, context)
            return
        async with contextlib.aclosing(work(admitted, context)) as responses:
            async for response in responses:
                await context.write(response)

    return _like(handler, streamed if handler.response_streaming else unary)


def _refusing(handler: _Handler, refuse: Callable[[Any], Awaitable[None]]) -> _Handler:
    async def work(_request: Any, context: Any) -> None:
        await refuse(context)

    return _like(handler, work)


def _behaviour(handler: _Handler) -> Any:
    return (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )


def _like(handler: _Handler, work: Any) -> _Handler:
    """A handler of the same shape that does something else."""
    shape: Callable[..., _Handler] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    return shape(
        work,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


class _BoundedLog:
    """Refusals in the log, so many at a time: anybody can cause them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s = float("-inf")
        self._said = 0
        self._unsaid = 0

    def refused(self, *, method: str, caller: str, reason: str) -> None:
        now_s = self._clock.monotonic()
        if now_s - self._since_s >= LOG_WINDOW_S:
            if self._unsaid:
                _log.warning("more calls were refused", count=self._unsaid)
            self._since_s, self._said, self._unsaid = now_s, 0, 0
        if self._said >= LOGGED_AT_ONCE:
            self._unsaid += 1
            return
        self._said += 1
        _log.warning("call refused", method=method, caller=caller, reason=reason)
