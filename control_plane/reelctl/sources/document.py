"""A model's manifest as reelctl writes it: the same content is always the same bytes. Pure.

The message ``ModelManifest`` is the form; a node agent holds it to further rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format
from reelmesh.v1 import manifest_pb2

from control_plane.reelctl.errors import CtlError, UsageError

MEDIA_TYPE: Final = "application/vnd.reelmesh.model-manifest+json"
MAX_BYTES: Final = 4 * 1024 * 1024
# More than this and it goes beside the weights; a record of the registry is 16 KiB.
INLINE_BYTES: Final = 11 * 1024
LORA: Final = "lora"

_REQUIRED: Final = (
    *("sizes", "frames", "fps", "seconds", "steps", "guidance_scale", "flow_shift"),
    *("defaults", "max_sequence_length", "vram_gb"),
)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a version."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest: its bytes are what is signed, and what identifies the weights."""

    data: bytes
    message: manifest_pb2.ModelManifest

    @property
    def files(self) -> list[File]:
        """Every file of the version."""
        return [File(each.path, each.sha256, each.size_bytes) for each in self.message.files]

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(each.size_bytes for each in self.message.files)


def parse(data: bytes, *, where: str) -> tuple[dict[str, Any], list[File] | None]:
    """A manifest's fields without its files, and those where it lists them.

    Raises:
        CtlError: It is no manifest; ``where`` is named.
    """
    if len(data) > MAX_BYTES:
        raise CtlError(f"{where}: is larger than a manifest may be ({MAX_BYTES} bytes)")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CtlError(f"{where}: is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CtlError(f"{where}: must be a JSON object")
    listed = fields.pop("files", None)
    message = _message({**fields, "files": listed or []}, where)
    if listed is None:
        return fields, None
    return fields, [File(each.path, each.sha256, each.size_bytes) for each in message.files]


def read(data: bytes, *, where: str) -> Document:
    """A manifest that is whole, as it stands.

    Raises:
        CtlError: It is none.
    """
    fields, files = parse(data, where=where)
    if not files:
        raise CtlError(f"{where}: lists no files")
    listed = [_entry(file) for file in files]
    return Document(data, _message({**fields, "files": listed}, where))


def compose(
    fields: Mapping[str, Any] | None,
    files: Sequence[File],
    *,
    name: str,
    version: str,
    base: str = "",
    found: bytes | None = None,
) -> Document:
    """The manifest of a version.

    Args:
        fields: What is said of it beside its files; an adapter needs nothing.
        files: All of them.
        name: As requests call it.
        version: Likewise.
        base: Of an adapter: the model's name.
        found: A manifest that lies beside the weights; where it says the same, its bytes are
            kept, so that nodes that know it know this one.

    Raises:
        CtlError: A field is wrong or missing.
    """
    made: dict[str, Any] = {**(fields or {}), "format": 1, "name": name, "version": version}
    if base:
        made |= {"kind": LORA, "base": base}
    else:
        missing = [field for field in _REQUIRED if field not in made]
        if missing:
            raise UsageError(
                f"the manifest lacks {', '.join(missing)}",
                hint="docs/models.md has the fields; name a file that has them with --manifest",
            )
        if made.get("kind") or made.get("base"):
            raise UsageError("the manifest is an adapter's", hint="add --kind lora --base NAME")
    made["files"] = [_entry(file) for file in sorted(files, key=lambda each: each.path)]
    message = _message(made, "the manifest")
    if found is not None and _same(found, made):
        return Document(found, message)
    text = json.dumps(made, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Document(text.encode() + b"\n", message)


def _entry(file: File) -> dict[str, Any]:
    return {"path": file.path, "sha256": file.sha256, "size_bytes": file.size_bytes}


def _same(found: bytes, made: Mapping[str, Any]) -> bool:
    told = json.loads(found)
    if not isinstance(told, dict) or not isinstance(told.get("files"), list):
        return False
    told["files"] = sorted(told["files"], key=lambda each: str(each.get("path")))
    return {"format": 1, **told} == made


def _message(fields: Mapping[str, Any], where: str) -> manifest_pb2.ModelManifest:
    try:
        return json_format.ParseDict(dict(fields), manifest_pb2.ModelManifest())
    except json_format.ParseError as error:
        said = " ".join(str(error).split())
        raise CtlError(f"{where}: {said}", hint="docs/models.md has the fields") from None
