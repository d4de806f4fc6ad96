"""All holders of a tenant together never go by more than the whole, whatever is lost or late."""

import asyncio
import contextlib
import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reelmesh.v1 import quota_service_pb2 as pb

from control_plane.errors import ControlPlaneError, OutcomeUnknownError
from control_plane.keys import ShareKeys
from control_plane.quotas.book import SAFE_FOR_S, Ask, ShareBook
from control_plane.quotas.shares import NEAR, Holding, grant, has_room, targets
from control_plane.quotas.totals import Whole
from control_plane.quotas.view import read_view
from control_plane.store.memory import MemoryStore
from control_plane.store.writer import FencedWriter
from gateway.quotas.parts import Mode, Parts
from reelkit.clock import ManualClock
from tests.unit.test_job_ledger import Impatient, LossyStore

NAMES = [f"g{number}" for number in range(6)]
demands = st.dictionaries(st.sampled_from(NAMES), st.floats(0, 3), min_size=1)
KEYS = ShareKeys("/q/")
TTL_S = 10.0
PLACES = 3


@given(demands, st.floats(0.2, 1.0))
def test_targets_use_the_whole_and_leave_everybody_its_safe_part(wanted, total):
    safe = total / len(NAMES)
    found = targets(total, wanted, safe=safe)
    assert math.isclose(sum(found.values()), total, rel_tol=1e-9)
    assert all(part >= safe - 1e-12 for part in found.values())
    idle = [name for name, demand in wanted.items() if demand == 0]
    if len(idle) < len(wanted):
        assert all(math.isclose(found[name], safe) for name in idle)
    # Whoever gets less than it wants has no less than anybody else.
    for name, demand in wanted.items():
        if found[name] < demand - 1e-9:
            assert all(found[name] >= found[n] - 1e-9 for n, d in wanted.items() if d >= demand)


holdings = st.dictionaries(
    st.sampled_from(NAMES), st.builds(Holding, part=st.floats(0, 1), demand=st.floats(0, 3))
)


@given(holdings, st.sampled_from(NAMES), st.floats(0, 1), st.floats(0, 3))
def test_a_grant_never_brings_the_sum_above_the_whole(held_by, me, held, demand):
    safe = 1 / len(NAMES)
    others = {name: max(h.part, safe) for name, h in held_by.items() if name != me}
    for name in NAMES:
        others.setdefault(name, safe) if name != me else None
    given_ = grant(1.0, me=me, held=held, demand=demand, holdings=held_by, places=NAMES, safe=safe)
    before = sum(others.values()) + max(held_by.get(me, Holding()).part, safe)
    after = sum(others.values()) + max(given_.recorded, safe)
    # It may have been above where the total has shrunk; it never rises then.
    assert after <= max(before, 1.0) + 1e-9
    assert given_.part >= safe
    assert given_.recorded >= given_.part


@given(holdings)
def test_one_more_place_is_kept_its_safe_part(held_by):
    safe = 1 / len(NAMES)
    places = NAMES[:-1]
    if has_room(1.0, held_by, places, safe):
        kept = sum(max(held_by.get(n, Holding()).part, safe) for n in places)
        assert kept + safe <= 1 + 1e-9


# The protocol: calls that are lost, late or repeated, by way of any replica.


@dataclasses.dataclass(frozen=True)
class Step:
    kind: str
    who: int
    replica: int
    demand: float
    seconds: float
    losses: tuple[str, ...]


step = st.builds(
    Step,
    kind=st.sampled_from(
        ["call"] * 8
        + ["lost", "late", "late", "redeliver", "pass", "pass", "restart", "stop", "follow"]
    ),
    who=st.integers(0, PLACES),
    replica=st.integers(0, 1),
    demand=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    seconds=st.sampled_from([0.5, 1.0, 9.0, 11.0, 45.0, SAFE_FOR_S + 120.0]),
    losses=st.lists(st.sampled_from(["", "", "before", "after"]), max_size=3).map(tuple),
)
# What is in one group is done at once.
histories = st.lists(st.lists(step, min_size=1, max_size=3), max_size=25)


class Gateway:
    """One that calls, as far as parts go."""

    def __init__(self, name, clock):
        self.name = name
        self.clock = clock
        self.number = 0
        self.parts = Parts()
        # Calls that are still under way to the control plane.
        self.late = []

    def call(self, demand):
        """A new call, which makes void whatever answers an earlier one."""
        self.number += 1
        now_s = self.clock.monotonic()
        held = self.parts.part("t", now_s)
        return self.number, self.parts.lease_id, Ask("t", held, demand), now_s

    def part(self):
        return self.parts.part("t", self.clock.monotonic())


