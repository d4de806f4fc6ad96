"""The certificates of a local mesh: which there are, as a plan, and their making.

Each kind of listener has an authority of its own below ``STATE_DIR/certs``, so that what one
signs opens nothing else: ``public`` for what clients and operators call, ``mesh`` for the
parts among themselves, and one for each etcd, which lets in whoever its authority signed for.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from reelkit.mtls.authority import CA_FILE, Authority, AuthorityError, Wanted, write_issued
from reelkit.mtls.identity import Identity, Role
from reelmesh_cli.errors import UsageError

LIFE: Final = dt.timedelta(hours=24)
RENEW_EVERY_S: Final = LIFE.total_seconds() / 3
_AUTHORITY_LIFE: Final = dt.timedelta(days=365)
# An authority with less left is replaced at the start, when nobody uses it.
_AUTHORITY_LEFT: Final = dt.timedelta(days=30)

PUBLIC: Final = "public"
MESH: Final = "mesh"
# Whom `reelmesh up` itself is to the processes that it watches.
UP: Final = "reelmesh-up"
_HOSTS: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What somebody shows and believes."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class CertificatePlan:
    """One certificate, to be made and made anew."""

    authority: str
    files: TlsFiles
    wanted: Wanted


class CertificateBook:
    """Notes which certificates a mesh needs, and says how configurations name them.

    Args:
        state_dir: Of the mesh, absolute.
        enabled: Without, nothing is noted and every answer is that of plain text.
    """

    def __init__(self, state_dir: Path, *, enabled: bool) -> None:
        self.enabled = enabled
        self._folder = state_dir / "certs"
        self._plans: dict[Path, CertificatePlan] = {}

    @property
    def plans(self) -> tuple[CertificatePlan, ...]:
        """All that was noted, each once."""
        return tuple(self._plans.values())

    @property
    def ca(self) -> Path | None:
        """What clients and operators believe."""
        return self._folder / PUBLIC / CA_FILE if self.enabled else None

    def url(self, address: str) -> str:
        """The URL of something that speaks HTTP or etcd's protocol."""
        return f"{'https' if self.enabled else 'http'}://{address}"

    def mtls(self, role: Role, region: str, name: str) -> dict[str, Any]:
        """The ``mtls`` section of a part's configuration."""
        if not self.enabled:
            return {}
        files = self.part(role, region, name)
        section = {"ca_file": files.ca, "cert_file": files.cert, "key_file": files.key}
        return {"mtls": {field: str(file) for field, file in section.items()}}

    def part(self, role: Role, region: str, name: str) -> TlsFiles:
        """Files of a part, or of whoever calls parts."""
        wanted = Wanted(common_name=name, identity=Identity(region, role, name))
        return self._note(MESH, f"{region}.{role}.{name}", wanted)

    def public(self, name: str) -> dict[str, Any]:
        """The ``tls`` section of what clients or operators call."""
        if not self.enabled:
            return {}
        files = self._note(PUBLIC, name, Wanted(common_name=name, hosts=_HOSTS, client=False))
        return {"tls": {"cert_file": str(files.cert), "key_file": str(files.key)}}

    def etcd_member(self, cluster: str, name: str) -> tuple[str, ...]:
        """Flags of a member, which lets nobody in without a certificate."""
        if not self.enabled:
            return ()
        # Members are clients of one another, and etcd's own HTTP is a client of its gRPC.
        files = self._note(_etcd(cluster), name, Wanted(common_name=name, hosts=_HOSTS))
        return tuple(
            flag
            for kind in ("", "peer-")
            for flag in (
                f"--{kind}cert-file={files.cert}",
                f"--{kind}key-file={files.key}",
                f"--{kind}trusted-ca-file={files.ca}",
                f"--{kind}client-cert-auth",
            )
        )

    def etcd_client(self, cluster: str, name: str) -> dict[str, str]:
        """Fields of a control plane's ``etcd`` section."""
        if not self.enabled:
            return {}
        files = self.etcd_caller(cluster, name)
        return {"ca": str(files.ca), "cert": str(files.cert), "key": str(files.key)}

    def etcd_caller(self, cluster: str, name: str) -> TlsFiles:
        """Files of whoever calls an etcd."""
        return self._note(_etcd(cluster), name, Wanted(common_name=name, server=False))

    def _note(self, authority: str, name: str, wanted: Wanted) -> TlsFiles:
        folder = self._folder / authority
        files = TlsFiles(folder / CA_FILE, folder / f"{name}.pem", folder / f"{name}-key.pem")
        if self.enabled:
            self._plans[files.cert] = CertificatePlan(authority, files, wanted)
        return files


def _etcd(cluster: str) -> str:
    return f"etcd-{cluster}"


def open_authorities(plans: Iterable[CertificatePlan], *, now: dt.datetime) -> None:
    """Makes the authorities that there are not yet; they stay from one start to the next.

    Raises:
        UsageError: The folder cannot be used.
    """
    for folder in {each.files.ca.parent for each in plans}:
        try:
            if (folder / CA_FILE).exists():
                if Authority.open(folder).not_after - now > _AUTHORITY_LEFT:
                    continue
                shutil.rmtree(folder)
            Authority.create(
                folder, name=f"reelmesh local {folder.name}", now=now, life=_AUTHORITY_LIFE
            )
        except (AuthorityError, OSError) as error:
            raise UsageError(
                f"{error}", hint=f"move {folder} away; new certificates are made then"
            ) from None


def issue(plans: Iterable[CertificatePlan], *, now: dt.datetime) -> None:
    """Makes every certificate anew; processes that run take them by themselves.

    Raises:
        UsageError: An authority or a file cannot be used.
    """
    for plan in plans:
        try:
            issued = Authority.open(plan.files.ca.parent).issue(plan.wanted, now=now, life=LIFE)
            write_issued(issued, cert_file=plan.files.cert, key_file=plan.files.key)
        except (AuthorityError, OSError) as error:
            raise UsageError(f"certificates cannot be made: {error}") from None
