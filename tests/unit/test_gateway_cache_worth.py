"""What is worth its room, and the index over it: bounds that hold whatever is asked for."""

from hypothesis import given
from hypothesis import strategies as st
from reelmesh.v1 import job_service_pb2, tenant_pb2, video_pb2

from gateway.cache.index import Index
from gateway.cache.keys import video_key
from gateway.cache.worth import Worth
from gateway.tenants import TenantPolicies

ASKS = st.lists(
    st.tuples(st.sampled_from(["ask", "drop"]), st.integers(0, 30), st.integers(0, 3000)),
    max_size=200,
)


@given(st.integers(1, 20_000), st.integers(1, 64), ASKS)
def test_neither_bytes_nor_entries_pass_their_bounds(max_bytes, max_entries, asks):
    worth, held = Worth(max_bytes=max_bytes, max_entries=max_entries), {}
    for what, number, size in asks:
        key = str(number)
        if what == "drop":
            worth.drop(key)
            held.pop(key, None)
        elif key in worth:
            worth.touch(key)
        else:
            lost = worth.offer(key, size)
            assert len(set(lost)) == len(lost)
            assert set(lost) <= {key, *held}
            held[key] = size
            for each in lost:
                del held[each]
        assert {each for each in map(str, range(31)) if each in worth} == held.keys()
        assert worth.bytes_held == sum(held.values()) <= max_bytes
        assert len(worth) == len(held) <= max_entries


def test_what_is_asked_for_again_outlives_a_scan():
    worth = Worth(max_bytes=100_000, max_entries=100)
    worth.offer("hot", 5_000)
    for number in range(2_000):
        worth.offer(f"cold {number}", 5_000)
        if "hot" in worth:
            worth.touch("hot")
        else:
            worth.offer("hot", 5_000)
    assert "hot" in worth


def test_what_is_larger_than_all_the_room_is_not_taken():
    worth = Worth(max_bytes=1_000, max_entries=10)
    worth.offer("small", 500)
    assert worth.offer("large", 1_001) == ["large"]
    assert "small" in worth


# --- the index ---


def record(prompt, seed, *, tenant="acme", size=1_000, version="1"):
    spec = video_pb2.ResolvedSpec(prompt=prompt, seed=seed, model="wan", model_version=version)
    return job_service_pb2.JobRecord(
        video=video_pb2.Video(
            id=f"ap-{prompt}-{seed}",
            spec=spec,
            result=video_pb2.CompletedEvent(size_bytes=size),
        ),
        tenant=tenant,
        artifact_key=f"videos/{prompt}/{seed}",
        execution_key=video_key(spec, seeded=False),
    )


def key(prompt, seed=None, version="1"):
    spec = video_pb2.ResolvedSpec(prompt=prompt, seed=seed or 0, model="wan", model_version=version)
    return video_key(spec, seeded=seed is not None)


SHARINGS = [
    tenant_pb2.CACHE_SHARING_TENANT,
    tenant_pb2.CACHE_SHARING_SHARED,
    tenant_pb2.CACHE_SHARING_OFF,
]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "find", "drop", "policy", "purge"]),
            st.sampled_from(["a", "b", "c"]),
            st.integers(1, 3),
            st.sampled_from(["acme", "globex"]),
            st.sampled_from(SHARINGS),
        ),
        max_size=60,
    )
)
def test_nobody_finds_what_is_not_his_to_find(steps):
    policies, sharing = TenantPolicies(), {}
    index = Index(policies=policies, max_bytes=6_000, max_entries=6)
    for what, prompt, seed, tenant, kind in steps:
        if what == "add":
            index.add(record(prompt, seed, tenant=tenant))
        elif what == "policy":
            sharing[tenant] = kind
            policies.replace(
                tenant_pb2.TenantPolicy(tenant=name, cache_sharing=value)
                for name, value in sharing.items()
            )
        elif what == "purge":
            index.purge("wan", "1")
            assert len(index) == 0
        else:
            found = index.find(tenant, key(prompt, seed if what == "drop" else None))
            if found is None:
                continue
            assert found.spec.prompt == prompt
            assert what != "drop" or found.spec.seed == seed
            mine, owners = sharing.get(tenant), sharing.get(found.tenant)
            assert mine != tenant_pb2.CACHE_SHARING_OFF
            shared = tenant_pb2.CACHE_SHARING_SHARED
            assert found.tenant == tenant or (mine == owners == shared)
            if what == "drop":
                index.drop(found)
                again = index.find(tenant, key(prompt, seed))
                assert again is None or again.shelf != found.shelf
        assert index.bytes_held == 1_000 * len(index) <= 6_000


def test_the_newest_answers_where_any_will_do_and_its_own_where_it_is_gone():
    index = Index(policies=TenantPolicies(), max_bytes=10_000, max_entries=10)
    for seed in (1, 2, 3):
        index.add(record("a", seed))
    assert index.find("acme", key("a")).spec.seed == 3
    # A use does not make it the newest.
    index.used(index.find("acme", key("a", 1)), record("a", 1))
    assert index.find("acme", key("a")).spec.seed == 3
    index.drop(index.find("acme", key("a", 3)))
    assert index.find("acme", key("a")).spec.seed == 2
    assert index.find("acme", key("a", 3)) is None
    assert index.find("acme", key("a", 1)).spec.seed == 1


def test_a_purge_is_of_one_version():
    index = Index(policies=TenantPolicies(), max_bytes=10_000, max_entries=10)
    index.add(record("a", 1))
    index.add(record("a", 1, version="2"))
    assert index.purge("wan", "2") == 1
    assert index.find("acme", key("a", 1)) is not None
    assert index.find("acme", key("a", 1, version="2")) is None
    assert index.purge("other", "1") == 0


def test_what_was_drawn_without_a_key_is_not_taken():
    index = Index(policies=TenantPolicies(), max_bytes=10_000, max_entries=10)
    bypassed = record("a", 1)
    bypassed.execution_key = ""
    index.add(bypassed)
    assert len(index) == 0
