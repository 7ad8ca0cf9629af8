"A job that a cluster ends keeps every step that it made."

import signal

import pytest
from test_loop import alarms, checkpoints, final, program, run

from localdpo.ground.words import counted


@pytest.mark.slow(8)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
@pytest.mark.parametrize("at", range(7))
def test_a_job_that_is_ended_by_a_signal_keeps_its_steps_and_goes_on(tmp_path, name, at):
    done = program("ended_run.py", name, at, tmp_path / "run")
    assert "KeyboardInterrupt: " + name in done.stderr and done.returncode not in (0, -getattr(signal, name))
    kept = checkpoints.steps(tmp_path / "run/checkpoints")
    assert f"stopped; {counted(kept[0] if kept else 0, 'step')} of 12 kept in" in done.stdout
    assert kept in ([max(at - 1, 0)], [at], [at + 1]) or (at < 2 and kept == [])
    if at == 3:
        whole = run(tmp_path / "whole", save_every=100)
        assert final(run(tmp_path / "run", save_every=100)) == final(whole)
        assert len(alarms.read(tmp_path / "run/metrics.jsonl")) == 12


def test_signals_are_given_back(tmp_path):
    before = [signal.getsignal(number) for number in checkpoints.ENDING]
    run(tmp_path / "run", steps=1)
    assert [signal.getsignal(number) for number in checkpoints.ENDING] == before
