"""Signatures of the Standard Webhooks specification (HMAC-SHA256, ``v1``). Pure.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "whsec_"
MIN_BYTES: Final = 24
MAX_BYTES: Final = 64


class BadSecret(ValueError):  # noqa: N818 - caught where the file's name is known
    """The text is no secret."""


def parse_secret(text: str) -> bytes:
    """The key in a ``whsec_…`` text; raises BadSecret, whose message does not repeat it."""
    if not text.startswith(PREFIX):
        raise BadSecret(f"must begin with {PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise BadSecret(f"must be {PREFIX} and base64") from None
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise BadSecret(f"must hold {MIN_BYTES} to {MAX_BYTES} bytes, not {len(key)}")
    return key


def headers_of(
    webhook_id: str, body: bytes, *, at_s: int, secrets: Sequence[bytes]
) -> dict[str, str]:
    """The three headers of a delivery at a time, with a signature by each secret."""
    signed = f"{webhook_id}.{at_s}.".encode() + body
    signatures = [
        base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
        for secret in secrets
    ]
    return {
        "Webhook-Id": webhook_id,
        "Webhook-Timestamp": str(at_s),
        "Webhook-Signature": " ".join(f"v1,{each}" for each in signatures),
    }
