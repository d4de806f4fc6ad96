"""``reelctl token``: what holds no more, and an issuer of one's own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from reelmesh.v1 import access_pb2
from rich.text import Text

from control_plane.reelctl.errors import CtlError, UsageError
from control_plane.reelctl.options import Client, OutputOption, connected
from control_plane.reelctl.output import Format, print_all, print_record, print_table, say
from control_plane.reelctl.spans import MINUTE_S, parse_span
from control_plane.reelctl.tables import plain_table, revocations_table
from control_plane.reelctl.waiting import SYSTEM_CLOCK
from control_plane.reelctl.words import span
from reelkit.help_text import flow
from reelkit.tokens.ring import JWKS_FILE, KeyRing, RingError, RingKey

HELP = """Revoke tokens of any issuer, and be an issuer of your own.

Without an identity provider, keys lie in a folder that you keep somewhere safe; gateways and
control planes are given its jwks.json alone, and issue and keys talk to none of them.

\b
  reelctl token revoke --issuer https://id.example.com/ --subject alice
  reelctl token keys init ./keys --issuer https://tokens.example.com
  reelctl token issue --keys ./keys --tenant studio-7 --subject alice --for 30d"""
REVOKE_HELP = """Have every gateway refuse tokens that are valid still, within a second.

Name one by its jti, or a subject, whose tokens of before now are meant; one that is issued
later holds. A token without an iat counts as issued before.

\b
  reelctl token revoke --issuer https://id.example.com/ --jti 7Zq0 --reason "leaked in a log"
  reelctl token revoke --issuer https://id.example.com/ --subject alice --keep 90d"""
REVOCATIONS_HELP = """List what is revoked, the newest first.

\b
  reelctl token revocations
  reelctl token revocations -o yaml"""
RESTORE_HELP = """Take a revocation back, by its id.

\b
  reelctl token restore 5f0c9a31d2b7e864"""
ISSUE_HELP = """Print a token.

\b
  reelctl token issue --keys ./keys --tenant studio-7 --subject alice
  reelctl token issue --keys ./keys --subject ops --scope "fleet:read fleet:operate" --for 8h
  reelctl token issue --keys ./keys --tenant studio-7 --subject ci -o json"""
INIT_HELP = """Make a folder with a signing key and its public key set.

\b
  reelctl token keys init ./keys --issuer https://tokens.example.com --audience reelmesh"""
ROTATE_HELP = """Publish a new key, which signs after a while.

Copy jwks.json to where gateways and control planes read it before that time is over; they
notice a changed file within seconds. The old key stays in it for as long as its tokens may be
used. Without a word to anybody, in an emergency: --lead 0s --keep 0s.

\b
  reelctl token keys rotate ./keys
  reelctl token keys rotate ./keys --lead 1h --keep 7d"""
SHOW_HELP = """Show the keys and their times.

\b
  reelctl token keys show ./keys"""
PRUNE_HELP = """Take out the keys whose tokens are over.

\b
  reelctl token keys prune ./keys"""

DEFAULT_SCOPES = "video:generate video:read fleet:read"
LONGEST_TTL_S = 366 * 24 * 60 * MINUTE_S

app = typer.Typer(help=flow(HELP), no_args_is_help=True)
keys_app = typer.Typer(help="The keys that sign tokens.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

FolderArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Where the keys lie.", show_default=False)
]


@app.command("issue", help=flow(ISSUE_HELP))
def issue(
    keys: Annotated[
        Path,
        typer.Option("--keys", envvar="REELCTL_KEYS", help="The folder of the keys."),
    ],
    subject: Annotated[str, typer.Option(help="Who calls (sub).", show_default=False)],
    tenant: Annotated[
        str, typer.Option(help="Whose videos these are; operators need none.", show_default=False)
    ] = "",
    scope: Annotated[str, typer.Option(help="What it is good for.")] = DEFAULT_SCOPES,
    lasts: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long it holds: 90s, 15m, 8h, 30d.")
    ] = "1h",
    output: OutputOption = Format.TABLE,
) -> None:
    """Prints a token."""
    ttl_s = parse_span("--for", lasts, least_s=1, most_s=LONGEST_TTL_S)
    if not subject.strip():
        raise CtlError("--subject is empty", hint="name whoever will use the token")
    claims = {"sub": subject, "scope": " ".join(scope.split())}
    if tenant:
        claims["tenant"] = tenant
    with _told():
        signed = KeyRing.open(keys).sign(claims, now_s=time.time(), ttl_s=ttl_s)
    if output is Format.TABLE:
        # Alone on its line, so that a shell can take it.
        say(signed.token)
        return
    print_record(
        {
            "token": signed.token,
            "kid": signed.kid,
            "jti": signed.jti,
            "expires_at": _iso(signed.expires_s),
        },
        output,
    )


