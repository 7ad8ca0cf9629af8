"A folder of an adapter is there with all its files, or it is not there: whoever looks, whenever."

import multiprocessing
import os
import shutil
import sys
import time

import pytest
import torch
from conftest import random_model
from test_loop import Pairs

from localdpo import methods
from localdpo.backbones import adapters
from localdpo.cli.export import export
from localdpo.ground.errors import Refused
from localdpo.training import TrainConfig, checkpoints, opening, train
from localdpo.training.runs import find_adapter


def listing(folder):
    "The names in `folder`; None where it is not there, or was replaced by another while it was read."
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        names = frozenset(os.listdir(handle))
        return names if os.path.samestat(os.fstat(handle), os.stat(folder)) else None
    except FileNotFoundError:
        return None
    finally:
        os.close(handle)


def look(folder, needed, stop, seen):
    "Look into `folder` all the time; puts every listing that lacks a file of `needed`, and the number of looks that found it."
    odd, found = set(), 0
    while not stop.is_set():
        for _ in range(200):
            if (names := listing(folder)) is not None:
                found += 1
                if not needed <= names:
                    odd.add(names)
    seen.put((odd, found))


class Watcher:
    def __init__(self, folder, *needed):
        fork = multiprocessing.get_context("fork")
        self.stop, self.seen = fork.Event(), fork.Queue()
        self.process = fork.Process(target=look, args=(folder, frozenset(needed), self.stop, self.seen), daemon=True)

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, *failure):
        time.sleep(0.3)
        self.stop.set()
        self.odd, self.found = self.seen.get(timeout=60)
        self.process.join(60)


def tuned(folder, steps):
    config = TrainConfig(out=str(folder), steps=steps, batch=2, micro_batch=2, rank=4, save_every=100)
    return train(random_model("tiny-wan-1.3b", layers=2), Pairs(), methods.recipe("sft"), config)


@pytest.mark.slow(1)
def test_a_watcher_never_sees_an_adapter_without_its_files(tmp_path):
    with Watcher(tmp_path / "run/adapter", "pytorch_lora_weights.safetensors", "SHA256SUMS") as watcher:
        for steps in (1, 1, 2, 3):  # made, made again, and replaced by that of a longer run
            tuned(tmp_path / "run", steps)
    assert not watcher.odd and watcher.found > 0


@pytest.mark.parametrize("place", ["hold", "_announce"])
def test_a_run_that_died_as_it_began_is_known_again(tmp_path, monkeypatch, place):
    with monkeypatch.context() as once, pytest.raises(SystemExit):
        once.setattr(opening, place, lambda run: sys.exit())
        tuned(tmp_path / "run", 1)
    shutil.rmtree(tmp_path / "run/checkpoints", ignore_errors=True)  # which may not have been there yet
    assert (tuned(tmp_path / "run", 1) / "adapter").is_dir()


@pytest.mark.slow(2)
def test_a_watcher_never_sees_an_exported_folder_without_its_file(tmp_path):
    tuned(tmp_path / "run", 1)
    for i in range(5):
        with Watcher(tmp_path / f"out-{i}", "pytorch_lora_weights.safetensors") as watcher:
            export(tmp_path / "run", "diffusers", tmp_path / f"out-{i}")
        assert not watcher.odd and watcher.found > 0
    assert {path.name for path in tmp_path.iterdir()} == {"run", *(f"out-{i}" for i in range(5))}


def test_a_folder_that_could_not_be_filled_does_not_appear_and_the_old_one_stays(tmp_path):
    def full(path):
        (path / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(Refused, match="No space left on device"):
        checkpoints.place(tmp_path / "adapter", full)
    assert not any(tmp_path.iterdir())
    checkpoints.place(tmp_path / "adapter", lambda path: (path / "a").write_text("a"))
    with pytest.raises(Refused, match="what was written before is as it was"):
        checkpoints.place(tmp_path / "adapter", full)
    assert [path.name for path in tmp_path.rglob("*")] == ["adapter", "a"]


def test_what_a_killed_run_left_beside_the_adapter_is_removed(tmp_path):
    (tmp_path / "run/.growing-abc").mkdir(parents=True)
    (tmp_path / "run/.growing-abc/pytorch_lora_weights.safetensors").write_bytes(b"half")
    torch.manual_seed(0)
    folder = tuned(tmp_path / "run", 1)
    assert not [path.name for path in folder.iterdir() if path.name.startswith((".growing", ".old"))]


def test_a_run_has_its_own_adapter_whatever_lies_beside_it(tmp_path):
    run = tuned(tmp_path / "run", 1)
    with pytest.raises(Refused, match="is the folder of a run, which has an adapter of its own"):
        export(run, "diffusers", run)
    (run / adapters.FILE).write_bytes((run / "adapter" / adapters.FILE).read_bytes())
    assert find_adapter(run) == run / "adapter" / adapters.FILE
