"""Templates, plans and tallies of batches: what they promise, whatever they are given."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reelmesh.v1 import batch_pb2, tenant_pb2, video_pb2
from reelmesh.v1 import batch_record_service_pb2 as pb

from gateway.application import Caller
from gateway.batches import segments
from gateway.batches.application import Row, Submission
from gateway.batches.defaults import over
from gateway.batches.plan import MAX_TOLD, Plan
from gateway.batches.records import finished, new_record, progress
from gateway.batches.tally import Tally
from gateway.batches.template import BadTemplate, check_values, parse
from gateway.errors import InvalidRequest
from gateway.fake_application import fake_model
from gateway.jobs.store import Owner
from gateway.validation.request import Catalog
from gateway.webhooks.addresses import UrlRules

ME = Caller("acme", "me", frozenset({"video:generate"}))
NAMES = st.text(string.ascii_letters, min_size=1, max_size=8)
TEXTS = st.text(max_size=20)
ENDS = (
    video_pb2.VIDEO_STATUS_COMPLETED,
    video_pb2.VIDEO_STATUS_FAILED,
    video_pb2.VIDEO_STATUS_CANCELLED,
)


# --- templates ---


@given(st.lists(st.tuples(TEXTS, NAMES), min_size=1, max_size=8), TEXTS, st.data())
def test_a_template_is_its_text_with_the_values_in_it(parts, end, data):
    def escaped(text):
        return text.replace("{", "{{").replace("}", "}}")

    text = "".join(f"{escaped(before)}{{{name}}}" for before, name in parts) + escaped(end)
    template = parse(text)
    assert set(template.names) == {name for _, name in parts}
    # A value is put in as it is, braces and all.
    values = {name: data.draw(TEXTS, label=name) for name in template.names}
    expected = "".join(before + values[name] for before, name in parts) + end
    assert template.render(values) == expected


@pytest.mark.parametrize(
    "text",
    [
        "no name",
        "{}",
        "{0}",
        "{a.b}",
        "{a[0]}",
        "{a!r}",
        "{a:>10}",
        "{a b}",
        "{a",
        "a}",
        "{{a}}",
        "{__class__.__mro__}",
        "{é}",
        "x" * 5_000 + "{a}",
        "".join(f"{{n{i}}}" for i in range(40)),
    ],
)
def test_what_is_no_template_is_refused(text):
    with pytest.raises(BadTemplate):
        parse(text)


def test_missing_and_unused_variables_are_named():
    found = {v.field: v for v in check_values(("color", "product"), {"colour": "red"})}
    assert found.keys() == {"color", "product", "colour"}
    assert found["colour"].nearest == ("color",)


# --- defaults ---


def test_a_rows_own_size_replaces_the_defaults_whichever_way_it_is_said():
    defaults = video_pb2.VideoSpec(resolution="480p", num_frames=17, steps=4)
    made = over(defaults, video_pb2.VideoSpec(width=96, height=128, seconds=2))
    assert not made.resolution
    assert not made.HasField("num_frames")
    assert (made.width, made.height, made.seconds, made.steps) == (96, 128, 2, 4)
    again = over(made, video_pb2.VideoSpec(), ["height"])
    assert not again.HasField("width")


# --- plans ---


def plan_of(rows, *, policy=None, **more):
    submission = Submission(rows=rows, **more)
    catalog = Catalog((fake_model(),), "fake-t2v")
    plan = Plan(submission, ME, catalog, policy or tenant_pb2.TenantPolicy(), UrlRules().check)
    for index, row in enumerate(rows):
        plan.add(index, row)
    return plan


def row(prompt="a ball", **fields):
    own = {name: fields.pop(name) for name in ("custom_id", "variables") if name in fields}
    return Row(spec=video_pb2.VideoSpec(prompt=prompt, **fields), **own)


def told(plan):
    with pytest.raises(InvalidRequest) as caught:
        plan.check()
    return {v.field: v for v in caught.value.violations}


def test_every_row_is_held_against_model_and_policy():
    policy = tenant_pb2.TenantPolicy(max_steps=10)
    found = told(plan_of([row(steps=20), row(num_frames=6), row("")], policy=policy))
    assert found.keys() == {"rows[0].steps", "rows[1].num_frames", "rows[2].prompt"}
    assert found["rows[0].steps"].nearest == ("10",)


@pytest.mark.parametrize("count", [MAX_TOLD - 1, MAX_TOLD, MAX_TOLD + 900])
def test_the_mistakes_that_are_told_are_bounded_and_the_rest_is_counted(count):
    found = told(plan_of([row(steps=0) for _ in range(count)]))
    assert len(found) == min(count, MAX_TOLD + 1)
    if count > MAX_TOLD:
        assert f"{count - MAX_TOLD} more" in found["rows"].message


def test_custom_ids_differ_and_are_plain():
    found = told(plan_of([row(custom_id="a"), row(custom_id="a"), row(custom_id="../x")]))
    assert found.keys() == {"rows[1].custom_id", "rows[2].custom_id"}


def test_variables_without_a_template_and_prompts_with_one_are_refused():
    assert told(plan_of([row(variables={"a": "x"})])).keys() == {"rows[0].a"}
    found = told(plan_of([row(variables={"a": "x"})], template="{a}"))
    assert found.keys() == {"rows[0].prompt"}


@pytest.mark.parametrize(
    ("head", "field"),
    [
        ({"max_in_flight": -1}, "max_in_flight"),
        ({"idempotency_key": "two words"}, "idempotency_key"),
        ({"priority": 7}, "priority"),
        ({"metadata": {"k": "v" * 600}}, "metadata.k"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {str(n): "é" * 512 for n in range(8)}}, "metadata"),
        ({"template": "{"}, "template"),
        ({"webhook_url": "https://example.com/"}, "webhook_url"),
    ],
)
def test_what_is_wrong_outside_the_rows_is_told_too(head, field):
    rows = [row("", variables={})] if "template" in head else [row()]
    assert field in told(plan_of(rows, **head))


def test_no_rows_make_no_batch():
    assert told(plan_of([])).keys() == {"rows"}


def test_texts_that_no_record_holds_are_refused_at_once():
    found = told(plan_of([row("熊" * 2000, negative_prompt="熊" * 2000)]))
    assert found.keys() == {"rows[0].prompt"} or found.keys() == {"rows[0].negative_prompt"}


# --- files ---


@given(st.integers(1, 450))
def test_any_segment_is_read_by_itself(count):
    items = [pb.BatchInput(custom_id=str(n)) for n in range(count)]
    data, sizes = segments.cut(items)
    record = pb.BatchRecord(segment_bytes=sizes)
    found = []
    for number in range(len(sizes)):
        offset, length = segments.where(record, number)
        found += pb.BatchInputSegment.FromString(data[offset : offset + length]).items
    assert [item.custom_id for item in found] == [str(n) for n in range(count)]


# --- tallies ---


def record_of(total):
    return new_record(
        batch_id="batch_ap-1",
        region="ap",
        caller=ME,
        submission=Submission(rows=[row()] * total),
        digest="d",
        input_key="k",
        segment_bytes=[1] * -(-total // segments.ITEMS_PER_SEGMENT),
        owner=Owner("g", "l"),
        durable=True,
        now_s=1.0,
        lifetime_s=10.0,
        retention_s=5.0,
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_however_writes_fail_and_drivers_change_each_item_ends_once_and_none_is_lost(data):
    total = data.draw(st.integers(1, 230))
    record = record_of(total)
    written: dict[int, list[pb.BatchOutcome]] = {}
    told_of: dict[int, int] = {}
    tally = Tally(record)
    for _ in range(data.draw(st.integers(1, 40))):
        step = data.draw(st.sampled_from(["begin", "settle", "write", "lost write", "heir"]))
        index = data.draw(st.integers(0, total - 1))
        if step == "begin":
            tally.begin(index, video_pb2.Video(id=f"v{index}"))
        elif step == "settle":
            status = told_of.setdefault(index, data.draw(st.sampled_from(ENDS)))
            tally.settle(pb.BatchOutcome(index=index, status=status))
        elif step == "write":
            snapshot = tally.snapshot()
            if data.draw(st.booleans()):
                # Something happens while it is being written.
                status = told_of.setdefault(index, data.draw(st.sampled_from(ENDS)))
                tally.settle(pb.BatchOutcome(index=index, status=status))
            written.update(snapshot.outcomes)
            record = progress(record, snapshot.ends, snapshot.in_flight, begun_until=0)
            tally.saved(snapshot)
        elif step == "lost write":
            tally.snapshot()
        else:
            tally = Tally(record)
            for segment, outcomes in written.items():
                tally.recall(segment, pb.BatchOutcomeSegment(outcomes=outcomes))
            for number, status in told_of.items():
                tally.settle(pb.BatchOutcome(index=number, status=status))
        ended = {number for number in range(total) if tally.has_ended(number)}
        assert ended == set(told_of)
        assert not ended & tally.in_flight.keys()
    last = tally.snapshot()
    written.update(last.outcomes)
    tally.saved(last)
    assert not tally.changed
    listed = [outcome.index for outcomes in written.values() for outcome in outcomes]
    assert sorted(listed) == sorted(told_of)
    record = progress(record, last.ends, last.in_flight, begun_until=0)
    counts = record.batch.counts
    assert counts.completed + counts.failed + counts.cancelled == len(told_of)
    assert counts.queued + counts.running + len(told_of) == total
    end = finished(record, batch_pb2.BATCH_STATUS_CANCELLED, now_s=2.0, retention_s=5.0)
    counts = end.batch.counts
    assert counts.completed + counts.failed + counts.cancelled == total


def test_a_record_of_the_largest_batch_fits_the_store():
    record = record_of(10_000)
    record.batch.metadata.update({str(n).rjust(64, "k"): "v" * 180 for n in range(16)})
    record.webhook_url = "https://" + "w" * 2_000
    record.outcome_tokens[:] = ["12345678.123456"] * 100
    record.segment_bytes[:] = [2_000_000] * 100
    for index in range(64):
        flying = {"index": 9_999, "video_id": f"ap-{index:026d}", "status": 2}
        record.in_flight.add(**flying)
    assert record.ByteSize() < 16 * 1024
