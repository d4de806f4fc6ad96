"""What must hold of a history. Pure: each function answers with the rules that were broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from tests.chaos.history import TERMINAL, History, Operation, Standing, Watch


def violations(history: History) -> list[str]:
    """Every rule that the history breaks, in words."""
    found: list[str] = []
    for operation in history.operations:
        found += _of_operation(operation, history)
        for watch in operation.watches:
            found += [f"{_name(operation)} at {watch.gateway}: {text}" for text in in_order(watch)]
    for video_id, standings in history.standings.items():
        found += [f"{video_id}: {text}" for text in _of_standings(video_id, history, standings)]
    return found


def _name(operation: Operation) -> str:
    return f"#{operation.number} {operation.kind} {','.join(operation.video_ids)}"


def _of_operation(operation: Operation, history: History) -> Iterator[str]:
    name, wish = _name(operation), operation.wish
    if operation.outcome == "completed" and operation.sha256 != history.answers[wish]:
        yield f"{name}: the client holds another video than that of {wish}"
    if operation.outcome == "failed":
        yield f"{name}: failed with {operation.code}"
    if operation.outcome == "cancelled" and not operation.cancelled:
        yield f"{name}: was cancelled, and nobody asked for it"
    if operation.video_ids and not operation.outcome:
        yield f"{name}: the client gave up: {operation.code}"
    if not operation.video_ids:
        return
    # The last id is the one that the client was left with.
    for gateway, standing in history.standings.get(operation.video_ids[-1], {}).items():
        if operation.outcome in TERMINAL and standing.status != operation.outcome:
            yield (
                f"{name}: the client was told {operation.outcome}, "
                f"{gateway} says {standing.status or 'nothing'}"
            )
        if operation.outcome == "completed" and standing.sha256 != operation.sha256:
            yield f"{name}: {gateway} names another video than the client holds"


def _of_standings(
    video_id: str, history: History, standings: Mapping[str, Standing]
) -> Iterator[str]:
    seen = Counter(standing.status for standing in standings.values())
    if len(seen) > 1:
        yield f"its gateways disagree: {dict(seen)}"
    for gateway, standing in standings.items():
        if standing.status not in TERMINAL:
            yield f"was acknowledged and never ended: {gateway} says {standing.status!r}"


def in_order(watch: Watch) -> Iterator[str]:
    """Rules of one stream: seqs rise, bytes have no gap, one terminal event, and last."""
    last = watch.after_seq
    # Bytes of the attempt so far; None: the stream began inside an attempt.
    at: int | None = 0 if watch.after_seq == 0 else None
    ended = False
    for event in watch.events:
        if ended:
            yield f"{event.kind} after the end"
        if event.seq:
            if event.seq <= last:
                yield f"{event.kind} has seq {event.seq} after {last}"
            last = max(last, event.seq)
        if event.kind == "restarted":
            at = 0
        elif event.kind == "chunk":
            if at is not None and event.offset != at:
                yield f"bytes from {event.offset} where {at} were there"
            at = event.offset + event.size
        ended = ended or event.kind in TERMINAL
