"""The agent's settings: parsed once, from a YAML file, the environment, then flags.

Environment variables begin with ``REELMESH_NODE__``, such as
``REELMESH_NODE__WORKERS__THREADS=2``.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from node_agent.devices import DeviceLimits
from node_agent.engine.settings import WorkerSettings
from node_agent.executions import ExecutionLimits
from reelkit.logs import LogSettings
from reelkit.mtls.config import MutualTlsSettings, refuse_plaintext
from reelkit.settings import Settings
from reelkit.tracing import TracingSettings

ENV_PREFIX = "REELMESH_NODE__"

# Store options that are secrets by obstore's names, of S3, Azure and Google.
_SECRET = re.compile(
    r"secret|password|token$|(access|account|master|sas|customer|service_account)_key(?!_id)"
)

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _check_id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise ValueError(
            f"{text!r} must be 1 to 63 of a-z, 0-9 and '-', a letter or digit at both ends"
        )
    return text


def _check_address(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{text!r} must be host:port with a port up to 65535")
    return text


def _check_no_secret(options: dict[str, str]) -> dict[str, str]:
    for name in options:
        if _SECRET.search(name.lower()):
            raise ValueError(
                f"{name!r} is a secret, which a printed configuration would show; set it in the "
                "environment by the store's own variable, such as AWS_SECRET_ACCESS_KEY"
            )
    return options


Id = Annotated[str, AfterValidator(_check_id)]
Address = Annotated[str, AfterValidator(_check_address)]


class ModelSettings(Settings):
    """Which model the node serves and where its weights come from."""

    source: str = Field(
        min_length=1,
        description="A folder, hf://org/name or hf://org/name@revision (Hugging Face Hub), or "
        "the URL of a folder in an object store (s3://, gs://, az://, https://, file://).",
    )
    manifest: Path | None = Field(
        default=None,
        description="A manifest kept apart from the weights, for folders that carry none, such "
        'as a Hub download. With "files": null the files\' digests are taken from what is '
        "found, and a warning says that they are unverified.",
    )
    cache_dir: Path = Field(
        default=Path("weights-cache"),
        description="Where fetched weights are kept; needs room for one copy of each version.",
    )
    fetch_timeout_s: float = Field(
        default=4 * 3600.0,
        gt=0,
        description="Longest time a fetch of the weights may take before it is tried again.",
    )
    fetch_stall_s: float = Field(
        default=60.0,
        gt=0,
        description="Silence of the Hub or the store after which a fetch is given up, to go on "
        "with the next try; longer than a busy store or a firewall keeps a request waiting.",
    )
    store_options: Annotated[dict[str, str], AfterValidator(_check_no_secret)] = Field(
        default_factory=dict,
        description="Options of the object store by obstore's names (endpoint, region, ...). "
        "Credentials come from the store's own variables, such as AWS_ACCESS_KEY_ID; secrets "
        "are refused here.",
    )
    client_options: dict[str, str] = Field(
        default_factory=dict,
        description="Options of its HTTP client by obstore's names (allow_http, proxy_url, ...).",
    )


class RegistrySettings(Settings):
    """Registered versions: whose are taken, and what fetching them may cost."""

    trusted_keys: tuple[Path, ...] = Field(
        default=(),
        max_length=32,
        description="Public keys, as `reelctl model keys init` writes them: a version is taken "
        "where one of them has signed its manifest. Read again for each version.",
    )
    require_signature: bool = Field(
        default=True,
        description="Whether a version without such a signature is refused. Off, whoever can write "
        "the registry decides what the node loads; a signature that does not hold is refused all "
        "the same.",
    )
    max_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Bound on the bytes of all registered versions kept under model.cache_dir; "
        "beyond it the longest unused go, those that are wanted or served never. None: what the "
        "disk has, with some room left.",
    )
    parallel_files: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Files that are fetched at once; one stream seldom fills a fast line.",
    )
    max_bytes_per_s: float | None = Field(
        default=None,
        gt=0,
        description="Bound on what is fetched in a second, from peers and sources together, so "
        "that videos keep their share of the line. None: no bound.",
    )
    from_peers: bool = Field(
        default=True,
        description="Whether other nodes of the region are asked first; the source then sends "
        "about one copy to a region.",
    )
    serve_streams: int = Field(
        default=8,
        ge=0,
        le=256,
        description="Files that other nodes may read here at once; 0: none.",
    )
    serve_bytes_per_s: float | None = Field(
        default=None,
        gt=0,
        description="Bound on what is sent to other nodes in a second. None: no bound.",
    )


class WorkersSettings(Settings):
    """The worker processes: one per device."""

    devices: tuple[str, ...] = Field(
        default=("cpu",),
        min_length=1,
        max_length=16,
        description="A worker is started for each entry: cpu, cuda:0, cuda:1, ...",
    )
    fork_server: Path | None = Field(
        default=None,
        description="Socket of a fork server that the agents of this machine share, see "
        "node_agent.engine.fork_server; none by default: each agent has its own.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="torch's CPU threads in each worker; 0 leaves it to torch.",
    )
    heartbeat_timeout_s: float = Field(
        default=2.0,
        gt=0,
        description="Silence after which a serving worker counts as stopped and is killed; four "
        "of its heartbeats.",
    )
    loading_silence_s: float = Field(
        default=20.0,
        gt=0,
        description="The same while it loads: imports and weights hold the interpreter longer.",
    )
    start_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="Time for the process to start, imports of torch on a cold disk included.",
    )
    load_timeout_s: float = Field(
        default=1800.0,
        gt=0,
        description="Time to load and warm the model; 30 GB from a slow disk fit.",
    )
    stall_floor_s: float = Field(
        default=30.0,
        gt=0,
        description="A device is never called hung before it was silent this long.",
    )
    stall_steps: float = Field(
        default=10.0,
        gt=0,
        description="Nor before it was silent for this many of its median denoising steps.",
    )
    respawn_first_s: float = Field(
        default=0.5, gt=0, description="First wait before a worker that died at load is respawned."
    )
    respawn_max_s: float = Field(
        default=30.0, gt=0, description="The wait doubles up to this, so a bad model costs little."
    )
    video_quality_crf: int = Field(
        default=18, ge=0, le=40, description="x264's constant rate factor; 18 looks lossless."
    )
    latent_frames_per_fragment: int = Field(
        default=1, ge=1, le=64, description="Latent frames in one MP4 fragment; 1 shows soonest."
    )


class RunsSettings(Settings):
    """How long runs and their bytes are kept."""

    owner_grace_s: float = Field(
        default=30.0,
        gt=0,
        description="A run whose streams are all closed goes on this long, so that an adopting "
        "gateway can attach to it; then it is cancelled.",
    )
    keep_s: float = Field(
        default=120.0,
        gt=0,
        description="Events of a finished run are kept this long, unless released before.",
    )
    keep_bytes: int = Field(
        default=512 * 1024 * 1024,
        ge=1024 * 1024,
        description="Bound on the bytes of all kept events; the oldest finished run goes first.",
    )

    def limits(self) -> ExecutionLimits:
        """The same as the execution table wants it."""
        return ExecutionLimits(
            owner_grace_s=self.owner_grace_s, keep_s=self.keep_s, keep_bytes=self.keep_bytes
        )


class DevicesSettings(Settings):
    """How the devices' own figures are read: memory, heat and errors."""

    every_s: float = Field(
        default=5.0, gt=0, description="Seconds between readings; an error is seen as late as that."
    )
    timeout_s: float = Field(
        default=5.0,
        gt=0,
        description="Time for a reading, after which the driver counts as mute: the report says "
        "so and leaves the figures out, and the agent goes on.",
    )
    hot_c: float = Field(
        default=90.0,
        gt=0,
        description="Degrees from which a device is reported as hot. It works on: its driver "
        "throttles it, and the control plane has a limit of its own.",
    )

    def limits(self) -> DeviceLimits:
        """The same as the watch wants it."""
        return DeviceLimits(every_s=self.every_s, timeout_s=self.timeout_s, hot_c=self.hot_c)


