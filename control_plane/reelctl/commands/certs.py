"""``reelctl certs``: certificates of the parts, by an authority of one's own."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from cryptography import x509
from rich.text import Text

from control_plane.reelctl.errors import CtlError, UsageError
from control_plane.reelctl.options import OutputOption
from control_plane.reelctl.output import Format, print_record, print_table, say
from control_plane.reelctl.spans import parse_span
from control_plane.reelctl.tables import plain_table
from control_plane.reelctl.waiting import SYSTEM_CLOCK
from reelkit.files import write_atomic
from reelkit.help_text import flow
from reelkit.mtls.authority import CA_FILE, Authority, AuthorityError, Wanted, write_issued
from reelkit.mtls.identity import Identity, IdentityError, Role

HELP = """Make the certificates that the parts show one another.

For sites without cert-manager or SPIRE. The authority is a folder that you keep somewhere safe;
each part is given its own certificate, its key and ca.pem. Nothing here talks to a mesh.

\b
  reelctl certs ca init ca
  reelctl certs issue --ca ca --region ap --role node --id gpu-1 --out gpu-1
  reelctl certs issue --ca etcd-ca --name etcd-1 --host 10.0.0.7 --out etcd-1
  reelctl certs show gpu-1/cert.pem"""
ISSUE_HELP = """Issue a certificate: cert.pem, key.pem and ca.pem in a folder.

With --region, --role and --id it is a part's. With --name it names nobody of the mesh: for etcd,
whose authority should be another, or for a listener that clients call. The same command again
renews it; a part that reads the files takes them without a restart.

\b
  reelctl certs issue --ca ca --region ap --role gateway --id gateway-1 --out gateway-1
  reelctl certs issue --ca ca --region ap --role operator --id alice --for 12h --out alice
  reelctl certs issue --ca public-ca --name edge --host video.example.com --out edge"""
INIT_HELP = """Make a folder with an authority.

\b
  reelctl certs ca init ca
  reelctl certs ca init ca --name "studio mesh" --for 3650d"""
STAGE_HELP = """Make the next authority, which is believed from now on and does not sign yet.

Give every part the new ca.pem; then `switch`.

\b
  reelctl certs ca stage ca"""
SWITCH_HELP = """Let the next authority sign.

Issue every certificate anew and give every part its own and the new ca.pem; then `retire`.

\b
  reelctl certs ca switch ca"""
RETIRE_HELP = """Drop the former authority: what it signed is believed no more.

Give every part the new ca.pem.

\b
  reelctl certs ca retire ca"""
SHOW_HELP = """Show what certificates say: who, under which names, until when.

