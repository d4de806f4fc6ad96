"""Node's own clients, unmodified, against a gateway with all its edges over real sockets.

npm fetches them from the registry it is set up for, once for each lock file, into a folder of
this user's beside other temporary files. Where that cannot be, the tests are skipped and say why.
"""

import asyncio
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.fakeruns import finish, held
from tests.support.gateway_region import gateway_region
from tests.support.mp4s import graded_mp4

HERE = Path(__file__).parent / "node"
PROTOS = Path(__file__).parents[2] / "proto"
INSTALL_S = 120
RUN_S = 60

pytestmark = pytest.mark.timeout(INSTALL_S + RUN_S)


@pytest.fixture(scope="session")
def clients():
    """A folder with the scripts and the clients that the lock file names."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not found on PATH")
    digest = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    kept = Path(tempfile.gettempdir()) / f"reelmesh-node-{os.getuid()}-{digest}"
    if not (kept / "installed").exists() or kept.stat().st_uid != os.getuid():
        _install(kept)
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, kept)
    return kept


def _install(kept):
    with tempfile.TemporaryDirectory(dir=kept.parent) as name:
        folder = Path(name) / "clients"
        folder.mkdir(mode=0o700)
        for part in ("package.json", "package-lock.json"):
            shutil.copy(HERE / part, folder)
        # Nothing of theirs is run at the installation.
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"npm fetched nothing within {INSTALL_S} s")
        if done.returncode:
            pytest.skip(f"npm could not fetch the clients: {done.stderr.strip()[-300:]}")
        (folder / "installed").touch()
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)


@pytest.fixture
async def region(tmp_path):
    def script(run):
        data = graded_mp4()
        waits = run.request.spec.prompt == "wait"
        return (held(data) if waits else finish(data))(run)

    async with gateway_region(tmp_path, nodes=1, script=script) as found:
        yield found


async def ran(clients, script, *arguments):
    """What a script printed; its assertions are in the error."""
    # In a thread: the gateway is in this process, and serves meanwhile.
    done = await asyncio.to_thread(
        subprocess.run,
        ["node", "--no-deprecation", script, *arguments],
        cwd=clients,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_npm_package_of_openai(clients, region):
    gateway = await region.start("a")
    base_url = f"http://{gateway.app.http_address}/v1"
    tokens = region.issuer.issue(), region.issuer.issue(scope="video:read")
    assert await ran(clients, "openai.mjs", base_url, *tokens) == "all of it\n"


async def test_grpc_js_with_the_proto_files(clients, region):
    gateway = await region.start("a")
    said = await ran(
        clients, "grpc.mjs", gateway.app.grpc_address, region.issuer.issue(), str(PROTOS)
    )
    assert said == "all of it\n"


def test_the_lock_file_names_no_registry():
    assert '"resolved"' not in (HERE / "package-lock.json").read_text()
