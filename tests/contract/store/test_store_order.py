"""Listings from the last key to the first, on the in-memory store and on a real etcd alike."""

import pytest

from tests.support.stores import etcd_bench, memory_bench


@pytest.fixture(params=["memory", "etcd"])
async def store(request, tmp_path):
    context = memory_bench() if request.param == "memory" else etcd_bench(tmp_path)
    async with context as bench:
        for name in ("/a/1", "/a/2", "/a/3", "/a/5", "/b/1"):
            await bench.store.put(name, name.encode())
        yield bench.store


def names(page):
    return [item.key for item in page.items]


async def test_the_last_key_comes_first(store):
    page = await store.range("/a/", descending=True)
    assert names(page) == ["/a/5", "/a/3", "/a/2", "/a/1"]
    assert not page.more


async def test_pages_follow_one_another(store):
    first = await store.range("/a/", descending=True, limit=3)
    assert (names(first), first.more) == (["/a/5", "/a/3", "/a/2"], True)
    second = await store.range("/a/", descending=True, limit=3, after="/a/2")
    assert (names(second), second.more) == (["/a/1"], False)


@pytest.mark.parametrize(
    ("after", "descending", "expected"),
    [
        ("/a/4", True, ["/a/3", "/a/2", "/a/1"]),
        ("/a/4", False, ["/a/5"]),
        ("/a/1", True, []),
        ("/a/5", False, []),
    ],
)
async def test_a_page_may_begin_after_a_key_that_is_not_there(store, after, descending, expected):
    assert names(await store.range("/a/", after=after, descending=descending)) == expected
