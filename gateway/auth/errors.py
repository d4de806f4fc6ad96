"""Why a bearer token does not hold: each cause with its own stable code.

::

    Unauthenticated
    ├── MissingToken        no Authorization, or one that is not a Bearer token
    ├── TokenTooLarge       longer than the limit; it is not looked at
    ├── MalformedToken      not a signed JWT
    ├── UnsupportedToken    asks for an extension (crit, b64) that is not understood
    ├── UnknownIssuer       iss is not configured here
    ├── UnknownKey          the issuer has no key of that kid, or kid is missing
    ├── WrongAlgorithm      alg is not the key's own
    ├── BadSignature        the signature does not verify
    ├── TokenExpired        exp has passed
    ├── TokenNotYetValid    nbf or iat lies ahead
    ├── WrongAudience       aud does not name this service
    ├── BadClaims           a claim that must be there is missing or ill-formed
    └── TokenRevoked        an operator took it back

    Unavailable
    └── KeysAway            nothing is said of the token: its issuer's keys were never read

They are what :mod:`reelkit.tokens.errors` tells apart, as answers of this gateway.
No message holds any part of the token.
"""

from __future__ import annotations

from gateway.errors import GatewayError, Unauthenticated, Unavailable
from reelkit.tokens import errors as tokens
from reelkit.tokens.errors import TokenError


class MissingToken(Unauthenticated):
    """The call carries no bearer token."""

    code = "missing_token"


class TokenTooLarge(Unauthenticated):
    """The token is longer than the limit."""

    code = "token_too_large"


class MalformedToken(Unauthenticated):
    """What was sent is no signed JWT."""

    code = "malformed_token"


class UnsupportedToken(Unauthenticated):
    """The token relies on an extension that this service does not understand."""

    code = "unsupported_token"


class UnknownIssuer(Unauthenticated):
    """The token's issuer is not trusted here."""

    code = "unknown_issuer"


class UnknownKey(Unauthenticated):
    """The token does not name a key of its issuer."""

    code = "unknown_key"


class WrongAlgorithm(Unauthenticated):
    """The token names another algorithm than its key has."""

    code = "wrong_algorithm"


class BadSignature(Unauthenticated):
    """The signature does not verify."""

    code = "bad_signature"


class TokenExpired(Unauthenticated):
    """The token's time is over."""

    code = "token_expired"


class TokenNotYetValid(Unauthenticated):
    """The token's time has not come."""

    code = "token_not_yet_valid"


class WrongAudience(Unauthenticated):
    """The token was made for another service."""

    code = "wrong_audience"


class BadClaims(Unauthenticated):
    """A claim that must be there is missing or ill-formed."""

    code = "bad_claims"


class TokenRevoked(Unauthenticated):
    """The token was revoked, by its id or with all of its subject."""

    code = "token_revoked"


class KeysAway(Unavailable):
    """The keys of the token's issuer could not be fetched yet."""

    code = tokens.KeysAway.code


_BY_CODE = {kind.code: kind for kind in Unauthenticated.__subclasses__()}
_RETRY_AFTER_S = 5.0


def refusal_of(error: TokenError) -> GatewayError:
    """The same cause as an answer of this gateway."""
    if isinstance(error, tokens.KeysAway):
        return KeysAway(error.message, retry_after_s=_RETRY_AFTER_S)
    return _BY_CODE.get(error.code, Unauthenticated)(error.message)
