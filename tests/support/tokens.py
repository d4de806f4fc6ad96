"""Signed tokens for tests: one Ed25519 key, its JWKS file, and whatever claims are asked for."""

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt.algorithms import OKPAlgorithm

ISSUER = "https://issuer.test"
AUDIENCE = "reelmesh"
ALL_SCOPES = "video:generate video:read fleet:read"


class TokenIssuer:
    """An issuer with one key."""

    def __init__(self, *, issuer: str = ISSUER, audience: str = AUDIENCE, kid: str = "test-1"):
        self.issuer = issuer
        self.audience = audience
        self.kid = kid
        self.private_key = ed25519.Ed25519PrivateKey.generate()

    def public_jwk(self) -> dict[str, Any]:
        """The public key as a member of a key set."""
        jwk = OKPAlgorithm.to_jwk(self.private_key.public_key(), as_dict=True)
        return {**jwk, "kid": self.kid, "alg": "EdDSA", "use": "sig"}

    def write_jwks(self, path: Path) -> Path:
        """Writes the public key set and answers its path."""
        path.write_text(json.dumps({"keys": [self.public_jwk()]}))
        return path

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good claims; a change to None leaves the claim out."""
        now_s = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": "somebody",
            "tenant": "acme",
            "scope": ALL_SCOPES,
            "iat": now_s,
            "exp": now_s + 3600,
            "jti": "1",
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def issue(self, *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """A signed token: :meth:`claims` with changes."""
        # PyJWT's encoder of claims would refuse the wrong ones that tests need.
        return jwt.PyJWS().encode(
            json.dumps(self.claims(**changes)).encode(),
            self.private_key,
            algorithm="EdDSA",
            headers={"kid": self.kid, **(headers or {})},
        )
