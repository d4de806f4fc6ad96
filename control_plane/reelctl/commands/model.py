"""``reelctl model``: the registry of models and adapters."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from reelmesh.v1 import registry_pb2 as reg

from control_plane.reelctl.commands import model_keys, model_prefetch
from control_plane.reelctl.errors import CtlError, UsageError
from control_plane.reelctl.model_tables import files_table, model_table, models_table, plain_model
from control_plane.reelctl.options import Client, OutputOption, connected
from control_plane.reelctl.output import Format, note, print_record, print_table, say
from control_plane.reelctl.pinned import ModelArgument, split_pin
from control_plane.reelctl.registering import (
    Wish,
    check_signature,
    make_registration,
    manifest_of,
    parse_options,
    source_problems,
)
from control_plane.reelctl.waiting import SYSTEM_CLOCK
from reelkit.help_text import flow

HELP = """Register models and adapters, sign them, and have nodes fetch them.

A registered version never changes: its manifest names every file with its sha256, and is signed
with a key that stays with you. Nodes take what a key that they trust has signed.

\b
  reelctl model keys init model.key
  reelctl model register wan --version v2 --from s3://models/wan-v2 --key model.key
  reelctl model prefetch wan@v2 --wait
  reelctl model list"""
REGISTER_HELP = """Read weights through, sign what they are, and register that.

SOURCE is a folder, an object store's URL or hf://org/name@revision; every file is hashed here.
Weights are safetensors: pickles and code are refused, whatever they are called. What else a
model is (its sizes, frames, defaults) is in manifest.json of the source, or in --manifest. The
same again is fine, and adds its source; other content of the same version is refused.

\b
  reelctl model register wan --version v2 --from s3://models/wan-v2 --key model.key
  reelctl model register wan --version v2 --from ./wan --serve-from s3://models/wan-v2 \\
      --key model.key
  reelctl model register wan --version v1 --from hf://Wan-AI/Wan2.2-TI2V-5B-Diffusers \\
      --manifest wan2.2-ti2v-5b.manifest.json --key model.key
  reelctl model register inks --version v1 --kind lora --base wan --from ./inks --key model.key"""
LIST_HELP = """List the registered versions.

\b
  reelctl model list
  reelctl model list wan -o json"""
SHOW_HELP = """Show a version.

\b
  reelctl model show wan@v2
  reelctl model show wan@v2 --files
  reelctl model show wan@v2 -o yaml"""
VERIFY_HELP = """Read a version's sources again, and say which file is not what was registered.

\b
  reelctl model verify wan@v2 --public-key model.key.pub
  reelctl model verify wan@v2 --from ./copy-of-wan"""
RETIRE_HELP = """Let nothing new name a version; --undo takes that back.

\b
  reelctl model retire wan@v1 --reason "superseded by v2"
  reelctl model retire wan@v1 --undo"""

app = typer.Typer(help=flow(HELP), no_args_is_help=True)
app.add_typer(model_keys.app, name="keys")
model_prefetch.add_to(app)


class Kind(StrEnum):
    """What is registered."""

    MODEL = "model"
    LORA = "lora"


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, show_default=False, **more)


StoreOptions = Annotated[
    list[str] | None,
    _option(
        "An option of the object store by obstore's names, such as endpoint=…; again for each.",
        "--store-option",
        metavar="NAME=VALUE",
    ),
]
ClientOptions = Annotated[
    list[str] | None,
    _option(
        "One of its HTTP client, such as allow_http=true.", "--client-option", metavar="NAME=VALUE"
    ),
]


@app.command("register", help=flow(REGISTER_HELP))
@connected
def register(
    client: Client,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As requests call it.")],
    version: Annotated[str, _option("Of these weights; it never changes.")],
    source: Annotated[str, _option("Where the weights are.", "--from", metavar="SOURCE")],
    key: Annotated[
        Path | None,
        _option("The private key that signs; see `model keys init`.", envvar="REELCTL_MODEL_KEY"),
    ] = None,
    unsigned: Annotated[
        bool, _option("Without a signature; nodes refuse it by default.", "--unsigned")
    ] = False,
    manifest: Annotated[
        Path | None, _option("What the model is, in place of the source's manifest.json.")
    ] = None,
    serve_from: Annotated[
        list[str] | None,
        _option("Where nodes fetch it, if not from SOURCE; again for each.", metavar="URL"),
    ] = None,
    kind: Annotated[Kind, _option("A model, or an adapter of one.")] = Kind.MODEL,
    base: Annotated[str, _option("Of an adapter: the model's name.")] = "",
    exclude: Annotated[
        list[str] | None, _option("Leave files out by a pattern, such as '*.bin'; again for each.")
    ] = None,
    store_option: StoreOptions = None,
    client_option: ClientOptions = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Registers a version."""
    if key is None and not unsigned:
        raise UsageError(
            "there is no key to sign with",
            hint="name it with --key or REELCTL_MODEL_KEY, make one with `reelctl model keys "
            "init`, or say --unsigned",
        )
    if key is not None and unsigned:
        raise UsageError("--key and --unsigned exclude one another")
    if (kind is Kind.LORA) != bool(base):
        raise UsageError("--kind lora and --base NAME belong together: an adapter is of a model")
    wish = Wish(
        name=name,
        version=version,
        source=source,
        base=base,
        manifest=manifest,
        serve_from=tuple(serve_from or ()),
        exclude=tuple(exclude or ()),
        key=key,
        store_options=parse_options("--store-option", store_option),
        client_options=parse_options("--client-option", client_option),
    )
    model, left_out = make_registration(wish)
    if left_out:
        note(f"left out: {', '.join(left_out[:8])}{', …' if len(left_out) > 8 else ''}")
    made, added = client.register_model(model)
    if not added:
        note(f"{made.name}@{made.version} was registered already, with the same content")
    if made.state == reg.REGISTRATION_STATE_RETIRED:
        note("it is retired; `reelctl model retire --undo` takes that back")
    _print(made, output)


