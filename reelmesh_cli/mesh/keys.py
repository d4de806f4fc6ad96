"""The local mesh's signing key, its public key set, and two tokens."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from pathlib import Path

from reelkit.tokens.ring import RING_FILE, KeyRing, RingError
from reelmesh_cli.errors import UsageError
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

    Raises:
        UsageError: The folder cannot be used.
    """
    now_s = now.timestamp()
    try:
        if (folder / RING_FILE).exists():
            ring = KeyRing.open(folder)
        else:
            ring = KeyRing.create(folder, issuer=ISSUER, audience=AUDIENCE, now_s=now_s)
        return Tokens(
            user=_sign(ring, subject="user", scopes=USER_SCOPES, now_s=now_s),
            operator=_sign(ring, subject="operator", scopes=OPERATOR_SCOPES, now_s=now_s),
        )
    except RingError as error:
        raise UsageError(str(error), hint=f"move {folder} away; new keys are made then") from None


def _sign(ring: KeyRing, *, subject: str, scopes: tuple[str, ...], now_s: float) -> str:
    claims = {"sub": subject, "tenant": TENANT, "scope": " ".join(scopes)}
    return ring.sign(claims, now_s=now_s, ttl_s=LIFETIME.total_seconds()).token
