"""Configuration of batches."""

from __future__ import annotations

from pydantic import Field

from reelkit.settings import Settings


class BatchConfig(Settings):
    """Many videos in one request."""

    max_items: int = Field(
        default=10_000,
        ge=1,
        le=10_000,
        description="Items of one batch; a larger request answers 413. Each costs about 0.1 ms "
        "of checks at its submission.",
    )
    max_submissions: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Submissions that are read and checked at once in this gateway; others answer "
        "429. Each takes some five times its bytes (edge.max_batch_bytes) of memory meanwhile.",
    )
    max_live_per_tenant: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Batches of a tenant that this gateway makes at once; more are refused until "
        "one has ended.",
    )
    max_in_flight_per_batch: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Videos of one batch under way at once. More keep more nodes busy, and give "
        "others of the same priority less.",
    )
    max_in_flight: int = Field(
        default=64,
        ge=1,
        le=4_096,
        description="Videos of all batches of this gateway under way at once; below "
        "runs.max_waiting, so that batches alone never fill the queue.",
    )
    max_lifetime_s: float = Field(
        default=7 * 24 * 3600.0,
        gt=0,
        le=30 * 24 * 3600,
        description="Seconds after which a batch that has not ended expires: what runs is "
        "cancelled, and the rest is not begun.",
    )
    retention_s: float = Field(
        default=24 * 3600.0,
        gt=0,
        description="Seconds after its end for which a batch and its videos are kept.",
    )
    checkpoint_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="How often the progress of a batch that moves is written, and how soon its "
        "owner hears of a cancel that another gateway was asked for.",
    )
    max_pause_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Longest pause before a refused item is asked for again, however long the "
        "refusal says; a quota may be raised meanwhile.",
    )
