"What is wrong is said by name at the end of what torchrun prints, too."

import subprocess
import sys

import pytest


@pytest.mark.slow(15)
def test_torchrun_ends_with_the_reason(tmp_path):
    train = ["-m", "localdpo.cli", "train", "tiny-wan-1.3b", tmp_path / "none", "--out", tmp_path / "run"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *map(str, train)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, check=False)
    ours, _, theirs = done.stderr.partition("Traceback")
    reason = f"localdpo: {tmp_path / 'none'}: is not a store of pairs: there is no such folder"
    assert done.returncode == 1 and ours.count(reason) == 1 and "/localdpo/" not in theirs
    cause = theirs.partition("Root Cause")[2]
    assert reason in cause and "-> check the path" in cause and "To enable traceback" not in theirs
