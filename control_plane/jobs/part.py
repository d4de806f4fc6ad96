"""The job records' part of a control plane, put together."""

from __future__ import annotations

from dataclasses import dataclass

from control_plane.calls import Observe
from control_plane.fleet import FleetView
from control_plane.jobs.book import JobBook
from control_plane.jobs.ledger import Ledger
from control_plane.jobs.orphans import LiveJobs, OrphanWatchers
from control_plane.jobs.service import JobService, Policies, Supersede
from control_plane.keys import Keys
from control_plane.quotas.totals import Totals
from control_plane.store.port import Store
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Jobs:
    """What the app serves, fills and stops."""

    service: JobService
    book: JobBook
    live: LiveJobs
    others: LiveJobs
    """What else has owners."""
    watchers: OrphanWatchers


def make_jobs(
    *,
    store: Store,
    writer: FencedWriter,
    keys: Keys,
    fleet: FleetView,
    clock: Clock,
    heartbeat_s: float,
    policies: Policies,
    ledger: Ledger,
    totals: Totals,
    supersede: Supersede,
    observe: Observe,
) -> Jobs:
    """The part for one region; ``observe`` is told of each call.

    Args as of :class:`~control_plane.jobs.book.JobBook` and of the service.
    """
    live = LiveJobs(on_change=fleet.wake)
    others = LiveJobs(on_change=fleet.wake)
    watchers = OrphanWatchers(
        live=live, others=others, fleet=fleet, clock=clock, heartbeat_s=heartbeat_s
    )
    book = JobBook(store=store, writer=writer, keys=keys, clock=clock, ledger=ledger, totals=totals)
    service = JobService(
        book=book, watchers=watchers, policies=policies, supersede=supersede, observe=observe
    )
    return Jobs(service=service, book=book, live=live, others=others, watchers=watchers)
