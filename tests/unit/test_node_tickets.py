"""Whom a node offers its freed slots to: never twice, in order, and nobody for ever."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from node_agent.tickets import MAX_TICKETS, OFFER_S, Ticket, TicketBook

TENANTS = ("acme", "bora", "cato")
WAITS = [0.0] * 8


def ticket(job_id, *, owner=1, **fields):
    return Ticket(job_id=job_id, owner=owner, **fields)


class Book(RuleBasedStateMachine):
    """A node of a few slots, and gateways that do whatever they like."""

    def __init__(self):
        super().__init__()
        self.book = TicketBook()
        self.now_s = 100.0
        self.slots = 3
        self.running = []
        self.lying = {}
        self.offered = {}
        self.silent = set()
        self.numbers = 0

    def waits_s(self):
        """One is free at once, one in a second, one at an unknown time."""
        return [0.0, 1.0, math.inf][: self.slots - len(self.running)]

    def look(self):
        for job_id, (_, expires_s) in list(self.offered.items()):
            if expires_s <= self.now_s:
                self.silent.add(self.offered.pop(job_id)[0].owner)
        order = list(self.book.in_order())
        made = self.book.offers(self.waits_s(), self.now_s)
        # An expiry may have silenced somebody: the order is of those that are heard.
        order = [t for t in order if t.owner not in self.silent]
        waits_s = self.waits_s()[len(self.offered) :]
        expected = []
        for each in order:
            if len(expected) < len(waits_s) and waits_s[len(expected)] <= each.max_wait_s:
                expected.append(each)
        assert [offer.ticket for offer in made] == expected
        for offer in made:
            assert self.lying.pop(offer.ticket.job_id) == offer.ticket
            assert offer.ticket.owner not in self.silent
            assert offer.expires_at_s == self.now_s + OFFER_S
            self.offered[offer.ticket.job_id] = (offer.ticket, offer.expires_at_s)
        # No slot is left while somebody who is heard wants it.
        for wait_s in self.waits_s()[len(self.offered) :][:1]:
            heard = [t for t in self.lying.values() if t.owner not in self.silent]
            assert not [t for t in heard if t.max_wait_s >= wait_s]

    @rule(
        owner=st.integers(1, 3),
        tenant=st.sampled_from(TENANTS),
        rank=st.integers(0, 1),
        units=st.floats(0.1, 50),
        deadline_s=st.sampled_from([math.inf, 5.0, 50.0]),
        max_wait_s=st.sampled_from([0.25, 2.0, math.inf]),
    )
    def leave(self, owner, tenant, rank, units, deadline_s, max_wait_s):
        self.numbers += 1
        left = ticket(
            f"job-{self.numbers}",
            owner=owner,
            tenant=tenant,
            rank=rank,
            units=units,
            deadline_at_s=self.now_s + deadline_s,
            came_at_s=self.now_s,
            max_wait_s=max_wait_s,
        )
        self.book.hear(owner, {})
        self.silent.discard(owner)
        self.book.leave(left)
        self.lying[left.job_id] = left
        self.look()

    @precondition(lambda self: self.lying or self.offered)
    @rule(data=st.data())
    def withdraw(self, data):
        job_id = data.draw(st.sampled_from(sorted({**self.lying, **self.offered})))
        held = self.offered.get(job_id)
        owner = (self.lying.get(job_id) or held[0]).owner
        # Another gateway's word about it counts for nothing.
        self.book.withdraw(owner + 1, [job_id])
        self.book.withdraw(owner, [job_id])
        self.lying.pop(job_id, None)
        self.offered.pop(job_id, None)
        self.look()

    @precondition(lambda self: self.offered)
    @rule(data=st.data())
    def run(self, data):
        job_id = data.draw(st.sampled_from(sorted(self.offered)))
        assert self.slots - len(self.running) > self.book.held_back(job_id)
        self.book.ran(job_id)
        del self.offered[job_id]
        self.running.append(job_id)
        self.look()

    @precondition(lambda self: self.running)
    @rule()
    def end(self):
        self.running.pop()
        self.look()

    @rule(owner=st.integers(1, 3))
    def gone(self, owner):
        self.book.gone(owner)
        self.lying = {j: t for j, t in self.lying.items() if t.owner != owner}
        self.offered = {j: o for j, o in self.offered.items() if o[0].owner != owner}
        self.silent.discard(owner)
        self.look()

    @rule(after_s=st.floats(0.01, 1.0))
    def time(self, after_s):
        self.now_s += after_s
        self.look()

    @invariant()
    def never_more_offers_than_slots(self):
        assert self.book.offered == len(self.offered)
        assert len(self.running) + self.book.offered <= self.slots
        assert len(self.book) == len(self.lying)


TestBook = Book.TestCase
TestBook.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


TICKETS = st.lists(
    st.builds(
        Ticket,
        job_id=st.uuids().map(str),
        owner=st.integers(1, 3),
        tenant=st.sampled_from(TENANTS),
        rank=st.integers(0, 1),
        weight=st.just(1.0),
        units=st.floats(0.5, 20.0),
        deadline_at_s=st.sampled_from([math.inf, 10.0, 20.0]),
        came_at_s=st.floats(0, 10),
    ),
    max_size=40,
    unique_by=lambda t: t.job_id,
)


@given(tickets=TICKETS)
def test_by_priority_then_inside_a_tenant_by_deadline_then_by_age(tickets):
    book = TicketBook()
    for each in tickets:
        book.leave(each)
    order = list(book.in_order())
    assert sorted(order, key=id) == sorted(tickets, key=id)
    assert [t.rank for t in order] == sorted(t.rank for t in tickets)
    for flow in {t.flow for t in tickets}:
        own = [t for t in order if t.flow == flow]
        assert own == sorted(own, key=lambda t: (t.deadline_at_s, t.came_at_s, t.job_id))


@given(weights=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0]) for _ in TENANTS]))
def test_tenants_get_their_shares_whatever_gateway_they_come_by(weights):
    book = TicketBook()
    for number in range(60):
        tenant = number % len(TENANTS)
        book.leave(
            ticket(
                f"{number}",
                owner=1 + number % 2,
                tenant=TENANTS[tenant],
                weight=weights[tenant],
                came_at_s=float(number),
            )
        )
    got = dict.fromkeys(TENANTS, 0.0)
    for step in range(20):
        [offer] = book.offers(WAITS[:1], float(step))
        book.ran(offer.ticket.job_id)
        got[offer.ticket.tenant] += 1 / offer.ticket.weight
    assert max(got.values()) - min(got.values()) <= 2 / min(weights)


def test_no_ticket_starves_behind_a_tenant_that_floods():
    book = TicketBook()
    for number in range(MAX_TICKETS):
        book.leave(ticket(f"flood-{number}", owner=1, tenant="acme"))
    book.leave(ticket("one", owner=2, tenant="bora", came_at_s=99.0))
    first = [offer.ticket.job_id for offer in book.offers(WAITS[:2], 100.0)]
    assert "one" in first


def test_who_was_served_elsewhere_by_its_gateways_word_goes_later():
    book = TicketBook()
    book.hear(1, {(0, "acme"): 10.0})
    book.leave(ticket("a", owner=1, tenant="acme", came_at_s=0.0))
    book.leave(ticket("b", owner=2, tenant="bora", came_at_s=5.0))
    assert [t.job_id for t in book.in_order()] == ["b", "a"]


def test_a_gateway_that_takes_no_offer_gets_no_further_one_until_it_speaks():
    book = TicketBook()
    for number in range(5):
        book.leave(ticket(f"dead-{number}", owner=1))
    book.leave(ticket("alive", owner=2, came_at_s=50.0))
    [first] = book.offers(WAITS[:1], 0.0)
    assert first.ticket.owner == 1
    assert book.offers(WAITS[:1], OFFER_S / 2) == []
    [second] = book.offers(WAITS[:1], OFFER_S)
    assert second.ticket.job_id == "alive"
    book.ran("alive")
    assert book.offers(WAITS[:1], 1.0) == []
    book.hear(1, {})
    [third] = book.offers(WAITS[:1], 1.0)
    assert third.ticket.owner == 1


def test_a_job_that_moved_to_another_gateway_has_one_ticket():
    book = TicketBook()
    book.leave(ticket("job", owner=1))
    book.leave(ticket("job", owner=2))
    book.withdraw(1, ["job"])
    [offer] = book.offers(WAITS[:1], 0.0)
    assert offer.ticket.owner == 2
    assert book.offers(WAITS[:2], 0.0) == []


def test_tickets_of_a_gateway_are_bounded():
    book = TicketBook()
    for number in range(10 * MAX_TICKETS):
        book.leave(ticket(f"{number}"))
    assert len(book) == MAX_TICKETS
    book.withdraw(1, [f"{number}" for number in range(10 * MAX_TICKETS)])
    assert len(book) == 0
    book.leave(ticket("again"))
    assert len(book) == 1
