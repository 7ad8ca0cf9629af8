"""Kill a run as often as is said, at random moments, and let it end; the start of each costs no import of torch."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import test_loop
import torch

torch.set_num_threads(1)
test_loop.fresh()
draw, killed = random.Random(0), 0
out, kills = Path(sys.argv[1]), int(sys.argv[2])
whole = out.with_name("timed")


def begun(folder, **settings):
    "The number of a process that trains into a folder, quietly."
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        test_loop.run(folder, **settings)
        os._exit(0)
    return child


began = time.time()
os.waitpid(begun(whole), 0)
length = time.time() - began
for _ in range(kills):
    child = begun(out, save_every=draw.choice([1, 2]))
    time.sleep(draw.uniform(0, length * 0.5))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if (out / "adapter").exists():
        print("ended", test_loop.final(out) == test_loop.final(whole))
        shutil.rmtree(out)
os.waitpid(begun(out), 0)
print("killed", killed)
