"""``reelmesh-node``: the agent that hosts a model on one machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from node_agent.config import ENV_PREFIX, NodeConfig
from reelkit.settings import ConfigError, dump_settings, load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the agent until SIGTERM or SIGINT; the exit code: 0 clean, 1 failed, 2 misused."""
    arguments = _parser().parse_args(argv)
    try:
        config = load_settings(
            NodeConfig, file=arguments.config, env_prefix=ENV_PREFIX, overrides=arguments.set
        )
    except ConfigError as error:
        sys.stderr.write(f"configuration:\n{error}\n")
        return 2
    if arguments.check_config:
        sys.stdout.write(dump_settings(config))
        return 0
    return _run(config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reelmesh-node", description=__doc__)
    parser.add_argument("--config", type=Path, help="YAML file of settings")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.SUB=VALUE",
        help="override one setting; may be given again",
    )
    parser.add_argument(
        "--check-config", action="store_true", help="print the effective settings and exit"
    )
    return parser


def _run(config: NodeConfig) -> int:
    # The fork server is started before anything makes a thread or a gRPC object, and
    # imports torch while the agent sets itself up.
    from node_agent.engine.spawn import stop_forkserver, warm_forkserver

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
