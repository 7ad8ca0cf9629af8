import contextlib
import os
import subprocess
import threading
import time
from collections import Counter

import pytest
from conftest import alive, program, wait_for

from localdpo.ground import leases
from localdpo.ground.errors import Refused


def holder(kind, where):
    "A process that holds what is named for a minute, or until it is killed."
    process = subprocess.Popen(program("holder.py", kind, where, 60), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@contextlib.contextmanager
def step_of(folder):
    "Be a step of a run of `folder` on another host, which no thread watches."
    with leases.environment(**{leases.LEADER: f"elsewhere:1:{folder}"}), leases.job():
        yield


@pytest.mark.slow(1)
def test_a_second_run_is_refused_and_told_who_the_first_is(tmp_path):
    first = holder("run", tmp_path)
    with pytest.raises(Refused, match=f"process {first.pid} on"), leases.sole_run(tmp_path):
        pass
    first.kill()
    first.wait()


def test_a_killed_run_leaves_no_lock(tmp_path):
    first = holder("run", tmp_path)
    first.kill()
    first.wait()
    with leases.sole_run(tmp_path):
        assert str(os.getpid()) in leases._note(tmp_path / ".run")


def test_two_folders_do_not_know_of_each_other(tmp_path):
    with leases.sole_run(tmp_path / "a"), leases.sole_run(tmp_path / "b"):
        assert os.environ[leases.LEADER].endswith(f":{tmp_path / 'b'}")
    assert leases.LEADER not in os.environ


@pytest.mark.slow(1)
def test_a_step_ends_with_its_run_and_the_next_run_waits_for_that(tmp_path):
    run = subprocess.Popen(program("holder.py", "run-with-step", tmp_path, 60), stdout=subprocess.PIPE, text=True)
    said = {run.stdout.readline().strip() for _ in range(2)}
    assert "held" in said
    with pytest.raises(Refused), leases.sole_run(tmp_path):
        pass
    run.kill()  # and nobody asks for its status: it stays a zombie, as under a launcher or in a container
    with leases.sole_run(tmp_path, patience=30):
        (pid,) = said - {"held"}
        wait_for(lambda: not alive(pid), 10)  # its locks go a moment before it does
    run.wait()


def test_steps_that_do_not_end_are_named_instead_of_waited_for(tmp_path):
    other = holder("shared", tmp_path / ".steps")
    with pytest.raises(Refused, match="still has steps of an earlier run"), leases.sole_run(tmp_path, patience=0.3):
        pass
    other.kill()
    other.wait()


def test_a_step_without_a_run_needs_nothing(monkeypatch):
    monkeypatch.delenv(leases.LEADER, raising=False)
    threads = threading.active_count()
    with leases.job():
        assert threading.active_count() == threads  # nobody to watch


@pytest.mark.slow(2)
def test_devices_are_never_shared_and_all_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALDPO_DEVICES", "pytest-a,pytest-b")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    log = tmp_path / "log"
    runs = [subprocess.Popen(program("holder.py", "device", log, 0.5)) for _ in range(5)]
    assert [run.wait(timeout=60) for run in runs] == [0] * 5
    held, used = Counter(), Counter()
    for _, sign, device in sorted(line.split() for line in log.read_text().splitlines()):
        held[device] += 1 if sign == "+" else -1
        used[device] += sign == "+"
        assert held[device] in (0, 1)
    assert set(used) == {"pytest-a", "pytest-b"} and used.total() == 5


def test_a_killed_holder_gives_its_device_back(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALDPO_DEVICES", "pytest-only")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    other = holder("device", tmp_path / "log")
    other.kill()
    other.wait()
    started = time.monotonic()
    subprocess.run(program("holder.py", "device", tmp_path / "log", 0), stdout=subprocess.DEVNULL, check=True)
    assert time.monotonic() - started < 10


def test_device_0_of_another_slurm_job_is_another_device(monkeypatch):
    monkeypatch.setenv("LOCALDPO_DEVICES", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "pytest-1")
    with leases.devices(1):
        with pytest.raises(Refused, match="came free"), leases.devices(1, patience=0):
            pass
        monkeypatch.setenv("SLURM_JOB_ID", "pytest-2")
        with leases.devices(1, patience=0) as mine:
            assert mine == ["0"]


@pytest.mark.parametrize("variable", ["LOCALDPO_DEVICES", "CUDA_VISIBLE_DEVICES"])
def test_more_devices_than_there_are_are_refused(variable, monkeypatch):
    monkeypatch.delenv("LOCALDPO_DEVICES", raising=False)
    monkeypatch.setenv(variable, "0,1")
    with pytest.raises(Refused, match="--gpus 3: this host has 2 devices"), leases.devices(3):
        pass


def test_a_negative_number_of_devices_is_refused():
    with pytest.raises(Refused, match="--gpus -1"), leases.devices(-1):
        pass


def test_no_devices_are_asked_for_when_none_are_needed(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with leases.devices(0) as none:
        assert none == [] and os.environ["CUDA_VISIBLE_DEVICES"] == "7"


def test_a_link_in_the_place_of_the_locks_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALDPO_DEVICES", "pytest-only")
    monkeypatch.setattr(leases.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tmp" / f"localdpo-devices-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="is a link or belongs to somebody else"), leases.devices(1):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name, hold", [(".run", leases.sole_run), (".steps", leases.sole_run), (".steps", step_of)])
def test_a_link_in_the_place_of_a_lock_is_refused_and_what_it_names_stays(tmp_path, monkeypatch, name, hold):
    precious = tmp_path / "precious.txt"
    precious.write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(precious)
    with pytest.raises(Refused, match=f"{name}: is a link, and a lock is a file of its own"), hold(tmp_path / "run"):
        pass
    assert precious.read_text() == "years of work"


def test_a_folder_without_room_for_a_lock_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Refused, match=r"cannot be written \(Not a directory\)"),
        leases.sole_run(tmp_path / "file" / "run"),
    ):
        pass


def test_steps_share_what_a_run_has_alone(tmp_path):
    with step_of(tmp_path), step_of(tmp_path):
        with pytest.raises(Refused, match="still has steps"), leases.sole_run(tmp_path, patience=0):
            pass
    with leases._alone(tmp_path / ".steps"), leases._together(tmp_path / ".steps", patience=0.2) as shared:
        assert not shared
