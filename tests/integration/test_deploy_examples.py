from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"control-plane": "control_plane", "gateway": "gateway", "node-agent": "node_agent"}
EXAMPLES = sorted((ROOT / "deploy").glob("*/*/*.yaml"))


def test_each_part_has_an_example_in_two_regions():
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_part_takes_its_example(file):
    checked = subprocess.run(
        [sys.executable, "-m", MODULES[file.stem], "--config", file, "--check-config"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr
    assert f"region: {file.parent.name}" in checked.stdout
