"""An authority of one's own: certificates for the parts of a site without cert-manager or SPIRE.

::

    FOLDER/ca.pem          what others believe: the signer, and one that comes or goes
    FOLDER/ca-key.pem      the signer's private key; whoever reads it can be any part
    FOLDER/next.pem        an authority that is believed already and does not sign yet
    FOLDER/next-key.pem

An authority is replaced in three steps, each followed by giving everybody the new ``ca.pem``:
:meth:`Authority.stage` makes the next one, :meth:`Authority.switch` lets it sign, and
:meth:`Authority.retire` drops the former once no certificate of it is in use.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import ipaddress
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from reelkit.files import write_atomic
from reelkit.mtls.identity import Identity

CA_FILE: Final = "ca.pem"
_KEY_FILE: Final = "ca-key.pem"
_NEXT_FILE: Final = "next.pem"
_NEXT_KEY_FILE: Final = "next-key.pem"
_LOCK_FILE: Final = ".lock"
# Clocks differ.
_EARLY: Final = dt.timedelta(minutes=5)


class AuthorityError(Exception):
    """The folder cannot be used, or the step not be taken; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a certificate should say."""

    common_name: str
    identity: Identity | None = None
    """Of a part; its URI and the names that other parts demand are added."""
    hosts: tuple[str, ...] = ()
    """DNS names and IP addresses under which it is reached besides."""
    server: bool = True
    client: bool = True


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    not_after: dt.datetime


class Authority:
    """Signs certificates. Open it with :meth:`create` or :meth:`open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def ca_file(self) -> Path:
        """What others believe."""
        return self.folder / CA_FILE

    @classmethod
    def create(cls, folder: Path, *, name: str, now: dt.datetime, life: dt.timedelta) -> Self:
        """A folder with an authority that signs.

        Raises:
            AuthorityError: There is one already, or the folder cannot be written.
        """
        made = cls(folder)
        with made._locked():
            if made.ca_file.exists():
                raise AuthorityError(f"{folder} holds an authority already; name another folder")
            made._make(CA_FILE, _KEY_FILE, name=name, now=now, life=life)
        return made

    @classmethod
    def open(cls, folder: Path) -> Self:
        """An existing one.

        Raises:
            AuthorityError: There is none.
        """
        found = cls(folder)
        found._signer()
        return found

    @property
    def not_after(self) -> dt.datetime:
        """When the signer is over, and with it all that it signed."""
        return self._bundle()[0].not_valid_after_utc

    def issue(self, wanted: Wanted, *, now: dt.datetime, life: dt.timedelta) -> Issued:
        """A certificate and a new key; it never outlives its authority.

        Raises:
            AuthorityError: The authority's own files cannot be used, or it is over.
        """
        key, signer = self._signer()
        not_after = min(now + life, signer.not_valid_after_utc)
        if not_after <= now:
            raise AuthorityError(
                f"the authority in {self.folder} is over since {signer.not_valid_after_utc:%F}"
            )
        own = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(
            _name(wanted.common_name), signer.subject, own.public_key(), now, not_after
        )
        uses = [ExtendedKeyUsageOID.SERVER_AUTH] if wanted.server else []
        uses += [ExtendedKeyUsageOID.CLIENT_AUTH] if wanted.client else []
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(_names(wanted)), critical=False)
            .add_extension(_authority_id(signer), critical=False)
            .sign(key, hashes.SHA256())
        )
        return Issued(_pem(certificate), _private_pem(own), not_after)

    # --- replacing it ---

    def stage(self, *, name: str, now: dt.datetime, life: dt.timedelta) -> None:
        """Makes the next authority, which is believed from now on and does not sign yet.

        Raises:
            AuthorityError: There is a next one, or a former one, already.
        """
        with self._locked():
            if len(self._bundle()) > 1:
                raise AuthorityError(
                    f"{self.ca_file} holds two authorities already: switch or retire first"
                )
            self._make(_NEXT_FILE, _NEXT_KEY_FILE, name=name, now=now, life=life)
            write_atomic(
                self.ca_file, self.ca_file.read_bytes() + (self.folder / _NEXT_FILE).read_bytes()
            )

    def switch(self) -> None:
        """Lets the next authority sign; the former one is believed still.

        Raises:
            AuthorityError: There is none.
        """
        with self._locked():
            if not (self.folder / _NEXT_KEY_FILE).exists():
                raise AuthorityError(f"{self.folder} holds no next authority: stage one first")
            following = self._key(_NEXT_KEY_FILE).public_key()
            # The one that will sign comes first, also where an earlier try was broken off.
            ordered = sorted(self._bundle(), key=lambda each: each.public_key() != following)
            write_atomic(self.ca_file, b"".join(map(_pem, ordered)))
            (self.folder / _NEXT_KEY_FILE).replace(self.folder / _KEY_FILE)
            (self.folder / _NEXT_FILE).unlink(missing_ok=True)

    def retire(self) -> None:
        """Drops the former authority: its certificates are believed no more.

        Raises:
            AuthorityError: There is none.
        """
        with self._locked():
            signer, *others = self._bundle()
            if not others or (self.folder / _NEXT_KEY_FILE).exists():
                raise AuthorityError(f"{self.folder} holds no former authority: switch first")
            write_atomic(self.ca_file, _pem(signer))

    # --- files ---

    def _make(
        self, file: str, key_file: str, *, name: str, now: dt.datetime, life: dt.timedelta
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        # Two of one name could be mistaken for one another while both are believed.
        subject = _name(f"{name} {secrets.token_hex(4)}")
        certificate = (
            _builder(subject, subject, key.public_key(), now, now + life)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        # The key first: no certificate is told of that nobody can sign for.
        write_atomic(self.folder / key_file, _private_pem(key))
        write_atomic(self.folder / file, _pem(certificate))

    def _signer(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key, signer = self._key(_KEY_FILE), self._bundle()[0]
        if key.public_key() != signer.public_key():
            raise AuthorityError(
                f"{self.folder / _KEY_FILE} is not the key of the first authority in {self.ca_file}"
            )
        return key, signer

    def _key(self, name: str) -> ec.EllipticCurvePrivateKey:
        file = self.folder / name
        try:
            key = serialization.load_pem_private_key(file.read_bytes(), password=None)
        except OSError as error:
            raise AuthorityError(f"{file}: {error.strerror}") from None
        except (ValueError, TypeError):
            raise AuthorityError(f"{file} is no PEM private key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"{file} is no key of an elliptic curve")
        return key

    def _bundle(self) -> Sequence[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(self.ca_file.read_bytes())
        except OSError as error:
            raise AuthorityError(f"{self.ca_file}: {error.strerror}") from None
        except ValueError:
            raise AuthorityError(f"{self.ca_file} holds no certificates") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time, over processes too; every file in it is its owner's alone."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise AuthorityError(f"{self.folder}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise AuthorityError(f"{self.folder}: {error.strerror}") from None
        finally:
            os.close(handle)


def write_issued(issued: Issued, *, cert_file: Path, key_file: Path) -> None:
    """Writes both, each whole and readable by its owner alone.

    The key first: whoever reads between the two finds a pair that does not fit, and keeps what
    it has until it does.

    Raises:
        OSError: A folder cannot be written.
    """
    write_atomic(key_file, issued.key)
    write_atomic(cert_file, issued.certificate)


def _names(wanted: Wanted) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    if wanted.identity is not None:
        names.append(x509.UniformResourceIdentifier(wanted.identity.uri))
        names += map(x509.DNSName, wanted.identity.server_names)
    for host in wanted.hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: dt.datetime,
    not_after: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLY)
        .not_valid_after(not_after)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_id(signer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    found = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
