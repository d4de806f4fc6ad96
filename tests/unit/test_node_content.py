"""Files kept by what they are: shared, bounded, and never lost while they are wanted."""

import contextlib
import hashlib
import os

import pytest

from node_agent.content import ContentStore, Pins
from node_agent.errors import WeightsError
from node_agent.manifest import FileEntry
from node_agent.trust import TrustedVersion


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def version(name: str, files: dict[str, bytes]) -> TrustedVersion:
    data = name.encode()
    entries = tuple(
        FileEntry(path=path, sha256=sha(content), size_bytes=len(content))
        for path, content in files.items()
    )
    return TrustedVersion(name, "v1", sha(data), data, entries)


def put(store: ContentStore, data: bytes) -> None:
    with writing(store, sha(data)) as part:
        part.file.write(data)
        store.keep(sha(data), part)


@contextlib.contextmanager
def writing(store: ContentStore, sha256: str):
    part = store.part(sha256)
    with part.held() as held:
        assert held
        yield part
    part.close()


def add(store: ContentStore, name: str, files: dict[str, bytes], *, age_s: float = 0.0):
    made = version(name, files)
    for data in files.values():
        if not store.has(sha(data)):
            put(store, data)
    folder = store.commit(made)
    at_s = folder.stat().st_mtime - age_s
    os.utime(folder, (at_s, at_s))
    return made


@pytest.fixture
def store(tmp_path):
    made = ContentStore(tmp_path, max_bytes=1000)
    made.make_folders()
    return made


def names(store):
    return [kept.folder.name.split("-")[0] for kept in store.versions()]


def test_files_that_versions_share_are_kept_once(store):
    shared = b"s" * 300
    add(store, "one", {"a/x.json": shared, "b.json": b"1" * 100})
    add(store, "two", {"x.json": shared, "c.json": b"2" * 100})
    assert store.kept_bytes() == 500
    one, two = (store.find(sha(name.encode())) for name in ("one", "two"))
    assert (one / "a" / "x.json").samefile(two / "x.json")
    assert (one / "manifest.json").read_bytes() == b"one"


def test_the_longest_unused_go_first_and_shared_files_stay(store):
    shared = b"s" * 300
    add(store, "old", {"x.json": shared, "o.json": b"o" * 200}, age_s=30)
    add(store, "mid", {"x.json": shared, "m.json": b"m" * 200}, age_s=20)
    add(store, "new", {"n.json": b"n" * 100}, age_s=10)
    wanted = version("next", {"y.json": b"y" * 300})
    store.make_room(300, wanted=wanted)
    assert names(store) == ["mid", "new"]
    assert store.has(sha(shared))
    assert store.kept_bytes() == 600
    # Used since: it is not the next to go.
    store.use(sha(b"mid"))
    store.make_room(500, wanted=wanted)
    assert names(store) == ["mid"]


def test_what_is_pinned_is_never_evicted(store, tmp_path):
    add(store, "old", {"o.json": b"o" * 500}, age_s=30)
    add(store, "new", {"n.json": b"n" * 400}, age_s=10)
    pins = Pins(store, node_id="n0")
    pins.hold({sha(b"old")})
    # Another process sees them too.
    other = ContentStore(tmp_path, max_bytes=1000)
    other.make_room(300, wanted=version("next", {}))
    assert names(store) == ["old"]
    with pytest.raises(WeightsError, match=r"raise registry\.max_bytes"):
        other.make_room(600, wanted=version("next", {}))
    pins.hold(set())
    other.make_room(600, wanted=version("next", {}))
    assert names(store) == []
    pins.close()


def test_pins_of_an_agent_that_is_gone_hold_nothing(store):
    add(store, "old", {"o.json": b"o" * 900})
    (store.pins / "dead").write_text(sha(b"old"))
    store.make_room(500, wanted=version("next", {}))
    assert names(store) == []
    assert not (store.pins / "dead").exists()


def test_what_the_wanted_version_has_already_is_kept(store):
    wanted = version("next", {"a.json": b"a" * 400, "b.json": b"b" * 400})
    put(store, b"a" * 400)
    put(store, b"z" * 500)
    with writing(store, sha(b"b" * 400)) as part:
        part.file.write(b"b" * 50)
    store.make_room(350, wanted=wanted)
    assert store.has(sha(b"a" * 400))
    assert not store.has(sha(b"z" * 500))
    with writing(store, sha(b"b" * 400)) as part:
        part.file.seek(0)
        assert part.file.read() == b"b" * 50


def test_a_file_that_was_altered_on_the_disk_is_noticed_and_removed(store):
    put(store, b"good")
    assert store.is_sound(sha(b"good"))
    path = store.path_of(sha(b"good"))
    path.chmod(0o600)
    path.write_bytes(b"evil")
    assert not store.is_sound(sha(b"good"))
    assert not path.exists()


def test_what_was_left_of_commits_and_old_parts_is_removed(store, tmp_path):
    (tmp_path / "content" / "staging" / "x.new").mkdir()
    add(store, "one", {"o.json": b"o"})
    for age_s, data in ((0, b"young"), (100_000, b"old")):
        put(store, data)
        with writing(store, sha(data + b"part")) as part:
            part.file.write(data)
        for path in (store.path_of(sha(data)), tmp_path / "content/parts" / sha(data + b"part")):
            at_s = path.stat().st_mtime - age_s
            os.utime(path, (at_s, at_s))
    store.tidy()
    assert not list((tmp_path / "content" / "staging").iterdir())
    assert store.has(sha(b"young"))
    assert not store.has(sha(b"old"))
    assert [p.name for p in (tmp_path / "content/parts").iterdir()] == [sha(b"youngpart")]
    assert names(store) == ["one"]


def test_nothing_is_made_before_something_is_kept(tmp_path):
    store = ContentStore(tmp_path / "cache")
    store.tidy()
    Pins(store, node_id="n0").hold(())
    assert store.versions() == []
    assert not (tmp_path / "cache").exists()


def test_a_part_is_one_agents_at_a_time_and_follows_what_others_made_of_it(store):
    first, second = store.part(sha(b"data")), store.part(sha(b"data"))
    with first.held() as held, second.held() as also:
        assert (held, also) == (True, False)
        first.file.write(b"data")
    with second.held() as held:
        second.file.seek(0)
        assert (held, second.file.read()) == (True, b"data")
        store.keep(sha(b"data"), second)
    # Its name is gone: what is written now would go into the object.
    with first.held() as held:
        assert not held
    for part in (first, second):
        part.close()
    assert store.is_sound(sha(b"data"))
