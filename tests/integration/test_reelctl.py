"""reelctl against a real control plane with nodes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from reelmesh.v1 import node_pb2
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.reelctl.app import run
from control_plane.store.memory import MemoryStore
from reelkit.clock import SystemClock
from tests.support.controlplanes import DEADLINE_S
from tests.support.healthnodes import HealthNode, attached
from tests.support.nodes import node_config, run_request, running_node
from tests.support.operators import OPERATE, READ, operated
from tests.support.stores import eventually

ROOT = Path(__file__).resolve().parents[2]
READY = node_pb2.NODE_STATE_READY


@pytest.fixture
async def store():
    async with MemoryStore(clock=SystemClock()) as store:
        yield store


@pytest.fixture
async def site(tmp_path, store):
    """A control plane, its client, and a mesh.json that names it."""
    async with operated(tmp_path, store=store) as (app, client):
        token = client.issuer.issue(scope=f"{READ} {OPERATE}")
        document = {
            "regions": {"ap": {"operator": app.operator_address}},
            "tokens": {"operator": token},
        }
        (tmp_path / "mesh.json").write_text(json.dumps(document))
        yield app, client


@pytest.fixture
def reelctl(tmp_path, capfd):
    """Runs a command against the site and returns its code and what it wrote."""

    async def ran(*argv, mesh=True):
        options = ["--mesh", str(tmp_path)] if mesh else []
        capfd.readouterr()
        code = await asyncio.to_thread(run, [*argv, *options])
        out, err = capfd.readouterr()
        logless = [line for line in out.splitlines() if "[info" not in line]
        return code, "\n".join(logless) + "\n", err

    return ran


async def test_nodes_are_listed_for_people_and_for_programs(site, reelctl):
    app, client = site
    assert (await reelctl("node", "list"))[2].strip() == "No node is attached."
    async with attached(app.address, HealthNode("n0")), attached(app.address, HealthNode("n1")):
        await eventually(lambda: listed(client, 2))
        code, out, _ = await reelctl("node", "list")
        assert code == 0
        header, *lines = out.splitlines()
        assert header.split()[:3] == ["NODE", "REGION", "STATE"]
        assert [line.split()[:3] for line in lines] == [
            ["n0", "ap", "ready"],
            ["n1", "ap", "ready"],
        ]
        assert not any(line.endswith(" ") for line in out.splitlines())
        code, out, _ = await reelctl("node", "list", "-o", "json")
        assert [(n["node_id"], n["state"]) for n in json.loads(out)] == [
            ("n0", "ready"),
            ("n1", "ready"),
        ]
        assert json.loads(out)[0]["status"]["units_per_second"] == 10.0
        code, out, _ = await reelctl("node", "list", "-o", "yaml")
        assert yaml.safe_load(out)[1]["node_id"] == "n1"


async def listed(client, count):
    return len((await client.call("ListNodes", op.ListNodesRequest())).nodes) == count


async def test_a_real_node_is_cordoned_uncordoned_and_drained(site, reelctl, tmp_path):
    app, client = site
    async with running_node(node_config(tmp_path, control_planes=[app.address])) as node:
        await node.until_ready()
        await eventually(lambda: listed(client, 1))
        code, out, _ = await reelctl("node", "cordon", "ap-node-0", "--wait")
        assert (code, out) == (0, "node ap-node-0 is cordoned\n")
        assert node.app.table.admitting is False
        code, out, _ = await reelctl("node", "uncordon", "ap-node-0", "--wait")
        assert (code, out) == (0, "node ap-node-0 is ready\n")
        # Drained: what runs is waited for.
        call = node.stub.Run(run_request("j", prompt="slow"))
        await node.read_until(call, "progress")
        drain = asyncio.create_task(
            reelctl("node", "drain", "ap-node-0", "--wait", "--wait-timeout", "20")
        )
        await node.until(lambda s: s.state == node_pb2.NODE_STATE_DRAINING)
        assert not drain.done()
        await node.read_until(call, "completed")
        code, out, err = await asyncio.wait_for(drain, DEADLINE_S)
        assert (code, out) == (0, "node ap-node-0 is empty\n")
        assert "holds 1 video" in err
        code, out, _ = await reelctl("node", "events", "ap-node-0")
        assert code == 0
        rows = [line.split() for line in out.splitlines()[1:]]
        assert rows[-1][3:5] == ["draining", rows[-1][4]]
        assert "drained by an operator" in out
        assert "cordoned by an operator" in out


async def test_a_region_is_drained_and_activated(site, reelctl):
    async def policy():
        _, out, _ = await reelctl("region", "list", "-o", "json")
        return {region["region"]: region.get("policy", {}) for region in json.loads(out)}

    async def told(draining=None):
        known = (await policy()).get("ap")
        return known is not None and known.get("draining") == draining

    # Its summary comes in a moment.
    await eventually(told)
    code, out, _ = await reelctl("region", "drain", "ap", "--reason", "power works")
    assert (code, out) == (0, "region ap drains: new work goes to other regions\n")
    await eventually(lambda: told(draining=True))
    _, out, _ = await reelctl("region", "list")
    assert "draining" in out
    assert ": power works" in out
    assert "drained by somebody" in out
    code, out, _ = await reelctl("region", "activate", "ap")
    assert (code, out) == (0, "region ap takes new work\n")


async def test_a_wait_that_is_too_short_fails_and_says_how_things_are(site, reelctl):
    app, client = site
    async with attached(app.address, HealthNode("n0")):
        await eventually(lambda: listed(client, 1))
        # A made-up node does not obey.
        code, out, err = await reelctl("node", "cordon", "n0", "--wait", "--wait-timeout", "0.5")
        assert (code, out.strip()) == (1, "")
        assert "error: not after 0.5 s: n0 is ready" in err
        _, out, _ = await reelctl("node", "list")
        assert "ready → cordoned" in out


async def test_mistakes_are_told_with_what_to_do(site, reelctl, tmp_path):
    app, client = site
    code, _, err = await reelctl("node", "cordon", "nope")
    assert (code, "no node 'nope' in ap" in err) == (1, True)
    assert "reelctl node list" in err
    code, _, err = await reelctl("region", "drain", "us")
    assert (code, "no region 'us'" in err) == (1, True)
    code, _, err = await reelctl("node", "events", "NOT/AN/ID")
    assert code == 2
    code, _, err = await reelctl("node", "list", "--region", "us")
    assert (code, "no region 'us'" in err) == (2, True)
    code, _, err = await reelctl("node", "list", "--nonsense")
    assert code == 2
    code, _, err = await reelctl("node", "list", "--token", "no.jwt.atall")
    assert (code, "token is not taken" in err) == (1, True)
    token = client.issuer.issue(scope=READ)
    code, _, err = await reelctl("node", "cordon", "n0", "--token", token)
    assert (code, "lacks the scope fleet:operate" in err) == (1, True)
    with_endpoint = ("--endpoint", "127.0.0.1:1", "--token", token)
    code, _, err = await reelctl("node", "list", *with_endpoint, mesh=False)
    assert (code, "no control plane answers at 127.0.0.1:1" in err) == (1, True)
    # Not the operators' listener.
    with_endpoint = ("--endpoint", app.address, "--token", token)
    code, _, err = await reelctl("node", "list", *with_endpoint, mesh=False)
    assert (code, "operator.listen" in err) == (1, True)
    for text in (token, "no.jwt.atall"):
        assert text not in err


async def test_another_replica_answers_for_one_that_is_gone(site, reelctl):
    app, client = site
    token = client.issuer.issue(scope=READ)
    endpoint = f"ap=127.0.0.1:1,ap={app.operator_address}"
    code, _, err = await reelctl(
        "node", "list", "--endpoint", endpoint, "--token", token, mesh=False
    )
    assert (code, err.strip()) == (0, "No node is attached.")


async def test_a_region_that_is_away_is_left_out_for_people_and_an_error_for_programs(
    site, reelctl
):
    app, client = site
    token = client.issuer.issue(scope=READ)
    target = (
        "--endpoint",
        f"eu=127.0.0.1:1,ap={app.operator_address}",
        "--token",
        token,
    )
    async with attached(app.address, HealthNode("n0")):
        await eventually(lambda: listed(client, 1))
        code, out, err = await reelctl("node", "list", *target, mesh=False)
        assert (code, "n0" in out) == (0, True)
        assert "eu is left out: no control plane answers" in err
        code, out, _ = await reelctl("node", "list", "-o", "json", *target, mesh=False)
        assert (code, out.strip()) == (1, "")


async def test_a_token_never_crosses_a_network_in_plain_text(site, reelctl, monkeypatch):
    # Not loopback by its looks, though it leads to this host.
    monkeypatch.setattr("control_plane.reelctl.client.is_loopback", lambda _address: False)
    code, _, err = await reelctl("node", "list")
    assert (code, "no control plane answers" in err) == (1, True)


@contextlib.contextmanager
def watching(tmp_path, *argv):
    """A watch as a process; its output, line by line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "control_plane.reelctl", "node", "list", "--watch", *argv],
        cwd=ROOT,
        env={**os.environ, "REELMESH_STATE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_watch_prints_what_changed_until_it_is_interrupted(site, tmp_path):
    app, client = site
    node = HealthNode("n0")
    async with attached(app.address, node):
        await eventually(lambda: listed(client, 1))
        with watching(tmp_path, "-o", "json", "--interval", "0.2") as process:
            line = await asyncio.to_thread(process.stdout.readline)
            assert json.loads(line)[0]["state"] == "ready"
            node.state = node_pb2.NODE_STATE_WARMING
            await node.push()
            states = []
            async with asyncio.timeout(DEADLINE_S):
                while "warming" not in states:
                    line = await asyncio.to_thread(process.stdout.readline)
                    states.append(json.loads(line)[0]["state"])
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, DEADLINE_S) == 130
            assert process.stderr.read() == ""


