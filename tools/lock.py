"""Writes constraints.txt from what is installed: ``make lock`` after changing pyproject.toml."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

HEADER = """\
# Every package of `pip install -e ".[test]"`, pinned. `make lock` writes it anew.
# torch is pinned to a plain release, so that pip takes a CPU build of it where one is at hand.
"""
# The environment's own tools, and the project itself.
LEFT_OUT = {"pip", "setuptools", "wheel", "reelmesh"}


def pins() -> list[str]:
    """One ``name==version`` per installed distribution; local builds lose their suffix."""
    found = {
        dist.metadata["Name"]: dist.version.split("+")[0]
        for dist in importlib.metadata.distributions()
    }
    return sorted(
        (f"{name}=={version}" for name, version in found.items() if name.lower() not in LEFT_OUT),
        key=str.lower,
    )


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "constraints.txt"
    target.write_text(HEADER + "\n".join(pins()) + "\n")
    print(f"wrote {target.name}")
