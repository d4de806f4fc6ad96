"""Bearer tokens: who calls, or why the token does not hold."""

from __future__ import annotations

import re

from reelmesh.v1 import access_pb2

from gateway.application import Caller
from gateway.auth.config import AuthConfig, IssuerConfig
from gateway.auth.errors import refusal_of
from reelkit.clock import Clock
from reelkit.tasks import TaskScope
from reelkit.tokens.errors import BadClaims, TokenError
from reelkit.tokens.revoked import RevokedTokens
from reelkit.tokens.sources import LoaderOf
from reelkit.tokens.verifier import Claims, JwtVerifier, scopes_of, subject_of

# A tenant is part of keys and metric labels elsewhere: no slash, no white space.
_TENANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@:|+=-]{0,127}")


class TokenVerifier:
    """Turns an ``Authorization`` value into a :class:`gateway.application.Caller`.

    Args:
        config: Issuers and limits; their key files are read here, once.
        clock: Where "now" comes from; exp, nbf and iat are compared with its wall time.
        loader_of: Reads key sets from URLs; without it none is taken.

    Raises:
        ConfigError: A key file is missing, or a key in it cannot be used.
    """

    def __init__(
        self, config: AuthConfig, *, clock: Clock, loader_of: LoaderOf | None = None
    ) -> None:
        self._revoked = RevokedTokens()
        self._jwt = JwtVerifier(
            config.issuers,
            config,
            clock=clock,
            read=_caller,
            revoked=self._revoked,
            loader_of=loader_of,
        )

    def take_revocations(self, told: access_pb2.TokenRevocations) -> None:
        """Takes the whole list of what holds no more."""
        self._revoked.replace(told.revocations)

    def follow_keys(self, scope: TaskScope) -> None:
        """Reads keys again as they change, for as long as the scope lives."""
        self._jwt.follow_keys(scope)

    def known(self, authorization: str | None) -> Caller | None:
        """The caller of a token that was found to hold before and does still; else None."""
        return self._jwt.known(authorization)

    async def verify(self, authorization: str | None) -> Caller:
        """The caller that a header value such as ``Bearer eyJ...`` stands for.

        Raises:
            Unauthenticated: A subclass of :mod:`gateway.auth.errors` says what is wrong.
            KeysAway: Nothing can be said of it yet.
        """
        try:
            return await self._jwt.verify(authorization)
        except TokenError as error:
            raise refusal_of(error) from None


def _caller(claims: Claims, issuer: IssuerConfig) -> Caller:
    return Caller(
        tenant=_tenant(claims, issuer.tenant_claim),
        subject=subject_of(claims, issuer.subject_claim),
        scopes=scopes_of(claims, issuer.scope_claim),
    )


def _tenant(claims: Claims, name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not _TENANT.fullmatch(value):
        raise BadClaims(
            f"the token needs a tenant (claim {name}): 1 to 128 letters, digits or ._@:|+=-"
        )
    return value
