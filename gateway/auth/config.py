"""Configuration of who may call: the issuers whose tokens hold."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

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


class AuthConfig(TokenSettings):
    """Which bearer tokens a gateway takes. There is no switch that turns the check off."""

    issuers: tuple[IssuerConfig, ...] = Field(
        min_length=1, description="Each issuer whose tokens are taken; at least one."
    )

    @model_validator(mode="after")
    def _issuers_differ(self) -> Self:
        check_issuers_differ(self.issuers)
        return self
