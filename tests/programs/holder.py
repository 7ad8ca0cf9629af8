"""Hold what is named, say so, and keep it: a run of a folder, perhaps with a step, the step, a shared lock, a device, a journal."""

import fcntl
import subprocess
import sys
import time

from localdpo.ground import leases
from localdpo.ground.journal import Journal

kind, where, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])


def hold(said="held"):
    print(said, flush=True)
    time.sleep(seconds)


if kind == "run":
    with leases.sole_run(where):
        hold()
elif kind == "run-with-step":
    with leases.sole_run(where):
        hold(subprocess.Popen([sys.executable, __file__, "step", *sys.argv[2:]]).pid)
elif kind == "step":
    with leases.job():
        hold()
elif kind == "shared":
    with open(where, "a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        hold()
elif kind == "device":
    with leases.devices(1) as (device,), open(where, "a", buffering=1) as log:
        log.write(f"{time.monotonic()} + {device}\n")
        hold()
        log.write(f"{time.monotonic()} - {device}\n")
elif kind == "journal":
    with Journal(where) as journal:
        hold()
        journal.add(dict(written="before the end"))
