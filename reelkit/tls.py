"""Certificates of listeners, which are renewed on disk and taken without a restart."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

import grpc
import structlog
from pydantic import Field

from reelkit.clock import Clock
from reelkit.settings import Settings

_log = structlog.get_logger("reelkit.tls")

# How soon a renewed certificate is taken where nothing asks for it by itself.
FOLLOW_EVERY_S: Final = 5.0


class TlsSettings(Settings):
    """A listener's certificate."""

    cert_file: Path = Field(
        description="PEM file with the certificate and its chain. Read again when it changes."
    )
    key_file: Path = Field(description="PEM file with its private key; likewise.")


class Certificate:
    """A certificate and its key, read when one of their files was written."""

    def __init__(self, settings: TlsSettings, *, client_ca: Path | None = None) -> None:
        self._settings = settings
        self._client_ca = client_ca
        self._seen: tuple[int, ...] | None = None

    def changed(self) -> bool:
        """Whether a pair that fits is there which was not told of before.

        Raises:
            OSError: The files cannot be read, or do not fit one another: half of them may
                be written yet. It is told of when they do.
        """
        files = self._settings.cert_file, self._settings.key_file
        watched = files if self._client_ca is None else (*files, self._client_ca)
        seen = tuple(file.stat().st_mtime_ns for file in watched)
        if seen == self._seen:
            return False
        # An error of ssl's is an OSError. A context of its own: one in use would be left
        # with the new certificate and the old key.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
        self._seen = seen
        return True

    def pair(self) -> tuple[bytes, bytes]:
        """(key, certificate), as PEM."""
        return self._settings.key_file.read_bytes(), self._settings.cert_file.read_bytes()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What a connection that is made now is shown."""
        authorities = None if self._client_ca is None else self._client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration(
            [self.pair()], root_certificates=authorities
        )


def grpc_credentials(
    settings: TlsSettings, *, client_ca: Path | None = None
) -> grpc.ServerCredentials:
    """Credentials that follow the files; grpc asks at each new connection.

    Args:
        settings: The certificate.
        client_ca: Authorities of the certificates that callers must show; none by default.

    Raises:
        OSError: The files cannot be read, or do not fit one another.
    """
    certificate = Certificate(settings, client_ca=client_ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        try:
            if certificate.changed():
                return certificate.configuration()
        except OSError as error:
            # The one in use serves on.
            _log.warning("certificate cannot be read again", error=str(error))
        return None

    certificate.changed()
    return grpc.dynamic_ssl_server_credentials(
        certificate.configuration(),
        fetch,  # type: ignore[arg-type]  # None means: as before; the stubs do not know
        require_client_authentication=client_ca is not None,
    )


class FollowedContext:
    """A context of :mod:`ssl` whose certificate follows the files.

    Raises:
        OSError: The files cannot be read, or do not fit one another.
    """

    def __init__(self, settings: TlsSettings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._certificate = Certificate(settings)
        self._certificate.changed()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        """TLS 1.2 and newer, without client certificates."""
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load()

    async def follow(self) -> None:
        """Takes a renewed certificate for connections to come; for ever."""
        while True:
            await self._clock.sleep(FOLLOW_EVERY_S)
            try:
                if await asyncio.to_thread(self._certificate.changed):
                    self._load()
                    _log.info("certificate taken", file=str(self._settings.cert_file))
            except OSError as error:
                _log.warning("certificate cannot be read again", error=str(error))

    def _load(self) -> None:
        self.context.load_cert_chain(self._settings.cert_file, self._settings.key_file)
