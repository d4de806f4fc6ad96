"""LiteLLM's proxy from PyPI as a named peer: installed into an environment of its own.

Its dependencies would disagree with ours, and it is large (some 750 MB with them), so it is
kept in a cache folder from one run to the next. Where it cannot be had the benchmark says why
and goes on without it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

VERSION = "1.106.0"
INSTALL_WITHIN_S = 900
# It imports for ten seconds before it listens.
START_WITHIN_S = 120.0
MASTER_KEY = "sk-benchmark"
MODEL = "instant"


class NotToBeHad(Exception):  # noqa: N818 - named for what happened
    """A peer cannot be had here; the message says why in one line."""


def cache_folder() -> Path:
    """Where it is kept: outside of any working tree."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "reelmesh-benchmarks" / f"litellm-{VERSION}"


def install() -> Path:
    """The proxy's program, installed now where it is not there yet.

    Raises:
        NotToBeHad: pip failed or took too long.
    """
    folder = cache_folder()
    program, done = folder / "bin" / "litellm", folder / "installed"
    if done.exists():
        return program
    print(f"installing litellm[proxy] {VERSION} into {folder} (some minutes, once)", flush=True)
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            f"litellm[proxy]=={VERSION}",
        ],
    ]
    for command in commands:
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=INSTALL_WITHIN_S
            )
        except subprocess.TimeoutExpired:
            raise NotToBeHad(f"not installed within {INSTALL_WITHIN_S} s") from None
        except (OSError, subprocess.CalledProcessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise NotToBeHad(said[-1] if said else "pip failed") from None
    done.touch()
    return program


def command(program: Path, folder: Path, *, backend: str, port: int) -> list[str]:
    """How to start it with one worker before a backend that speaks OpenAI's video API."""
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": f"http://{backend}/v1",
                    "api_key": "none",
                },
            }
        ],
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"telemetry": False},
    }
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump(config))
    # Nothing is fetched from elsewhere, and as little is logged as it can.
    quiet = ["LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return ["/usr/bin/env", *quiet, str(program), "--config", str(file), *options]
