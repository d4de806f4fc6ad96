"""Bearer tokens: who calls, or why the token does not hold.

Follows RFC 8725 (JWT best practices): the algorithm comes from the key and never from
the token, the issuer picks the keys, every claim is checked, and an extension that is
not understood is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.exceptions import InvalidSignatureError, PyJWTError
from jwt.utils import base64url_decode

from gateway.application import Caller
from gateway.auth import errors
from gateway.auth.config import AuthConfig, IssuerConfig
from gateway.auth.keys import KeySource, open_key_source
from reelkit.clock import Clock

# Verdicts that are kept: 4,096 are about 2 MB, and spare a signature check per call.
MAX_REMEMBERED = 4096
MAX_SUBJECT_CHARS = 256
# A tenant is part of keys and metric labels elsewhere: no slash, no white space.
_TENANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@:|+=-]{0,127}")
_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A token whose signature and claims hold, and for how long."""

    caller: Caller
    expires_s: float
    not_before_s: float
    generation: int


class TokenVerifier:
    """Turns an ``Authorization`` value into a :class:`gateway.application.Caller`.

    Args:
        config: Issuers and limits; their key files are read here, once.
        clock: Where "now" comes from; exp, nbf and iat are compared with its wall time.

    Raises:
        ConfigError: A key file is missing, or a key in it cannot be used.
    """

    def __init__(self, config: AuthConfig, *, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._issuers = {
            issuer.issuer: (issuer, open_key_source(issuer)) for issuer in config.issuers
        }
        self._jws = jwt.PyJWS()
        self._remembered: OrderedDict[bytes, tuple[_Verdict, KeySource]] = OrderedDict()

    async def verify(self, authorization: str | None) -> Caller:
        """The caller that a header value such as ``Bearer eyJ...`` stands for.

        Raises:
            Unauthenticated: A subclass of :mod:`gateway.auth.errors` says what is wrong.
        """
        token = self._token(authorization)
        digest = hashlib.sha256(token).digest()
        remembered = self._remembered.get(digest)
        if remembered is not None and remembered[0].generation == remembered[1].generation:
            self._remembered.move_to_end(digest)
            verdict = remembered[0]
        else:
            verdict, source = await self._judge(token)
            self._remembered[digest] = (verdict, source)
            if len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        self._check_times(verdict)
        return verdict.caller

    def _token(self, authorization: str | None) -> bytes:
        if not authorization:
            raise errors.MissingToken("send the header Authorization: Bearer <token>")
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise errors.MissingToken(
                "Authorization must be of the Bearer scheme: Authorization: Bearer <token>"
            )
        text = authorization[len(_SCHEME) :].strip()
        if not text:
            raise errors.MissingToken("the token after Bearer is empty")
        limit = self._config.max_token_bytes
        if len(text) > limit:
            raise errors.TokenTooLarge(f"the token is longer than {limit} bytes")
        if not text.isascii() or text.count(".") != 2:
            raise errors.MalformedToken("the token is not a signed JWT of three parts")
        return text.encode("ascii")

    async def _judge(self, token: bytes) -> tuple[_Verdict, KeySource]:
        """Checks all but the time: that changes, the rest does not."""
        header, claims = _peek(token)
        # The issuer is only a hint to the keys here; the signature then vouches for it.
        issuer_name = claims.get("iss")
        found = self._issuers.get(issuer_name) if isinstance(issuer_name, str) else None
        if found is None:
            raise errors.UnknownIssuer("the token's issuer (iss) is not trusted here")
        issuer, source = found
        generation = source.generation
        key = await source.find(header.get("kid"))
        if key is None:
            raise errors.UnknownKey(
                "the token's kid names no key of its issuer"
                if "kid" in header
                else "the token names no key (kid), and its issuer has several"
            )
        self._check_signature(token, header, key)
        return _verdict(claims, issuer, generation), source

    def _check_signature(self, token: bytes, header: dict[str, Any], key: jwt.PyJWK) -> None:
        if header.get("alg") != key.algorithm_name:
            raise errors.WrongAlgorithm(
                f"the token must be signed with {key.algorithm_name}, as its key says"
            )
        try:
            self._jws.decode_complete(token, key, algorithms=[key.algorithm_name])
        except InvalidSignatureError:
            raise errors.BadSignature("the token's signature does not verify") from None
        except PyJWTError:
            raise errors.MalformedToken("the token is not a signed JWT") from None

    def _check_times(self, verdict: _Verdict) -> None:
        now_s = self._clock.wall()
        leeway_s = self._config.leeway_s
        if now_s >= verdict.expires_s + leeway_s:
            raise errors.TokenExpired("the token has expired (exp); fetch a new one")
        if now_s < verdict.not_before_s - leeway_s:
            raise errors.TokenNotYetValid(
                "the token is not valid yet (nbf, iat); compare the clocks of both hosts"
            )


def _peek(token: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, not yet vouched for."""
    header_part, claims_part, _signature = token.split(b".")
    try:
        header = json.loads(base64url_decode(header_part))
        claims = json.loads(base64url_decode(claims_part))
    except (ValueError, RecursionError):
        raise errors.MalformedToken("the token is not a signed JWT") from None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise errors.MalformedToken("the token is not a signed JWT")
    if "crit" in header or "b64" in header:
        raise errors.UnsupportedToken(
            "the token has critical extensions (crit, b64); none is supported"
        )
    if not isinstance(header.get("kid", ""), str):
        raise errors.MalformedToken("the token's kid is not a string")
    return header, claims


def _verdict(claims: dict[str, Any], issuer: IssuerConfig, generation: int) -> _Verdict:
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if issuer.audience not in audiences:
        raise errors.WrongAudience("the token's audience (aud) is another service")
    expires_s = _time(claims, "exp")
    if expires_s is None:
        raise errors.BadClaims("the token has no expiry (exp)")
    not_before_s = max(_time(claims, "nbf") or -math.inf, _time(claims, "iat") or -math.inf)
    caller = Caller(
        tenant=_tenant(claims, issuer.tenant_claim),
        subject=_subject(claims, issuer.subject_claim),
        scopes=_scopes(claims, issuer.scope_claim),
    )
    return _Verdict(caller, expires_s, not_before_s, generation)


def _time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.BadClaims(f"the token's {name} is not a number of seconds")
    # A huge int has no float; infinity would never expire.
    if not -1e15 < value < 1e15:
        raise errors.BadClaims(f"the token's {name} is not a time")
    return float(value)


def _tenant(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not _TENANT.fullmatch(value):
        raise errors.BadClaims(
            f"the token needs a tenant (claim {name}): 1 to 128 letters, digits or ._@:|+=-"
        )
    return value


def _subject(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SUBJECT_CHARS:
        raise errors.BadClaims(
            f"the token needs a subject (claim {name}) of 1 to {MAX_SUBJECT_CHARS} characters"
        )
    if not value.isprintable():
        raise errors.BadClaims(f"the token's subject (claim {name}) is not printable")
    return value


def _scopes(claims: dict[str, Any], name: str) -> frozenset[str]:
    value = claims.get(name, "")
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list) and all(isinstance(scope, str) for scope in value):
        return frozenset(value)
    raise errors.BadClaims(f"the token's scopes (claim {name}) are not a string or a list")
