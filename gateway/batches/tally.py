"""What a driver knows of its batch's items, and what of it is not written yet. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, replace

from reelmesh.v1 import batch_record_service_pb2 as pb
from reelmesh.v1 import video_pb2

from gateway.batches.records import Ends


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is to be written, as it was at one moment."""

    outcomes: dict[int, list[pb.BatchOutcome]]
    """By segment, all of each that has new ones."""
    ends: Ends
    in_flight: list[pb.BatchInFlight]
    begun_until: int
    version: int


class Tally:
    """The state of each item.

    Outcomes are kept until their segment is full and written; of those only their number
    stays. Every item is in exactly one state: not begun, in flight, or ended, and an ended
    one stays as it is.
    """

    def __init__(self, record: pb.BatchRecord) -> None:
        self._total = record.batch.counts.total
        self._per_segment = max(record.items_per_segment, 1)
        self._outcomes: dict[int, dict[int, pb.BatchOutcome]] = {}
        self._full: set[int] = set()
        self._ends = Ends()
        self._unsaved: set[int] = set()
        self._version = self._saved_version = 0
        self.in_flight: dict[int, pb.BatchInFlight] = {
            each.index: each for each in record.in_flight
        }
        self.begun_until = record.begun_until
        self._wanted_until = record.begun_until

    @property
    def changed(self) -> bool:
        """Whether something is not written."""
        return self._version != self._saved_version

    def recall(self, segment: int, outcomes: pb.BatchOutcomeSegment) -> None:
        """Takes what was written before."""
        for outcome in outcomes.outcomes:
            self._take(segment, outcome)
        if len(self._outcomes.get(segment, {})) == self._size(segment):
            self._forget(segment)

    def full(self, segment: int) -> bool:
        """Whether all of a segment has ended."""
        held = len(self._outcomes.get(segment, {}))
        return segment in self._full or held == self._size(segment)

    def has_ended(self, index: int) -> bool:
        """Whether an item has."""
        segment = index // self._per_segment
        return segment in self._full or index in self._outcomes.get(segment, {})

    def want(self, until: int) -> None:
        """Asks that items up to an index may be begun: once that is written."""
        until = min(until, self._total)
        if until > self._wanted_until:
            self._wanted_until = until
            self._version += 1

    def begin(self, index: int, video: video_pb2.Video) -> None:
        """An item has a video."""
        if not self.has_ended(index):
            self.in_flight[index] = pb.BatchInFlight(
                index=index, video_id=video.id, status=video.status
            )
            self._version += 1

    def note(self, index: int, video: video_pb2.Video) -> None:
        """Its video goes on."""
        flying = self.in_flight.get(index)
        if flying is not None and flying.status != video.status:
            flying.status = video.status
            self._version += 1

    def settle(self, outcome: pb.BatchOutcome) -> None:
        """An item has ended; the first word of it stands."""
        self.in_flight.pop(outcome.index, None)
        segment = outcome.index // self._per_segment
        if not self.has_ended(outcome.index):
            self._take(segment, outcome)
            self._unsaved.add(segment)
            self._version += 1

    def snapshot(self) -> Snapshot:
        """What is to be written now."""
        flying = []
        for each in self.in_flight.values():
            copy = pb.BatchInFlight()
            copy.CopyFrom(each)
            flying.append(copy)
        return Snapshot(
            outcomes={
                segment: [each for _, each in sorted(self._outcomes[segment].items())]
                for segment in sorted(self._unsaved)
            },
            ends=replace(self._ends),
            in_flight=flying,
            begun_until=self._wanted_until,
            version=self._version,
        )

    def saved(self, snapshot: Snapshot) -> None:
        """What a snapshot held is written."""
        self._saved_version = snapshot.version
        self.begun_until = max(self.begun_until, snapshot.begun_until)
        for segment, outcomes in snapshot.outcomes.items():
            if len(outcomes) == len(self._outcomes[segment]):
                self._unsaved.discard(segment)
                if len(outcomes) == self._size(segment):
                    self._forget(segment)

    def _take(self, segment: int, outcome: pb.BatchOutcome) -> None:
        held = self._outcomes.setdefault(segment, {})
        if outcome.index not in held:
            held[outcome.index] = outcome
            self._ends.add(outcome.status)
        self.in_flight.pop(outcome.index, None)

    def _forget(self, segment: int) -> None:
        del self._outcomes[segment]
        self._full.add(segment)

    def _size(self, segment: int) -> int:
        return min(self._per_segment, self._total - segment * self._per_segment)
