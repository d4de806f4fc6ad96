"""``reelmesh-gateway --config FILE``: the edge of a region as a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reelkit.extras import needs_extra

if TYPE_CHECKING:
    from gateway.config import GatewayConfig


@needs_extra("gateway", program="reelmesh-gateway", parts="the gateway's parts")
def main(argv: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM or SIGINT; the exit code: 0 clean, 1 failed, 2 misused."""
    from gateway.config import ENV_PREFIX, GatewayConfig
    from reelkit.commandline import run_part

    return run_part(
        argv,
        program="reelmesh-gateway",
        about="The edge of a region: takes requests for videos and places them on nodes.",
        settings=GatewayConfig,
        env_prefix=ENV_PREFIX,
        run=_run,
    )


def _run(config: GatewayConfig) -> int:
    from gateway.allocator import keep_chunk_memory

    # Before there are threads.
    keep_chunk_memory()
    # Imported here, so that --check-config answers at once.
    from gateway.app import build_app
    from reelkit.lifecycle import run_app
    from reelkit.logs import setup_logging
    from reelkit.tracing import setup_tracing

    setup_logging(level=config.log.level, fmt=config.log.format, process="gateway")
    provider = setup_tracing(config.tracing, service="reelmesh-gateway", instance=config.gateway_id)
    try:
        return run_app(lambda: build_app(config), name=f"gateway {config.gateway_id}")
    finally:
        provider.shutdown()


if __name__ == "__main__":
    sys.exit(main())
