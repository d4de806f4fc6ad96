"""Configuration of the edges: limits on what a client may send and hold open."""

from __future__ import annotations

from pydantic import Field

from reelkit.settings import Settings


class EdgeConfig(Settings):
    """Limits of the gRPC and HTTP edges."""

    max_body_bytes: int = Field(
        default=65_536,
        ge=1_024,
        le=16 * 1024 * 1024,
        description="Largest HTTP body or gRPC request message. A prompt and a negative prompt of "
        "2,000 characters each are below 20 kB; larger bodies answer 413.",
    )
    max_batch_bytes: int = Field(
        default=8 * 1024 * 1024,
        ge=1_024,
        le=64 * 1024 * 1024,
        description="Largest body of a batch over HTTP; over gRPC at most 4 MiB. 10,000 rows of "
        "800 bytes fit.",
    )
    keepalive_s: float = Field(
        default=15.0,
        gt=0,
        le=300,
        description="Seconds of silence after which an event stream over HTTP gets a comment "
        "line, so that proxies (60 s by default) keep it open.",
    )
    health_poll_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="How often, in seconds, a gRPC health Watch looks whether readiness changed.",
    )
    body_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="Seconds for a whole HTTP body to arrive; slower ones answer 408.",
    )
    idle_timeout_s: float = Field(
        default=75.0,
        gt=0,
        le=3600,
        description="Seconds after which an HTTP connection without a request in hand is closed, "
        "one whose request only dribbles in too. 75 is nginx's default, and proxies close first.",
    )
    max_connections_per_address: int = Field(
        default=1_000,
        ge=1,
        le=1_000_000,
        description="HTTP connections of one address at once; more are closed unanswered. An "
        "office behind one address needs some hundreds. The proxies of "
        "auth.strangers.trusted_proxies hold as many as they want.",
    )
    grpc_idle_timeout_s: float = Field(
        default=300.0,
        ge=1,
        le=24 * 3600,
        description="Seconds after which a gRPC connection without a call is closed; clients open "
        "another when they need it.",
    )
    write_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=600,
        description="Seconds that a client may take nothing of a stream before it is ended (HTTP: "
        "the connection is cut; gRPC: ABORTED), so that it holds neither memory nor a "
        "subscription. Video players pause for less.",
    )
