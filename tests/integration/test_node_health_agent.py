"""The real agent, tried by a real control plane."""

from control_plane.store.memory import MemoryStore
from reelkit.clock import SystemClock
from tests.support.controlplanes import running, watcher
from tests.support.healthnodes import quick_canary
from tests.support.nodes import node_config, running_node
from tests.support.stores import eventually


async def test_an_agent_passes_its_canary_and_its_speed_stays(tmp_path):
    async with (
        MemoryStore(clock=SystemClock()) as store,
        running(store=store, lease_ttl_s=20, health=quick_canary()) as app,
        watcher(app.address) as fleet,
        running_node(node_config(tmp_path, control_planes=[app.address])) as node,
    ):
        await node.until_ready()
        status = await node.until(lambda s: bool(s.executions))
        assert status.executions[0].job_id.startswith("canary-ap-node-0-")
        # Ended, released, and tried again.
        await node.until(lambda s: not s.executions)
        await eventually(lambda: node.app.table.kept_bytes() == 0)
        again = await node.until(
            lambda s: any(e.job_id != status.executions[0].job_id for e in s.executions)
        )
        assert again.units_per_second == 100.0
        assert "canary" not in fleet.nodes["ap-node-0"].reason
