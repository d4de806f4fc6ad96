"""What a client notices when a process or a link dies in the middle of its video.

``python -m benchmarks.failover``
``python -m benchmarks.failover --tries 5 --only "worker killed" --only "agent killed"``

Each fault is done in the middle of a running video, on the smallest mesh that shows it, with
the default settings, at a random moment of the denoising. Printed are, over all tries:

first event   from the fault to RESTARTED, or to the first event of any kind on the stream
              that was taken up elsewhere, as the client's clock sees it
new attempt   from the fault to STARTED of the new attempt
added         the whole time beyond an undisturbed video and the work that had to be redone
gap           where nothing restarts: the longest silence on the stream after the fault, beside
              that of an undisturbed stream
create        a durable create right after the fault, retried inside its deadline of 15 s
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc import aio
from reelmesh.v1 import video_pb2, video_service_pb2
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from benchmarks.machine import idle_delay
from benchmarks.support.failover_cases import CASES, Case, Spot
from benchmarks.support.table import print_table
from reelkit.logs import setup_logging
from reelmesh_cli.mesh import probes
from tests.support.faulty_mesh import FaultyMesh, faulty_mesh
from wan_t2v_sdk import AsyncTextToVideoGenerator, VideoEvent

SIZE = {"width": 160, "height": 96, "num_frames": 49, "steps": 50}
PROMPT = "a ball"
TRIES = 20
BASELINES = 8
CREATE_DEADLINE_S = 15.0
TRY_LIMIT_S = 60.0
SETTLE_S = 40.0


@dataclass(slots=True)
class Course:
    """One video as its client saw it; seconds of the client's clock."""

    started_s: float
    fault_s: float = 0.0
    first_event_s: float | None = None
    new_attempt_s: float | None = None
    ended_s: float = 0.0
    outcome: str = ""
    longest_gap_s: float = 0.0
    create_s: float | None = None
    attempts: int = 1
    spot: Spot | None = None


@dataclass(slots=True)
class Result:
    """All tries of a case."""

    case: Case
    baseline: list[Course] = field(default_factory=list)
    tries: list[Course] = field(default_factory=list)


def main() -> None:
    """Runs the cases and prints the table; exits with 1 where a target is missed."""
    arguments = _arguments()
    # What is killed leaves words on its way out, and they are no part of the table.
    setup_logging(level="error", fmt="console", process="benchmark")
    with tempfile.TemporaryDirectory(prefix="reelmesh-bench-") as scratch:
        model = Path(scratch) / "model"
        command = [sys.executable, "-m", "tools.make_random_model", str(model)]
        subprocess.run(command, check=True)
        results = []
        for number, case in enumerate(CASES):
            if arguments.only and case.name not in arguments.only:
                continue
            folder = Path(scratch) / f"mesh-{number}"
            results.append(asyncio.run(_run_case(case, folder, model, arguments)))
            _print([results[-1]])
    delay = idle_delay()
    _print(results)
    print(f"idle scheduling delay of this machine: {delay}")
    missed = [result.case.name for result in results if not _met(result)]
    if missed:
        sys.exit(f"targets missed: {', '.join(missed)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=TRIES, help="of each fault (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default 1)")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        choices=[case.name for case in CASES],
        metavar="FAULT",
        help="one of: " + ", ".join(case.name for case in CASES),
    )
    return parser.parse_args()


async def _run_case(case: Case, folder: Path, model: Path, arguments: argparse.Namespace) -> Result:
    rng = random.Random(arguments.seed)  # noqa: S311 - draws moments
    result = Result(case)
    # A node that falls twenty times in a row is held back, and that is not what is timed.
    steady = {"control-plane": {"health": {"flapping": {"times": 1000}}}}
    async with faulty_mesh(
        folder, model=model, regions=case.regions, settings=steady, **case.mesh
    ) as mesh:
        for _ in range(BASELINES):
            result.baseline.append(await _course(case, mesh, at_step=None))
        for number in range(arguments.tries):
            course = await _course(case, mesh, at_step=rng.randint(5, 40))
            result.tries.append(course)
            sys.stderr.write(f"\r{case.name}: {number + 1}/{arguments.tries} ")
            if course.spot is not None:
                case.undo(mesh, course.spot)
            await _settle(mesh)
        sys.stderr.write("\n")
    return result


