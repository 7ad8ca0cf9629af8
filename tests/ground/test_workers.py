"""Each device has a process; one that dies costs its own job only."""

import os
import signal
import subprocess

import pytest
from conftest import alive, program, wait_for

from localdpo.ground.workers import Died, spread


def deadly(device):
    def call(x):
        if x == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return device, x, os.getpid()

    return call


@pytest.mark.slow(4)
def test_each_device_has_a_process_and_every_job_an_answer():
    answers = dict(spread(deadly, [(x,) for x in range(8)], ["a", "b"]))
    assert [answers[i][1] for i in range(8)] == list(range(8)) and {answers[i][0] for i in range(8)} == {"a", "b"}
    assert os.getpid() not in {answer[2] for answer in answers.values()}


@pytest.mark.slow(1)
def test_a_process_that_dies_costs_its_own_job_only():
    answers = dict(spread(deadly, [(0,), ("die",), (2,), ("die",), (4,)], ["a", "b"]))
    assert [i for i, answer in answers.items() if isinstance(answer, Died)] in ([1, 3], [3, 1])
    assert answers[1].exitcode == -9 and [answers[i][1] for i in (0, 2, 4)] == [0, 2, 4]


@pytest.mark.slow(2)
def test_when_the_first_process_is_killed_the_others_end(tmp_path):
    first = subprocess.Popen(program("sleepers.py", tmp_path))
    wait_for(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"))
    others = [int((tmp_path / name).read_text()) for name in "01"]
    assert len({*others, first.pid}) == 3 and all(map(alive, others))
    first.kill()
    first.wait()
    wait_for(lambda: not any(map(alive, others)), 20)
