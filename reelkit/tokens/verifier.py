"""Verifies bearer tokens: what one says, or why it does not hold.

Follows RFC 8725 (JWT best practices): the algorithm comes from the key and never from
the token, the issuer picks the keys, every claim is checked, and an extension that is
not understood is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import jwt
from jwt.exceptions import InvalidSignatureError, PyJWTError

from reelkit.clock import Clock
from reelkit.tasks import TaskScope
from reelkit.tokens import errors
from reelkit.tokens.config import IssuerSettings, TokenSettings
from reelkit.tokens.keys import KeySource
from reelkit.tokens.refreshed import RefreshedKeys
from reelkit.tokens.revoked import RevokedTokens, TokenFacts
from reelkit.tokens.sources import LoaderOf, open_key_source

# Verdicts that are kept: 4,096 are about 2 MB, and spare a signature check per call.
MAX_REMEMBERED = 4096
MAX_SUBJECT_CHARS = 256
_SCHEME = "bearer "
# Three parts of base64url without padding (RFC 7515 section 7.1).
_COMPACT = re.compile(rb"([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]*)\.([A-Za-z0-9_-]*)")

Claims: TypeAlias = dict[str, Any]
I = TypeVar("I", bound=IssuerSettings)  # noqa: E741 - the issuer
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class _Verdict(Generic[C]):
    """A token whose signature and claims hold, and for how long."""

    caller: C
    expires_s: float
    not_before_s: float
    generation: int
    facts: TokenFacts


class JwtVerifier(Generic[I, C]):
    """Turns an ``Authorization`` value into whatever ``read`` makes of its claims.

    Args:
        issuers: Whose tokens hold; their key files are read here, once.
        settings: Limits that are the same for all.
        clock: Where "now" comes from; exp, nbf and iat are compared with its wall time.
        read: Makes the caller of claims that hold; raises
            :class:`~reelkit.tokens.errors.BadClaims` where one that it needs is missing.
        revoked: Tokens that hold no more; looked at for each call.
        loader_of: Reads key sets from URLs; without it none is taken.

    Raises:
        ConfigError: A key file is missing, or a key in it cannot be used.
    """

    def __init__(
        self,
        issuers: Sequence[I],
        settings: TokenSettings,
        *,
        clock: Clock,
        read: Callable[[Claims, I], C],
        revoked: RevokedTokens,
        loader_of: LoaderOf | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._read = read
        self._revoked = revoked
        self._issuers = {
            issuer.issuer: (issuer, open_key_source(issuer, clock=clock, loader_of=loader_of))
            for issuer in issuers
        }
        self._jws = jwt.PyJWS()
        self._remembered: OrderedDict[bytes, tuple[_Verdict[C], KeySource]] = OrderedDict()

    def follow_keys(self, scope: TaskScope) -> None:
        """Reads keys again as they change, for as long as the scope lives."""
        for name, (_, source) in self._issuers.items():
            if isinstance(source, RefreshedKeys):
                scope.spawn(source.keep_fresh(), name=f"keys of {name}")

    def known(self, authorization: str | None) -> C | None:
        """The caller of a token that was found to hold before and does still; else None.

        Costs a hash, and checks no signature.
        """
        try:
            digest = hashlib.sha256(self._token(authorization)).digest()
            remembered = self._remembered.get(digest)
            if remembered is None or remembered[0].generation != remembered[1].generation:
                return None
            return self._holding(remembered[0])
        except errors.TokenError:
            return None

    async def verify(self, authorization: str | None) -> C:
        """The caller that a header value such as ``Bearer eyJ...`` stands for.

        Raises:
            TokenError: Its class says what is wrong.
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
        return self._holding(verdict)

    def _holding(self, verdict: _Verdict[C]) -> C:
        """Its caller, if it holds now."""
        self._check_times(verdict)
        if self._revoked.holds(verdict.facts):
            raise errors.TokenRevoked("the token was revoked; fetch a new one")
        return verdict.caller

    def _token(self, authorization: str | None) -> bytes:
        if not authorization:
            raise errors.MissingToken("send the header Authorization: Bearer <token>")
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise errors.MissingToken(
                "Authorization must be of the Bearer scheme: Authorization: Bearer <token>"
            )
        text = authorization[len(_SCHEME) :].strip(" ")
        if not text:
            raise errors.MissingToken("the token after Bearer is empty")
        limit = self._settings.max_token_bytes
        if len(text) > limit:
            raise errors.TokenTooLarge(f"the token is longer than {limit} bytes")
        if not text.isascii() or text.count(".") != 2:
            raise errors.MalformedToken("the token is not a signed JWT of three parts")
        return text.encode("ascii")

    async def _judge(self, token: bytes) -> tuple[_Verdict[C], KeySource]:
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
        return self._verdict(claims, issuer, generation), source

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

    def _check_times(self, verdict: _Verdict[C]) -> None:
        now_s = self._clock.wall()
        leeway_s = self._settings.leeway_s
        if now_s >= verdict.expires_s + leeway_s:
            raise errors.TokenExpired("the token has expired (exp); fetch a new one")
        if now_s < verdict.not_before_s - leeway_s:
            raise errors.TokenNotYetValid(
                "the token is not valid yet (nbf, iat); compare the clocks of both hosts"
            )

    def _verdict(self, claims: Claims, issuer: I, generation: int) -> _Verdict[C]:
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        if issuer.audience not in audiences:
            raise errors.WrongAudience("the token's audience (aud) is another service")
        expires_s = _time(claims, "exp")
        if expires_s is None:
            raise errors.BadClaims("the token has no expiry (exp)")
        not_before_s = max(_time(claims, "nbf") or -math.inf, _time(claims, "iat") or -math.inf)
        jti, subject = claims.get("jti", ""), claims.get(issuer.subject_claim)
        if not isinstance(jti, str):
            # It could not be revoked by its id.
            raise errors.BadClaims("the token's jti is not a string")
        facts = TokenFacts(
            issuer=issuer.issuer,
            subject=subject if isinstance(subject, str) else "",
            jti=jti,
            issued_s=_time(claims, "iat") or -math.inf,
        )
        return _Verdict(self._read(claims, issuer), expires_s, not_before_s, generation, facts)