async def _course(case: Case, mesh: FaultyMesh, *, at_step: int | None) -> Course:
    run = _Run(case, mesh, at_step)
    try:
        async with asyncio.timeout(TRY_LIMIT_S):
            if case.by_sdk:
                await run.by_sdk()
            else:
                await run.by_stream()
    except TimeoutError:
        run.course.outcome = "timeout"
        run.course.ended_s = run.now()
    return run.course


class _Run:
    """Follows one video, does the fault at its step, and keeps the times."""

    def __init__(self, case: Case, mesh: FaultyMesh, at_step: int | None) -> None:
        self.now = asyncio.get_running_loop().time
        self.course = Course(self.now())
        self._case = case
        self._mesh = mesh
        self._at_step = at_step
        self._node = ""
        self._video_id = ""
        self._last_s = 0.0
        self._create: asyncio.Task[float] | None = None

    async def by_stream(self) -> None:
        """One stream to one gateway, as a plain gRPC client has it."""
        gateway = self._mesh.ids("gateway")[0]
        metadata = (("authorization", f"Bearer {self._mesh.tokens.user}"),)
        request = video_service_pb2.GenerateVideoRequest(
            spec=video_pb2.VideoSpec(prompt=PROMPT, seed=1, **SIZE)
        )
        async with aio.insecure_channel(self._mesh.grpc(gateway)) as channel:
            call = VideoServiceStub(channel).GenerateVideo(
                request, metadata=metadata, timeout=TRY_LIMIT_S
            )
            async for answer in call:
                event = answer.event
                kind = event.WhichOneof("event") or ""
                if kind == "started":
                    self._node = event.started.node
                self.see(kind, gateway, step=event.progress.step, code=event.failed.code)
        if self._create is not None:
            self.course.create_s = await self._create

    async def by_sdk(self) -> None:
        """The client library with every gateway."""
        regions = self._case.regions
        before = self._moved()

        def note(event: VideoEvent) -> None:
            self._node = event.node or self._node
            moved = self._moved()
            # The one whose proxy moved the most since the start holds the stream.
            owner = max(moved, key=lambda gateway: moved[gateway] - before[gateway])
            if event.video_id and self._video_id not in ("", event.video_id):
                # Another region makes it anew.
                self.course.attempts += 1
            self._video_id = event.video_id or self._video_id
            self.see(event.kind, owner, step=event.step, code="")

        async with AsyncTextToVideoGenerator(
            endpoints=self._mesh.endpoints(*regions), token=self._mesh.tokens.user
        ) as client:
            await client.generate(PROMPT, seed=1, on_progress=note, progress=False, **SIZE)

    def _moved(self) -> dict[str, int]:
        """Bytes that went to clients, by gateway."""
        gateways = self._mesh.ids("gateway")
        return {each: self._mesh.links["", each].bytes_to_client for each in gateways}

    def see(self, kind: str, gateway: str, *, step: int, code: str) -> None:
        """Takes an event."""
        course, now_s = self.course, self.now()
        hurt = course.fault_s > 0
        if hurt:
            course.longest_gap_s = max(course.longest_gap_s, now_s - self._last_s)
            if course.first_event_s is None and self._is_news(kind):
                course.first_event_s = now_s
            if kind == "started" and course.attempts > 1 and course.new_attempt_s is None:
                course.new_attempt_s = now_s
        elif step and self._at_step is None:
            course.longest_gap_s = max(course.longest_gap_s, now_s - self._last_s)
        self._last_s = now_s
        if kind == "restarted":
            course.attempts += 1
        if kind in ("completed", "failed", "cancelled"):
            course.outcome, course.ended_s = kind if not code else f"{kind} {code}", now_s
        if not hurt and self._at_step is not None and step >= self._at_step:
            course.spot = Spot(gateway, self._node)
            self._case.do(self._mesh, course.spot)
            course.fault_s = self._last_s = self.now()
            if self._case.target_s is None:
                self._create = asyncio.ensure_future(_durable_create(self._mesh))

    def _is_news(self, kind: str) -> bool:
        if self._case.by_sdk:
            return kind not in ("reconnecting", "queued")
        return kind == "restarted"


