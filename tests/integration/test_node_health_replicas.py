"""Two replicas of a control plane as processes: one dies, and nobody sees a node flap."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

import pytest
import yaml
from reelmesh.v1 import node_pb2
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.keys import Keys
from tests.support.controlplanes import watcher
from tests.support.nodes import node_config, running_node
from tests.support.stores import etcd_store, eventually, running_etcd

KEYS = Keys(prefix="/reelmesh", region="ap")
READY = node_pb2.NODE_STATE_READY


@contextlib.asynccontextmanager
async def replica(tmp_path, endpoint, name):
    """A control plane process and its address; killed at the end."""
    ready = tmp_path / f"{name}.json"
    config = {
        "listen": "127.0.0.1:0",
        "region": "ap",
        "replica_id": name,
        "etcd": {"endpoints": [endpoint]},
        "lease_ttl_s": 8,
        "election": {"ttl_s": 2},
        "health": {"probe": {"interval_s": 0.5}},
        "fleet": {"heartbeat_s": 0.5},
        "ready_file": str(ready),
    }
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    with (tmp_path / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "control_plane", "--config", str(tmp_path / f"{name}.yaml")],
            stdout=log,
            stderr=log,
        )
    try:
        await eventually(lambda: ready.exists() or process.poll() is not None)
        yield process, json.loads(ready.read_text())["grpc"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_node_moves_when_its_replica_dies_and_nobody_sees_it_go(tmp_path, fault):
    async with (
        running_etcd(tmp_path) as etcd,
        etcd_store(etcd.endpoint) as store,
        replica(tmp_path, etcd.endpoint, "r0") as r0,
        replica(tmp_path, etcd.endpoint, "r1") as r1,
    ):
        replicas = {"r0": r0, "r1": r1}
        planes = [address for _, address in replicas.values()]
        async with running_node(node_config(tmp_path, control_planes=planes)) as node:
            await node.until_ready()
            attachment = node.app.attachment
            await eventually(lambda: attachment.replica_id in replicas)
            held_by, lease_id = attachment.replica_id, attachment.lease_id
            process, _ = replicas[held_by]
            _, other = replicas[next(name for name in replicas if name != held_by)]
            async with watcher(other) as fleet:
                await fleet.until(
                    lambda: "ap-node-0" in fleet.nodes and fleet.nodes["ap-node-0"].state == READY
                )
                before = fleet.nodes["ap-node-0"]
                told = len(fleet.responses)
                process.send_signal(fault)
                await eventually(lambda: attachment.replica_id != held_by)
                # Through the rest of a lease, and calls of the new replica to the node.
                await fleet.heartbeats(20)
                assert attachment.lease_id == lease_id
                assert fleet.removed == []
                assert fleet.nodes["ap-node-0"] == before
                assert not any(response.HasField("delta") for response in fleet.responses[told:])
                # Whichever of them led: it was written down once.
                found = await store.get(KEYS.history("ap-node-0"))
                states = [event.to for event in op.NodeHistory.FromString(found.value).events]
                assert states[-1] == READY
                assert states.count(READY) == 1
