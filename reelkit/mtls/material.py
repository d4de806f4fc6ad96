"""A part's certificate, key and authorities as the files have them now.

Whatever is wrong with the files while the part runs, such as half of a pair that is being
written, leaves it with what it read last, and it says so once. What fits is taken within
:data:`FOLLOW_EVERY_S`, for connections that are made from then on: those that stand go on.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from reelkit.clock import Clock
from reelkit.mtls.config import MutualTlsSettings
from reelkit.mtls.identity import Identity, Role, identity_of
from reelkit.settings import ConfigError

_log = structlog.get_logger("reelkit.mtls")

FOLLOW_EVERY_S: Final = 5.0
# Of a certificate's life: what is left of it when its renewal is late.
_LATE_SHARE: Final = 0.2
_SAY_LATE_EVERY_S: Final = 3600.0

_Stamp = tuple[tuple[int, int, int], ...]


class CertificateError(ValueError):
    """The files cannot be used; the message says which one and why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What the three files held at one moment, checked to fit together."""

    identity: Identity
    not_before: dt.datetime
    not_after: dt.datetime
    certificate: bytes
    key: bytes = field(repr=False)
    authorities: bytes


@dataclass(frozen=True, slots=True)
class _InUse:
    generation: int
    pair: Pair


def read_pair(settings: MutualTlsSettings, *, now: dt.datetime) -> Pair:
    """What the files hold.

    Raises:
        CertificateError: A file is missing or half written, the key is another's, or the
            certificate is over, not yet valid, or names nobody of this mesh.
    """
    certificate = _read(settings.cert_file)
    key = _read(settings.key_file)
    authorities = _read(settings.ca_file)
    _parse(settings.ca_file, authorities)
    leaf = _parse(settings.cert_file, certificate)[0]
    try:
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError):
        raise CertificateError(f"key_file {settings.key_file}: holds no PEM private key") from None
    if private.public_key() != leaf.public_key():
        raise CertificateError(
            f"key_file {settings.key_file}: is not the key of {settings.cert_file}"
        )
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise CertificateError(
            f"cert_file {settings.cert_file}: is valid from {_said(leaf.not_valid_before_utc)} to "
            f"{_said(leaf.not_valid_after_utc)}, and now it is {_said(now)}"
        )
    try:
        identity = identity_of(_uris(leaf))
    except ValueError as error:
        raise CertificateError(f"cert_file {settings.cert_file}: {error}") from None
    return Pair(
        identity, leaf.not_valid_before_utc, leaf.not_valid_after_utc, certificate, key, authorities
    )


def open_mutual_tls(
    settings: MutualTlsSettings | None,
    *,
    region: str,
    role: Role,
    id: str,  # noqa: A002 - as everywhere
    clock: Clock,
) -> MutualTls | None:
    """The credentials of the part that a configuration describes; None: it speaks plain text.

    Raises:
        ConfigError: The files cannot be used, or are another part's.
    """
    if settings is None:
        return None
    try:
        tls, own = MutualTls(settings, clock=clock), Identity(region, role, id)
    except ValueError as error:
        raise ConfigError(f"mtls: {error}") from None
    if tls.identity != own:
        raise ConfigError(
            f"mtls.cert_file {settings.cert_file}: is the certificate of {tls.identity}, but "
            f"the configuration is that of {own}"
        )
    return tls


class MutualTls:
    """Credentials of one part, for its listeners and its channels; safe in any thread.

    Raises:
        CertificateError: The files cannot be used.
    """

    def __init__(self, settings: MutualTlsSettings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._stamp = self._look()
        # One value, since several threads read it.
        self._in_use = _InUse(1, read_pair(settings, now=self._now()))
        self._failing = ""
        self._said_late_s = float("-inf")
        self._credentials: tuple[int, grpc.ChannelCredentials] | None = None

    @property
    def generation(self) -> int:
        """Rises when other files were taken."""
        return self._in_use.generation

    @property
    def identity(self) -> Identity:
        """Whose certificate it is; never another's while the part runs."""
        return self._in_use.pair.identity

    @property
    def not_after(self) -> dt.datetime:
        """When the certificate is over."""
        return self._in_use.pair.not_after

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """What a channel that is opened now shows and believes."""
        made, now = self._credentials, self._in_use
        if made is None or made[0] != now.generation:
            pair = now.pair
            credentials = grpc.ssl_channel_credentials(pair.authorities, pair.key, pair.certificate)
            made = self._credentials = (now.generation, credentials)
        return made[1]

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials that demand a client certificate and follow the files."""
        taken = self._in_use

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # In a thread of grpc's, at each new connection.
            nonlocal taken
            now = self._in_use
            if taken is now:
                return None
            taken = now
            return _configuration(now.pair)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(taken.pair),
            fetch,  # type: ignore[arg-type]  # None means: as before; the stubs do not know
            require_client_authentication=True,
        )

    async def follow_once(self) -> None:
        """Takes files that were renewed within :data:`FOLLOW_EVERY_S`."""
        await self._clock.sleep(FOLLOW_EVERY_S)
        await asyncio.to_thread(self.refresh)
        self._warn_when_late()

    def refresh(self) -> bool:
        """Reads files that changed; whether others are in use now."""
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return False
            pair = read_pair(self._settings, now=self._now())
            if pair.identity != self.identity:
                raise CertificateError(
                    f"cert_file {self._settings.cert_file}: is now the certificate of "
                    f"{pair.identity}, and this is {self.identity}"
                )
        except CertificateError as error:
            # Said once for each thing that is wrong; it is looked at again all the same.
            if str(error) != self._failing:
                _log.warning("certificate not taken; the last one serves on", reason=str(error))
            self._failing = str(error)
            return False
        self._stamp, self._failing = stamp, ""
        if pair == self._in_use.pair:
            return False
        self._in_use = _InUse(self.generation + 1, pair)
        _log.info("certificate taken", identity=pair.identity.uri, until=_said(pair.not_after))
        return True

    def _warn_when_late(self) -> None:
        pair, now_s = self._in_use.pair, self._clock.monotonic()
        late = pair.not_after - _LATE_SHARE * (pair.not_after - pair.not_before)
        if self._now() >= late and now_s - self._said_late_s >= _SAY_LATE_EVERY_S:
            self._said_late_s = now_s
            _log.warning(
                "certificate is not renewed; nobody lets this part in when it is over",
                identity=pair.identity.uri,
                until=_said(pair.not_after),
            )

    def _look(self) -> _Stamp:
        files = self._settings.ca_file, self._settings.cert_file, self._settings.key_file
        return tuple(map(_stamp, files))

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock.wall(), tz=dt.UTC)


def _said(time: dt.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _configuration(pair: Pair) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pair.key, pair.certificate)], root_certificates=pair.authorities
    )


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except OSError as error:
        raise CertificateError(f"{file}: cannot be read: {error.strerror}") from None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateError(f"{file}: cannot be read: {error.strerror}") from None


def _parse(file: Path, pem: bytes) -> Sequence[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError:
        found = []
    # One that was cut off at its end is left out without a word.
    if not found or len(found) != pem.count(b"-----BEGIN "):
        raise CertificateError(f"{file}: is not PEM certificates from its beginning to its end")
    return found


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
