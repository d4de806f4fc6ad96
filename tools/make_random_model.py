"""Writes a small random-weight model of the 5B's shape: make_random_model.py OUT_DIR."""

from __future__ import annotations

import argparse
from pathlib import Path

from node_agent.engine.random_model import make_random_model


def main() -> None:
    """Parses the command line, writes the model and says what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a folder that is new or empty")
    parser.add_argument("--name", default="wan-demo")
    parser.add_argument("--version", default="random-1")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        folder = make_random_model(args.out, name=args.name, version=args.version, seed=args.seed)
    except FileExistsError as error:
        parser.error(str(error))
    total = sum(entry.size_bytes for entry in folder.manifest.files)
    print(f"{args.out}: {folder.manifest.name}@{folder.manifest.version}, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
