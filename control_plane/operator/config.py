"""Configuration of the operators' listener."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from reelkit.loopback import is_loopback
from reelkit.settings import Address, Settings
from reelkit.tls import TlsSettings
from reelkit.tokens.config import IssuerSettings, TokenSettings, check_issuers_differ


class OperatorAuth(TokenSettings):
    """Whose tokens operators may show. There is no switch that turns the check off."""

    issuers: tuple[IssuerSettings, ...] = Field(
        min_length=1,
        description="Each issuer whose tokens are taken. A token's scopes decide: fleet:read to "
        "look, fleet:operate to change.",
    )

    @model_validator(mode="after")
    def _issuers_differ(self) -> Self:
        check_issuers_differ(self.issuers)
        return self


class OperatorSettings(Settings):
    """What ``reelctl`` calls."""

    listen: Address | None = Field(
        default=None,
        description="host:port of OperatorService; port 0 takes a free one. Off by default. "
        "Without tls only a loopback address is taken, since tokens would cross the network.",
    )
    tls: TlsSettings | None = Field(
        default=None, description="The certificate; none: plain text, on loopback alone."
    )
    client_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authorities of operators' certificates. With it a caller "
        "must also show one of role operator, spiffe://reelmesh/<region>/operator/<id>, of any "
        "region; goes with tls. A token alone is enough by default.",
    )
    auth: OperatorAuth | None = Field(
        default=None, description="Whose tokens hold; needed where listen is given."
    )
    status_timeout_s: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Seconds that a node gets to tell its status when operators list nodes; "
        "what a list takes at most where one is gone.",
    )

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.listen is None:
            return self
        if self.auth is None:
            raise ValueError("auth.issuers is needed where listen is given: nobody is let in")
        if self.tls is None and self.client_ca_file is not None:
            raise ValueError("client_ca_file: give tls.cert_file and tls.key_file too")
        if self.tls is None and not is_loopback(self.listen):
            raise ValueError(
                f"listen {self.listen}: give tls.cert_file and tls.key_file, or listen on "
                "127.0.0.1: operators' tokens do not cross a network in plain text"
            )
        return self
