"""Certificates of parts: an authority of the test's own and the files that it issues."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

from reelkit.clock import SystemClock
from reelkit.mtls.authority import Authority, Issued, Wanted, write_issued
from reelkit.mtls.config import MutualTlsSettings
from reelkit.mtls.identity import Identity, Role
from reelkit.mtls.material import MutualTls

HOUR = dt.timedelta(hours=1)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class MeshAuthority:
    """An authority whose certificates hold for an hour."""

    def __init__(self, folder: Path, *, name: str = "test") -> None:
        self.authority = Authority.create(folder / "ca", name=name, now=now(), life=24 * HOUR)
        self._folder = folder

    @property
    def ca_file(self) -> Path:
        return self.authority.ca_file

    def issue(
        self, region: str, role: Role, id_: str, *, life: dt.timedelta = HOUR, **wanted: Any
    ) -> Issued:
        identity = Identity(region, role, id_)
        return self.authority.issue(
            Wanted(common_name=id_, identity=identity, **wanted), now=now(), life=life
        )

    def part(self, region: str, role: Role, id_: str, **changes: Any) -> MutualTlsSettings:
        """Files of a part, each its own folder, the CA's file copied."""
        folder = self._folder / f"{region}-{role}-{id_}"
        folder.mkdir(exist_ok=True)
        settings = MutualTlsSettings(
            ca_file=folder / "ca.pem", cert_file=folder / "cert.pem", key_file=folder / "key.pem"
        )
        self.give_ca(settings)
        self.renew(settings, self.issue(region, role, id_, **changes))
        return settings

    def give_ca(self, settings: MutualTlsSettings) -> None:
        temporary = settings.ca_file.with_suffix(".new")
        temporary.write_bytes(self.ca_file.read_bytes())
        os.replace(temporary, settings.ca_file)  # noqa: PTH105 - as a renewal does

    @staticmethod
    def renew(settings: MutualTlsSettings, issued: Issued) -> None:
        write_issued(issued, cert_file=settings.cert_file, key_file=settings.key_file)


def mutual(settings: MutualTlsSettings) -> MutualTls:
    return MutualTls(settings, clock=SystemClock())


def section(settings: MutualTlsSettings) -> dict[str, str]:
    """As a configuration file has it."""
    return {name: str(value) for name, value in settings.model_dump().items()}
