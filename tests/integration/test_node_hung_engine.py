"""A device that hangs under the engine's real worker: its worker dies, its agent does not."""

from __future__ import annotations

import pytest
from reelmesh.v1 import node_pb2
from reelmesh.v1.node_service_pb2 import RunRequest

from node_agent.config import NodeConfig
from node_agent.model_folder import open_model_folder
from tests.support.engine import resolved
from tests.support.hanging_worker import HangingLauncher
from tests.support.nodes import running_node


@pytest.mark.parametrize("stage", ["text", "decode", "tail"])
async def test_a_hang_of_the_real_engine_costs_the_worker_its_life(
    tmp_path, random_model_dir, stage
):
    launcher = HangingLauncher(stage)
    config = NodeConfig.model_validate(
        {
            "node_id": "ap-node-0",
            "region": "ap",
            "model": {"source": str(random_model_dir)},
            # The heart beats on; only the silence of the device may tell.
            "workers": {"heartbeat_timeout_s": 30, "stall_floor_s": 4, "threads": 1},
        }
    )
    manifest = open_model_folder(random_model_dir).manifest
    spec = resolved(model=manifest.name, model_version=manifest.version)
    async with running_node(config, launcher=launcher) as node:
        await node.until_ready()
        run = RunRequest(job_id="hangs", epoch=1, attempt=1, spec=spec, **{"try": 1})
        failed = (await node.read_until(node.stub.Run(run), "failed"))[-1].failed
        assert (failed.code, failed.retryable) == ("worker_died", True)
        assert "no progress" in failed.message
        assert launcher.handles[0].join(30)
        # The next one draws it.
        await node.until(
            lambda s: s.state == node_pb2.NODE_STATE_READY and s.workers[0].restarts == 1
        )
        again = RunRequest(job_id="again", epoch=1, attempt=1, spec=spec, **{"try": 1})
        assert (await node.events(again))[-1].HasField("completed")