\b
  reelctl certs show gpu-1/cert.pem ca/ca.pem"""

_MIN_S: Final = 60
_MAX_S: Final = 3660 * 24 * 3600
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,250}[A-Za-z0-9])?")
CERT_FILE: Final = "cert.pem"
KEY_FILE: Final = "key.pem"

app = typer.Typer(help=flow(HELP), no_args_is_help=True)
ca_app = typer.Typer(help="The authority that signs.", no_args_is_help=True)
app.add_typer(ca_app, name="ca")

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Where the authority lies.", show_default=False)
]
NameOption = Annotated[str, typer.Option(help="What it is called in its certificate.")]
LifeOption = Annotated[
    str, typer.Option("--for", metavar="TIME", help="How long it holds: 8h, 90d, 3650d.")
]


@ca_app.command("init", help=flow(INIT_HELP))
def init(
    folder: FolderArgument, name: NameOption = "reelmesh", lasts: LifeOption = "3650d"
) -> None:
    """Makes an authority."""
    with _told():
        made = Authority.create(folder, name=name, now=_now(), life=_life(lasts))
    say(f"made an authority; give every part {made.ca_file}, and nobody the rest of {folder}")


@ca_app.command("stage", help=flow(STAGE_HELP))
def stage(
    folder: FolderArgument, name: NameOption = "reelmesh", lasts: LifeOption = "3650d"
) -> None:
    """Makes the next authority."""
    with _told():
        found = Authority.open(folder)
        found.stage(name=name, now=_now(), life=_life(lasts))
    say(f"{found.ca_file} holds both; give it to every part, then `reelctl certs ca switch`")


@ca_app.command("switch", help=flow(SWITCH_HELP))
def switch(folder: FolderArgument) -> None:
    """Lets the next authority sign."""
    found = Authority(folder)
    with _told():
        found.switch()
    say(
        f"the next authority signs; issue every certificate anew, give every part its own and "
        f"{found.ca_file}, then `reelctl certs ca retire`"
    )


@ca_app.command("retire", help=flow(RETIRE_HELP))
def retire(folder: FolderArgument) -> None:
    """Drops the former authority."""
    with _told():
        found = Authority.open(folder)
        found.retire()
    say(f"the former authority is out of {found.ca_file}; give it to every part")


@app.command("issue", help=flow(ISSUE_HELP))
def issue(
    ca: Annotated[Path, typer.Option("--ca", envvar="REELCTL_CA_DIR", help="The authority.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.", show_default=False)],
    region: Annotated[str, typer.Option(help="Of a part.", show_default=False)] = "",
    role: Annotated[Role | None, typer.Option(help="Of a part.", show_default=False)] = None,
    part_id: Annotated[
        str,
        typer.Option(
            "--id",
            help="As its configuration has it: node_id, gateway_id, replica_id.",
            show_default=False,
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Of what is no part.", show_default=False)] = "",
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            "--dns",
            help="DNS name or IP address besides; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    lasts: LifeOption = "90d",
) -> None:
    """Issues a certificate."""
    wanted = _wanted(region, role, part_id, name, tuple(host or ()))
    with _told():
        authority = Authority.open(ca)
        issued = authority.issue(wanted, now=_now(), life=_life(lasts))
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_issued(issued, cert_file=out / CERT_FILE, key_file=out / KEY_FILE)
        write_atomic(out / CA_FILE, authority.ca_file.read_bytes())
    who = wanted.identity.uri if wanted.identity is not None else wanted.common_name
    say(f"{who}: {out / CERT_FILE}, until {_iso(issued.not_after)}")


def _wanted(
    region: str, role: Role | None, part_id: str, name: str, hosts: tuple[str, ...]
) -> Wanted:
    for each in hosts:
        if not _HOST.fullmatch(each) and not _is_address(each):
            raise UsageError(f"--host: {each!r} is neither a DNS name nor an IP address")
    if name and (region or role or part_id):
        raise UsageError("--name is of what is no part: leave --region, --role and --id out")
    if name:
        if not hosts and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise UsageError("--name: use 1 to 64 letters, digits, '.', '_' and '-'")
        return Wanted(common_name=name, hosts=hosts or (name,))
    if not region or role is None or not part_id:
        raise UsageError("give --region, --role and --id of a part, or --name of something else")
    try:
        identity = Identity(region, role, part_id)
    except IdentityError as error:
        raise UsageError(str(error)) from None
    return Wanted(common_name=part_id, identity=identity, hosts=hosts)


@app.command("show", help=flow(SHOW_HELP))
def show(
    files: Annotated[list[Path], typer.Argument(help="PEM files.", show_default=False)],
    output: OutputOption = Format.TABLE,
) -> None:
    """Shows certificates."""
    found = [(file, each) for file in files for each in _read(file)]
    if output is not Format.TABLE:
        print_record([_plain(file, each) for file, each in found], output)
        return
    table = plain_table("FILE", "SUBJECT", "NAMES", "UNTIL")
    for file, each in found:
        told = _plain(file, each)
        until = told["not_after"] + ("" if each.not_valid_after_utc > _now() else " (over)")
        table.add_row(
            Text(told["file"]), Text(told["subject"]), Text("\n".join(told["names"])), until
        )
    print_table(table)


def _read(file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        raise CtlError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise CtlError(f"{file}: holds no PEM certificate") from None


def _plain(file: Path, certificate: x509.Certificate) -> dict[str, Any]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [str(name.value) for name in found]
    except x509.ExtensionNotFound:
        names = []
    return {
        "file": str(file),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "names": names,
        "not_before": _iso(certificate.not_valid_before_utc),
        "not_after": _iso(certificate.not_valid_after_utc),
    }


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _life(text: str) -> dt.timedelta:
    return dt.timedelta(seconds=parse_span("--for", text, least_s=_MIN_S, most_s=_MAX_S))


def _now() -> dt.datetime:
    return dt.datetime.fromtimestamp(SYSTEM_CLOCK.time(), tz=dt.UTC)


def _iso(time: dt.datetime) -> str:
    return time.isoformat(timespec="seconds")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except AuthorityError as error:
        raise CtlError(str(error)) from None
    except OSError as error:
        raise CtlError(f"{error.filename}: {error.strerror}") from None
