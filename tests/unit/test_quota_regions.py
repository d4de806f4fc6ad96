"""Over regions: all gateways of all of them, and all jobs, stay within the whole."""

import asyncio
import contextlib
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reelmesh.v1 import job_service_pb2 as job_pb
from reelmesh.v1 import quota_service_pb2 as pb
from reelmesh.v1 import tenant_pb2, video_pb2

from control_plane.errors import ControlPlaneError, StoreUnavailableError
from control_plane.jobs.book import JobBook
from control_plane.jobs.ledger import Ledger
from control_plane.jobs.quota import Limits, day_of, limits_of, part_of
from control_plane.keys import GlobalKeys, Keys
from control_plane.quotas.book import SAFE_FOR_S, Ask, ShareBook
from control_plane.quotas.region_tier import RegionTier
from control_plane.quotas.region_totals import RegionTotals
from control_plane.quotas.totals import Whole
from control_plane.quotas.wants import JobWants, rate_wants
from control_plane.store.memory import MemoryStore
from control_plane.store.mirror import list_all
from control_plane.store.writer import FencedWriter
from gateway.quotas.parts import Parts
from reelkit.clock import ManualClock
from tests.unit.test_job_ledger import Impatient

REGIONS = 2
GATEWAYS = 2
SAFE = 0.5 / REGIONS
GLOBAL = GlobalKeys(prefix="/p")
POLICY = tenant_pb2.TenantPolicy(tenant="t", concurrent_jobs=8, gpu_seconds_per_day=100.0)


class Reign:
    """A leader's writes; one that breaks off has made some of them."""

    def __init__(self, writer):
        self.writer = writer
        self.left = None

    async def txn(self, compares, ops):
        if self.left is not None:
            if not self.left:
                raise StoreUnavailableError("broken off")
            self.left -= 1
        return await self.writer.txn(compares, ops)


class Policies:
    def of(self, _tenant):
        return POLICY


