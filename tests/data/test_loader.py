import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="this system does not say who asks a process to end (Linux does)"
)

# Asks its loaders to end as torchrun and batch systems do; what it is asked to end itself, it notes.
LOADS = """
import os, signal, subprocess, sys, time
from torch.utils.data import DataLoader
from handmesh.data.loader import start_loader

class Numbers:
    def __len__(self):
        return 40
    def __getitem__(self, index):
        time.sleep(0.01)
        return index

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
    batches = iter(DataLoader(Numbers(), num_workers=2, worker_init_fn=start_loader))
    seen = [int(next(batches)) for _ in range(10)]
    subprocess.run(["sh", "-c", f"kill -TERM -{os.getpid()}"])  # which the shell does not outlive either
    seen += [int(number) for number in batches]
    print(seen == list(range(40)), flush=True)
    if sys.argv[1:]:  # an error's traceback can keep them until the end
        kept = iter(DataLoader(Numbers(), num_workers=2, worker_init_fn=start_loader))
        next(kept)
"""


@pytest.mark.parametrize("arguments", [[], ["kept"]])
def test_loaders_go_on_when_all_of_a_run_is_asked_to_end_and_end_with_it(tmp_path, arguments):
    script = tmp_path / "loads.py"
    script.write_text(LOADS)
    process = subprocess.Popen(
        [sys.executable, script, *arguments],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        told, _ = process.communicate(timeout=60)  # its loaders hold the pipe's other end, too
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert told.split() == ["asked", "True"]
    assert process.returncode == 0
