"""One call to etcd: a ready connection, a token, a deadline, and a definite answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio

from control_plane.errors import StoreError, StoreUnavailableError
from control_plane.store.etcd.auth import Login, login_of
from control_plane.store.etcd.connection import Connection, Endpoints, EtcdSettings
from control_plane.store.etcd.history import History
from control_plane.store.etcd.methods import (
    AUTHENTICATE,
    Method,
    is_definite,
    to_store_error,
    token_expired,
)
from control_plane.store.etcdpb import reelmesh_etcd_pb2 as pb
from reelkit.clock import Clock

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)

# Told of each try: method, status code, seconds, and whether etcd answered.
CallObserver: TypeAlias = Callable[[str, str, float, bool], None]

_log = structlog.get_logger("control_plane.store.caller")


class _TokenExpiredError(Exception):
    """The token is no longer good; ``denial`` is what to say if a fresh one is not either."""

    def __init__(self, denial: StoreError) -> None:
        super().__init__(str(denial))
        self.denial = denial


class Caller:
    """Makes unary calls, and what streams need to begin: connection and metadata."""

    def __init__(
        self,
        settings: EtcdSettings,
        *,
        endpoints: Endpoints,
        history: History,
        clock: Clock,
        observe: CallObserver,
    ) -> None:
        self.endpoints = endpoints
        self.history = history
        self.timeout_s = settings.request_timeout_s
        self._login = login_of(settings)
        self._token: str | None = None
        self._clock = clock
        self._observe = observe

    async def unary(self, method: Method[Req, Resp], request: Req) -> Resp:
        """The answer to a request; reads are tried once on each endpoint and once more.

        Raises:
            StoreUnavailableError: No answer, and nothing was written.
            OutcomeUnknownError: A write was sent and not answered; it is not sent again (R4).
            StoreError: What etcd answered.
        """
        renewed = False
        attempts_left = len(self.endpoints) + 1
        while True:
            attempts_left -= 1
            try:
                async with self.endpoints.connected() as connection:
                    return await self._attempt(connection, method, request)
            except StoreUnavailableError:
                # Nothing was written, not even by a write: it may go to another endpoint.
                if attempts_left <= 0:
                    self._observe(method.path, "GIVEN_UP", 0.0, False)
                    raise
            except _TokenExpiredError as error:
                # R8. The server refused the token, so the request did not run.
                if renewed:
                    raise error.denial from None
                renewed, self._token = True, None
                attempts_left += 1

    async def _attempt(
        self, connection: Connection, method: Method[Req, Resp], request: Req
    ) -> Resp:
        """One sending of the request."""
        metadata = await self.metadata(connection)
        mark = self.history.mark
        sent_s = self._clock.monotonic()
        try:
            response = await self._send(connection, method, request, metadata)
        except aio.AioRpcError as error:
            known = to_store_error(error, write=method.write)
            if self._login and token_expired(error.details() or ""):
                raise _TokenExpiredError(known) from None
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                await self.endpoints.unanswered(connection, since_s=sent_s)
            elif not is_definite(error):
                await self.endpoints.failed(connection)
            raise known from None
        self.endpoints.succeeded(connection)
        if method.linearizable:
            self.history.check(mark, response.header)  # type: ignore[attr-defined]  # every linearizable answer has a header
        return response

    async def metadata(self, connection: Connection) -> tuple[tuple[str, str], ...]:
        """Metadata of a call: the token, where there is a user.

        Raises:
            StoreDeniedError: etcd does not know this user or password.
            StoreUnavailableError: etcd does not answer.
        """
        if self._login is None:
            return ()
        if self._token is None:
            self._token = await self._authenticate(connection, self._login)
        return (("token", self._token),)

    def forget_token(self) -> None:
        """Makes the next call authenticate again (R8)."""
        self._token = None

    async def _authenticate(self, connection: Connection, login: Login) -> str:
        request = pb.AuthenticateRequest(name=login.user, password=login.password())
        try:
            answer = await self._send(connection, AUTHENTICATE, request, ())
        except aio.AioRpcError as error:
            if not is_definite(error):
                await self.endpoints.failed(connection)
            raise to_store_error(error, write=False) from None
        _log.debug("authenticated", user=login.user)
        return answer.token

    async def _send(
        self,
        connection: Connection,
        method: Method[Req, Resp],
        request: Req,
        metadata: tuple[tuple[str, str], ...],
    ) -> Resp:
        started_s = self._clock.monotonic()
        code, answered = "OK", True
        try:
            call = connection.channel.unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            answer: Resp = await call(request, timeout=self.timeout_s, metadata=metadata)
        except aio.AioRpcError as error:
            code, answered = error.code().name, is_definite(error)
            raise
        else:
            return answer
        finally:
            self._observe(method.path, code, self._clock.monotonic() - started_s, answered)
