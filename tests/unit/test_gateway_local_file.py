"""Files that are sent by the kernel: what is remembered of them, and when they are closed."""

import asyncio
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.output.local_file import KnownDigests, LocalFile, open_file


def test_the_newest_digests_are_remembered_and_no_more(tmp_path):
    known = KnownDigests(remembered=2)
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    for path in [*paths, paths[0]]:
        descriptor, identity = open_file(path)
        digest = known.of(descriptor, identity)
        os.close(descriptor)
        assert digest == hashlib.sha256(path.name.encode()).hexdigest()
    assert len(known._digests) == 2


def open_descriptors():
    return set(Path("/proc/self/fd").iterdir())


@pytest.fixture
def threads():
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def test_a_file_is_closed_when_no_thread_is_at_it(tmp_path, threads):
    (tmp_path / "a").write_bytes(b"abc")
    go, began = threading.Event(), threading.Event()
    before = open_descriptors()
    descriptor, identity = open_file(tmp_path / "a")
    file = LocalFile(descriptor, size=identity[2], executor=threads, timeout_s=10)
    file.attach(0)

    def held(*_args):
        began.set()
        go.wait(10)

    reading = asyncio.ensure_future(file._run(held))
    while not began.is_set():  # noqa: ASYNC110 - a thread tells nobody
        await asyncio.sleep(0.001)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    file.close()
    os.fstat(descriptor)
    go.set()
    threads.shutdown(wait=True)
    assert open_descriptors() == before


async def test_a_call_that_hangs_is_an_error_in_time(tmp_path, threads):
    (tmp_path / "a").write_bytes(b"abc")
    descriptor, identity = open_file(tmp_path / "a")
    file = LocalFile(descriptor, size=identity[2], executor=threads, timeout_s=0.05)
    go = threading.Event()
    with pytest.raises(TimeoutError):
        await file._run(lambda: go.wait(10))
    go.set()
    file.close()
