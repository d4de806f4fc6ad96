"""Why a bearer token does not hold: each cause with its own stable code.

::

    TokenError
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
    ├── TokenRevoked        an operator took it back
    └── KeysAway            nothing is said of the token: its issuer's keys were never read

No message holds any part of the token.
"""

from __future__ import annotations

from typing import ClassVar


class TokenError(Exception):
    """Base of all; asking again with the same token never helps, but for KeysAway."""

    code: ClassVar[str] = "unauthenticated"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MissingToken(TokenError):  # noqa: N818 - named for what is wrong with the token
    """The call carries no bearer token."""

    code = "missing_token"


class TokenTooLarge(TokenError):  # noqa: N818 - likewise
    """The token is longer than the limit."""

    code = "token_too_large"


class MalformedToken(TokenError):  # noqa: N818 - likewise
    """What was sent is no signed JWT."""

    code = "malformed_token"


class UnsupportedToken(TokenError):  # noqa: N818 - likewise
    """The token relies on an extension that this service does not understand."""

    code = "unsupported_token"


class UnknownIssuer(TokenError):  # noqa: N818 - likewise
    """The token's issuer is not trusted here."""

    code = "unknown_issuer"


class UnknownKey(TokenError):  # noqa: N818 - likewise
    """The token does not name a key of its issuer."""

    code = "unknown_key"


class WrongAlgorithm(TokenError):  # noqa: N818 - likewise
    """The token names another algorithm than its key has."""

    code = "wrong_algorithm"


class BadSignature(TokenError):  # noqa: N818 - likewise
    """The signature does not verify."""

    code = "bad_signature"


class TokenExpired(TokenError):  # noqa: N818 - likewise
    """The token's time is over."""

    code = "token_expired"


class TokenNotYetValid(TokenError):  # noqa: N818 - likewise
    """The token's time has not come."""

    code = "token_not_yet_valid"


class WrongAudience(TokenError):  # noqa: N818 - likewise
    """The token was made for another service."""

    code = "wrong_audience"


class BadClaims(TokenError):  # noqa: N818 - likewise
    """A claim that must be there is missing or ill-formed."""

    code = "bad_claims"


class TokenRevoked(TokenError):  # noqa: N818 - likewise
    """The token was revoked, by its id or with all of its subject."""

    code = "token_revoked"


class KeysAway(TokenError):  # noqa: N818 - likewise
    """The keys of the token's issuer could not be fetched yet; ask again."""

    code = "keys_unavailable"
