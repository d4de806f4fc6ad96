"""What ``reelctl model`` does with weights: read, describe, sign, and read again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reelmesh.v1 import registry_pb2 as reg

from control_plane.reelctl.bars import byte_bar
from control_plane.reelctl.errors import CtlError, UsageError
from control_plane.reelctl.sources import document, survey
from control_plane.reelctl.sources.admissible import MANIFEST_NAME
from control_plane.reelctl.sources.document import MEDIA_TYPE, Document, File
from control_plane.reelctl.sources.origin import Origin, SourceFile, open_origin
from reelkit.signatures import (
    FORMAT,
    KeyFileError,
    SigningKey,
    read_public_key,
    read_signing_key,
)

Options = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What an operator wants registered."""

    name: str
    version: str
    source: str
    base: str
    manifest: Path | None
    serve_from: tuple[str, ...]
    exclude: tuple[str, ...]
    key: Path | None
    store_options: Options
    client_options: Options


def make_registration(wish: Wish) -> tuple[reg.RegisteredModel, Sequence[str]]:
    """Reads the source through and says what it is, signed; and which files are left out.

    A manifest that is too long for the registry is put beside the weights.

    Raises:
        CtlError: The source cannot be read, or holds what is refused.
    """
    # Before gigabytes are read for nothing.
    key = _signing_key(wish.key)
    origin = open_origin(
        wish.source, store_options=wish.store_options, client_options=wish.client_options
    )
    own = _own_manifest(origin)
    fields, listed = _description(wish, origin, own)
    chosen = survey.select(_files(origin, listed), exclude=wish.exclude)
    survey.check_heads(origin, chosen.taken)
    with byte_bar(f"hashing {wish.name}@{wish.version}", chosen.size_bytes) as on_read:
        files = survey.hash_all(origin, chosen.taken, read_all=False, on_read=on_read)
    if listed is not None:
        wrong = survey.differences(listed, files)
        if wrong:
            raise CtlError(
                f"the weights are not what their manifest lists: {'; '.join(wrong[:5])}",
                hint='mend them, or give a manifest with "files": null to --manifest',
            )
    made = document.compose(
        fields,
        files,
        name=wish.name,
        version=wish.version,
        base=wish.base,
        found=own,
    )
    model = _record(wish, origin, made, key)
    if not model.manifest:
        _put_beside(wish, origin, own, made)
    return model, chosen.left_out


def _signing_key(file: Path | None) -> SigningKey | None:
    try:
        return None if file is None else read_signing_key(file)
    except KeyFileError as error:
        raise UsageError(str(error)) from None


def _own_manifest(origin: Origin) -> bytes | None:
    size = origin.size(MANIFEST_NAME)
    if size is None:
        return None
    if size > document.MAX_BYTES:
        raise CtlError(f"{MANIFEST_NAME}: is larger than a manifest may be")
    return origin.head(MANIFEST_NAME, size)


def _description(
    wish: Wish, origin: Origin, own: bytes | None
) -> tuple[dict[str, object] | None, list[File] | None]:
    """What the model is beside its files, and those where they are listed already."""
    if wish.manifest is not None:
        try:
            data = wish.manifest.read_bytes()
        except OSError as error:
            raise UsageError(f"--manifest {wish.manifest}: {error.strerror}") from None
        return document.parse(data, where=str(wish.manifest))
    if own is not None:
        return document.parse(own, where=f"{origin.url}/{MANIFEST_NAME}")
    if wish.base:
        return None, None
    raise UsageError(
        f"{origin.url}: has no {MANIFEST_NAME}, so nobody says what the model can do",
        hint="name one with --manifest, such as wan2.2-ti2v-5b.manifest.json of this project",
    )


def _files(origin: Origin, listed: Sequence[File] | None) -> list[SourceFile]:
    found = origin.files()
    if found is not None:
        return found
    if listed is None:
        raise UsageError(
            f"{origin.url}: a web server lists no files", hint="list them in its manifest"
        )
    files = []
    for file in listed:
        size = origin.size(file.path)
        if size is None:
            raise CtlError(f"{origin.url}/{file.path}: is not there")
        files.append(SourceFile(file.path, size))
    return files


