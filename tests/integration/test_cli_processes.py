"""Children of ``reelmesh up`` die when they must, whoever ends first."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from reelmesh_cli.mesh.process import Child, describe_exit, log_tail
from reelmesh_cli.mesh.topology import ProcessPlan
from tests.support.mesh import assert_gone


def plan(*argv: str, process_id: str = "child") -> ProcessPlan:
    return ProcessPlan(role="gateway", region="ap", id=process_id, argv=argv, address="")


@pytest.fixture
def state_dir(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path


async def said(state_dir: Path, text: str) -> str:
    """The child's log once it holds ``text``."""
    async with asyncio.timeout(20):
        while True:
            log = state_dir / "logs" / "child.log"
            if log.exists() and text in log.read_text():
                return log.read_text()
            await asyncio.sleep(0.02)


def python(code: str) -> ProcessPlan:
    return plan(sys.executable, "-u", "-c", textwrap.dedent(code))


async def test_the_pid_is_the_programs_own(state_dir):
    child = await Child.start(python("import os; print('pid', os.getpid())"), state_dir=state_dir)
    async with asyncio.timeout(20):
        assert await child.wait() == 0
    assert f"pid {child.pid}" in log_tail(state_dir / "logs" / "child.log")


async def test_a_child_that_does_not_listen_is_killed_with_its_own_children(state_dir):
    child = await Child.start(
        python(
            """
            import signal, subprocess
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print('below', subprocess.Popen(['sleep', '300']).pid, 'up')
            signal.pause()
            """
        ),
        state_dir=state_dir,
    )
    log = await said(state_dir, "up")
    family = [psutil.Process(child.pid), psutil.Process(int(log.split()[1]))]
    await child.stop(grace_s=0.3)
    assert child.exit_code == -signal.SIGKILL
    assert_gone(family)


async def test_a_child_that_ends_leaves_nothing_of_its_group(state_dir):
    child = await Child.start(
        python("import subprocess; print('below', subprocess.Popen(['sleep', '300']).pid, 'up')"),
        state_dir=state_dir,
    )
    log = await said(state_dir, "up")
    async with asyncio.timeout(20):
        await child.wait()
    below = int(log.split()[1])
    if psutil.pid_exists(below):
        assert_gone([psutil.Process(below)], timeout_s=5)


async def test_a_stopped_child_can_be_asked_to_end(state_dir):
    child = await Child.start(plan("/bin/sleep", "300"), state_dir=state_dir)
    os.kill(child.pid, signal.SIGSTOP)
    await child.stop(grace_s=10)
    assert child.exit_code == -signal.SIGTERM


def test_a_child_dies_with_a_parent_that_was_killed(state_dir):
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(
                f"""
                import asyncio
                from pathlib import Path
                from reelmesh_cli.mesh.process import Child
                from reelmesh_cli.mesh.topology import ProcessPlan

                async def main():
                    plan = ProcessPlan(
                        role="etcd", region=None, id="x", argv=("/bin/sleep", "300"), address=""
                    )
                    child = await Child.start(plan, state_dir=Path({str(state_dir)!r}))
                    while "sleep" not in Path(f"/proc/{{child.pid}}/cmdline").read_text()[:12]:
                        await asyncio.sleep(0.01)
                    print(child.pid, flush=True)
                    await child.wait()

                asyncio.run(main())
                """
            ),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait(10)
    assert_gone([child], timeout_s=10)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL"),
        (-99, "killed by signal 99"),
    ],
)
def test_ends_are_told_in_words(code, text):
    assert describe_exit(code) == text


def test_a_missing_or_empty_log_is_said(tmp_path):
    assert log_tail(tmp_path / "absent") == "(no log)"
    (tmp_path / "empty").touch()
    assert log_tail(tmp_path / "empty") == "(the log is empty)"
    (tmp_path / "long").write_text("\n".join(map(str, range(100))))
    assert log_tail(tmp_path / "long", lines=2) == "98\n99"