def _peek(token: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, not yet vouched for."""
    try:
        header_part, claims_part, _signature = map(_decoded, _parts(token))
        header = json.loads(header_part, object_pairs_hook=_members)
        claims = json.loads(claims_part, object_pairs_hook=_members)
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


def _parts(token: bytes) -> tuple[bytes, ...]:
    found = _COMPACT.fullmatch(token)
    if found is None:
        raise ValueError("not in compact form")
    return found.groups()


def _decoded(part: bytes) -> bytes:
    """Its bytes, where it is the one way to write them: a token has no second spelling."""
    decoded = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != part:
        raise ValueError("not canonical base64url")
    return decoded


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that says a name twice reads differently to different readers."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is there twice")
    return members


def _time(claims: Claims, name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.BadClaims(f"the token's {name} is not a number of seconds")
    # A huge int has no float; infinity would never expire.
    if not -1e15 < value < 1e15:
        raise errors.BadClaims(f"the token's {name} is not a time")
    return float(value)


def subject_of(claims: Claims, name: str) -> str:
    """The caller's name; raises BadClaims where the claim is missing or ill-formed."""
    value = claims.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SUBJECT_CHARS:
        raise errors.BadClaims(
            f"the token needs a subject (claim {name}) of 1 to {MAX_SUBJECT_CHARS} characters"
        )
    if not value.isprintable():
        raise errors.BadClaims(f"the token's subject (claim {name}) is not printable")
    return value


def scopes_of(claims: Claims, name: str) -> frozenset[str]:
    """The scopes, none where the claim is missing; raises BadClaims for an ill-formed one."""
    value = claims.get(name, "")
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list) and all(isinstance(scope, str) for scope in value):
        return frozenset(value)
    raise errors.BadClaims(f"the token's scopes (claim {name}) are not a string or a list")