def _record(
    wish: Wish, origin: Origin, made: Document, key: SigningKey | None
) -> reg.RegisteredModel:
    model = reg.RegisteredModel(
        name=wish.name,
        version=wish.version,
        kind=reg.MODEL_KIND_LORA if wish.base else reg.MODEL_KIND_MODEL,
        base=wish.base,
        sources=wish.serve_from or [origin.url],
        manifest_sha256=hashlib.sha256(made.data).hexdigest(),
        manifest_size_bytes=len(made.data),
        size_bytes=made.size_bytes,
        file_count=len(made.files),
    )
    if len(made.data) > document.MAX_BYTES:
        raise CtlError(f"the manifest would take {len(made.data)} bytes; there are too many files")
    if len(made.data) <= document.INLINE_BYTES:
        model.manifest = made.data
    if key is not None:
        signed = key.sign(MEDIA_TYPE, made.data)
        model.signatures.add(format=FORMAT, key_id=signed.key_id, signature=signed.signature)
    return model


def _put_beside(wish: Wish, origin: Origin, own: bytes | None, made: Document) -> None:
    if own == made.data:
        return
    if own is not None:
        raise CtlError(
            f"{origin.url}/{MANIFEST_NAME}: is another manifest, and this one is too long for the "
            "registry, so it has to lie there",
            hint="move that one away and name it with --manifest",
        )
    origin.put(MANIFEST_NAME, made.data)
    for url in wish.serve_from:
        elsewhere = open_origin(
            url, store_options=wish.store_options, client_options=wish.client_options
        )
        elsewhere.put(MANIFEST_NAME, made.data)


def manifest_of(
    model: reg.RegisteredModel, store_options: Options, client_options: Options
) -> Document:
    """The manifest of a registered version, from the registry or from beside its weights.

    Raises:
        CtlError: It is not there, or not the one that was registered.
    """
    data, where = model.manifest, "the registry"
    if not data:
        origin = open_origin(
            model.sources[0], store_options=store_options, client_options=client_options
        )
        where = f"{origin.url}/{MANIFEST_NAME}"
        data = origin.head(MANIFEST_NAME, min(model.manifest_size_bytes, document.MAX_BYTES))
    if hashlib.sha256(data).hexdigest() != model.manifest_sha256:
        raise CtlError(f"{where}: the manifest is not the one that was registered")
    made = document.read(data, where=where)
    if (made.message.name, made.message.version) != (model.name, model.version):
        raise CtlError(f"{where}: the manifest is of another version")
    return made


def check_signature(model: reg.RegisteredModel, made: Document, public_key: Path | None) -> str:
    """Whose signature holds; "" where no key was given.

    Raises:
        CtlError: There is none by that key, or it does not hold.
    """
    if public_key is None:
        return ""
    try:
        key = read_public_key(public_key)
    except KeyFileError as error:
        raise UsageError(str(error)) from None
    by_key = [each for each in model.signatures if each.key_id == key.key_id]
    if not by_key:
        others = ", ".join(each.key_id for each in model.signatures) or "nobody"
        raise CtlError(f"it is not signed by {key.key_id}, but by {others}")
    if not any(key.holds(each.signature, MEDIA_TYPE, made.data) for each in by_key):
        raise CtlError(f"the signature of {key.key_id} does not hold: something was altered")
    return key.key_id


def source_problems(
    source: str, made: Document, store_options: Options, client_options: Options
) -> list[str]:
    """Reads a source through; says which file is not as the manifest has it, a line each."""
    origin = open_origin(source, store_options=store_options, client_options=client_options)
    wanted = {file.path: file for file in made.files}
    found, told = [], []
    for file in made.files:
        size = origin.size(file.path)
        if size is None:
            told.append(f"{file.path}: is missing")
            wanted.pop(file.path)
        else:
            found.append(SourceFile(file.path, size))
    with byte_bar(f"reading {source}", sum(file.size_bytes for file in found)) as on_read:
        hashed = survey.hash_all(origin, found, read_all=True, on_read=on_read)
    return told + survey.differences(list(wanted.values()), hashed)


def parse_options(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` pairs.

    Raises:
        UsageError: One is none.
    """
    made = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{option} {text}: write NAME=VALUE")
        made[name] = value
    return made