@pytest.mark.parametrize("argv", [[], ["node"], ["region", "--help"], ["--version"]])
async def test_help_and_version_are_no_errors(reelctl, argv):
    code, out, err = await reelctl(*argv, mesh=False)
    assert code in (0, 2)
    assert "reelctl" in out + err
    assert "Traceback" not in err


async def test_tokens_are_revoked_listed_and_restored(site, reelctl):
    code, out, _ = await reelctl("token", "revoke", "--issuer", "https://i", "--jti", "7Zq0")
    assert (code, out.startswith("token 7Zq0: revoked for 30 d")) == (0, True)
    revocation_id = out.split("restore ")[1].rstrip(")\n")

    async def shown():
        _, listed_now, _ = await reelctl("token", "revocations")
        return "jti 7Zq0" in listed_now

    async with asyncio.timeout(DEADLINE_S):
        while not await shown():  # noqa: ASYNC110 - a command, run again
            await asyncio.sleep(0.05)
    code, out, _ = await reelctl("token", "revocations", "-o", "json")
    assert json.loads(out)[0]["id"] == revocation_id
    code, out, _ = await reelctl("token", "restore", revocation_id)
    assert code == 0
    code, _, err = await reelctl("token", "restore", "5f0c")
    assert (code, "there is no revocation" in err) == (1, True)
    for wrong in (["--jti", "a", "--subject", "b"], []):
        code, _, err = await reelctl("token", "revoke", "--issuer", "https://i", *wrong)
        assert (code, "not both" in err) == (2, True)
