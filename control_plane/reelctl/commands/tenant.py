"""``reelctl tenant``: what each tenant may do."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

import typer
from reelmesh.v1 import tenant_pb2

from control_plane.reelctl.errors import ChangedMeanwhileError, NotFoundError, UsageError
from control_plane.reelctl.limits import (
    PRIORITIES,
    SHARINGS,
    changed,
    clear_fields,
    parse_size,
    plain_policy,
)
from control_plane.reelctl.options import Client, OutputOption, connected
from control_plane.reelctl.output import Format, note, print_record, print_table, say
from control_plane.reelctl.tenant_tables import policy_table, tenants_table, usage_table
from control_plane.reelctl.waiting import SYSTEM_CLOCK
from control_plane.reelctl.words import plain
from reelkit.help_text import flow

HELP = """Say what tenants may do: requests, videos, seconds of GPU, sizes, models.

A tenant without a policy of its own has that of "*"; without one of those either it is not
limited. Every gateway of the mesh follows within a second.

\b
  reelctl tenant set "*" --requests-per-second 2 --concurrent-jobs 4
  reelctl tenant set studio-7 --requests-per-second 5 --gpu-seconds-per-day 3600
  reelctl tenant list"""
SET_HELP = """Set limits of a tenant; those that are not named stay as they are.

Two operators who change different limits at once do not undo each other. A policy stands
for itself: nothing of that of "*" holds for a tenant that has one.

\b
  reelctl tenant set studio-7 --requests-per-second 5 --burst 10
  reelctl tenant set studio-7 --concurrent-jobs 20 --queued-jobs 10 --clear burst
  reelctl tenant set studio-7 --max-size 1280x704 --max-steps 50 --max-frames 121
  reelctl tenant set nightly --priority batch --weight 2 --model wan2.2-ti2v-5b"""
SHOW_HELP = """Show what a tenant may do.

\b
  reelctl tenant show studio-7
  reelctl tenant show "*" -o json"""
LIST_HELP = """List the tenants that have a policy of their own.

\b
  reelctl tenant list
  reelctl tenant list -o json"""
USAGE_HELP = """Show what a tenant has now and spent today, beside its limits.

One line for each gateway that has something of it; today is a day in UTC.

\b
  reelctl tenant usage studio-7
  reelctl tenant usage studio-7 -o json"""
UNSET_HELP = """Remove a tenant's policy: that of "*" holds from then on.

\b
  reelctl tenant unset studio-7"""

# Each lost to another operator's change.
MAX_TRIES: Final = 8
EVERYBODY: Final = "*"

app = typer.Typer(help=flow(HELP), no_args_is_help=True)


class PriorityName(StrEnum):
    """What may go first."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class SharingName(StrEnum):
    """Whose finished videos may answer."""

    TENANT = "tenant"
    SHARED = "shared"
    OFF = "off"


NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help='As tokens name it; "*": all without their own.', show_default=False
    ),
]


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, **more)


