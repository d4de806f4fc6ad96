"""Configuration of mutual TLS, and the rule that plain text stays on its host."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import Field

from reelkit.loopback import is_loopback
from reelkit.settings import Settings

ALLOW_PLAINTEXT: Final = "allow_plaintext"


class MutualTlsSettings(Settings):
    """What a part shows to the others, and whom it believes."""

    ca_file: Path = Field(
        description="PEM file with every authority whose certificates are believed: two of them "
        "while one replaces the other. Read again when it changes."
    )
    cert_file: Path = Field(
        description="PEM file with this part's certificate and its chain: the URI "
        "spiffe://reelmesh/<region>/<role>/<id> and the name <role>.<region>.reelmesh.internal, "
        "for servers and clients. Likewise."
    )
    key_file: Path = Field(description="PEM file with its private key; likewise.")


def refuse_plaintext(addresses: Iterable[tuple[str, str]]) -> None:
    """Checks a part that speaks plain text with the others.

    Args:
        addresses: The fields and values of where it listens and whom it calls.

    Raises:
        ValueError: One is not of this host; the message names it and what to do.
    """
    for field, address in addresses:
        if not is_loopback(address):
            raise ValueError(
                f"{field} {address}: between hosts the parts speak mutual TLS alone. Give "
                "mtls.ca_file, mtls.cert_file and mtls.key_file (docs/tls.md), or set "
                f"{ALLOW_PLAINTEXT}: true where something else encrypts and checks who calls"
            )
