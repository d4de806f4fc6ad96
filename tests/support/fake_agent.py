"""A node agent as a process of its own, with fake workers: it can be killed and stopped.

    python tests/support/fake_agent.py CONFIG_JSON

Writes the configuration's ready file once it serves, and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelmesh.v1 import control_plane_service_pb2, model_pb2, node_pb2

from node_agent.app import build_app
from node_agent.config import NodeConfig
from node_agent.model_folder import open_model_folder
from tests.support.fakeworker import FakeLauncher, Script
from tests.support.nodes import DEADLINE_S, node_config


@dataclass
class FakeAgent:
    """The process."""

    process: subprocess.Popen[bytes]
    node_id: str
    address: str
    model: model_pb2.ModelInfo

    def record(self, address: str = "") -> control_plane_service_pb2.NodeRecord:
        """What a control plane would know of it; ``address``: through a proxy."""
        return control_plane_service_pb2.NodeRecord(
            node_id=self.node_id,
            region="ap",
            address=address or self.address,
            state=node_pb2.NODE_STATE_READY,
            models=[
                node_pb2.ModelVersion(
                    name=self.model.name,
                    version=self.model.version,
                    manifest_sha256=self.model.manifest_sha256,
                )
            ],
            worker_count=1,
        )

    def signal(self, number: signal.Signals) -> None:
        """Sends the process a signal."""
        self.process.send_signal(number)


@contextlib.asynccontextmanager
async def fake_agent(
    tmp_path: Path, node_id: str = "ap-node-0", **changes: Any
) -> AsyncIterator[FakeAgent]:
    """Starts one; it is killed at the end."""
    folder = tmp_path / node_id
    folder.mkdir()
    ready = folder / "ready.json"
    config = node_config(folder, node_id=node_id, ready_file=str(ready), **changes)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, __file__, config.model_dump_json()],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    try:
        await _until(lambda: ready.exists() or process.poll() is not None)
        model = open_model_folder(folder / "model").to_model_info()
        yield FakeAgent(process, node_id, json.loads(ready.read_text())["grpc"], model)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - another process's file
            await asyncio.sleep(0.02)


async def main() -> None:
    config = NodeConfig.model_validate_json(sys.argv[1])
    launcher = FakeLauncher([Script(step_s=0.05)])
    async with build_app(config, launcher=launcher) as app:
        await app.serve()


if __name__ == "__main__":
    asyncio.run(main())
