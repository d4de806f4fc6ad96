"""All configuration of a gateway; read once, from a file, then environment, then flags."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from gateway.auth.config import AuthConfig
from gateway.batches.config import BatchConfig
from gateway.edge.config import EdgeConfig
from gateway.jobs.ids import REGION_PATTERN
from gateway.validation.brown_out import Waits
from gateway.webhooks.config import WebhookConfig
from reelkit.logs import LogSettings
from reelkit.mtls.config import MutualTlsSettings, refuse_plaintext
from reelkit.settings import Address, Settings
from reelkit.tls import TlsSettings
from reelkit.tracing import TracingSettings

ENV_PREFIX: Final = "REELMESH_GATEWAY__"


class ListenConfig(Settings):
    """Where an edge listens and what peers are told."""

    listen: Address = Field(
        default="127.0.0.1:0",
        description="host:port to listen on; port 0 takes a free one. This host alone by default, "
        "since the public needs TLS in front.",
    )
    advertise: str = Field(
        default="",
        description="host:port under which others reach it; empty: the address it listens on.",
    )


class ControlPlaneConfig(Settings):
    """Which control plane this gateway follows."""

    endpoints: tuple[str, ...] = Field(
        min_length=1,
        description="host:port of each replica of the region's control plane; the first that "
        "answers is used, and the next when it stops.",
    )
    silence_timeout_s: float = Field(
        default=15.0,
        gt=0,
        le=300,
        description="Seconds without a word on a control-plane stream after which another replica "
        "is tried; heartbeats come every few seconds. Routing goes on meanwhile.",
    )


class RunConfig(Settings):
    """How jobs wait and run."""

    max_waiting: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="Jobs that may wait in this gateway; more are refused with the predicted wait. "
        "1,000 jobs of 30 s keep ten GPUs busy for 50 minutes.",
    )
    interactive_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Part of max_waiting that batch jobs leave free, so that a queue full of them "
        "still takes what somebody waits for; a tenth is minutes of work.",
    )
    max_tries: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Runs of a job before it fails, when each ended for a cause of its node's.",
    )
    max_lifetime_s: float = Field(
        default=6 * 3600.0,
        gt=0,
        le=7 * 24 * 3600,
        description="Seconds after which a job without a deadline of its own is dropped; nothing "
        "waits for ever.",
    )
    accept_timeout_s: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="Seconds in which a node must accept or refuse a job; it needs milliseconds.",
    )
    silence_timeout_s: float = Field(
        default=1_800.0,
        gt=0,
        le=24 * 3600,
        description="Seconds of silence on a run after which its node counts as lost. A backstop: "
        "a job may wait this long behind another on its node, and the node's own watchdogs and "
        "the channel's pings find a dead worker or host within seconds.",
    )
    client_grace_s: float = Field(
        default=10.0,
        ge=0.1,
        le=3600,
        description="Seconds that a streamed, non-durable video runs on after its client left; "
        "enough for a reconnect.",
    )
    linger_s: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="Seconds for which a finished job's event numbers are kept, so that a client "
        "that reconnects resumes where it was; later it gets the bytes from the start.",
    )


class SpoolConfig(Settings):
    """Bytes on their way from nodes to clients."""

    directory: Path | None = Field(
        default=None,
        description="Folder for the nameless files that slow readers are served from; "
        "state_dir/spool by default. Local disk.",
    )
    memory_bytes_per_video: int = Field(
        default=2 * 1024 * 1024,
        ge=0,
        le=1024 * 1024 * 1024,
        description="Newest bytes of each running video kept in memory; shorter videos never "
        "touch the disk. 2 MiB holds most 480p clips whole.",
    )
    max_bytes_per_video: int = Field(
        default=1024 * 1024 * 1024,
        ge=1024 * 1024,
        description="A video with more bytes fails; hours of video fit into 1 GiB.",
    )
    max_bytes: int = Field(
        default=8 * 1024 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bound of all spool files together; beyond it nodes' streams wait.",
    )
    patience_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Seconds for which a stream waits for room in the spool before its job fails.",
    )


class ArtifactConfig(Settings):
    """Finished videos."""

    url: str = Field(
        default="",
        description="Folder, or obstore URL such as s3://bucket/prefix, shared by the region's "
        "gateways; state_dir/artifacts by default, which serves one gateway.",
    )
    retention_s: float = Field(
        default=24 * 3600.0,
        gt=0,
        description="Seconds after its end for which a video and its record are kept.",
    )
    sweep_interval_s: float = Field(
        default=300.0, gt=0, le=24 * 3600, description="How often expired videos are removed."
    )
    timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=600,
        description="Seconds that the store may take for a read of 256 KiB, a deletion or a page "
        "of a listing before the call fails; a sound store needs less than one.",
    )
    write_timeout_s: float = Field(
        default=300.0,
        gt=0,
        le=3600,
        description="Seconds for the write of a whole video, after which it is tried anew; 1 GiB "
        "at 4 MB/s. A folder takes milliseconds.",
    )
    max_parallel: int = Field(
        default=16,
        ge=1,
        le=256,
        description="Calls to the store at once, each a thread; more of them wait, within their "
        "time. 16 keep a store of 30 ms busy with 130 MB/s.",
    )
    links: bool = Field(
        default=False,
        description="Clients that ask for it (link=1, redirect=1) are sent to the object store by "
        "a signed URL, so that the bytes do not pass through the gateway. Off by default: whoever "
        "has such a URL reads the video, and clients must reach the store. Not for a folder.",
    )
    link_s: float = Field(
        default=300.0,
        ge=1,
        le=12 * 3600,
        description="Seconds for which such a URL holds; a download that has begun goes on. Short, "
        "since revoking a token does not take it back.",
    )
    pictures_at_once: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Thumbnails and spritesheets drawn at once, each by a process of its own that "
        "decodes one video at low priority; sixteen times as many may wait. Each is drawn once, so "
        "two are enough for some videos a second.",
    )
    picture_timeout_s: float = Field(
        default=20.0,
        gt=0,
        le=300,
        description="Seconds for one of them before its process is killed; a video of five seconds "
        "takes half a second.",
    )


class CacheConfig(Settings):
    """Videos that need not be drawn again."""

    enabled: bool = Field(
        default=True,
        description="Whether equal requests share what is drawn. A caller who gives no seed may "
        "get a video that was drawn before; no_cache asks for another, and a tenant's policy may "
        "turn it off or share it with other tenants.",
    )
    max_bytes: int = Field(
        default=16 * 1024**3,
        ge=1024 * 1024,
        description="Bytes of the finished videos that the index names. They lie in the artifact "
        "store in any case, for as long as their jobs do; what is asked for more often stays. "
        "16 GiB are 8,000 clips of 2 MiB.",
    )
    max_entries: int = Field(
        default=16_384,
        ge=16,
        le=1_000_000,
        description="And how many, some 2 kB of memory each; a video counts as one for each "
        "max_bytes / max_entries that it has, at least one.",
    )
    kept_bytes: int = Field(
        default=4 * 1024**3,
        ge=0,
        description="Bytes of copies of other regions' finished videos, in state_dir/kept on local "
        "disk, so that what is asked for often crosses once. Their home is still asked each time "
        "whether the video is there. 0: none are kept.",
    )
    keep_s: float = Field(
        default=3600.0,
        ge=1,
        le=7 * 24 * 3600,
        description="Seconds for which such a copy is kept that nobody was allowed to read: so "
        "long, and an eighth, the bytes of a video may last in another region after its deletion.",
    )
    max_followers: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="Jobs at once that wait for what is drawn for another, about 20 kB each; "
        "more are refused.",
    )


class BrownOutConfig(Settings):
    """Fewer steps under load, for requests that say ``quality: auto``."""

    enabled: bool = Field(
        default=True,
        description="Whether they are cut. Only requests that leave the quality to the gateway "
        "are, never below the tenant's min_steps_percent or the model's minimum, and the answer "
        "says so.",
    )
    on_wait_s: float = Field(
        default=120.0,
        gt=0,
        le=24 * 3600,
        description="Seconds that an interactive job would wait, from which on steps are cut; two "
        "minutes are more than most wait for a video.",
    )
    off_wait_s: float = Field(
        default=60.0,
        ge=0,
        le=24 * 3600,
        description="Seconds below which they are not any more; less than on_wait_s, so that it "
        "does not flicker.",
    )
    full_wait_s: float = Field(
        default=600.0,
        gt=0,
        le=24 * 3600,
        description="Seconds at which they are cut to the least; in proportion before.",
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.off_wait_s <= self.on_wait_s <= self.full_wait_s:
            raise ValueError("off_wait_s, on_wait_s and full_wait_s must rise in this order")
        if self.off_wait_s == self.full_wait_s:
            raise ValueError("full_wait_s must be more than off_wait_s")
        return self

    def waits(self) -> Waits | None:
        """As the decision takes them; None where nothing is cut."""
        if not self.enabled:
            return None
        return Waits(on_s=self.on_wait_s, off_s=self.off_wait_s, full_s=self.full_wait_s)


class RegionsConfig(Settings):
    """Work that other regions do."""

    margin_s: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="By how many seconds another region must be predicted to be done earlier "
        "before a new video is made there; keeps regions from trading work for little.",
    )


class JobsConfig(Settings):
    """Job records."""

    store: Literal["control-plane", "memory"] = Field(
        default="control-plane",
        description="Where records are kept. control-plane: in the region's etcd, so that jobs "
        "outlive this gateway. memory: here alone, for a gateway that stands by itself; its jobs "
        "say that they are not durable.",
    )
    max_records: int = Field(
        default=50_000,
        ge=1,
        description="Records kept in this process's memory at once, about 2 kB each: all of them "
        "with store: memory, else those of jobs that were admitted while the region's could not "
        "be written. More jobs are refused.",
    )
    patience_s: float = Field(
        default=5.0,
        gt=0,
        le=60,
        description="Seconds for which a call to the records is repeated, on every replica of the "
        "control plane, before a client is told to try again; outlasts an election in etcd.",
    )
    admit_patience_s: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="Seconds that a streaming client without an idempotency key waits for its "
        "job's record; then the job goes on without one and says durable=false.",
    )
    commit_patience_s: float = Field(
        default=0.5,
        gt=0,
        le=60,
        description="Seconds that such a client waits at the end for the record to be completed; "
        "then it is told, and the record is completed when that is possible again. It takes "
        "milliseconds, a tenth of a second on a busy disk, and up to two seconds where etcd "
        "elects a leader, which a stream need not notice.",
    )


class GatewayConfig(Settings):
    """Everything a gateway is told at start."""

    region: str = Field(
        pattern=f"^{REGION_PATTERN}$",
        description="Home region of this gateway's videos and the prefix of their ids.",
    )
    gateway_id: str = Field(
        default_factory=lambda: f"gateway-{secrets.token_hex(4)}",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Unique in the region; drawn at start by default.",
    )
    state_dir: Path = Field(
        default=Path("reelmesh-gateway"),
        description="Folder for spool and artifacts where these name none; made if need be.",
    )
    http: ListenConfig = Field(default=ListenConfig(), description="The HTTP edge.")
    grpc: ListenConfig = Field(default=ListenConfig(), description="The gRPC edge.")
    edge: EdgeConfig = Field(default=EdgeConfig(), description="Limits of both edges.")
    auth: AuthConfig = Field(description="Whose tokens hold.")
    tls: TlsSettings | None = Field(
        default=None,
        description="The certificate of both public edges, read again when it is renewed. Without "
        "it they speak plain text, for a TLS proxy in front.",
    )
    mtls: MutualTlsSettings | None = Field(
        default=None,
        description="The certificate that this gateway shows to the other parts, and the "
        "authorities that it believes. Without it they speak plain text, on this host alone.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Speak plain text with parts on other hosts where mtls is not given: only "
        "where something else, such as a service mesh, encrypts and checks who calls. Off, since "
        "whoever reaches the peer listener may act as any tenant.",
    )
    peer: ListenConfig = Field(
        default=ListenConfig(),
        description="Where the other gateways, of every region, reach this one. Callers are "
        "believed here: with mtls they are gateways by their certificates.",
    )
    control_plane: ControlPlaneConfig = Field(description="The region's control plane.")
    default_model: str = Field(
        default="",
        description="Model that an empty name means; by default the one most workers serve.",
    )
    runs: RunConfig = Field(default=RunConfig(), description="How jobs wait and run.")
    spool: SpoolConfig = Field(default=SpoolConfig(), description="Bytes on their way.")
    artifacts: ArtifactConfig = Field(default=ArtifactConfig(), description="Finished videos.")
    jobs: JobsConfig = Field(default=JobsConfig(), description="Job records.")
    batches: BatchConfig = Field(default=BatchConfig(), description="Many videos in one request.")
    cache: CacheConfig = Field(
        default=CacheConfig(), description="Videos that need not be drawn again."
    )
    webhooks: WebhookConfig = Field(
        default=WebhookConfig(), description="Telling clients of an end at a URL of theirs."
    )
    brown_out: BrownOutConfig = Field(
        default=BrownOutConfig(), description="Fewer steps under load."
    )
    regions: RegionsConfig = Field(
        default=RegionsConfig(), description="Work that other regions do."
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="Seconds that running jobs get to end after SIGTERM; those left are failed "
        "as retryable. Orchestrators kill after 30 s by default.",
    )
    ready_file: Path | None = Field(
        default=None, description="File that is written, whole, once both edges listen."
    )
    log: LogSettings = Field(default=LogSettings(), description="Logging.")
    tracing: TracingSettings = Field(default=TracingSettings(), description="Spans.")

    @model_validator(mode="after")
    def _no_plain_text_between_hosts(self) -> Self:
        if self.mtls is None and not self.allow_plaintext:
            endpoints = (("control_plane.endpoints", each) for each in self.control_plane.endpoints)
            refuse_plaintext((("peer.listen", self.peer.listen), *endpoints))
        return self

    @property
    def spool_dir(self) -> Path:
        """Where spool files are made."""
        return self.spool.directory or self.state_dir / "spool"

    @property
    def artifacts_url(self) -> str:
        """Where finished videos go."""
        return self.artifacts.url or str(self.state_dir / "artifacts")