@app.command("revoke", help=flow(REVOKE_HELP))
@connected
def revoke(
    client: Client,
    issuer: Annotated[str, typer.Option(help="The tokens' iss.", show_default=False)],
    jti: Annotated[str, typer.Option(help="One token's id.", show_default=False)] = "",
    subject: Annotated[str, typer.Option(help="All so far of a subject.", show_default=False)] = "",
    keep: Annotated[
        str, typer.Option(metavar="TIME", help="As long as such a token could be valid.")
    ] = "30d",
    reason: Annotated[str, typer.Option(help="For whoever looks later.", show_default=False)] = "",
) -> None:
    """Revokes tokens."""
    if bool(jti) == bool(subject):
        raise UsageError("give --jti or --subject, and not both")
    keep_s = parse_span("--keep", keep, least_s=1, most_s=LONGEST_TTL_S)
    asked = access_pb2.TokenRevocation(issuer=issuer, reason=reason)
    if jti:
        asked.jti = jti
    else:
        asked.subject = subject
        # To the second after: iat has no fractions, and one of this second is meant too.
        asked.issued_before.FromSeconds(int(SYSTEM_CLOCK.time()) + 1)
    made = client.revoke(asked, keep_s=keep_s)
    which = f"token {jti}" if jti else f"tokens of {subject} until now"
    say(f"{which}: revoked for {span(keep_s)} (reelctl token restore {made.id})")


@app.command("revocations", help=flow(REVOCATIONS_HELP))
@connected
def revocations(client: Client, output: OutputOption = Format.TABLE) -> None:
    """Lists revocations."""
    found = client.revocations()
    print_all(
        found,
        output,
        lambda: revocations_table(found, now_s=SYSTEM_CLOCK.time()),
        empty="No token is revoked.",
    )


@app.command("restore", help=flow(RESTORE_HELP))
@connected
def restore(
    client: Client,
    revocation_id: Annotated[
        str, typer.Argument(metavar="ID", help="Of the list.", show_default=False)
    ],
) -> None:
    """Takes a revocation back."""
    client.restore(revocation_id)
    say(f"revocation {revocation_id} is taken back")


@keys_app.command("init", help=flow(INIT_HELP))
def init(
    folder: FolderArgument,
    issuer: Annotated[str, typer.Option(help="The tokens' iss.", show_default=False)],
    audience: Annotated[str, typer.Option(help="The tokens' aud.")] = "reelmesh",
) -> None:
    """Makes a ring."""
    with _told():
        ring = KeyRing.create(folder, issuer=issuer, audience=audience, now_s=time.time())
    say(f"made {ring.keys[0].kid}; give gateways and control planes {folder / JWKS_FILE}")


@keys_app.command("rotate", help=flow(ROTATE_HELP))
def rotate(
    folder: FolderArgument,
    lead: Annotated[str, typer.Option(metavar="TIME", help="Until the new key signs.")] = "10m",
    keep: Annotated[
        str,
        typer.Option(metavar="TIME", help="How long the old key's tokens hold after that."),
    ] = "30d",
) -> None:
    """Publishes a new key."""
    lead_s = parse_span("--lead", lead, least_s=0, most_s=LONGEST_TTL_S)
    keep_s = parse_span("--keep", keep, least_s=0, most_s=LONGEST_TTL_S)
    with _told():
        made = KeyRing.open(folder).rotate(now_s=time.time(), lead_s=lead_s, keep_s=keep_s)
    when = f"in {span(lead_s)}" if lead_s else "now"
    say(f"{made.kid} signs {when}; copy {folder / JWKS_FILE} to gateways and control planes")


@keys_app.command("prune", help=flow(PRUNE_HELP))
def prune(folder: FolderArgument) -> None:
    """Takes out keys that are over."""
    with _told():
        dropped = KeyRing.open(folder).prune(now_s=time.time())
    say(f"taken out: {', '.join(dropped)}" if dropped else "no key is over yet")


@keys_app.command("show", help=flow(SHOW_HELP))
def show(folder: FolderArgument, output: OutputOption = Format.TABLE) -> None:
    """Shows the keys."""
    now_s = time.time()
    with _told():
        ring = KeyRing.open(folder)
    signer = ring.signer(now_s)
    if output is not Format.TABLE:
        print_record([_plain(key, signer=signer) for key in ring.keys], output)
        return
    table = plain_table("KEY", "STATE", "SIGNS FROM", "TAKEN OUT")
    for key in ring.keys:
        until = "-" if key.drop_at_s is None else _iso(key.drop_at_s)
        state = _state(key, signer, now_s)
        table.add_row(Text(key.kid), Text(state), _iso(key.signs_from_s), until)
    print_table(table)


def _state(key: RingKey, signer: RingKey, now_s: float) -> str:
    if key.kid == signer.kid:
        return "signs"
    if key.signs_from_s > now_s:
        return "published"
    over = key.drop_at_s is not None and key.drop_at_s <= now_s
    return "over; prune it" if over else "retired"


def _plain(key: RingKey, *, signer: RingKey) -> dict[str, object]:
    return {
        "kid": key.kid,
        "signs": key.kid == signer.kid,
        "signs_from": _iso(key.signs_from_s),
        "taken_out_at": None if key.drop_at_s is None else _iso(key.drop_at_s),
    }


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, tz=UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RingError as error:
        raise CtlError(str(error)) from None