class Region:
    def __init__(self, name, store, shared, clock, *, share_ttl_s=10.0):
        self.name, self.store, self.clock = name, store, clock
        self.keys = keys = Keys(prefix="/p", region=name)
        self.writer = FencedWriter(store, prefix=f"/w/{name}/", clock=Impatient())
        shared_writer = FencedWriter(shared, prefix=f"/w/{name}/", clock=Impatient())
        self.reign = Reign(self.writer)
        self.ledger = Ledger(store=store, keys=keys)
        # The leader's own, and that of another replica, which may be behind.
        self.rates, self.jobs = self.totals(keys.region_rates), self.totals(keys.region_jobs)
        self.behind = self.totals(keys.region_rates)
        self.jobs_behind = self.totals(keys.region_jobs)
        self.gateways, self.leaders = (
            ShareBook(
                store=store,
                writer=self.writer,
                keys=keys.quotas,
                clock=clock,
                ttl_s=share_ttl_s,
                safe=SAFE / GATEWAYS,
                most_holders=GATEWAYS,
                totals=totals,
            )
            for totals in (self.behind, self.rates)
        )
        self.book = JobBook(
            store=store,
            writer=self.writer,
            keys=keys,
            clock=clock,
            ledger=self.ledger,
            totals=self.jobs_behind,
        )
        self._tiers(shared, shared_writer)
        self.parts = [Parts() for _ in range(GATEWAYS)]
        self.number = 0
        self.made = 0

    def _tiers(self, shared, shared_writer):
        wants = JobWants(
            ledger=self.ledger,
            policies=Policies(),
            totals=self.jobs,
            live_tenants=lambda: ["t"],
            clock=self.clock,
        )
        tier = {"region": self.name, "clock": self.clock}
        book = {
            "store": shared,
            "writer": shared_writer,
            "clock": self.clock,
            "safe": SAFE,
            "most_holders": REGIONS,
            "totals": Whole(),
        }
        self.rate_tier = RegionTier(
            book=ShareBook(keys=GLOBAL.rates, ttl_s=30.0, **book),
            totals=self.rates,
            wants=lambda: rate_wants(self.store, self.gateways),
            **tier,
        )
        self.job_tier = RegionTier(
            book=ShareBook(keys=GLOBAL.jobs, ttl_s=None, **book),
            totals=self.jobs,
            wants=wants.read,
            **tier,
        )

    def totals(self, keys):
        return RegionTotals(store=self.store, keys=keys, clock=self.clock, safe=SAFE)

    async def call(self, which, demand, *, lost=False, by=None):
        now_s, parts = self.clock.monotonic(), self.parts[which]
        self.number += 1
        ask = Ask("t", parts.part("t", now_s), demand)
        leased = await (by or self.gateways).lease(
            f"g{which}", number=self.number, lease_id=parts.lease_id, asks=[ask]
        )
        if lost:
            return
        answer = pb.LeaseSharesResponse(
            shares=[pb.TenantShare(tenant=t, part=p.part) for t, p in leased.parts.items()],
            lease_id=leased.lease_id,
            ttl_s=leased.ttl_s,
            safe_for_s=leased.safe_for_s,
            safe_part=SAFE / GATEWAYS,
        )
        parts.take(answer, sent_s=now_s, now_s=self.clock.monotonic(), asked=["t"])

    async def create(self, gpu_s):
        self.made += 1
        record = job_pb.JobRecord(tenant="t", owner_gateway="g", owner_incarnation="1", epoch=1)
        record.video.id = f"{self.name}-{self.made:026d}"
        record.video.status = video_pb2.VIDEO_STATUS_QUEUED
        record.reservation.day = day_of(self.clock.wall())
        record.reservation.gpu_seconds = gpu_s
        await self.book.create(record, limits=limits_of(POLICY))

    async def end(self):
        live, _ = await list_all(self.store, self.keys.live_jobs)
        if live:
            record = await self.book.get("t", live[0].key.rpartition("/")[2])
            record.video.status = video_pb2.VIDEO_STATUS_COMPLETED
            record.video.result.gpu_seconds = record.reservation.gpu_seconds
            await self.book.update(record)

    def used(self):
        now_s = self.clock.monotonic()
        return sum(parts.part("t", now_s) for parts in self.parts)


@dataclasses.dataclass(frozen=True)
class Step:
    kind: str
    region: int
    gateway: int
    demand: float
    seconds: float
    left: int


steps = st.builds(
    Step,
    kind=st.sampled_from(
        ["call"] * 4
        + ["lost", "rates", "rates", "jobs", "jobs", "follow", "pass", "pass", "cut"]
        + ["create"] * 5
        + ["end", "end"]
    ),
    region=st.integers(0, REGIONS - 1),
    gateway=st.integers(0, GATEWAYS - 1),
    demand=st.sampled_from([0.0, 0.3, 1.0]),
    seconds=st.sampled_from([1.0, 5.0, 12.0, 21.0, 29.0, 60.0]),
    left=st.sampled_from([0, 1, 9, 9]),
)
histories = st.lists(st.lists(steps, min_size=1, max_size=3), max_size=40)


class Mesh:
    def __init__(self, regions, shared, clock):
        self.regions, self.shared, self.clock = regions, shared, clock

    async def take(self, step):
        region = self.regions[step.region]
        try:
            await self._take(region, step)
        except StoreUnavailableError:
            pass
        except ControlPlaneError as error:
            if not error.retryable:
                raise

    async def _take(self, region, step):
        if step.kind == "pass":
            await self.clock.advance(step.seconds)
        elif step.kind == "cut":
            self.shared.set_available(available=not self.shared.available)
        elif step.kind in ("rates", "jobs"):
            tier = region.rate_tier if step.kind == "rates" else region.job_tier
            region.reign.left = step.left
            await tier.once(region.reign)
        elif step.kind == "follow":
            await region.behind.reload()
            await region.jobs_behind.reload()
        elif step.kind == "create":
            await region.create(step.demand * 20)
        elif step.kind == "end":
            await region.end()
        else:
            await region.call(step.gateway, step.demand, lost=step.kind == "lost")

    async def check(self):
        used = [region.used() for region in self.regions]
        assert sum(used) <= 1 + 1e-6, used
        live, seconds = 0, 0.0
        for region in self.regions:
            usage = await region.ledger.usage("t", day_of(self.clock.wall()))
            live += usage.live_jobs
            seconds += usage.gpu_seconds
        assert live <= POLICY.concurrent_jobs
        assert seconds <= POLICY.gpu_seconds_per_day + 1e-3


