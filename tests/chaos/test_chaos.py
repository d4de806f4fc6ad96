"""The whole mesh under faults of every kind; see the README beside it."""

import os
import sys

import pytest

from tests.chaos.checks import violations
from tests.chaos.run import report, run_chaos

SEED = int(os.environ.get("CHAOS_SEED", "1"))
MINUTES = float(os.environ.get("CHAOS_MINUTES", "1.5"))


@pytest.mark.timeout(60 * MINUTES + 600)
async def test_every_acknowledged_video_ends_once_and_is_the_right_one(tmp_path, random_model_dir):
    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    history = await run_chaos(
        tmp_path, model=random_model_dir, seed=SEED, lasts_s=60 * MINUTES, say=say
    )
    say(report(history))
    assert len(history.operations) > 10
    assert history.faults
    broken = violations(history)
    assert not broken, f"seed {SEED}:\n" + "\n".join(broken)
