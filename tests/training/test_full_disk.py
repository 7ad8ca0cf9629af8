"A disk that runs full costs no step and no score, and is said in words."

import hashlib
import shutil
import subprocess

import numpy as np
import pytest
from test_loop import find_adapter, program, run

from localdpo.media import video


def may_mount():
    return bool(shutil.which("unshare")) and subprocess.run(["unshare", "-rm", "true"], check=False).returncode == 0


pytestmark = pytest.mark.skipif(not may_mount(), reason="a process may not mount a disk of its own here")


def own_disk(name, size, folder, *words):
    "Run a program of tests/programs with a `folder` that is a disk of its own, of `size`."
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={size} small "$2" && exec "$0" "$@"'
    return program(name, folder, *words, under=["unshare", "-rm", "bash", "-c", mount])


@pytest.mark.slow(12)
@pytest.mark.parametrize("save_every", [100, 2])
def test_a_run_whose_disk_runs_full_keeps_every_step_and_goes_on(tmp_path, save_every):
    done = own_disk("full_run.py", "3m", tmp_path / "disk", 5, save_every)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "No space left on device" in done.stdout and "the same command" in done.stdout
    made = int(done.stdout.partition("stopped; ")[2].split()[0])
    assert made >= 6 and f"kept [{made}]" in done.stdout.replace(f"[{made - 2}, ", "[").replace(f"[{made - 1}, ", "[")
    assert "all True left []" in done.stdout
    whole = find_adapter(run(tmp_path / "whole", save_every=100)).read_bytes()
    assert f"digest {hashlib.sha256(whole).hexdigest()}" in done.stdout


@pytest.mark.slow(12)
def test_a_run_is_refused_where_its_first_checkpoint_has_no_room(tmp_path):
    done = own_disk("full_run.py", "200k", tmp_path / "disk", 5, 100)
    assert "no room for a checkpoint" in done.stdout and "kept []" in done.stdout


@pytest.mark.slow(12)
def test_scores_whose_disk_is_full_are_not_lost(tmp_path):
    for i in range(2):
        video.write_lossless(tmp_path / f"videos/{i}.mp4", np.full((3, 16, 16, 3), 90 * i, np.uint8), 8)
    done = own_disk("full_scores.py", "1m", tmp_path / "disk", tmp_path / "videos")
    assert "scores.partial.jsonl: cannot be written (No space left on device)" in done.stderr
    assert "free some space" in done.stderr
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "status 2" in done.stderr and "status None" in done.stderr and "1.mp4" in done.stderr