@app.command("set", help=flow(SET_HELP))
@connected
def set_policy(
    client: Client,
    name: NameArgument,
    requests_per_second: Annotated[float | None, _option("Calls a second, of all kinds.")] = None,
    burst: Annotated[int | None, _option("Calls at once beyond the rate.")] = None,
    concurrent_jobs: Annotated[int | None, _option("Videos admitted and not ended.")] = None,
    queued_jobs: Annotated[int | None, _option("Of these, those that wait.")] = None,
    gpu_seconds_per_day: Annotated[float | None, _option("Of a day in UTC.")] = None,
    max_size: Annotated[
        str | None, _option("Most pixels of a frame, as a size.", metavar="WxH")
    ] = None,
    max_steps: Annotated[int | None, _option("Most steps of a video.")] = None,
    max_frames: Annotated[int | None, _option("Most frames of a video.")] = None,
    model: Annotated[
        list[str] | None,
        _option("One it may use, name or name@version; again for each.", "--model"),
    ] = None,
    priority: Annotated[PriorityName | None, _option("The highest it may ask for.")] = None,
    weight: Annotated[float | None, _option("Its part beside others; 1 without.")] = None,
    min_steps_percent: Annotated[
        int | None, _option("What is kept of the steps of quality auto under load.")
    ] = None,
    cache_sharing: Annotated[SharingName | None, _option("Whose videos may answer it.")] = None,
    clear: Annotated[
        list[str] | None, _option("Lift this limit; again for each.", metavar="LIMIT")
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Sets limits."""
    given = {
        "requests_per_second": requests_per_second,
        "burst": burst,
        "concurrent_jobs": concurrent_jobs,
        "queued_jobs": queued_jobs,
        "gpu_seconds_per_day": gpu_seconds_per_day,
        "max_size": None if max_size is None else parse_size(max_size),
        "max_steps": max_steps,
        "max_frames": max_frames,
        "models": model or None,
        "priority": None if priority is None else PRIORITIES[priority],
        "weight": weight,
        "min_steps_percent": min_steps_percent,
        "cache_sharing": None if cache_sharing is None else SHARINGS[cache_sharing],
    }
    given = {field: value for field, value in given.items() if value is not None}
    cleared = clear_fields(clear or ())
    _check_wish(given, cleared)
    made = _write(client, name, given, cleared)
    if output is Format.TABLE:
        print_table(policy_table(made, now_s=SYSTEM_CLOCK.time()))
    else:
        print_record(plain_policy(made), output)


def _check_wish(given: dict[str, Any], cleared: list[str]) -> None:
    both = sorted(given.keys() & set(cleared))
    if both:
        raise UsageError(f"{both[0].replace('_', '-')} is set and cleared at once")
    for field, value in given.items():
        if isinstance(value, int | float) and value < 0:
            raise UsageError(
                f"--{field.replace('_', '-')}: must not be below 0",
                hint=f"to lift the limit: --clear {field.replace('_', '-')}",
            )
    if not given and not cleared:
        raise UsageError("name a limit to set, or one to --clear", hint="see --help")


def _write(
    client: Client, name: str, given: dict[str, Any], cleared: list[str]
) -> tenant_pb2.TenantPolicy:
    """Changes what stands, whoever else changes it meanwhile."""
    for tries_left in reversed(range(MAX_TRIES)):
        try:
            standing = client.tenant(name)
        except NotFoundError:
            standing = tenant_pb2.TenantPolicy(tenant=name)
        try:
            return client.set_tenant(changed(standing, given, cleared))
        except ChangedMeanwhileError:
            if not tries_left:
                raise
    raise AssertionError("returned or raised")


@app.command("show", help=flow(SHOW_HELP))
@connected
def show(client: Client, name: NameArgument, output: OutputOption = Format.TABLE) -> None:
    """Shows a policy."""
    policy = _effective(client, name)
    if output is not Format.TABLE:
        print_record(plain_policy(policy), output)
        return
    if policy.tenant != name:
        note(f'{name} has no policy of its own; that of "*" holds')
    print_table(policy_table(policy, now_s=SYSTEM_CLOCK.time()))


def _effective(client: Client, name: str) -> tenant_pb2.TenantPolicy:
    try:
        return client.tenant(name)
    except NotFoundError:
        if name == EVERYBODY:
            raise
    try:
        return client.tenant(EVERYBODY)
    except NotFoundError:
        raise NotFoundError(
            f'tenant {name!r} has no policy, and there is none for "*": it is not limited',
            hint="give it one with `reelctl tenant set`",
        ) from None


@app.command("list", help=flow(LIST_HELP))
@connected
def list_policies(client: Client, output: OutputOption = Format.TABLE) -> None:
    """Lists policies."""
    found = client.tenants()
    if output is not Format.TABLE:
        print_record([plain_policy(policy) for policy in found], output)
    elif found:
        print_table(tenants_table(found, now_s=SYSTEM_CLOCK.time()))
    else:
        note("No tenant has a policy: none is limited.")


@app.command("usage", help=flow(USAGE_HELP))
@connected
def usage(client: Client, name: NameArgument, output: OutputOption = Format.TABLE) -> None:
    """Shows use."""
    try:
        policy = _effective(client, name)
    except NotFoundError:
        policy = tenant_pb2.TenantPolicy(tenant=name)
    found = client.tenant_usage(name, on_missing=note)
    if output is Format.TABLE:
        print_table(usage_table(found, policy))
        return
    document = {"tenant": name, "limits": plain_policy(policy)}
    print_record({**document, "regions": [plain(each) for each in found]}, output)


@app.command("unset", help=flow(UNSET_HELP))
@connected
def unset(client: Client, name: NameArgument) -> None:
    """Removes a policy."""
    for tries_left in reversed(range(MAX_TRIES)):
        try:
            client.unset_tenant(name, revision=client.tenant(name).revision)
        except ChangedMeanwhileError:
            if not tries_left:
                raise
        else:
            break
    say(f"tenant {name} has no policy of its own any more")
