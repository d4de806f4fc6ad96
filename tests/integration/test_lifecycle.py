from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import asyncio, contextlib, sys, time
from reelkit.lifecycle import run_app
from reelkit.logs import setup_logging
from reelkit.settings import ConfigError, blame_field

setup_logging(level="info", fmt="json", process="test")

MODE = sys.argv[1]

class App:
    async def serve(self):
        print("serving", flush=True)
        if MODE == "fails":
            raise OSError("essential part is gone")
        if MODE == "hangs":
            time.sleep(60)
        await asyncio.Event().wait()

    async def drain(self):
        print("draining", flush=True)
        if MODE == "stuck":
            await asyncio.Event().wait()

@contextlib.asynccontextmanager
async def build():
    if MODE == "misconfigured":
        with blame_field("keys.file", "/none/keys"):
            open("/none/keys")
    if MODE == "broken":
        raise TypeError("a mistake in the code")
    yield App()
    print("closed", flush=True)

sys.exit(run_app(build, name="test", hang_limit_s=1.0))
"""


@pytest.fixture
def start():
    processes = []

    def start(mode: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "serving\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=10)


def test_a_signal_drains_closes_and_exits_with_zero(start):
    process = start("normal")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("draining\nclosed\n", 0)


def test_a_second_signal_exits_at_once(start):
    process = start("stuck")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "draining\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 70


def test_a_failed_part_ends_the_process_with_one(start):
    process = start("fails")
    assert process.wait(timeout=20) == 1


def test_a_loop_that_stands_still_ends_the_process_and_says_where():
    done = run("hangs")
    assert done.returncode == 71
    said = json.loads(done.stderr.splitlines()[-1])
    assert said["event"] == "the event loop stands still"
    assert "time.sleep(60)" in said["stack"] or "in serve" in said["stack"]


def test_a_process_that_was_stopped_for_long_has_not_hung(start):
    process = start("normal")
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("draining\nclosed\n", 0)


def run(mode: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, timeout=60
    )


def test_a_configuration_that_fails_at_the_start_is_told_in_one_line():
    done = run("misconfigured")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    said = json.loads(line)
    assert said["reason"] == "keys.file /none/keys: No such file or directory"
    assert "exception" not in said


def test_a_mistake_in_the_code_keeps_its_traceback():
    done = run("broken")
    assert done.returncode == 1
    said = json.loads(done.stderr.splitlines()[0])
    assert said["exception"][0]["exc_value"] == "a mistake in the code"