class NodeConfig(Settings):
    """Everything a node agent needs to know."""

    node_id: Id = Field(description="Unique in the region, such as ap-node-0.")
    region: Id = Field(description="The region's name, such as ap.")
    listen: Address = Field(
        default="127.0.0.1:0", description="host:port of NodeService; port 0 takes a free one."
    )
    advertise: Address | None = Field(
        default=None,
        description="host:port under which gateways reach it; by default the address listened "
        "on (for 0.0.0.0, this host's name). Port 0 stands for the port in use.",
    )
    control_planes: tuple[Address, ...] = Field(
        default=(),
        description="Replicas of the region's control plane; one is attached to at a time. With "
        "none the node serves whoever knows its address.",
    )
    mtls: MutualTlsSettings | None = Field(
        default=None,
        description="The certificate that this node shows to the other parts, and the "
        "authorities that it believes. Without it they speak plain text, on this host alone.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Speak plain text with parts on other hosts where mtls is not given: only "
        "where something else, such as a service mesh, encrypts and checks who calls. Off, since "
        "whoever reaches the listener can make the node draw.",
    )
    model: ModelSettings = Field(description="What it serves.")
    registry: RegistrySettings = Field(
        default_factory=RegistrySettings, description="Versions that operators registered."
    )
    workers: WorkersSettings = Field(
        default_factory=WorkersSettings, description="Who computes it."
    )
    runs: RunsSettings = Field(default_factory=RunsSettings, description="What is kept.")
    devices: DevicesSettings = Field(
        default_factory=DevicesSettings, description="What its devices are watched for."
    )
    drain_timeout_s: float = Field(
        default=30.0,
        ge=0,
        description="Time that running work is given at shutdown; the rest fails as retryable.",
    )
    reflection: bool = Field(
        default=True, description="Whether gRPC reflection is served, for grpcurl and kin."
    )
    ready_file: Path | None = Field(
        default=None, description='JSON {"grpc": "host:port", "pid": N}, written once listening.'
    )
    tracing: TracingSettings = Field(default_factory=TracingSettings, description="Where spans go.")
    log: LogSettings = Field(default_factory=LogSettings, description="What is logged.")

    @model_validator(mode="after")
    def _no_plain_text_between_hosts(self) -> Self:
        if self.mtls is None and not self.allow_plaintext:
            replicas = (("control_planes", each) for each in self.control_planes)
            refuse_plaintext((("listen", self.listen), *replicas))
        return self

    def advertised(self, port: int) -> str:
        """The host:port that others are told, with the port that is really in use."""
        host, _, given = (self.advertise or self.listen).rpartition(":")
        if self.advertise is not None and int(given) != 0:
            return self.advertise
        if host in ("0.0.0.0", "[::]", "::"):  # noqa: S104 - compared, not bound
            host = socket.gethostname()
        return f"{host}:{port}"

    def worker_settings(self) -> WorkerSettings:
        """What each worker process is told at its start."""
        return WorkerSettings(
            region=self.region,
            node_id=self.node_id,
            log_level=self.log.level,
            log_format=self.log.format,
            tracing=self.tracing,
            heartbeat_s=self.workers.heartbeat_timeout_s / 4,
            video_quality_crf=self.workers.video_quality_crf,
            latent_frames_per_fragment=self.workers.latent_frames_per_fragment,
        )
