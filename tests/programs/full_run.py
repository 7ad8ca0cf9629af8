"""Train into a folder whose disk runs full after some steps, free it, and train on; prints what was said and kept."""

import sys
from pathlib import Path

import test_loop
import torch
from filling import fill

from localdpo.ground.errors import Refused

torch.set_num_threads(1)
home, at = Path(sys.argv[1]), int(sys.argv[2])


def full(read):
    if read == 2 * at + 2:  # while the pairs of the step after step `at` are read
        fill(home)


try:
    test_loop.run(home / "run", pairs=test_loop.Pairs(full), save_every=int(sys.argv[3]))
except Refused as refusal:
    print(refusal)
print("kept", test_loop.checkpoints.steps(home / "run/checkpoints"))
(home / "films of somebody else").unlink()
test_loop.run(home / "run", save_every=100)
steps = [line["step"] for line in test_loop.alarms.read(home / "run/metrics.jsonl")]
print("all", steps == [*range(1, 13)], "left", sorted(file.name for file in (home / "run/checkpoints").glob(".*")))
(home / "adapter").write_bytes(next((home / "run/adapter").glob("*.safetensors")).read_bytes())
print("digest", test_loop.hashlib.sha256((home / "adapter").read_bytes()).hexdigest())
