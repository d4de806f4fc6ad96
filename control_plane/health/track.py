"""What is known of one node, gathered from what happens; time is passed in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from reelmesh.v1 import node_pb2
from reelmesh.v1.node_pb2 import NodeState

from control_plane.health.assess import READY, UNHEALTHY, Assessment, Evidence, assess
from control_plane.health.config import HealthSettings
from control_plane.health.devices import device_fault, is_hot, node_fault

# Reports come at least every third of a lease: two were missed.
SILENT_SHARE = 0.7
MAX_FALLS = 16
# Where a ready node may go without having failed: an operator's or its own decision.
_NO_FALL = (READY, node_pb2.NODE_STATE_DRAINING, node_pb2.NODE_STATE_CORDONED)


class NodeTrack:
    """Gathers evidence of one node, and keeps what it was judged to be.

    Args:
        rules: The limits.
        lease_ttl_s: Of the node's lease; a silent node is out shortly before it ends.
        status: The report of its hello.
        now_s: Monotonic seconds.
        before: Its state as another replica judged it a moment ago, so that a move
            between replicas is no change.
        before_reason: Likewise.
    """

    def __init__(
        self,
        *,
        rules: HealthSettings,
        lease_ttl_s: float,
        status: node_pb2.NodeStatus,
        now_s: float,
        before: NodeState.ValueType = node_pb2.NODE_STATE_UNSPECIFIED,
        before_reason: str = "",
    ) -> None:
        self._rules = rules
        self._ticked_s = now_s
        self._idle_since_s = now_s
        self._ecc_before: dict[str, int] = {}
        self._hot: set[str] = set()
        self._evidence = Evidence(
            reported=status.state,
            reported_at_s=now_s,
            silent_after_s=lease_ttl_s * SILENT_SHARE,
            before=before,
            before_reason=before_reason,
        )
        self.status = status
        self.now = Assessment(before or status.state, before_reason)
        self.reported(status, now_s=now_s)

    @property
    def failing(self) -> bool:
        """Whether calls or canaries fail now, be it for the first time."""
        evidence = self._evidence
        return bool(evidence.probe.failures or evidence.canary.failures)

    @property
    def recovering(self) -> bool:
        """Whether it says that it is ready, answers, and has yet to prove it."""
        evidence = self._evidence
        return (
            self.now.state == UNHEALTHY
            and evidence.reported == READY
            and not evidence.probe.failures
        )

    @property
    def canary_failed(self) -> bool:
        """Whether the last canary failed."""
        return self._evidence.canary.failures > 0

    def idle_s(self, now_s: float) -> float:
        """How long no run was seen on it."""
        return now_s - self._idle_since_s

    def reported(self, status: node_pb2.NodeStatus, *, now_s: float) -> Assessment:
        """Takes the node's own word."""
        self.status = status
        if status.executions:
            self._idle_since_s = now_s
        self._note(
            reported=status.state,
            reported_reason=status.reason,
            reported_at_s=now_s,
            device_fault=self._device_fault(status.devices),
        )
        return self.judge(now_s=now_s)

    def probed(self, *, ok: bool, reason: str = "", now_s: float) -> Assessment:
        """Takes the outcome of a call to its address."""
        self._note(probe=self._evidence.probe.then(ok=ok, reason=reason))
        return self.judge(now_s=now_s)

    def canaried(self, *, ok: bool, reason: str = "", now_s: float) -> Assessment:
        """Takes the outcome of a canary."""
        self._idle_since_s = now_s
        self._note(canary=self._evidence.canary.then(ok=ok, reason=reason))
        return self.judge(now_s=now_s)

    def tried_in_vain(self, *, now_s: float) -> None:
        """A canary told nothing: the node was busy, or gone."""
        self._idle_since_s = now_s

    def fell(self, *, now_s: float) -> None:
        """Counts a fall that was seen elsewhere, such as a lease that ran out."""
        falls = (*self._evidence.falls_s, now_s)[-MAX_FALLS:]
        self._note(falls_s=falls)

    def remember_falls(self, falls_s: Iterable[float]) -> None:
        """Takes over the falls that its history knows of."""
        falls = sorted((*falls_s, *self._evidence.falls_s))[-MAX_FALLS:]
        self._note(falls_s=tuple(falls))

    def tick(
        self, *, now_s: float, every_s: float, many_fail: bool, none_ready: bool = False
    ) -> Assessment:
        """Time has passed. Called about every ``every_s`` seconds.

        Where it is called much later than that, this process did not run: the node's
        silence in the meantime is ours.
        """
        if now_s - self._ticked_s > 2 * every_s + 1:
            self._note(reported_at_s=now_s)
        self._ticked_s = now_s
        window_s = self._rules.flapping.window_s
        falls = tuple(fall for fall in self._evidence.falls_s if now_s - fall <= window_s)
        self._note(many_fail=many_fail, none_ready=none_ready, falls_s=falls)
        return self.judge(now_s=now_s)

    def judge(self, *, now_s: float) -> Assessment:
        """Weighs everything, and keeps the answer."""
        was, now = self.now, assess(self._evidence, now_s, self._rules)
        if was.state == READY and now.state not in _NO_FALL:
            self.fell(now_s=now_s)
        well_since_s = self._evidence.well_since_s
        well_since_s = None if now.fault else now_s if well_since_s is None else well_since_s
        self._note(before=now.state, before_reason=now.reason, well_since_s=well_since_s)
        self.now = now
        return now

    def _device_fault(self, devices: Iterable[node_pb2.DeviceStatus]) -> str:
        faults: dict[str, str] = {}
        names = []
        for device in devices:
            name = device.device
            names.append(name)
            was_hot = name in self._hot
            faults[name] = device_fault(
                device,
                ecc_before=self._ecc_before.get(name),
                was_hot=was_hot,
                rules=self._rules.device,
            )
            if is_hot(device, was_hot=was_hot, rules=self._rules.device):
                self._hot.add(name)
            else:
                self._hot.discard(name)
            if device.HasField("ecc_errors"):
                self._ecc_before.setdefault(name, device.ecc_errors)
        return node_fault(faults, names)

    def _note(self, **changes: object) -> None:
        self._evidence = dataclasses.replace(self._evidence, **changes)  # type: ignore[arg-type]  # names and types are those of Evidence
