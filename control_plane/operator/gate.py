"""What surrounds every method of OperatorService: token, scope, errors, log."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.errors import ControlPlaneError, KeysAwayError, UnauthenticatedError, abort
from control_plane.operator.access import Operator, Scope, require, required_scope
from control_plane.operator.config import OperatorAuth
from reelkit.clock import Clock
from reelkit.tasks import TaskScope
from reelkit.tokens.config import IssuerSettings
from reelkit.tokens.errors import KeysAway, TokenError
from reelkit.tokens.fetched import loader_of
from reelkit.tokens.revoked import RevokedTokens
from reelkit.tokens.verifier import Claims, JwtVerifier, scopes_of, subject_of

_log = structlog.get_logger("control_plane.operator")

SERVICE = op.DESCRIPTOR.services_by_name["OperatorService"]
_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")

Method = Callable[[Any, Operator], Awaitable[Message]]


class Authenticator(Protocol):
    """Tells who calls."""

    async def operator(self, authorization: str | None) -> Operator:
        """Who an ``Authorization`` value stands for.

        Raises:
            UnauthenticatedError: Nobody that is known here.
            KeysAwayError: That cannot be told now.
        """
        ...


class TokenAuthenticator:
    """Takes signed JWTs of the configured issuers.

    Raises:
        ConfigError: A key file is missing, or a key in it cannot be used.
    """

    def __init__(self, config: OperatorAuth, *, clock: Clock, revoked: RevokedTokens) -> None:
        self._jwt = JwtVerifier(
            config.issuers,
            config,
            clock=clock,
            read=_operator,
            revoked=revoked,
            loader_of=loader_of,
        )

    def follow_keys(self, scope: TaskScope) -> None:
        """Reads keys again as they change, for as long as the scope lives."""
        self._jwt.follow_keys(scope)

    async def operator(self, authorization: str | None) -> Operator:
        """See :class:`Authenticator`."""
        try:
            return await self._jwt.verify(authorization)
        except KeysAway as error:
            raise KeysAwayError(error.message) from None
        except TokenError as error:
            raise UnauthenticatedError(error.message, cause=error.code) from None


def _operator(claims: Claims, issuer: IssuerSettings) -> Operator:
    return Operator(
        subject=subject_of(claims, issuer.subject_claim),
        scopes=scopes_of(claims, issuer.scope_claim),
    )


def guarded_service(service: object, authenticator: Authenticator) -> grpc.GenericRpcHandler:
    """Handlers for every method of OperatorService, each behind its scope.

    Args:
        service: Has a coroutine ``list_nodes(request, operator)`` for ``ListNodes``, and
            so on.
        authenticator: Tells who calls.

    Raises:
        UnlistedMethodError: The access table lacks a method.
        AttributeError: The service does.
    """
    handlers = {}
    for method in SERVICE.methods:
        scope = required_scope(method.name)
        work: Method = getattr(service, _CAPITAL.sub("_", method.name).lower())
        handlers[method.name] = grpc.unary_unary_rpc_method_handler(
            _guarded(method.name, work, scope, authenticator),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(SERVICE.full_name, handlers)


def _guarded(name: str, work: Method, scope: Scope, authenticator: Authenticator) -> Any:
    async def handle(request: Message, context: Any) -> Message:
        try:
            operator = await authenticator.operator(_authorization(context))
            require(operator, scope)
            if scope is Scope.OPERATE:
                # Who changed what is told even where it fails.
                _log.info("operator", method=name, operator=operator.subject)
            return await work(request, operator)
        except ControlPlaneError as error:
            _log.info("operator's call refused", method=name, code=error.code, error=str(error))
            await abort(context, error)
        except Exception:  # noqa: BLE001  # the process boundary, and it logs
            _log.exception("operator's call failed", method=name)
            await abort(context, ControlPlaneError())
        raise AssertionError("abort returned")

    return handle


def _authorization(context: Any) -> str | None:
    values = [v for k, v in context.invocation_metadata() or () if k == "authorization"]
    if len(values) > 1:
        raise UnauthenticatedError(
            "send one authorization entry, not several", cause="malformed_token"
        )
    return str(values[0]) if values else None
