"""Whether a registered version is what its signers said, before a byte of it is fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from reelmesh.v1 import registry_pb2 as reg

from node_agent.errors import WeightsError
from node_agent.manifest import FileEntry, Manifest, Name
from reelkit.signatures import FORMAT, KeyFileError, PublicKey, read_public_key

MEDIA_TYPE: Final = "application/vnd.reelmesh.model-manifest+json"
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024


class AdapterManifest(BaseModel):
    """An adapter's manifest: its files, and what it adapts."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[1] = 1
    kind: Literal["lora"]
    base: Name
    name: Name
    version: Name
    description: str = Field(default="", max_length=2_000)
    files: tuple[FileEntry, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _files_differ(self) -> Self:
        if len({entry.path for entry in self.files}) != len(self.files):
            raise ValueError("files: one is listed twice")
        return self


@dataclass(frozen=True, slots=True)
class TrustedVersion:
    """A version whose manifest may be believed."""

    name: str
    version: str
    digest: str
    """sha256 of the manifest."""
    data: bytes
    """The manifest."""
    files: tuple[FileEntry, ...]

    @property
    def size_bytes_once(self) -> int:
        """Of all files together, those that are listed under several names once."""
        return sum({entry.sha256: entry.size_bytes for entry in self.files}.values())


def read_trusted_keys(files: Sequence[Path]) -> list[PublicKey]:
    """The keys whose signatures count.

    Raises:
        WeightsError: A file cannot be used.
    """
    try:
        return [read_public_key(file) for file in files]
    except KeyFileError as error:
        raise WeightsError(f"registry.trusted_keys: {error}") from None


def check_version(
    model: reg.RegisteredModel, data: bytes, *, keys: Sequence[PublicKey], required: bool
) -> TrustedVersion:
    """A registered version, believed.

    Args:
        model: Its record.
        data: Its manifest.
        keys: Whose signatures count.
        required: Whether one of them must have signed it.

    Raises:
        WeightsError: The manifest is another one, is not signed as it must be, or breaks a rule.
    """
    said = f"{model.name}@{model.version}"
    if hashlib.sha256(data).hexdigest() != model.manifest_sha256:
        raise WeightsError(f"{said}: the manifest is not the one that was registered")
    _check_signatures(model, data, said, keys=keys, required=required)
    try:
        manifest: Manifest | AdapterManifest
        if model.kind == reg.MODEL_KIND_LORA:
            manifest = AdapterManifest.model_validate_json(data)
        else:
            manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise WeightsError(f"{said}: the manifest's {where or 'form'}: {problem['msg']}") from None
    if (manifest.name, manifest.version) != (model.name, model.version):
        raise WeightsError(f"{said}: the manifest is that of {manifest.name}@{manifest.version}")
    sizes: dict[str, int] = {}
    for entry in manifest.files:
        if sizes.setdefault(entry.sha256, entry.size_bytes) != entry.size_bytes:
            raise WeightsError(f"{said}: {entry.path}: the same sha256 has another size elsewhere")
    return TrustedVersion(
        model.name, model.version, model.manifest_sha256, data, tuple(manifest.files)
    )


def _check_signatures(
    model: reg.RegisteredModel,
    data: bytes,
    said: str,
    *,
    keys: Sequence[PublicKey],
    required: bool,
) -> None:
    by_id = {key.key_id: key for key in keys}
    ours = [each for each in model.signatures if each.format == FORMAT and each.key_id in by_id]
    for each in ours:
        # A wrong one means that somebody altered something, required or not.
        if not by_id[each.key_id].holds(each.signature, MEDIA_TYPE, data):
            raise WeightsError(f"{said}: the signature of key {each.key_id} does not hold")
    if ours or not required:
        return
    if not keys:
        raise WeightsError(
            f"{said}: this node trusts nobody's signature; name the signers' public keys in "
            "registry.trusted_keys, or set registry.require_signature to false"
        )
    if not model.signatures:
        raise WeightsError(f"{said}: is not signed, and registry.require_signature is on")
    others = ", ".join(each.key_id for each in model.signatures)
    raise WeightsError(f"{said}: is signed by {others}, which is not in registry.trusted_keys")
