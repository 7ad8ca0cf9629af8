"""The notebooks of nbs/benchmarks run, and what they measure is there; how fast it was is not tested."""

import re

import nbformat
import pytest

from localdpo.engine import rerun
from localdpo.ground import paths

FOLDER = paths.notebooks() / "benchmarks"


def printed(notebook):
    cells = nbformat.read(notebook, 4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))


@pytest.mark.slow(24)
@pytest.mark.timeout(600)
def test_a_step_is_measured_beside_every_habit(tmp_path):
    rerun.run(FOLDER / "01_step.ipynb", tmp_path / "step.ipynb", dict(pairs=2, micro_batch=2, rounds=1))
    lines = re.findall(r"^(\S.*?) +([\d.]+) s +([\d.]+) x +([\d.]+) MiB", printed(tmp_path / "step.ipynb"), re.M)
    assert len(lines) == 7 and lines[0][0] == "ours" and float(lines[0][2]) == 1
    assert all(float(seconds) > 0 and float(memory) > 5 for _, seconds, _, memory in lines)


@pytest.mark.slow(8)
@pytest.mark.timeout(600)
def test_a_pair_is_measured_beside_three_samples(tmp_path):
    rerun.run(FOLDER / "02_pairs.ipynb", tmp_path / "pairs.ipynb", dict(pairs=1, steps=4, rounds=1))
    assert re.search(r"repainted [\d.]+ s, 3 samples [\d.]+ s: [\d.]+ times", printed(tmp_path / "pairs.ipynb"))
