"""A real S3 server for tests: SeaweedFS in one process, killed and started at will."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.support.etcd import free_port

START_TIMEOUT_S = 30.0
BUCKET = "reelmesh-test"
ACCESS_KEY_ID = "AKIDREELMESHTEST"
SECRET_ACCESS_KEY = "a-secret-that-no-error-may-show"
REGION = "us-east-1"

# Makes the bucket: who merely reads and writes makes none by writing into it.
_ADMIN = ("AKIDADMIN", "the-admin-secret")
_PARTS = ("master", "volume", "filer", "s3")


@dataclasses.dataclass
class S3Server:
    """One server. Its data lies in ``folder``, so that a restart finds it again."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    ports: dict[str, int] = dataclasses.field(
        default_factory=lambda: {
            f"{part}.port{kind}": free_port() for part in _PARTS for kind in ("", ".grpc")
        }
    )

    @property
    def address(self) -> str:
        """host:port of the S3 API."""
        return f"127.0.0.1:{self.ports['s3.port']}"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / "weed.log"

    def start(self) -> None:
        """Starts it and returns when the bucket takes an object."""
        self._spawn()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        store = self.store(credentials=_ADMIN)
        while time.monotonic() < deadline_s and self.process and self.process.poll() is None:
            with contextlib.suppress(BaseError, OSError, ValueError, KeyError):
                if self._has_room():
                    # Of at least one byte: an empty object needs no room, and says nothing.
                    obstore.put(store, "ready", b"yes")
                    return
            # It tells nobody that it is ready.
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"the S3 server did not start:\n{self.log.read_text()[-4000:]}")

    def _has_room(self) -> bool:
        """Whether its storage has joined; a write before that waits for some seconds."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["master.port"], timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/dir/status")
            return bool(json.load(connection.getresponse())["Topology"]["Free"])

    def _spawn(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        identities = self.folder / "identities.json"
        identities.write_text(json.dumps(_identities()))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    # The package's binary, which pip puts beside the interpreter.
                    str(Path(sys.executable).parent / "weed"),
                    "-logtostderr",
                    "server",
                    f"-dir={data}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-s3",
                    f"-s3.config={identities}",
                    *(f"-{name}={port}" for name, port in self.ports.items()),
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    f"-s3.localSocket={data / 's3.sock'}",
                    f"-filer.localSocket={data / 'filer.sock'}",
                    "-master.electionTimeout=200ms",
                    "-master.telemetry=false",
                    "-master.volumeSizeLimitMB=64",
                    "-volume.max=20",
                    # Else it takes nothing more when a hundredth of the disk is left.
                    "-volume.minFreeSpace=200MiB",
                ],
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """SIGKILL, as a crash; the data stays."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        for part in _PARTS:
            # It puts these nowhere else and leaves them behind.
            port = self.ports[f"{part}.port.grpc"]
            Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock").unlink(missing_ok=True)

    def options(self, address: str | None = None) -> dict[str, Any]:
        """``model.store_options`` and ``client_options`` for it, or for a proxy before it."""
        return {
            "store_options": {"endpoint": f"http://{address or self.address}", "region": REGION},
            "client_options": {"allow_http": "true"},
        }

    def store(
        self,
        prefix: str | None = None,
        *,
        credentials: tuple[str, str] = (ACCESS_KEY_ID, SECRET_ACCESS_KEY),
    ) -> S3Store:
        """The bucket, or a folder of it, as obstore sees it."""
        return S3Store(
            BUCKET,
            prefix=prefix,
            endpoint=f"http://{self.address}",
            region=REGION,
            access_key_id=credentials[0],
            secret_access_key=credentials[1],
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def upload(self, folder: Path, prefix: str) -> str:
        """Puts a folder's files under a prefix; returns its URL."""
        store = self.store(prefix)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                obstore.put(store, path.relative_to(folder).as_posix(), path)
        return f"s3://{BUCKET}/{prefix}"


def s3_environment(secret: str = SECRET_ACCESS_KEY) -> dict[str, str]:
    """The credentials as a process is given them."""
    return {"AWS_ACCESS_KEY_ID": ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY": secret}


def _identities() -> dict[str, Any]:
    def identity(name: str, credentials: tuple[str, str], *actions: str) -> dict[str, Any]:
        keys = [{"accessKey": credentials[0], "secretKey": credentials[1]}]
        return {"name": name, "credentials": keys, "actions": list(actions)}

    user = (ACCESS_KEY_ID, SECRET_ACCESS_KEY)
    return {
        "identities": [
            identity("admin", _ADMIN, "Admin", "Read", "Write", "List"),
            identity("user", user, "Read", "Write", "List"),
        ]
    }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A running S3 server with the bucket ``BUCKET``; who kills it starts it again."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3_access(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, to which the environment leads as in production."""
    environment = {
        **s3_environment(),
        "AWS_ENDPOINT": f"http://{s3_server.address}",
        "AWS_REGION": REGION,
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return s3_server
