"""``reelmesh-node``: the agent that hosts a model on one machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reelkit.extras import needs_extra

if TYPE_CHECKING:
    from node_agent.config import NodeConfig


@needs_extra("node", program="reelmesh-node", parts="the node agent's parts")
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the agent until SIGTERM or SIGINT; the exit code: 0 clean, 1 failed, 2 misused."""
    from node_agent.config import ENV_PREFIX, NodeConfig
    from reelkit.commandline import run_part

    return run_part(
        argv,
        program="reelmesh-node",
        about="Hosts a model on this machine: one worker process per device.",
        settings=NodeConfig,
        env_prefix=ENV_PREFIX,
        run=_run,
    )


def _run(config: NodeConfig) -> int:
    # The fork server is started before anything makes a thread or a gRPC object, and
    # imports torch while the agent sets itself up.
    from node_agent.engine.spawn import stop_forkserver, warm_forkserver

    if config.workers.fork_server is None:
        warm_forkserver()
    from node_agent.app import build_app
    from reelkit.lifecycle import run_app
    from reelkit.logs import setup_logging
    from reelkit.tracing import setup_tracing

    setup_logging(level=config.log.level, fmt=config.log.format, process="node_agent")
    provider = setup_tracing(config.tracing, service="reelmesh-node", instance=config.node_id)
    try:
        return run_app(lambda: build_app(config), name=f"node {config.node_id}")
    finally:
        provider.shutdown()
        stop_forkserver()


if __name__ == "__main__":
    sys.exit(main())
