"""Configuration of whose tokens hold: issuers, their keys, and how exact clocks must be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from reelkit.loopback import is_loopback_host
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
        "(or a key type that admits one algorithm). Read again when it changes. One of "
        "jwks_file, jwks_url and shared_secret_file is given.",
    )
    jwks_url: str | None = Field(
        default=None,
        description="The same from the issuer's server: an https URL, such as the jwks_uri of "
        "its OpenID configuration. Fetched again as its Cache-Control says, and when a token "
        "names a new key, at most every 30 s; the last good keys are kept.",
    )
    shared_secret_file: Path | None = Field(
        default=None,
        description="File whose whole content, less white space at its end, is an HS256 secret "
        "of at least 32 bytes. Only for issuers that cannot sign with a private key; anybody "
        "who reads the file can make tokens.",
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
        sources = (self.jwks_file, self.jwks_url, self.shared_secret_file)
        if sum(source is not None for source in sources) != 1:
            raise ValueError(
                f"issuer {self.issuer!r}: give exactly one of jwks_file, jwks_url and "
                "shared_secret_file"
            )
        return self

    @field_validator("jwks_url")
    @classmethod
    def _encrypted(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme == "http" and is_loopback_host(parts.hostname or ""):
            return url
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(
                f"{url!r} is no https URL; whoever can change the keys on their way can make "
                "tokens, so plain http is taken from this host alone"
            )
        if parts.username or parts.password:
            raise ValueError("holds a user or a password; keys are public, leave them out")
        return url


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
