"""Configuration of node health; each default says what it trades."""

from __future__ import annotations

from pydantic import Field

from reelkit.settings import Settings


class ProbeSettings(Settings):
    """The gRPC health call to a node's own address."""

    enabled: bool = Field(
        default=True, description="Whether nodes are called; off for nodes that are simulated."
    )
    interval_s: float = Field(
        default=2.0,
        gt=0,
        le=60,
        description="Seconds between two calls to a node. With three failures a node that "
        "reports and cannot be reached is out after 6 s; gateways notice sooner by themselves.",
    )
    timeout_s: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Seconds a call may take, connecting included; a busy agent answers in "
        "milliseconds, since it never runs the model itself.",
    )
    failures: int = Field(
        default=3,
        ge=1,
        description="Failures in a row that make a node unhealthy; one or two are a lost packet "
        "or a busy moment.",
    )
    successes: int = Field(
        default=2,
        ge=1,
        description="Successes in a row that let it come back; one may be luck.",
    )
    max_per_s: float = Field(
        default=50.0,
        gt=0,
        description="Calls a second of this replica at most: with more nodes than that pays for, "
        "each is called less often. A call costs about two milliseconds of a core.",
    )


class CanarySettings(Settings):
    """A small generation on a node that has had nothing to do."""

    enabled: bool = Field(
        default=True,
        description="Whether idle nodes are tried. A node whose device died in its sleep is "
        "otherwise found by the first client.",
    )
    idle_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds without a run after which a node is tried, and tried again. The "
        "smallest video the model allows takes well under a second in sixty.",
    )
    retry_s: float = Field(
        default=15.0, gt=0, description="The same after one that failed: to be sure, and to heal."
    )
    failures: int = Field(
        default=2,
        ge=1,
        description="Failures in a row that make a node unhealthy; one success heals it.",
    )
    min_deadline_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds a canary gets at least: the first one of a size may build kernels.",
    )
    deadline_factor: float = Field(
        default=10.0,
        ge=1,
        description="Where it is more, a canary gets this many times what the node's speed says.",
    )


class FlappingSettings(Settings):
    """Nodes that come and go have to stay well for longer, each time, before they are back."""

    times: int = Field(
        default=3, ge=1, description="Falls from ready within the window that begin it."
    )
    window_s: float = Field(default=600.0, gt=0, description="Seconds that a fall is remembered.")
    first_hold_s: float = Field(
        default=30.0,
        gt=0,
        description="Seconds without a fault before such a node is ready again; each further "
        "fall doubles it. Half a minute is a few jobs that need not be restarted.",
    )
    max_hold_s: float = Field(
        default=300.0,
        gt=0,
        description="The longest hold; a node that was repaired is back within it.",
    )


class DeviceSettings(Settings):
    """What of a device's own figures makes it unfit."""

    max_temperature_c: float = Field(
        default=95.0,
        gt=0,
        description="Degrees at which a device counts as failing; drivers throttle below and "
        "shut down a little above, so it is only reached where cooling is gone.",
    )
    cool_by_c: float = Field(
        default=10.0, ge=0, description="Degrees below that limit at which it is well again."
    )


class HealthSettings(Settings):
    """How nodes are judged."""

    probe: ProbeSettings = Field(default=ProbeSettings(), description="Calls to the nodes.")
    canary: CanarySettings = Field(default=CanarySettings(), description="Trials of idle nodes.")
    flapping: FlappingSettings = Field(default=FlappingSettings(), description="Unsteady nodes.")
    device: DeviceSettings = Field(default=DeviceSettings(), description="Devices.")
    max_share: float = Field(
        default=0.55,
        gt=0,
        le=1,
        description="Share of the nodes that may fail at once by silence, calls or canaries, or "
        "vanish within one lease, and be believed to have failed; beyond it the fault is more "
        "likely ours than theirs. One node may always fail.",
    )
