"""Detached Ed25519 signatures of documents, and the files that the keys lie in.

What is signed is DSSE's pre-authentication encoding of a document's type and bytes
(https://github.com/secure-systems-lab/dsse, protocol v1): a signature of one kind of document
never holds for another kind. The document itself stays as it is, and the signature is kept
beside it with the id of its key.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

FORMAT: Final = "dsse-ed25519-v1"

# A key in PEM takes some hundred bytes.
_MAX_KEY_BYTES: Final = 16 * 1024


class KeyFileError(Exception):
    """A key file cannot be used; the message names it, and what it should be."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature and whose it is."""

    key_id: str
    signature: bytes


@dataclass(frozen=True)
class PublicKey:
    """Checks signatures; :func:`read_public_key` reads one."""

    key: Ed25519PublicKey

    @property
    def key_id(self) -> str:
        """The first 32 hex digits of the sha256 of its DER form."""
        der = self.key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(der).hexdigest()[:32]

    def holds(self, signature: bytes, kind: str, document: bytes) -> bool:
        """Whether it is this key's signature of exactly this document of this kind."""
        try:
            self.key.verify(signature, encoded(kind, document))
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True)
class SigningKey:
    """Signs; :func:`read_signing_key` reads one, :func:`make_keys` makes one."""

    key: Ed25519PrivateKey

    @property
    def public(self) -> PublicKey:
        """What checks its signatures."""
        return PublicKey(self.key.public_key())

    def sign(self, kind: str, document: bytes) -> Signature:
        """The signature of a document of a kind, such as a media type."""
        return Signature(self.public.key_id, self.key.sign(encoded(kind, document)))


def encoded(kind: str, document: bytes) -> bytes:
    """DSSE's pre-authentication encoding, v1."""
    name = kind.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(document), document)


def make_keys(private: Path, public: Path) -> SigningKey:
    """Makes a pair and writes it, the private one readable by its owner alone.

    Raises:
        FileExistsError: One of them is there; nothing was written.
        OSError: They cannot be written.
    """
    if public.exists():
        raise FileExistsError(17, "is there already", str(public))
    made = SigningKey(Ed25519PrivateKey.generate())
    secret = made.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    # Created so, and not changed to it: nobody can open it in between.
    handle = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)
    public.write_bytes(
        made.public.key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return made


def read_signing_key(file: Path) -> SigningKey:
    """Reads a private key.

    Raises:
        KeyFileError: It is not there, is no Ed25519 key, or others may read it.
    """
    data = _read(file)
    if file.stat().st_mode & 0o077:
        raise KeyFileError(f"{file}: others may read it; chmod 600 {file}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyFileError(f"{file}: is no private key in PEM without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{file}: is no Ed25519 key")
    return SigningKey(key)


def read_public_key(file: Path) -> PublicKey:
    """Reads a public key.

    Raises:
        KeyFileError: It is not there, or is no Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(_read(file))
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"{file}: is no public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{file}: is no Ed25519 key")
    return PublicKey(key)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be read: {error.strerror}") from None
