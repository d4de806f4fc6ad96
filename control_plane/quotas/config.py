"""How tenants' limits are divided among gateways and regions."""

from __future__ import annotations

from pydantic import Field, field_validator

from reelkit.settings import Settings


class QuotaSettings(Settings):
    """The same in every control plane of the mesh."""

    max_regions: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Regions that the mesh may have at most, each with its own etcd or its own "
        "prefix in one. A region that is one too many gets no part of any tenant's limits and "
        "refuses limited tenants. 1 by default: one region has the whole.",
    )
    max_gateways: int = Field(
        default=16,
        ge=1,
        le=1_000,
        description="Gateways that a region may have at most, those that vanished within a day "
        "included; one that is one too many gets no part. 16 leave room for a rollout of eight.",
    )
    safe_percent: float = Field(
        default=50.0,
        ge=1,
        le=100,
        description="Of a hundred parts of each limit, those that are kept for everybody in equal "
        "parts: what a region goes by while the global etcd is away, and a gateway while the "
        "control plane is. The rest follows demand. More of it makes an outage easier to bear, "
        "and leaves less to whoever has all of a tenant's requests.",
    )
    region_ttl_s: float = Field(
        default=30.0,
        ge=10,
        le=600,
        description="Whole seconds for which a region's part of a rate holds without a word from "
        "the global etcd. Longer than a gateway's: an ocean may lie between.",
    )
    share_ttl_s: float = Field(
        default=10.0,
        ge=2,
        le=120,
        description="Whole seconds for which a part holds without a word from the control plane, "
        "and after which that of a gateway that died is given to others. Gateways ask every "
        "second; below 2 s etcd cannot go.",
    )

    @field_validator("share_ttl_s", "region_ttl_s")
    @classmethod
    def _whole_seconds(cls, value: float) -> float:
        if value != int(value):
            raise ValueError(f"etcd counts whole seconds: use {int(value)} or {int(value) + 1}")
        return value