@contextlib.asynccontextmanager
async def mesh_of(**fields):
    # Early in a day, of which the limits are.
    clock = ManualClock(start_s=86_400.0 * 20_000)
    async with contextlib.AsyncExitStack() as stack:
        shared = await stack.enter_async_context(MemoryStore(clock=clock))
        regions = []
        for number in range(REGIONS):
            store = await stack.enter_async_context(MemoryStore(clock=clock))
            regions.append(Region(f"r{number}", store, shared, clock, **fields))
        yield Mesh(regions, shared, clock)


async def _play(history):
    async with mesh_of() as mesh:
        for group in history:
            for each in group:
                if each.kind in ("pass", "cut"):
                    await mesh.take(each)
            busy = {
                (e.region, e.kind, e.gateway): e for e in group if e.kind not in ("pass", "cut")
            }
            await asyncio.gather(*(mesh.take(each) for each in busy.values()))
            await mesh.check()


@settings(max_examples=150, deadline=None)
@given(histories)
def test_whatever_breaks_off_no_limit_is_passed_over_regions(history):
    asyncio.run(_play(history))


async def until_settled(mesh, *, demands, rounds=12):
    for _ in range(rounds):
        for region, demand in zip(mesh.regions, demands, strict=True):
            with contextlib.suppress(ControlPlaneError):
                await region.rate_tier.once(region.reign)
            await region.behind.reload()
            with contextlib.suppress(ControlPlaneError):
                await region.call(0, demand)
            await mesh.check()
        await mesh.clock.advance(1.0)


async def test_a_rate_goes_to_the_region_that_asks_for_it():
    async with mesh_of() as mesh:
        await until_settled(mesh, demands=(1.0, 0.0))
        busy, idle = (region.used() for region in mesh.regions)
        # The other region keeps its safe part, and so does the other gateway's place.
        assert busy >= 1 - SAFE - 0.06
        assert idle <= SAFE + 1e-6
        await until_settled(mesh, demands=(0.0, 1.0))
        assert mesh.regions[1].used() >= 1 - SAFE - 0.06


async def test_with_the_global_store_away_regions_go_by_their_safe_parts():
    async with mesh_of() as mesh:
        await until_settled(mesh, demands=(1.0, 0.0))
        mesh.shared.set_available(available=False)
        await mesh.clock.advance(30.0)
        assert mesh.regions[0].behind.is_safe()
        await until_settled(mesh, demands=(1.0, 1.0))
        for region in mesh.regions:
            assert region.used() == pytest.approx(SAFE, abs=0.02)
        mesh.shared.set_available(available=True)
        await until_settled(mesh, demands=(1.0, 0.0))
        assert mesh.regions[0].used() >= 1 - SAFE - 0.06
        # A day without a word, and there is nothing left to go by.
        mesh.shared.set_available(available=False)
        await mesh.clock.advance(SAFE_FOR_S + 60.0)
        await until_settled(mesh, demands=(1.0, 1.0), rounds=3)
        assert [region.used() for region in mesh.regions] == [0.0, 0.0]


async def test_jobs_go_to_the_region_that_asks_and_are_never_given_twice():
    async with mesh_of() as mesh:
        one, other = mesh.regions

        async def made(region, count):
            got = 0
            for _ in range(count):
                for each in mesh.regions:
                    await each.job_tier.once(each.reign)
                    await each.jobs_behind.reload()
                await mesh.clock.advance(1.0)
                with contextlib.suppress(ControlPlaneError):
                    await region.create(0.0)
                    got += 1
                await mesh.check()
            return got

        assert await made(one, 12) == 6
        assert await made(other, 6) == 2
        # The first region is cut off with all its jobs: they count, however long it takes.
        mesh.shared.set_available(available=False)
        await mesh.clock.advance(SAFE_FOR_S * 3)
        mesh.shared.set_available(available=True)
        await other.job_tier.once(other.reign)
        await other.jobs_behind.reload()
        with pytest.raises(ControlPlaneError):
            await other.create(0.0)
        for _ in range(6):
            await one.end()
        assert await made(other, 12) == 4