async def _durable_create(mesh: FaultyMesh) -> float:
    """Seconds until a durable create was acknowledged; infinite where none was in time."""
    now = asyncio.get_running_loop().time
    begin_s = now()
    metadata = (("authorization", f"Bearer {mesh.tokens.user}"),)
    request = video_service_pb2.CreateVideoRequest(
        spec=video_pb2.VideoSpec(prompt=PROMPT, seed=1, num_frames=5, steps=1),
        options=video_service_pb2.CreateOptions(
            durable=True, idempotency_key=f"create-{begin_s:.6f}"
        ),
    )
    async with aio.insecure_channel(mesh.grpc(mesh.ids("gateway")[0])) as channel:
        while now() - begin_s < CREATE_DEADLINE_S:
            try:
                await VideoServiceStub(channel).CreateVideo(
                    request, metadata=metadata, timeout=CREATE_DEADLINE_S - (now() - begin_s)
                )
            except aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)
            else:
                return now() - begin_s
    return float("inf")


async def _settle(mesh: FaultyMesh) -> None:
    """Returns once everything that was killed serves again."""
    waited_for: list[str] = []
    try:
        async with asyncio.timeout(SETTLE_S):
            while waited_for := await _missing(mesh):  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.2)
    except TimeoutError:
        sys.exit(f"not back within {SETTLE_S:g} s: {', '.join(waited_for)}\n{mesh.said()}")


async def _missing(mesh: FaultyMesh) -> list[str]:
    """What does not serve now."""
    nodes = mesh.ids("node-agent")
    missing = [each.id for each in mesh.plan.processes if mesh.mesh.pid_of(each.id) is None]
    missing += [node for node in nodes if mesh.mesh.pid_of(f"{node}/worker-0") is None]
    missing += [node for node in nodes if not mesh.mesh.node_is_ready(node)]
    for gateway in mesh.plan.of_role("gateway"):
        serves, reason = await probes.readiness(gateway.addresses["http"], None)
        if not serves:
            missing.append(f"{gateway.id} ({reason})")
    return missing


# --- the table ---


def _met(result: Result) -> bool:
    case = result.case
    if any(course.outcome != "completed" for course in result.tries):
        return False
    if case.target_s is None:
        return all(course.attempts == 1 for course in result.tries)
    return statistics.median(_first_events(result)) <= case.target_s


def _first_events(result: Result) -> list[float]:
    return [
        course.first_event_s - course.fault_s if course.first_event_s is not None else float("inf")
        for course in result.tries
    ]


def _added(result: Result) -> list[float]:
    """Whole time beyond an undisturbed video and the work that was redone."""
    whole_s = statistics.median(each.ended_s - each.started_s for each in result.baseline)
    found = []
    for course in result.tries:
        redone_s = course.fault_s - course.started_s if course.new_attempt_s is not None else 0.0
        found.append(course.ended_s - course.started_s - whole_s - redone_s)
    return found


def _print(results: Sequence[Result]) -> None:
    rows = []
    for result in results:
        case = result.case
        restarts = case.target_s is not None
        new = [
            course.new_attempt_s - course.fault_s
            for course in result.tries
            if course.new_attempt_s is not None
        ]
        gaps = [course.longest_gap_s for course in result.tries]
        creates = [course.create_s for course in result.tries if course.create_s is not None]
        done = sum(course.outcome == "completed" for course in result.tries)
        rows.append(
            [
                case.name,
                f"{done}/{len(result.tries)}",
                _spread(_first_events(result)) if restarts else "-",
                f"{case.target_s * 1000:.0f}" if case.target_s is not None else "-",
                _spread(new) if restarts else "-",
                _spread(_added(result)),
                "-" if restarts else _spread(gaps) + _usual(result),
                _spread(creates),
                "yes" if _met(result) else "NO",
            ]
        )
    print_table(
        "Failover in the middle of a video; ms, median / worst",
        [
            "fault",
            "ended well",
            "first event",
            "target",
            "new attempt",
            "added",
            "gap (usual)",
            "create",
            "met",
        ],
        rows,
    )


def _usual(result: Result) -> str:
    return f" ({max(course.longest_gap_s for course in result.baseline) * 1000:.0f})"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values) * 1000:.0f} / {max(values) * 1000:.0f}"


if __name__ == "__main__":
    main()
