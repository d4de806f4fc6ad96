"""Verification keys of an issuer, as a key set and a shared secret hold them.

A key knows its one algorithm; what a token says of algorithms is compared with it and
never chosen from.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.exceptions import PyJWTError

from reelkit.settings import ConfigError

ASYMMETRIC_ALGORITHMS = frozenset(
    {
        "RS256", "RS384", "RS512",
        "PS256", "PS384", "PS512",
        "ES256", "ES384", "ES512",
        "EdDSA",
    }
)  # fmt: skip
MIN_RSA_BITS = 2048
# A check of a signature takes the longer the longer its key is: OpenSSL's own bound.
MAX_RSA_BITS = 16384
# An issuer has a handful; each key of a set is parsed while nothing else is done.
MAX_KEYS = 256
MIN_SECRET_BYTES = 32
# Members of a JWK that hold a private or a symmetric key (RFC 7518 section 6).
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

# What PyJWT and cryptography raise over members that are missing or of the wrong kind.
_UNREADABLE = (
    PyJWTError, UnsupportedAlgorithm, ArithmeticError, AttributeError, LookupError,
    NotImplementedError, TypeError, ValueError,
)  # fmt: skip

# Points of small order, by their y: with one as the public key anybody can sign anything.
# RFC 7748 section 4 has the primes; an order of 8 exists on Ed25519 alone.
_P25519 = 2**255 - 19
_ORDER_8_Y = 2707385501144840649318225287225658788936804267575313519463743609750303021400
_SMALL_25519 = frozenset({0, 1, _P25519 - 1, _ORDER_8_Y, _P25519 - _ORDER_8_Y})
_P448 = 2**448 - 2**224 - 1
_SMALL_448 = frozenset({0, 1, _P448 - 1})


class KeySource(Protocol):
    """Where an issuer's keys come from.

    A source may wait here for a key that it does not know.
    """

    @property
    def generation(self) -> int:
        """Rises when a key was removed or replaced: earlier verdicts no longer hold."""
        ...

    async def find(self, kid: str | None) -> jwt.PyJWK | None:
        """The key of that id; without an id, the only key there is; else None.

        Raises:
            KeysAway: No key was ever read, and none can be now.
        """
        ...


class SharedSecret:
    """One HS256 secret, whatever kid a token names."""

    generation = 0

    def __init__(self, secret: bytes) -> None:
        encoded = jwt.utils.base64url_encode(secret).decode()
        self._key = jwt.PyJWK({"kty": "oct", "k": encoded}, algorithm="HS256")

    async def find(self, kid: str | None) -> jwt.PyJWK | None:  # noqa: ARG002 - the port's shape
        """The secret."""
        return self._key


def parse_jwks(text: bytes, *, source: str) -> dict[str | None, jwt.PyJWK]:
    """The public signature keys of a JSON Web Key Set (RFC 7517) by kid.

    Keys for encryption and of kinds that are not known are left out, as section 5 says.

    Raises:
        ConfigError: It is no key set, holds a private or symmetric key, a weak key, two
            keys of one kid, or none that can be used. ``source`` is said in the message.
    """
    try:
        members = json.loads(text)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f'{source}: is not a JSON Web Key Set, {{"keys": [...]}}') from None
    if not isinstance(members, list) or not all(isinstance(m, dict) for m in members):
        raise ConfigError(f"{source}: keys must be a list of JSON Web Keys")
    if len(members) > MAX_KEYS:
        raise ConfigError(f"{source}: holds {len(members)} keys; at most {MAX_KEYS} are taken")
    keys: dict[str | None, jwt.PyJWK] = {}
    for position, member in enumerate(members):
        key = _parse_key(member, source=f"{source}: key {position}")
        if key is None:
            continue
        if key.key_id in keys:
            raise ConfigError(f"{source}: two keys have the kid {key.key_id!r}")
        keys[key.key_id] = key
    if not keys:
        raise ConfigError(
            f"{source}: holds no signature key of {', '.join(sorted(ASYMMETRIC_ALGORITHMS))}"
        )
    if None in keys and len(keys) > 1:
        raise ConfigError(f"{source}: with more than one key, each needs a kid")
    return keys


def _parse_key(member: dict[str, Any], *, source: str) -> jwt.PyJWK | None:
    if _PRIVATE_MEMBERS & member.keys():
        raise ConfigError(f"{source}: is private or symmetric; a key set holds public keys only")
    if member.get("use", "sig") != "sig":
        return None
    if not isinstance(member.get("kid", ""), str):
        raise ConfigError(f"{source}: its kid is not a string")
    named = member.get("alg")
    if named is not None and (not isinstance(named, str) or named not in ASYMMETRIC_ALGORITHMS):
        return None
    try:
        key = jwt.PyJWK(member)
        if key.algorithm_name not in ASYMMETRIC_ALGORITHMS:
            return None
        # Also checks that an EC key lies on the curve of its algorithm.
        material = key.Algorithm.prepare_key(key.key)
    except _UNREADABLE:
        return None
    if isinstance(material, RSAPublicKey) and not MIN_RSA_BITS <= material.key_size <= MAX_RSA_BITS:
        raise ConfigError(f"{source}: RSA keys have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
    if isinstance(material, Ed25519PublicKey | Ed448PublicKey) and _of_small_order(material):
        raise ConfigError(f"{source}: is a point of small order, which anybody can sign for")
    return key


def _of_small_order(key: Ed25519PublicKey | Ed448PublicKey) -> bool:
    encoded = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    if isinstance(key, Ed25519PublicKey):
        # The highest bit is the sign of x; y may stand unreduced.
        return int.from_bytes(encoded, "little") % 2**255 % _P25519 in _SMALL_25519
    return int.from_bytes(encoded[:-1], "little") % _P448 in _SMALL_448
