"""A base installation, whose client library needs little, and what its commands say."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reelkit.extras import MissingExtraError, missing_distributions, needs_extra

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "reelmesh": ("reelmesh_cli", "reelmesh needs its command-line parts", "cli"),
    "reelmesh-gateway": ("gateway", "reelmesh-gateway needs the gateway's parts", "gateway"),
    "reelmesh-node": ("node_agent", "reelmesh-node needs the node agent's parts", "node"),
    "reelmesh-control": (
        "control_plane",
        "reelmesh-control needs the control plane's parts",
        "control",
    ),
}


def closure(*extras: str) -> set[str]:
    """Distributions that ``pip install reelmesh[extras]`` brings."""
    found: set[str] = set()

    def add(name: str, wanted: tuple[str, ...]) -> None:
        for line in importlib.metadata.requires(name) or []:
            need, _, marker = line.partition(";")
            asked = re.findall(r"extra == ['\"]([^'\"]+)['\"]", marker)
            if asked and not set(asked) & set(wanted):
                continue
            match = re.match(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?", need.strip())
            try:
                importlib.metadata.distribution(match[1])
            except importlib.metadata.PackageNotFoundError:
                continue
            if match[1].lower() not in found:
                found.add(match[1].lower())
                add(match[1], tuple((match[2] or "").split(",")))

    add("reelmesh", extras)
    return found


@pytest.fixture
def installation(tmp_path):
    """A folder of packages with nothing but what these extras bring, and our own sources."""

    def make(*extras: str) -> list[str]:
        site = tmp_path / "site"
        site.mkdir()
        for name in closure(*extras):
            distribution = importlib.metadata.distribution(name)
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(Path(distribution.locate_file(top)))
        metadata = importlib.metadata.distribution("reelmesh")
        info = next(f.parts[0] for f in metadata.files if f.parts[0].endswith(".dist-info"))
        (site / info).symlink_to(Path(metadata.locate_file(info)))
        path = [str(ROOT), str(ROOT / "proto"), str(site)]
        # Neither the environment's packages nor any of its .pth files.
        return [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {path!r}\n"]

    return make


def call(python: list[str], module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    *command, code = python
    code += f"from {module}.__main__ import main\nsys.exit(main({list(arguments)!r}))"
    return subprocess.run([*command, code], capture_output=True, text=True, timeout=60)


def test_a_base_installation_says_what_each_command_needs(installation):
    python = installation()
    for module, says, extra in COMMANDS.values():
        done = call(python, module, "--help")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"{says}: pip install 'reelmesh[{extra}]'")
    *command, code = python
    subprocess.run([*command, code + "import wan_t2v_sdk"], check=True, timeout=60)


def test_up_without_the_parts_of_a_mesh_says_what_it_needs(installation, tmp_path):
    python = installation("cli")
    assert call(python, "reelmesh_cli", "--help").returncode == 0
    for command in ("up", "demo"):
        done = call(python, "reelmesh_cli", command, "--state-dir", str(tmp_path / "state"))
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert "pip install 'reelmesh[local]'" in done.stderr
    assert not (tmp_path / "state").exists()


def guarded(module: str, extra: str = "cli") -> None:
    with needs_extra(extra, program="reelmesh", parts="its parts"):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def test_a_mistake_in_the_code_stays_an_import_error(monkeypatch):
    # Everything is installed here, so no extra can be to blame.
    assert missing_distributions("local") == []
    with pytest.raises(ModuleNotFoundError):
        guarded("typerr")
    monkeypatch.setattr("reelkit.extras._is_installed", lambda name: name != "typer")
    assert missing_distributions("cli") == ["typer"]
    with pytest.raises(MissingExtraError, match=r"reelmesh\[cli\]"):
        guarded("absent")
    # A module of a package that is there.
    for module in ("gateway.typo", "typer.typo"):
        with pytest.raises(ModuleNotFoundError):
            guarded(module)
    with pytest.raises(ImportError), needs_extra("cli", program="x", parts="y"):
        raise ImportError("cannot import name 'run'", name="reelmesh_cli.app")