class Mesh:
    def __init__(self, store, clock):
        self.store = store
        self.clock = clock
        self.books = [self.book(number) for number in range(2)]
        self.gateways = {number: Gateway(f"g{number}", clock) for number in range(PLACES + 1)}

    def book(self, number):
        lossy = LossyStore(self.store)
        writer = FencedWriter(lossy, prefix=f"/w/{number}/", clock=Impatient())
        book = ShareBook(
            store=lossy,
            writer=writer,
            keys=KEYS,
            clock=self.clock,
            ttl_s=TTL_S,
            safe=1 / PLACES,
            most_holders=PLACES,
            totals=Whole(),
        )
        book.lossy = lossy
        return book

    async def answer(self, gateway, call, replica, losses=()):
        book = self.books[replica]
        number, lease_id, ask, _sent_s = call
        book.lossy.losses = list(losses)
        try:
            leased = await book.lease(gateway.name, number=number, lease_id=lease_id, asks=[ask])
        except OutcomeUnknownError:
            return None
        except ControlPlaneError as error:
            if not error.retryable:
                raise
            return None
        finally:
            book.lossy.losses = []
        return pb.LeaseSharesResponse(
            shares=[pb.TenantShare(tenant=t, part=p.part) for t, p in leased.parts.items()],
            lease_id=leased.lease_id,
            ttl_s=leased.ttl_s,
            safe_for_s=leased.safe_for_s,
            safe_part=1 / PLACES,
        )

    async def take(self, step):
        gateway = self.gateways[step.who]
        if step.kind == "pass":
            await self.clock.advance(step.seconds)
        elif step.kind == "follow":
            # A replica's own copy is brought up to date, and is behind from then on.
            self.books[step.replica].view = await read_view(self.store, KEYS)
        elif step.kind == "restart":
            # The same id in another life: the former one goes by nothing any more.
            number, late = gateway.number, gateway.late
            self.gateways[step.who] = gateway = Gateway(gateway.name, self.clock)
            gateway.number, gateway.late = number, late
        elif step.kind == "stop":
            number, lease_id, _, _ = gateway.call(0.0)
            gateway.parts = Parts()
            await self.books[step.replica].release(gateway.name, number=number, lease_id=lease_id)
        elif step.kind == "redeliver":
            for call in gateway.late:
                await self.answer(gateway, call, step.replica)
            gateway.late.clear()
        else:
            await self._call(gateway, step)

    async def _call(self, gateway, step):
        call = gateway.call(step.demand)
        if step.kind == "late":
            # It arrives when others were answered meanwhile.
            gateway.late.append(call)
            return
        answer = await self.answer(gateway, call, step.replica, step.losses)
        if answer is not None and step.kind != "lost":
            gateway.parts.take(answer, sent_s=call[3], now_s=self.clock.monotonic(), asked=["t"])

    def check(self):
        used = {name: gateway.part() for name, gateway in self.gateways.items()}
        assert sum(used.values()) <= 1 + 1e-6, used


async def _play(history):
    clock = ManualClock(start_s=1_000_000.0)
    async with MemoryStore(clock=clock) as store:
        mesh = Mesh(store, clock)
        for number, group in enumerate(history):
            if number % 11 == 10:
                mesh.books[0] = mesh.book(0)
            # A gateway makes one call after the other.
            busy = {each.who: each for each in group if each.kind != "pass"}
            await asyncio.gather(*(mesh.take(each) for each in busy.values()))
            for each in group:
                if each.kind == "pass":
                    await mesh.take(each)
            mesh.check()
        await _settle(mesh)


async def _settle(mesh):
    """Left in peace, whoever wants everything has nearly everything."""
    await mesh.clock.advance(SAFE_FOR_S + 120.0)
    for gateway in mesh.gateways.values():
        gateway.parts = Parts()
    wanting, idle = mesh.gateways[0], mesh.gateways[1]
    for _ in range(8):
        await mesh._call(idle, QUIET)
        await mesh._call(wanting, EAGER)
        mesh.check()
        await mesh.clock.advance(1.0)
    assert wanting.part() == pytest.approx(1 - 1 / PLACES)
    assert idle.part() == pytest.approx(1 / PLACES)


@settings(max_examples=300, deadline=None)
@given(histories)
def test_over_lost_late_and_repeated_calls_the_sum_is_never_above_the_whole(history):
    asyncio.run(_play(history))