async def fill(mesh, region, *, rounds=12, follow=True):
    """Makes jobs in a region for as long as there is room."""
    for _ in range(rounds):
        for each in mesh.regions:
            await each.job_tier.once(each.reign)
            if follow:
                await each.jobs_behind.reload()
        await mesh.clock.advance(1.0)
        with contextlib.suppress(ControlPlaneError):
            while True:
                await region.create(0.0)


async def test_a_replica_that_is_behind_makes_no_job_that_its_region_gave_away():
    async with mesh_of() as mesh:
        one, other = mesh.regions
        await fill(mesh, one)
        for _ in range(8):
            await one.end()
        # It knows of the most that its region ever had; the region gives it back meanwhile.
        assert one.jobs_behind.of("t") > 0.7
        for _ in range(8):
            await one.job_tier.once(one.reign)
            await other.job_tier.once(other.reign)
            await other.jobs_behind.reload()
            with contextlib.suppress(ControlPlaneError):
                await other.create(0.0)
            await mesh.clock.advance(1.0)
        assert one.jobs_behind.of("t") > 0.7
        with contextlib.suppress(ControlPlaneError):
            while True:
                await one.create(0.0)
        await mesh.check()


async def test_nor_does_it_lease_a_part_that_its_region_gave_away():
    async with mesh_of() as mesh:
        one, other = mesh.regions
        await until_settled(mesh, demands=(1.0, 0.0))
        for _ in range(10):
            await one.rate_tier.once(one.reign)
            await one.rates.reload()
            await one.call(0, 0.0, by=one.leaders)
            await other.rate_tier.once(other.reign)
            await other.behind.reload()
            await other.call(0, 1.0)
            await mesh.clock.advance(1.0)
            await mesh.check()
        assert one.behind.of("t") > 0.7 > one.rates.of("t")
        await one.call(0, 1.0)
        await mesh.check()


async def test_a_part_that_is_not_lowered_in_the_region_yet_is_not_lowered_in_the_mesh():
    async with mesh_of() as mesh:
        one, other = mesh.regions
        await fill(mesh, one)
        for _ in range(8):
            await one.end()
        one.reign.left = 0
        for _ in range(6):
            # What the leader was told it never wrote down.
            with contextlib.suppress(StoreUnavailableError):
                await one.job_tier.once(one.reign)
            await other.job_tier.once(other.reign)
            await other.jobs_behind.reload()
            with contextlib.suppress(ControlPlaneError):
                while True:
                    await other.create(0.0)
            await mesh.clock.advance(1.0)
        with contextlib.suppress(ControlPlaneError):
            while True:
                await one.create(0.0)
        await mesh.check()


async def test_no_gateway_goes_by_a_part_for_longer_than_its_region_does():
    async with mesh_of(share_ttl_s=100.0) as mesh:
        other = mesh.regions[1]
        await until_settled(mesh, demands=(1.0, 0.0))
        # Its region hears nothing more; the gateway does not know.
        for _ in range(60):
            await mesh.clock.advance(1.0)
            await other.rate_tier.once(other.reign)
            await other.behind.reload()
            await other.call(0, 1.0)
            await mesh.check()
        assert other.used() >= 1 - SAFE - 0.06


def test_a_regions_part_of_jobs_is_whole_ones():
    limits = Limits(concurrent_jobs=5, gpu_seconds_per_day=100.0)
    assert part_of(limits, 0.75) == Limits(3, 75.0)
    assert part_of(limits, 1.0) == limits
    assert part_of(Limits(), 0.5) == Limits()
