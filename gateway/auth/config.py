"""Configuration of who may call: the issuers whose tokens hold."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from reelkit.settings import Settings


class IssuerConfig(Settings):
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
    tenant_claim: str = Field(
        default="tenant",
        min_length=1,
        description="Claim that names the tenant; a token without it is refused.",
    )
    subject_claim: str = Field(
        default="sub", min_length=1, description="Claim that names the caller inside the tenant."
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


class AuthConfig(Settings):
    """Which bearer tokens a gateway takes. There is no switch that turns the check off."""

    issuers: tuple[IssuerConfig, ...] = Field(
        min_length=1, description="Each issuer whose tokens are taken; at least one."
    )
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

    @model_validator(mode="after")
    def _issuers_differ(self) -> Self:
        names = [issuer.issuer for issuer in self.issuers]
        if len(names) != len(set(names)):
            raise ValueError("issuers: each issuer may be listed once")
        return self
