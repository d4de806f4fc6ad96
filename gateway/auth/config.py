"""Configuration of who may call: the issuers whose tokens hold."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from gateway.auth.strangers import networks_of
from reelkit.settings import Settings
from reelkit.tokens.config import IssuerSettings, TokenSettings, check_issuers_differ


class IssuerConfig(IssuerSettings):
    """One issuer of bearer tokens and the keys that its tokens are checked with."""

    tenant_claim: str = Field(
        default="tenant",
        min_length=1,
        description="Claim that names the tenant; a token without it is refused.",
    )
    subject_claim: str = Field(
        default="sub", min_length=1, description="Claim that names the caller inside the tenant."
    )


class StrangerConfig(Settings):
    """How often an address may call without a token that holds."""

    refusals_per_s: float = Field(
        default=10.0,
        gt=0,
        le=10_000,
        description="Refusals a second that an address gets back; beyond its burst, its calls are "
        "answered 429 before a token is looked at, but for tokens that are known to hold.",
    )
    burst: int = Field(
        default=100, ge=1, le=100_000, description="Refusals that an address has at first."
    )
    trusted_proxies: tuple[str, ...] = Field(
        default=(),
        description="Networks, such as 10.0.0.0/8, of the proxies in front, whose "
        "X-Forwarded-For is believed. Without them all that comes through a proxy counts as one "
        "address.",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        networks_of(texts)
        return texts


class AuthConfig(TokenSettings):
    """Which bearer tokens a gateway takes. There is no switch that turns the check off."""

    issuers: tuple[IssuerConfig, ...] = Field(
        min_length=1, description="Each issuer whose tokens are taken; at least one."
    )

    strangers: StrangerConfig = Field(
        default=StrangerConfig(), description="Calls without a token that holds."
    )

    @model_validator(mode="after")
    def _issuers_differ(self) -> Self:
        check_issuers_differ(self.issuers)
        return self
