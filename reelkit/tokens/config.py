"""Configuration of whose tokens hold: issuers, their keys, and how exact clocks must be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from reelkit.settings import Settings


class IssuerSettings(Settings):
    """One issuer of bearer tokens and the keys that its tokens are checked with."""

    issuer: str = Field(
        min_length=1, description="Value that the token's iss must equal, character by character."
    )
    audience: str = Field(
        min_length=1, description="Value that the token's aud must be or must contain."
    )
    jwks_file: Path | None = Field(
        default=None,
        description="JSON Web Key Set with the issuer's public keys, each with a kid and an alg "
        "(or a key type that admits one algorithm). Excludes shared_secret_file.",
    )
    shared_secret_file: Path | None = Field(
        default=None,
        description="File whose whole content, less white space at its end, is an HS256 secret "
        "of at least 32 bytes. Only for issuers that cannot sign with a private key; anybody "
        "who reads the file can make tokens. Excludes jwks_file.",
    )
    subject_claim: str = Field(
        default="sub", min_length=1, description="Claim that names the caller."
    )
    scope_claim: str = Field(
        default="scope",
        min_length=1,
        description="Claim with the scopes: one string with spaces between, or a list.",
    )

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        if (self.jwks_file is None) == (self.shared_secret_file is None):
            raise ValueError(
                f"issuer {self.issuer!r}: give exactly one of jwks_file and shared_secret_file"
            )
        return self


class TokenSettings(Settings):
    """What is looked at in any issuer's tokens. No switch turns the check off."""

    leeway_s: float = Field(
        default=30.0,
        ge=0,
        le=300,
        description="Seconds by which exp, nbf and iat may be off, since clocks differ; 30 covers "
        "hosts that keep time with NTP.",
    )
    max_token_bytes: int = Field(
        default=8192,
        ge=256,
        le=16384,
        description="Longest token that is looked at; 8 KiB is what proxies pass in one header.",
    )


def check_issuers_differ(issuers: Sequence[IssuerSettings]) -> None:
    """Raises ValueError where an issuer is listed twice."""
    names = [issuer.issuer for issuer in issuers]
    if len(names) != len(set(names)):
        raise ValueError("issuers: each issuer may be listed once")
