"""What the fork server imports once, so that a worker starts in milliseconds.

Imported by :mod:`multiprocessing.forkserver` by name and never by the agent. Its
children share these pages. Nothing here may touch CUDA: a CUDA context does not
survive a fork.
"""

import os
import signal
import threading

from tqdm import tqdm

# torch.cuda.is_available() then asks NVML instead of making a context, which
# would make CUDA unusable in every child.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
# torch's CPU threads otherwise spin while they wait for one another: on a machine that does
# anything else, two of them then take five to fifteen times as long as one. Read at import.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Models come from a verified folder; no library may look for one elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# A signal to the whole process group must not end workers before the agent drained
# them: the fork server leaves when its agent does, and workers with it.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

# tqdm otherwise makes a semaphore for all processes, which a killed worker leaks.
tqdm.set_lock(threading.RLock())

import node_agent.engine.worker  # noqa: E402, F401
