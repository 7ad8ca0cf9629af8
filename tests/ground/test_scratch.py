"Folders for work in progress go with the process that made them, however it ends."

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localdpo.ground.scratch import scratch

HOLD = """
import sys, time
from localdpo.ground.scratch import scratch
with scratch(sys.argv[1]) as folder:
    (folder / "half a film").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def held(tmp_path):
    "A process that works in such a folder, and the folder."
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()


def test_the_folder_of_a_killed_process_is_removed_by_the_next(held, tmp_path):
    process, folder = held
    with scratch(tmp_path) as ours:
        assert os.listdir(folder) and ours.is_dir(), "who is at work keeps its folder"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.path.isdir(folder)
    with scratch(tmp_path):
        assert not os.path.exists(folder)
    assert os.listdir(tmp_path) == []


def test_what_somebody_else_put_there_stays(tmp_path):
    (tmp_path / "ldpo-mine").mkdir()
    (tmp_path / "ldpo-link").symlink_to(tmp_path / "ldpo-mine")
    (tmp_path / "ldpo-mine" / "film").write_text("")
    with scratch(tmp_path):
        pass
    assert sorted(os.listdir(tmp_path)) == ["ldpo-link", "ldpo-mine"] and os.listdir(tmp_path / "ldpo-mine") == ["film"]


def test_a_folder_whose_owner_has_only_begun_stays_for_a_while(tmp_path):
    for age, name in ((0, "ldpo-new-a"), (3600, "ldpo-new-b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".owner").write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with scratch(tmp_path):
        assert not (tmp_path / "ldpo-new-b").exists() and (tmp_path / "ldpo-new-a").exists()


def pipe_of(process):
    "Where a rerun hears of its notebook's progress."
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if link.readlink().name == "progress":
                return link.readlink()
    return None


@pytest.mark.slow(8)
def test_what_a_killed_rerun_left_is_removed_by_the_next(notebook, tmp_path):
    path = notebook("wait: int = 600", "import time; time.sleep(wait)")
    words = [sys.executable, "-m", "localdpo.cli", "rerun", path, tmp_path / "out.ipynb"]
    process = subprocess.Popen(words)
    while not (pipe := pipe_of(process)):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert pipe.exists() and pipe.parent.name.startswith("ldpo-")
    subprocess.run([*words, "-p", "wait=0"], check=True)
    assert not pipe.parent.exists()
