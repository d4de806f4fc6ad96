"""An agent process for tests that kill it: two workers, one of them drawing.

    python tests/support/agent_script.py MODEL_DIR

Prints one line of JSON with the pids once the first worker draws, then waits.
"""

import json
import os
import signal
import sys
from pathlib import Path

from reelmesh.v1 import video_pb2, worker_pb2

from node_agent.engine.settings import WorkerSettings
from node_agent.engine.spawn import start_worker, warm_forkserver
from node_agent.worker_wire import SyncWire

_SPEC = video_pb2.ResolvedSpec(
    prompt="a red ball",
    model="wan-demo",
    model_version="random-1",
    width=64,
    height=64,
    num_frames=49,
    fps=8.0,
    steps=50,
    guidance_scale=3.0,
    flow_shift=5.0,
)


def main() -> None:
    warm_forkserver()
    workers = [start_worker(worker_id=str(i), settings=WorkerSettings()) for i in range(2)]
    wire = SyncWire.of_agent(workers[0].sock)
    load = worker_pb2.WorkerLoad(model_dir=sys.argv[1], device="cpu", threads=1)
    wire.send(worker_pb2.WorkerCommand(load=load))
    wait_for(wire, "loaded")
    generate = worker_pb2.WorkerGenerate(run_id="a", attempt=1, spec=_SPEC)
    wire.send(worker_pb2.WorkerCommand(generate=generate))
    wait_for(wire, "run")
    report = {
        "workers": [worker.pid for worker in workers],
        "forkserver": parent_of(workers[0].pid),
        "torch_in_agent": "torch" in sys.modules,
    }
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    signal.pause()


def wait_for(wire: SyncWire[worker_pb2.WorkerEvent, worker_pb2.WorkerCommand], kind: str) -> None:
    while (event := wire.receive()) is not None:
        if event.WhichOneof("event") == kind:
            return
    os._exit(1)


def parent_of(pid: int) -> int:
    # The name in parentheses may hold anything; what follows is plain.
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


if __name__ == "__main__":
    main()
