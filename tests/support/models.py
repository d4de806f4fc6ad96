"""The models that tests load: one of random weights, made once per session, and the demo."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

# The trained model as it ships. A clip of it takes a second: at most eight in all of the tests.
DEMO_MODEL = REPO / "node_agent" / "models" / "demo"


def make_model(out: Path) -> Path:
    """Writes the model into ``out``; in another process unless torch is here already."""
    if "torch" in sys.modules:
        from node_agent.engine.random_model import make_random_model

        make_random_model(out)
    else:
        script = str(REPO / "tools" / "make_random_model.py")
        subprocess.run([sys.executable, script, str(out)], check=True, timeout=100)
    return out
