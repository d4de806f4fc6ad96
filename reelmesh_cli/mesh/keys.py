"""The local mesh's signing key, its public key set, and two tokens."""

from __future__ import annotations

import datetime as dt
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from reelkit.files import write_atomic, write_json_atomic
from reelmesh_cli.mesh.topology import AUDIENCE, ISSUER

LIFETIME = dt.timedelta(days=30)
USER_SCOPES = ("video:generate", "video:read", "fleet:read")
OPERATOR_SCOPES = (*USER_SCOPES, "fleet:operate")
TENANT = "local"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Bearer tokens; never logged."""

    user: str = field(repr=False)
    operator: str = field(repr=False)


def write_keys(folder: Path, *, now: dt.datetime) -> Tokens:
    """Makes the key pair if there is none yet, writes ``jwks.json`` and signs two tokens.

    The key stays from one start to the next, so that a token from before still holds.
    Every file is readable by its owner alone (0600).
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = _load_or_make(folder / "signing-key.pem")
    public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    key_id = f"local-{public['x'][:12]}"
    write_json_atomic(
        folder / "jwks.json",
        {"keys": [{**public, "kid": key_id, "alg": "EdDSA", "use": "sig"}]},
    )
    return Tokens(
        user=_sign(private, key_id, subject="user", scopes=USER_SCOPES, now=now),
        operator=_sign(private, key_id, subject="operator", scopes=OPERATOR_SCOPES, now=now),
    )


def _load_or_make(file: Path) -> Ed25519PrivateKey:
    if file.exists():
        loaded = serialization.load_pem_private_key(file.read_bytes(), password=None)
        if isinstance(loaded, Ed25519PrivateKey):
            os.chmod(file, 0o600)  # noqa: PTH101 - an older umask may have been wider
            return loaded
    made = Ed25519PrivateKey.generate()
    pem = made.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_atomic(file, pem)
    return made


def _sign(
    key: Ed25519PrivateKey,
    key_id: str,
    *,
    subject: str,
    scopes: tuple[str, ...],
    now: dt.datetime,
) -> str:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": subject,
        "tenant": TENANT,
        "scope": " ".join(scopes),
        "iat": now,
        "exp": now + LIFETIME,
        "jti": secrets.token_urlsafe(12),
    }
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": key_id})