@contextlib.asynccontextmanager
async def two_that_want_all():
    """Two gateways of which the first has all that can be had."""
    clock = ManualClock(start_s=1_000_000.0)
    async with MemoryStore(clock=clock) as store:
        mesh = Mesh(store, clock)
        one, other = mesh.gateways[0], mesh.gateways[1]
        for _ in range(3):
            await mesh._call(one, QUIET)
            await mesh._call(other, QUIET)
        yield mesh, one, other


QUIET = Step("call", 0, 0, 0.0, 0.0, ())
EAGER = dataclasses.replace(QUIET, demand=3.0)


async def test_a_call_that_comes_late_lowers_nothing_that_a_later_one_raised():
    async with two_that_want_all() as (mesh, one, other):
        await mesh._call(one, dataclasses.replace(QUIET, kind="late"))
        for _ in range(3):
            await mesh._call(other, QUIET)
            await mesh._call(one, EAGER)
        high = one.part()
        assert high > 0.6
        await mesh.take(dataclasses.replace(QUIET, kind="redeliver"))
        for _ in range(3):
            await mesh._call(other, EAGER)
            mesh.check()


async def test_nor_does_one_that_was_sent_before_a_raise_was_heard_of():
    async with two_that_want_all() as (mesh, one, other):
        # The raise is written down, and its answer is lost.
        for _ in range(3):
            await mesh._call(one, dataclasses.replace(EAGER, kind="lost"))
            await mesh._call(other, QUIET)
        await mesh._call(one, dataclasses.replace(QUIET, kind="late"))
        # Told once more, with nothing new to be written down.
        await mesh._call(one, EAGER)
        assert one.part() > 0.6
        await mesh.take(dataclasses.replace(QUIET, kind="redeliver"))
        for _ in range(3):
            await mesh._call(other, EAGER)
            mesh.check()


async def test_dropped_parts_are_not_brought_back_by_an_earlier_call():
    async with two_that_want_all() as (mesh, one, other):
        await mesh._call(one, EAGER)
        await mesh._call(one, dataclasses.replace(EAGER, kind="late"))
        number, lease_id, _, _ = one.call(0.0)
        await mesh.books[0].lease(
            one.name, number=number, lease_id=lease_id, asks=[], dropped=["t"]
        )
        one.parts.drop("t")
        await mesh.take(dataclasses.replace(QUIET, kind="redeliver"))
        for _ in range(3):
            await mesh._call(other, EAGER)
            mesh.check()
        assert other.part() == pytest.approx(1 - 1 / PLACES)


async def _some(mesh, count):
    for number in range(count):
        await mesh._call(mesh.gateways[number], Step("call", number, 0, 1.0, 0.0, ()))


async def test_who_came_last_gets_its_place_once_the_others_have_made_room():
    clock = ManualClock(start_s=1_000_000.0)
    async with MemoryStore(clock=clock) as store:
        mesh = Mesh(store, clock)
        for count in range(1, PLACES + 1):
            for _ in range(8):
                await _some(mesh, count)
                mesh.check()
                await clock.advance(1.0)
            parts = [mesh.gateways[number].part() for number in range(count)]
            assert parts == pytest.approx([1 / count] * count, abs=NEAR)
        # There is no place for one more than is configured.
        for _ in range(4):
            await _some(mesh, PLACES + 1)
            await clock.advance(1.0)
        assert mesh.gateways[PLACES].part() == 0
        assert mesh.gateways[PLACES].parts.mode(clock.monotonic()) is Mode.NONE


async def test_without_a_word_the_safe_part_holds_for_a_day_and_then_nothing():
    clock = ManualClock(start_s=1_000_000.0)
    async with MemoryStore(clock=clock) as store:
        mesh = Mesh(store, clock)
        await _some(mesh, 1)
        gateway = mesh.gateways[0]
        assert (gateway.part(), gateway.parts.mode(clock.monotonic())) == (1.0, Mode.LEASED)
        await clock.advance(TTL_S)
        assert (gateway.part(), gateway.parts.mode(clock.monotonic())) == (1 / PLACES, Mode.SAFE)
        # Of a tenant that it never heard of too.
        assert gateway.parts.part("other", clock.monotonic()) == 1 / PLACES
        await clock.advance(SAFE_FOR_S)
        assert (gateway.part(), gateway.parts.mode(clock.monotonic())) == (0.0, Mode.NONE)
        assert not (await read_view(store, KEYS)).holdings("t")
