"""What a registration may say, and how one meets another of the same version. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import urlsplit

from reelmesh.v1 import registry_pb2 as reg

from control_plane.errors import AlreadyRegisteredError, InvalidRequestError
from control_plane.validation import MAX_REASON_CHARS, check_id

MAX_SOURCES: Final = 8
MAX_SIGNATURES: Final = 8
MAX_SOURCE_CHARS: Final = 1024
MAX_NODE_IDS: Final = 200
MAX_REGIONS: Final = 50
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
SCHEMES: Final = ("s3", "gs", "az", "https", "http", "file", "hf")
SIGNATURE_FORMAT: Final = "dsse-ed25519-v1"

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEY_ID: Final = re.compile(r"[0-9a-f]{32}")
_KINDS: Final = (reg.MODEL_KIND_MODEL, reg.MODEL_KIND_LORA)


def check_model_name(field: str, text: str) -> None:
    """Makes sure that a name or a version is one that a manifest may have.

    Raises:
        InvalidRequestError: It is not.
    """
    if not _NAME.fullmatch(text):
        raise InvalidRequestError(
            field,
            f"{text[:80]!r} must be 1 to 63 of a-z, 0-9, '.', '_', '-', a letter or digit first",
        )


def check_registration(model: reg.RegisteredModel) -> None:
    """Makes sure that every field that a caller fills in means something.

    Raises:
        InvalidRequestError: Names the field and the rule.
    """
    check_model_name("model.name", model.name)
    check_model_name("model.version", model.version)
    if model.kind not in _KINDS:
        raise InvalidRequestError("model.kind", "must be a model or an adapter (lora)")
    if model.kind == reg.MODEL_KIND_LORA:
        check_model_name("model.base", model.base)
    elif model.base:
        raise InvalidRequestError("model.base", "means something for an adapter alone")
    if not 1 <= len(model.sources) <= MAX_SOURCES:
        raise InvalidRequestError("model.sources", f"must be 1 to {MAX_SOURCES}")
    for source in model.sources:
        _check_source(source)
    _check_manifest(model)
    if len(model.signatures) > MAX_SIGNATURES:
        raise InvalidRequestError("model.signatures", f"must be at most {MAX_SIGNATURES}")
    for signature in model.signatures:
        if signature.format != SIGNATURE_FORMAT:
            raise InvalidRequestError("model.signatures", f"must be of format {SIGNATURE_FORMAT}")
        if not _KEY_ID.fullmatch(signature.key_id) or len(signature.signature) != 64:
            raise InvalidRequestError(
                "model.signatures", "must have a key id of 32 hex digits and 64 bytes"
            )


def _check_source(source: str) -> None:
    parts = urlsplit(source)
    if len(source) > MAX_SOURCE_CHARS or parts.scheme not in SCHEMES:
        raise InvalidRequestError(
            "model.sources",
            f"{source[:80]!r} must be the URL of a folder: {', '.join(SCHEMES)}",
        )
    if parts.password or (parts.username and parts.scheme != "hf") or parts.query:
        # Every operator reads the registry.
        raise InvalidRequestError(
            "model.sources", "must hold neither user, password nor query: nodes have their own"
        )


def _check_manifest(model: reg.RegisteredModel) -> None:
    if not _SHA256.fullmatch(model.manifest_sha256):
        raise InvalidRequestError(
            "model.manifest_sha256", "must be the 64 lower-case hex digits of a sha256"
        )
    if not 1 <= model.manifest_size_bytes <= MAX_MANIFEST_BYTES:
        raise InvalidRequestError("model.manifest_size_bytes", f"must be 1 to {MAX_MANIFEST_BYTES}")
    if model.file_count < 1:
        raise InvalidRequestError("model.file_count", "must be at least 1")
    if not model.manifest:
        return
    if len(model.manifest) != model.manifest_size_bytes:
        raise InvalidRequestError("model.manifest", "is not of manifest_size_bytes")
    if hashlib.sha256(model.manifest).hexdigest() != model.manifest_sha256:
        raise InvalidRequestError("model.manifest", "has another sha256 than manifest_sha256")


def merged(standing: reg.RegisteredModel, asked: reg.RegisteredModel) -> reg.RegisteredModel:
    """What stands when a version is registered again: its content, and all sources and signatures.

    Raises:
        AlreadyRegisteredError: The version has other content.
        InvalidRequestError: There are too many sources or signatures now.
    """
    said = f"{asked.name}@{asked.version}"
    if standing.manifest_sha256 != asked.manifest_sha256:
        raise AlreadyRegisteredError(
            f"{said} is registered with other content (manifest {standing.manifest_sha256[:12]}, "
            f"not {asked.manifest_sha256[:12]}); a version never changes: give it a new one"
        )
    if (standing.kind, standing.base) != (asked.kind, asked.base):
        raise AlreadyRegisteredError(f"{said} is registered as another kind, or of another base")
    made = reg.RegisteredModel()
    made.CopyFrom(standing)
    made.sources.extend(source for source in asked.sources if source not in standing.sources)
    known = {signature.key_id for signature in standing.signatures}
    made.signatures.extend(each for each in asked.signatures if each.key_id not in known)
    check_registration(made)
    return made


def check_order(order: reg.PrefetchOrder) -> None:
    """Makes sure that an order names what there can be.

    Raises:
        InvalidRequestError: Names the field and the rule.
    """
    check_model_name("order.name", order.name)
    check_model_name("order.version", order.version)
    for field, values, most in (
        ("order.regions", order.regions, MAX_REGIONS),
        ("order.node_ids", order.node_ids, MAX_NODE_IDS),
    ):
        if len(values) > most:
            raise InvalidRequestError(field, f"must be at most {most}; none means all")
        for value in values:
            check_id(field, value)


def check_reason(reason: str) -> None:
    """Makes sure that a reason is one for people to read.

    Raises:
        InvalidRequestError: It is too long, or holds what is not printed.
    """
    if len(reason) > MAX_REASON_CHARS or (reason and not reason.isprintable()):
        raise InvalidRequestError("reason", f"must be at most {MAX_REASON_CHARS} printable letters")
