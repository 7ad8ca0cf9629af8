import os
import subprocess
import sys

import nbformat
import pytest
from conftest import PROGRAMS, program

from localdpo.engine import rerun
from localdpo.ground.progress import progress

COUNT = (PROGRAMS / "count.py").read_text()


def test_a_log_gets_lines():
    done = subprocess.run(program("count.py"), capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("work: 3/3 clips") and "\r" not in done.stderr and done.stdout == ""


def test_a_terminal_gets_a_bar(terminal):
    ours, theirs = terminal
    subprocess.run(program("count.py"), stderr=theirs, check=True)
    os.close(theirs)
    assert "\rwork: 100%" in os.read(ours, 100_000).decode()


@pytest.mark.slow(1)
def test_a_notebook_reports_to_the_terminal_of_its_rerun(notebook, tmp_path):
    path = notebook("n: int = 3", COUNT)
    done = subprocess.run(
        [sys.executable, "-m", "localdpo.cli", "rerun", path, tmp_path / "out.ipynb"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "out: work: 3/3 clips" in done.stderr
    assert "3/3" not in (tmp_path / "out.ipynb").read_text()


@pytest.mark.slow(1)
def test_a_log_file_loses_no_line(notebook, tmp_path):
    path = notebook("n: int = 3", COUNT)
    with open(tmp_path / "log", "w") as log:
        log.write("before\n")
        log.flush()
        words = [sys.executable, "-m", "localdpo.cli", "rerun", path, tmp_path / "out.ipynb"]
        subprocess.run(words, stdout=log, stderr=log, check=True)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "before" and lines[-1].startswith("small.ipynb done") and len(lines) >= 4
    assert all(line.startswith("out: work: ") for line in lines[1:-1])


def test_a_terminal_that_is_gone_does_not_stop_the_work(tmp_path):
    environment = {**os.environ, "LOCALDPO_PROGRESS": str(tmp_path / "gone" / "tty")}
    subprocess.run(program("count.py"), env=environment, check=True)
    assert not (tmp_path / "gone").exists()


def test_a_bar_in_a_cell_leaves_no_trace_of_its_speed(notebook, tmp_path):
    path = notebook("n: int = 3", "import os; del os.environ['LOCALDPO_PROGRESS']", COUNT)  # as in JupyterLab
    outputs = nbformat.read(rerun.run(path, tmp_path / "out.ipynb"), as_version=4).cells[-1].outputs
    assert [output.get("data") for output in outputs] == [{"text/plain": ""}]


def test_units_are_counted_as_people_count(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALDPO_PROGRESS", str(tmp_path / "log"))
    for count, unit in ((1, "video"), (2, "video"), (2, "batch")):
        for _ in progress(range(count), "work", unit=unit, every=0):
            pass
    with progress(total=2, description="by hand", unit="prompt", every=0) as bar:
        bar.update(2)
    said = (tmp_path / "log").read_text()
    for words in ("work: 1/1 video, ", "work: 2/2 videos, ", "work: 2/2 batches, ", "by hand: 2/2 prompts, "):
        assert words in said