@app.command("list", help=flow(LIST_HELP))
@connected
def list_models(
    client: Client,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only its versions.", show_default=False)
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Lists versions."""
    found = [each for each in client.registered_models() if name in (None, each.name)]
    if output is not Format.TABLE:
        print_record([plain_model(each) for each in found], output)
    elif found:
        print_table(models_table(found, now_s=SYSTEM_CLOCK.time()))
    else:
        note("No model is registered." if name is None else f"Nothing of {name} is registered.")


@app.command("show", help=flow(SHOW_HELP))
@connected
def show(
    client: Client,
    model: ModelArgument,
    files: Annotated[bool, _option("Its files too.", "--files")] = False,
    store_option: StoreOptions = None,
    client_option: ClientOptions = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Shows a version."""
    found = client.registered_model(*split_pin(model))
    listed = []
    if found.manifest or files:
        listed = manifest_of(
            found,
            parse_options("--store-option", store_option),
            parse_options("--client-option", client_option),
        ).files
    if output is not Format.TABLE:
        print_record(plain_model(found, listed), output)
        return
    print_table(model_table(found, now_s=SYSTEM_CLOCK.time()))
    if files:
        say("")
        print_table(files_table(listed))


@app.command("verify", help=flow(VERIFY_HELP))
@connected
def verify(
    client: Client,
    model: ModelArgument,
    public_key: Annotated[
        Path | None, _option("Its signature must hold under this key.", "--public-key")
    ] = None,
    source: Annotated[
        str | None, _option("Read this in place of its sources.", "--from", metavar="SOURCE")
    ] = None,
    store_option: StoreOptions = None,
    client_option: ClientOptions = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Reads the sources again."""
    store = parse_options("--store-option", store_option)
    http = parse_options("--client-option", client_option)
    found = client.registered_model(*split_pin(model))
    document = manifest_of(found, store, http)
    signed_by = check_signature(found, document, public_key)
    sources = [source] if source else list(found.sources)
    problems = {each: source_problems(each, document, store, http) for each in sources}
    if output is not Format.TABLE:
        print_record(
            {
                "model": f"{found.name}@{found.version}",
                "signed_by": signed_by,
                "sources": [{"source": each, "problems": told} for each, told in problems.items()],
            },
            output,
        )
    wrong = sum(map(len, problems.values()))
    if output is Format.TABLE:
        for each, told in problems.items():
            for problem in told:
                say(f"{each}: {problem}")
    if wrong:
        raise CtlError(
            f"{wrong} of {found.name}@{found.version}'s files are not what was registered"
        )
    if output is Format.TABLE:
        checked = f", signed by {signed_by}" if signed_by else ", signature not checked"
        say(f"{found.name}@{found.version}: {len(document.files)} files are as registered{checked}")


@app.command("retire", help=flow(RETIRE_HELP))
@connected
def retire(
    client: Client,
    model: ModelArgument,
    undo: Annotated[bool, _option("Make it active again.", "--undo")] = False,
    reason: Annotated[str, _option("Why, for the others.")] = "",
    output: OutputOption = Format.TABLE,
) -> None:
    """Retires a version."""
    found = client.registered_model(*split_pin(model))
    state = reg.REGISTRATION_STATE_ACTIVE if undo else reg.REGISTRATION_STATE_RETIRED
    if found.state != state:
        found = client.set_model_state(found, state, reason=reason)
    if output is not Format.TABLE:
        print_record(plain_model(found), output)
    else:
        say(f"{found.name}@{found.version} is {'active' if undo else 'retired'}")


def _print(model: reg.RegisteredModel, output: Format) -> None:
    if output is Format.TABLE:
        print_table(model_table(model, now_s=SYSTEM_CLOCK.time()))
    else:
        print_record(plain_model(model), output)
