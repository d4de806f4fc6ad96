"""The small random-weight model that tests load; made once per session."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def make_model(out: Path) -> Path:
    """Writes the model into ``out``; in another process unless torch is here already."""
    if "torch" in sys.modules:
        from node_agent.engine.random_model import make_random_model

        make_random_model(out)
    else:
        script = str(REPO / "tools" / "make_random_model.py")
        subprocess.run([sys.executable, script, str(out)], check=True, timeout=100)
    return out
