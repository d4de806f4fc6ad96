"""Signing keys of an issuer's own, kept in a folder, and the tokens made with them.

::

    FOLDER/ring.json       issuer, audience, and when each key signs and is dropped
    FOLDER/jwks.json       the public keys, for whoever checks tokens
    FOLDER/KID.pem         a private key; whoever reads it can be anybody

A new key is published before it signs, so that every gateway has read it by then. An old one
stays published until the last token that it signed is over; its private half is deleted by
the first command that changes the ring after it signed its last.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from reelkit.files import write_atomic, write_json_atomic

RING_FILE: Final = "ring.json"
JWKS_FILE: Final = "jwks.json"
_LOCK_FILE: Final = ".lock"


class RingError(Exception):
    """The folder cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RingKey:
    """One key pair. Times are seconds since 1970."""

    kid: str
    public: Mapping[str, Any]
    signs_from_s: float
    drop_at_s: float | None = None
    """When its public half is taken out; None: it is the newest."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A token and what it says of itself."""

    token: str
    kid: str
    jti: str
    expires_s: float


class KeyRing:
    """The keys of one issuer. Open it with :meth:`create` or :meth:`open`."""

    def __init__(
        self, folder: Path, *, issuer: str, audience: str, keys: tuple[RingKey, ...]
    ) -> None:
        self.folder = folder
        self.issuer = issuer
        self.audience = audience
        self._keys = keys

    @classmethod
    def create(cls, folder: Path, *, issuer: str, audience: str, now_s: float) -> KeyRing:
        """A folder with one key that signs at once.

        Raises:
            RingError: There is a ring already, or the folder cannot be written.
        """
        with _locked(folder):
            if (folder / RING_FILE).exists():
                raise RingError(f"{folder} holds a ring already; rotate its key, or name another")
            ring = cls(folder, issuer=issuer, audience=audience, keys=())
            ring._add(signs_from_s=now_s)
            ring._write()
            return ring

    @classmethod
    def open(cls, folder: Path) -> KeyRing:
        """An existing one.

        Raises:
            RingError: There is none, or it cannot be read.
        """
        try:
            read = json.loads((folder / RING_FILE).read_bytes())
            keys = tuple(RingKey(**each) for each in read["keys"])
            return cls(folder, issuer=read["issuer"], audience=read["audience"], keys=keys)
        except FileNotFoundError:
            raise RingError(f"{folder} holds no {RING_FILE}; make a ring there first") from None
        except OSError as error:
            raise RingError(f"{folder / RING_FILE}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise RingError(f"{folder / RING_FILE} is not what was written there") from None

    @property
    def keys(self) -> tuple[RingKey, ...]:
        """All that are published, the oldest first."""
        return self._keys

    def signer(self, now_s: float) -> RingKey:
        """The key that signs now: the newest whose time has come."""
        ready = [key for key in self._keys if key.signs_from_s <= now_s]
        return ready[-1] if ready else self._keys[0]

    def rotate(self, *, now_s: float, lead_s: float, keep_s: float) -> RingKey:
        """Publishes a new key, which signs after ``lead_s``.

        Args:
            now_s: The time.
            lead_s: How long those who check tokens have to read the new key.
            keep_s: How long tokens of the old one may be used after that.

        Raises:
            RingError: A key that does not sign yet is waiting, or the folder cannot be written.
        """
        with _locked(self.folder):
            self._keys = self.open(self.folder).keys
            waiting = self._keys[-1]
            if waiting.signs_from_s > now_s:
                raise RingError(
                    f"key {waiting.kid} signs in {waiting.signs_from_s - now_s:.0f} s and "
                    "must do so first"
                )
            self._drop(now_s)
            from_s = now_s + lead_s
            self._keys = tuple(
                key if key.drop_at_s is not None else replace(key, drop_at_s=from_s + keep_s)
                for key in self._keys
            )
            made = self._add(signs_from_s=from_s)
            self._write()
            return made

    def prune(self, *, now_s: float) -> tuple[str, ...]:
        """Takes out what is over; answers the ids of the keys.

        Raises:
            RingError: The folder cannot be written.
        """
        with _locked(self.folder):
            self._keys = self.open(self.folder).keys
            dropped = self._drop(now_s)
            self._write()
            return dropped

    def sign(self, claims: Mapping[str, Any], *, now_s: float, ttl_s: float) -> Signed:
        """A token with these claims beside ``iss``, ``aud``, ``iat``, ``exp`` and ``jti``.

        Raises:
            RingError: It would outlive its key, or that cannot be read.
        """
        key = self.signer(now_s)
        if key.drop_at_s is not None and now_s + ttl_s > key.drop_at_s:
            left_s = max(key.drop_at_s - now_s, 0)
            raise RingError(f"key {key.kid} is taken out in {left_s:.0f} s; ask for no more")
        jti, expires_s = secrets.token_urlsafe(12), now_s + ttl_s
        every = {
            **claims,
            "iss": self.issuer,
            "aud": self.audience,
            "iat": dt.datetime.fromtimestamp(now_s, tz=dt.UTC),
            "exp": dt.datetime.fromtimestamp(expires_s, tz=dt.UTC),
            "jti": jti,
        }
        token = jwt.encode(every, self._private(key), algorithm="EdDSA", headers={"kid": key.kid})
        return Signed(token, key.kid, jti, expires_s)

    # --- files ---

    def _add(self, *, signs_from_s: float) -> RingKey:
        private = Ed25519PrivateKey.generate()
        public = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
        kid = f"key-{public['x'][:12]}"
        member = {**public, "kid": kid, "alg": "EdDSA", "use": "sig"}
        # The private half first: a ring never names a key that there is not.
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_atomic(self._file(kid), pem)
        made = RingKey(kid, member, signs_from_s)
        self._keys = (*self._keys, made)
        return made

    def _drop(self, now_s: float) -> tuple[str, ...]:
        over = tuple(
            key.kid for key in self._keys if key.drop_at_s is not None and key.drop_at_s <= now_s
        )
        self._keys = tuple(key for key in self._keys if key.kid not in over)
        signer = self.signer(now_s)
        for file in self.folder.glob("key-*.pem"):
            known = next((key for key in self._keys if key.kid == file.stem), None)
            if known is None or known.signs_from_s < signer.signs_from_s:
                file.unlink(missing_ok=True)
        return over

    def _write(self) -> None:
        write_json_atomic(self.folder / JWKS_FILE, {"keys": [key.public for key in self._keys]})
        ring = {
            "issuer": self.issuer,
            "audience": self.audience,
            "keys": [asdict(key) for key in self._keys],
        }
        write_json_atomic(self.folder / RING_FILE, ring)

    def _private(self, key: RingKey) -> Ed25519PrivateKey:
        file = self._file(key.kid)
        try:
            loaded = serialization.load_pem_private_key(file.read_bytes(), password=None)
        except OSError as error:
            raise RingError(f"{file}: {error.strerror}") from None
        except ValueError:
            loaded = None
        if not isinstance(loaded, Ed25519PrivateKey):
            raise RingError(f"{file} is no Ed25519 private key")
        return loaded

    def _file(self, kid: str) -> Path:
        return self.folder / f"{kid}.pem"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One at a time, over processes too; every file in it is its owner's alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise RingError(f"{folder}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise RingError(f"{folder}: {error.strerror}") from None
    finally:
        os.close(handle)
