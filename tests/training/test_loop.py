"A run ends where it would have ended, whatever happened on the way; and what goes wrong is said."

import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import random_model

from localdpo import losses, methods
from localdpo.backbones import adapters
from localdpo.ground.errors import Failed, Refused
from localdpo.ground.words import counted
from localdpo.miniature import models
from localdpo.pairs.toys import ToyPairs
from localdpo.training import alarms, checkpoints, loop, plan
from localdpo.training.config import TrainConfig
from localdpo.training.loop import Run, gradient, train
from localdpo.training.order import draws
from localdpo.training.runs import find_adapter

SMALL = dict(steps=12, batch=4, micro_batch=2, rank=4, lr=1e-3, warmup=2, save_every=1, keep=2)


def fresh(name="tiny-wan-1.3b", dtype=torch.float32):
    model = random_model(name, layers=1)
    if dtype != torch.float32:
        model.transformer.to(dtype)
    return model


class Pairs(ToyPairs):
    "Ten pairs in memory; `end` is called with the number of batches that were read."

    def __init__(self, end=lambda read: None, count=10):
        super().__init__(count, (16, 2, 4, 4), ((1, 3), (1, 3)))
        self.end, self.read = end, 0

    def batch(self, indices):
        self.end(self.read)
        self.read += 1
        return super().batch(indices)


def final(folder):
    "The bits of the adapter of a run."
    found = adapters.read(folder / "adapter")
    bits = {name: (tuple(m.shape), m.numpy().tobytes()) for name, m in found.matrices.items()}
    return bits, found.rank, found.alpha, found.facts


def weights_hash(model):
    digest = hashlib.sha256()
    for name, value in sorted(model.transformer.state_dict().items()):
        digest.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run(folder, model=None, pairs=None, recipe=None, **settings):
    config = TrainConfig(out=str(folder), **SMALL | settings)
    return train(model or fresh(), Pairs() if pairs is None else pairs, recipe or methods.recipe("local_dpo"), config)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Sums of two threads may differ from those of one in their last bits, and the children of these tests have one."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run that nothing happened to."
    return run(tmp_path_factory.mktemp("runs") / "whole")


class Stop(Exception):
    pass


def stop_after(steps):
    def end(read):
        if read > 2 * steps:  # the first batch is read once more, for the plan
            raise Stop

    return end


# -- what a run leaves behind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", models.SIZES)
def test_the_loss_at_the_first_step_is_what_it_must_be(tmp_path, name):
    line = alarms.read(run(tmp_path / "run", fresh(name), steps=1) / "metrics.jsonl")[0]
    expected = 2 * math.log(2) + 0.1 * line["sft_loss"]
    assert math.isclose(line["loss"], expected, rel_tol=1e-6) and line["logit_max"] == 0 and line["sft_loss"] > 0.1


def test_the_model_is_as_it_was_and_the_adapter_moves_it(tmp_path, whole):
    model = fresh()
    before, names = weights_hash(model), set(model.transformer.state_dict())
    assert final(run(tmp_path / "again", model)) == final(whole)
    assert weights_hash(model) == before and set(model.transformer.state_dict()) == names
    adapters.load(model, whole / "adapter")
    x, t, text = torch.ones(1, *Pairs().shape), torch.tensor([500.0]), torch.zeros(1, 36, 64)
    with torch.no_grad():
        moved = model.predict(x, t, text)
        with model.reference():
            assert not torch.equal(moved, model.predict(x, t, text))


def untimed(lines):
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


TIMES = ("seconds", "data_wait", "tflops")


def test_each_step_says_how_long_it_took_and_how_much_of_that_it_waited(whole, tmp_path):
    class Slow(Pairs):
        def batch(self, indices):
            time.sleep(0.4)
            return super().batch(indices)

    usual, slow = (alarms.read(f / "metrics.jsonl") for f in (whole, run(tmp_path / "run", pairs=Slow(), steps=1)))
    assert all(line["tflops"] > 0 and 0 <= line["data_wait"] <= 1 and "mfu" not in line for line in usual)
    assert slow[0]["data_wait"] * slow[0]["seconds"] > 0.3  # nothing was read ahead of the first step


def test_the_loss_falls_and_every_step_is_written(whole):
    lines = alarms.read(whole / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13)) and lines[-1]["dpo_loss"] < lines[0]["dpo_loss"]
    assert lines[0]["lr"] == 5e-4 and lines[1]["lr"] == 1e-3 and {"margin_inside", "grad_norm"} <= lines[0].keys()


def test_before_the_first_step_the_plan_is_printed(tmp_path, capsys):
    run(tmp_path / "run", steps=1)
    said = capsys.readouterr().out
    assert "4 pairs = 2 x 2 accumulated x 1 process\n" in said and "rank 4, alpha 8, strength 2, " in said
    assert "FLOP a pair" in said and "about" in said
    assert "1, 0.40 times through 10 pairs\n" in said
    run(tmp_path / "run", steps=3)
    assert "of 3, 1.20 times through 10 pairs; where a round ends inside a step, a pair may be in it twice\n" in (
        capsys.readouterr().out
    )
    run(tmp_path / "one", steps=1, batch=1, micro_batch=1, warmup=1)
    said = capsys.readouterr().out
    assert "batch    1 pair = 1 x 1 accumulated x 1 process\n" in said and "0.001 after 1 step\n" in said


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).made_by])
def test_every_method_with_pairs_trains(tmp_path, name):
    assert len(alarms.read(run(tmp_path / name, recipe=methods.recipe(name), steps=2) / "metrics.jsonl")) == 2


def test_a_function_is_a_recipe(tmp_path):
    assert final(run(tmp_path / "run", recipe=lambda e, b: losses.dpo(e, 100.0), steps=1))


# -- exactness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [pytest.param(k, marks=[] if k in (1, 7, 11) else pytest.mark.slow(2)) for k in range(12)]
)
def test_a_run_that_was_stopped_ends_where_it_would_have_ended(tmp_path, whole, step):
    with pytest.raises(Stop):
        run(tmp_path / "run", pairs=Pairs(stop_after(step)))
    assert checkpoints.steps(tmp_path / "run/checkpoints") == [s for s in (step - 1, step) if s > 0]
    assert final(run(tmp_path / "run")) == final(whole)
    mine, theirs = (alarms.read(f / "metrics.jsonl") for f in (tmp_path / "run", whole))
    assert untimed(mine) == untimed(theirs)


@pytest.mark.slow(1)
def test_a_run_that_was_stopped_between_checkpoints_does_the_lost_steps_again(tmp_path, whole):
    for steps, kept in ((4, []), (7, [5]), (3, [5])):
        with pytest.raises(Stop):
            run(tmp_path / "run", pairs=Pairs(stop_after(steps)), save_every=5)
        assert checkpoints.steps(tmp_path / "run/checkpoints") == kept
    assert final(run(tmp_path / "run", save_every=5)) == final(whole)
    assert len(alarms.read(tmp_path / "run/metrics.jsonl")) == 12


@pytest.fixture
def interruptible():
    "Ctrl-C works, also where the tests run as a job in the background, which is started without it."
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.mark.slow(2)
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("place", ["_share", "advance", "reader"])
def test_ctrl_c_keeps_every_step_that_was_made(tmp_path, whole, place, monkeypatch, capsys):
    def interrupt(read):
        if read > 2 * 7:
            raise KeyboardInterrupt

    calls, work = [], getattr(loop, place, None)

    def third_time(*words):
        calls.append(words)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return work(*words)

    if place == "reader":
        pairs, made = Pairs(interrupt), 7
    else:  # before the step changes anything, and in the middle of it
        pairs, made = Pairs(), dict(_share=2, advance=3)[place]
        monkeypatch.setattr(loop, place, third_time)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", pairs=pairs, save_every=100)
    assert checkpoints.steps(tmp_path / "run/checkpoints") == [made]
    assert f"stopped; {counted(made, 'step')} of 12 kept in {tmp_path / 'run'}" in capsys.readouterr().out
    monkeypatch.undo()
    assert final(run(tmp_path / "run", save_every=100)) == final(whole)
    assert f"goes on at step {made + 1} of 12" in capsys.readouterr().out
    mine, theirs = (alarms.read(f / "metrics.jsonl") for f in (tmp_path / "run", whole))
    assert untimed(mine) == untimed(theirs)


def test_passes_of_another_size_make_the_same_steps(tmp_path, whole):
    other = adapters.read(run(tmp_path / "run", micro_batch=4) / "adapter").matrices
    for name, matrix in adapters.read(whole / "adapter").matrices.items():
        torch.testing.assert_close(other[name], matrix, rtol=0, atol=1e-5)


def test_activations_computed_twice_give_the_same_adapter(tmp_path, whole):
    model = fresh()
    other = adapters.read(run(tmp_path / "run", model, recompute=True) / "adapter").matrices
    assert all(torch.equal(other[name], m) for name, m in adapters.read(whole / "adapter").matrices.items())
    assert not model.transformer.is_gradient_checkpointing


def test_a_model_that_ignores_recompute_is_found(tmp_path):
    model = fresh()
    model.transformer.enable_gradient_checkpointing = lambda: None
    with pytest.raises(Failed, match="was asked to compute activations twice and did not"):
        run(tmp_path / "run", model, recompute=True)


def test_in_16_bits_the_first_loss_is_exact_and_the_adapter_is_kept_in_32(tmp_path):
    folder = run(tmp_path / "run", fresh(dtype=torch.bfloat16), steps=2)
    first = alarms.read(folder / "metrics.jsonl")[0]
    assert first["logit_max"] == first["logit_max_inside"] == 0 and first["grad_norm"] > 0
    assert {m.dtype for m in adapters.read(folder / "adapter").matrices.values()} == {torch.float32}


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2])
def test_what_is_drawn_does_not_depend_on_how_it_is_cut(world, micro):
    def seen(world, micro):
        config = TrainConfig(batch=8, micro_batch=micro)
        return [
            [pair for rank in range(world) for i, v in draws(config, 11, step, rank, world) for pair in zip(i, v)]  # noqa: B905
            for step in range(20)
        ]

    assert seen(world, micro) == seen(1, 8)


def test_each_epoch_sees_each_pair_once_and_in_an_order_of_its_own():
    config = TrainConfig(batch=4)
    row = [pair for step in range(33) for i, v in draws(config, 11, step) for pair in zip(i, v, strict=True)]
    epochs = [[i for i, visit in row if visit == epoch] for epoch in range(12)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 12


# -- other processes ------------------------------------------------------------------------------------------------------


def program(name, *words, timeout=600, under=()):
    "Run a program of tests/programs, which may import this module, by itself or `under` another one."
    here = Path(__file__).parent
    places = os.pathsep.join([str(here), str(here.parent), str(here.parents[1])])
    env = os.environ | dict(OMP_NUM_THREADS="1", LOCALDPO_PROGRESS=os.devnull, PYTHONPATH=places)
    line = [*under, sys.executable, here.parent / "programs" / name, *map(str, words)]
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.slow(14)
def test_two_processes_end_where_one_ends(tmp_path, whole):
    done = program("two_processes.py", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 pairs = 2 x 1 accumulated x 2 processes\n" in done.stdout
    two = adapters.read(tmp_path / "two/adapter").matrices
    gap = max((two[n] - m).abs().max().item() for n, m in adapters.read(whole / "adapter").matrices.items())
    assert gap < 1e-6, gap


@pytest.mark.parametrize(
    "kills", [pytest.param(4, marks=pytest.mark.slow(21)), pytest.param(30, marks=pytest.mark.long(31))]
)
def test_a_run_that_was_killed_again_and_again_ends_where_it_would_have_ended(tmp_path, whole, kills):
    done = program("killed_runs.py", tmp_path / "run", kills, timeout=3000)
    assert done.returncode == 0 and "killed" in done.stdout and "ended False" not in done.stdout, done.stderr[-3000:]
    assert int(done.stdout.rpartition("killed")[2]) >= kills // 2
    assert final(tmp_path / "run") == final(whole)


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path):
    from localdpo.ground import leases

    with leases.sole_run(tmp_path / "run"), pytest.raises(Refused, match="is being written by another run"):
        run(tmp_path / "run")


# -- damage ---------------------------------------------------------------------------------------------------------------


def corrupt(file, draw):
    "Damage a file in one of five ways."
    data = bytearray(file.read_bytes())
    way = draw.choice(["flip", "cut", "empty", "zeros", "gone"])
    if way == "gone":
        file.unlink()
        return way
    place = draw.randrange(len(data))
    if way == "flip":
        data[place] ^= 1 << draw.randrange(8)
    elif way == "zeros":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
        if bytes(data) == file.read_bytes():
            data[place] ^= 1
    else:
        data = data[: place if way == "cut" else 0]
    file.write_bytes(data)
    return way


def test_no_damage_to_a_checkpoint_is_accepted(tmp_path):
    import shutil

    source = run(tmp_path / "run", steps=2) / "checkpoints"
    found, draw = [], random.Random(0)
    for i in range(100):
        copied = tmp_path / f"copy-{i}"
        shutil.copytree(source, copied)
        corrupt(draw.choice(sorted((copied / "step-000002").iterdir())), draw)
        with pytest.warns(UserWarning, match="step-000002 is damaged"):
            found.append(checkpoints.latest(copied).name)
        shutil.rmtree(copied)
    assert found == ["step-000001"] * 100


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path, whole):
    with pytest.raises(Stop):
        run(tmp_path / "run", pairs=Pairs(stop_after(6)))
    file = tmp_path / "run/checkpoints/step-000006/optimiser.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="step-000006 is damaged: optimiser.safetensors"):
        assert final(run(tmp_path / "run")) == final(whole)


def test_a_full_disk_leaves_earlier_checkpoints_as_they_were(tmp_path):
    def write(path):
        (path / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    checkpoints.save(tmp_path, 1, lambda path: (path / "a").write_text("a"))
    with pytest.raises(Refused, match="No space left on device"):
        checkpoints.save(tmp_path, 2, write)
    assert checkpoints.latest(tmp_path).name == "step-000001"


def test_nothing_that_is_pickled_is_written(whole):
    kinds = {file.suffix or file.name for file in whole.rglob("*") if file.is_file() and file.name[0] != "."}
    assert kinds == {".safetensors", ".json", ".jsonl", "SHA256SUMS"}


# -- refusals and alarms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(lr=2e-3), "settings.lr was 0.001, is 0.002"),
        (dict(seed=1), "settings.seed was 0, is 1"),
        (dict(recipe=methods.recipe("dpo")), "recipe.name was .*local_dpo.*, is .*dpo"),
        (dict(pairs=Pairs(count=9)), "pairs.count was 10, is 9"),
    ],
)
def test_a_run_with_other_settings_is_refused_and_the_difference_named(whole, change, said):
    with pytest.raises(Refused, match=f"holds another run: .*{said}"):
        run(whole, **change)


def test_another_model_of_the_same_name_is_refused(whole):
    model = fresh()
    with torch.no_grad():
        next(model.transformer.parameters()).add_(1)
    with pytest.raises(Refused, match="weights was"):
        run(whole, model)


def test_a_run_that_lost_its_run_json_goes_on_from_its_checkpoints(tmp_path, whole):
    with pytest.raises(Stop):
        run(tmp_path / "run", pairs=Pairs(stop_after(3)))
    (tmp_path / "run" / "run.json").unlink()
    assert final(run(tmp_path / "run")) == final(whole) and (tmp_path / "run" / "run.json").exists()
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(Refused, match="holds another run"):
        run(tmp_path / "run", lr=1.0)


def test_a_finished_run_says_so_and_can_be_made_longer(tmp_path, whole, capsys):
    run(tmp_path / "run", steps=6)
    capsys.readouterr()
    run(tmp_path / "run", steps=6, pairs=Pairs(stop_after(0)))
    said = capsys.readouterr()
    assert "is finished: all 6 steps were made; its adapter is" in said.out and "0/0" not in said.err
    run(tmp_path / "run", steps=4)
    assert "all 6 steps were made, more than the 4 asked for" in capsys.readouterr().out
    assert final(run(tmp_path / "run")) == final(whole)


def test_a_finished_adapter_without_checkpoints_is_not_replaced_by_a_shorter_run(tmp_path):
    file = find_adapter(run(tmp_path / "run", steps=3))
    before = file.read_bytes(), (tmp_path / "run/metrics.jsonl").read_bytes()
    checkpoints.remove(tmp_path / "run/checkpoints")
    with pytest.raises(Refused, match="adapter: was learnt in 3 steps.*2 steps would replace it"):
        run(tmp_path / "run", steps=2)
    assert before == (file.read_bytes(), (tmp_path / "run/metrics.jsonl").read_bytes())


def test_a_longer_run_that_was_stopped_does_not_pass_off_its_old_adapter_as_new(tmp_path):
    run(tmp_path / "run", steps=2)
    assert find_adapter(tmp_path / "run").parent.name == "adapter"
    with pytest.raises(Stop):
        run(tmp_path / "run", steps=8, pairs=Pairs(stop_after(3)))
    assert find_adapter(tmp_path / "run").parent.name == "step-000005"


def test_a_finished_run_that_lost_its_adapter_says_so_and_gets_it_again(tmp_path, capsys):
    file = find_adapter(run(tmp_path / "run", steps=2))
    whole = file.read_bytes()
    checkpoints.remove(tmp_path / "run" / "adapter")
    capsys.readouterr()
    assert find_adapter(tmp_path / "run").parent.name == "step-000002"
    assert "run has lost its adapter; its newest checkpoint is used: step-000002" in capsys.readouterr().out
    run(tmp_path / "run", steps=2)
    assert find_adapter(tmp_path / "run").read_bytes() == whole


def test_a_finished_run_of_one_step_is_no_plural(tmp_path, capsys):
    for _ in range(2):
        run(tmp_path / "run", steps=1)
    assert "is finished: its step was made; its adapter is" in capsys.readouterr().out


def test_a_damaged_adapter_is_not_used_and_the_whole_checkpoint_of_its_run_is(tmp_path, capsys):
    file = find_adapter(run(tmp_path / "run", steps=1))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Refused, match="adapter: is damaged"):
        find_adapter(tmp_path / "run" / "adapter")
    capsys.readouterr()
    assert find_adapter(tmp_path / "run").read_bytes() == whole
    said = capsys.readouterr().out
    assert said.startswith(f"adapter is damaged: {file.name} is not what was written\n")
    assert "run has a damaged adapter; its newest checkpoint is used: step-000001\n" in said
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(Refused, match="adapter: is damaged"):
        find_adapter(tmp_path / "run")


def test_the_time_of_a_run_grows_with_its_rank(monkeypatch):
    def operations(work, device):  # in place of seconds, which another process may stretch
        with plan.FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    cost = {}
    monkeypatch.setattr(plan, "_timed", operations)
    for rank in (4, 1024):
        model, config = fresh(), TrainConfig(rank=rank, alpha=8.0)
        with loop.policy(model, config):
            cost[rank] = plan.measure(
                model, torch.randn(2, 16, 2, 4, 4), torch.tensor([5, 500]), torch.randn(2, 36, 64)
            )
    assert cost[1024].pair_seconds() > 1.5 * cost[4].pair_seconds() and cost[1024].flops() == cost[4].flops()


def test_a_damaged_pair_costs_no_step(tmp_path):
    def damaged(read):
        if read > 6:  # the pairs of three steps, and of the plan
            raise Refused("pair 7", "is damaged", "make it again")

    with pytest.raises(Refused, match="pair 7"):
        run(tmp_path / "run", pairs=Pairs(damaged), save_every=100)
    assert checkpoints.steps(tmp_path / "run/checkpoints") == [3]


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(Refused, match="is not a folder of a run: it holds letter.txt"):
        run(tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path):
    with pytest.raises(Refused, match="micro_batch 3: does not divide"):
        run(tmp_path, micro_batch=3)
    with pytest.raises(Refused, match="the pairs: are missing"):
        run(tmp_path, pairs=Pairs(count=0))


class Known(Pairs):
    "Pairs that say what they are before they are read, as those of a store do."

    def __init__(self, alphas=(0.85,), masked=True, **more):
        super().__init__(**more)
        self.alphas, self.parts = alphas, ("winner", "loser", *["mask"] * masked)

    def entry(self, i):
        alpha = self.alphas[i % len(self.alphas)]
        return dict(id=f"clip {i}", noise_alpha=alpha, sums=dict.fromkeys(self.parts, "a sum"))

    def batch(self, indices):
        raise AssertionError("no pair is to be read")


@pytest.mark.parametrize(
    "pairs, recipe, said",
    [
        (Pairs(count=3), "dpo", r"batch 4: is more than the 3 pairs there are, .*\n.*--batch 2"),
        (
            Known(masked=False),
            "local_dpo",
            r"10 pairs \(clip 0, clip 1, clip 2, clip 3, clip 4, and 5 more\): have no mask",
        ),
        (
            Known(masked=False, count=4),
            "local_dpo",
            r"4 pairs \(clip 0, clip 1, clip 2, clip 3\): have no mask, .*\n.*dpo",
        ),
        (Known((0.8, 0.8, 0.5, 0.7)), "local_dpo", r"4 pairs \(clip 2, clip 3, clip 6, clip 7\): .* 0.75 to 0.95"),
        (
            Known((0.5, 0.8, 0.8, 0.8, 0.8, 0.8)),
            "local_dpo",
            r"2 pairs \(clip 0, clip 6\): .*\n.*alpha_range=\[0.5,0.8\]",
        ),
        (Known((0.8, 0.8, 0.8, 0.5), count=4), "local_dpo", r"1 pair \(clip 3\): has a noise_alpha outside of"),
        (Known((0.8, None)), "local_dpo", r"5 pairs \(clip 1, clip 3, .* have no noise_alpha, .*\n.*--noise-alpha"),
    ],
)
def test_pairs_that_a_recipe_cannot_use_are_named_before_the_first_is_read(tmp_path, capsys, pairs, recipe, said):
    from localdpo.training.beta import probe_beta

    with pytest.raises(Refused, match=said):
        run(tmp_path / "run", pairs=pairs, recipe=methods.recipe(recipe))
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""
    with pytest.raises(Refused, match=said):
        probe_beta(fresh(), pairs, methods.recipe(recipe), TrainConfig(batch=4, micro_batch=2, rank=4))


def test_pairs_that_fit_the_settings_of_a_recipe_are_read(tmp_path):
    for pairs, recipe in (
        (Known(masked=False), methods.recipe("dpo")),
        (Known((0.5, None)), methods.recipe("sft")),
        (Known((0.75, 0.95)), methods.recipe("local_dpo")),
        (Known((0.5, 0.9)), methods.recipe("local_dpo", weights=(1, 0, 0), alpha_range=(0.5, 0.9))),
        (Known(count=4), methods.recipe("local_dpo")),
    ):
        with pytest.raises(AssertionError, match="no pair is to be read"):
            run(tmp_path / "run", pairs=pairs, recipe=recipe)
        (tmp_path / "run" / "run.json").unlink()


WRONG = [
    (dict(beta=0), "beta 0: does not suit local_dpo\n.*one number or 2 numbers above zero"),
    (dict(beta=-5.0), "beta -5.0: does not suit"),
    (dict(beta=math.nan), "beta nan: does not suit"),
    (dict(beta="high"), "beta 'high': does not suit"),
    (dict(beta=True), "beta True: does not suit"),
    (dict(beta=(1, 2, 3)), "beta .1, 2, 3.: does not suit"),
    (dict(weights=(1, 1)), "weights .1, 1.: does not suit local_dpo\n.*give 3 numbers of zero or more"),
    (dict(weights=5), "weights 5: does not suit"),
    (dict(weights=(1, -1, 1)), "weights .1, -1, 1.: does not suit"),
    (dict(weights=(0, 0, 0)), "train nothing"),
    (dict(weights=(math.nan, 1, 1)), "weights .nan, 1, 1.: does not suit"),
    (dict(alpha_range=(0.9, 0.8)), "alpha_range .0.9, 0.8.: is empty"),
    (dict(alpha_range=0.9), "alpha_range 0.9: does not suit"),
    (dict(masked_sft=""), "masked_sft '': does not suit"),
    (dict(masked_sft=(1,)), "masked_sft .1.: does not suit"),
    (dict(betta=3), "setting 'betta': is not known to local_dpo\n.*alpha_range, beta, "),
]


@pytest.mark.parametrize("settings, said", WRONG)
def test_settings_that_a_method_cannot_use_are_refused_when_it_is_named(settings, said):
    with pytest.raises(Refused, match=said):
        methods.recipe("local_dpo", **settings)


def test_beta_suits_the_model_unless_it_is_given():
    tiny = fresh()
    assert methods.recipe("local_dpo").filled(tiny).values["beta"] == (300.0, 1000.0)
    assert methods.recipe("dpo", beta=7).filled(tiny).values["beta"] == 7
    assert methods.recipe("sft").filled(tiny).values == {}


def test_the_plan_and_the_run_say_which_beta_it_is(tmp_path, capsys):
    folder = run(tmp_path / "run", steps=1)
    assert "local_dpo, beta 300 and 1000" in capsys.readouterr().out
    assert json.loads((folder / "run.json").read_text())["identity"]["recipe"]["beta"] == [300, 1000]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(pairs="st"), "pairs 'st': is not a store of pairs\n  -> pass localdpo.pairs.PairStore"),
        (dict(pairs=None), "pairs None: is not a store of pairs"),
        (dict(backbone="tiny-wan-1.3b"), "backbone 'tiny-wan-1.3b': is not a model\n  -> pass localdpo.backbones.load"),
        (dict(recipe="sft"), "recipe 'sft': is not a recipe\n  -> pass localdpo.methods.recipe"),
        (dict(recipe=None), "recipe None: is not a recipe"),
        (dict(recipe=lambda maps: (maps.policy_w.mean(), {})), "recipe <function .*: cannot be used (TypeError: "),
        (dict(recipe=lambda maps, batch: maps.policy_w.mean()), "recipe <function .*: cannot be used (TypeError: "),
        (dict(recipe=lambda maps, batch: (maps.ref_w.mean(), {})), "recipe <function .*: cannot be used (RuntimeError"),
        (dict(recipe=lambda maps, batch: (maps.policy_w.mean(), dict(a="b"))), "recipe <function .*: cannot be used"),
        (dict(recipe=lambda maps, batch: 1 / 0), "recipe <function .*: cannot be used (ZeroDivisionError: "),
        (dict(recipe=Run), "recipe <class 'localdpo.training.loop.Run'>: cannot be used (TypeError: "),
        (
            dict(config=dict(steps=1)),
            "config {'steps': 1}: is not a record of settings\n  -> pass localdpo.training.Tr",
        ),
    ],
)
def test_what_training_is_called_with_is_looked_at_first(tmp_path, wrong, said):
    from localdpo.training.beta import probe_beta

    sound = dict(
        backbone=fresh(), pairs=Pairs(), recipe=methods.recipe("sft"), config=TrainConfig(tmp_path / "run", batch=2)
    )
    for call in (train, probe_beta):
        with pytest.raises(Refused) as refusal:
            call(**sound | wrong)
        assert re.match(re.escape(said).replace(r"\.\*", ".*"), str(refusal.value)) and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(step=3), "setting 'step': is not known to TrainConfig\n  -> did you mean steps?"),
        (dict(out=None), "out None: names nothing\n  -> give a name, as a text or a Path"),
        (dict(out=""), "out '': names nothing"),
        (dict(steps="3"), "steps '3': is not a whole number\n  -> use a whole number from 1 to"),
        (dict(steps=True), "steps True: is not a whole number"),
        (dict(steps=10**400), f"steps 1{19 * '0'}...000: is out of range"),
        (dict(steps=10**5000), "steps of thousands of digits: is out of range"),
        (dict(lr="fast"), "lr 'fast': is not a number"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_where_it_is_given(settings, said):
    with pytest.raises(Refused) as refusal:
        TrainConfig(**settings)
    assert str(refusal.value).startswith(said)


def test_numbers_of_numpy_are_settings():
    config = TrainConfig(steps=np.int64(7), lr=np.float32(0.5), seed=np.uint8(3))
    assert json.dumps([config.steps, config.lr, config.seed]) == "[7, 0.5, 3]"


def test_compiling_without_a_gpu_is_refused_before_anything_is_written(tmp_path, capsys):
    with pytest.raises(Refused, match="compile: brings nothing on cpu"):
        run(tmp_path / "run", compile=True)
    assert not (tmp_path / "run").exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["trackio", "tensorboard", "wandb"])
def test_a_reporter_that_is_not_installed_is_refused(tmp_path, monkeypatch, name):
    from localdpo.training import checks

    find = checks.importlib.util.find_spec
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda n, *rest: n != name and find(n, *rest) or None)
    with pytest.raises(Refused, match=f"report_to {name}: is not installed\n.*pip install {name}"):
        run(tmp_path / "run", report_to=name)
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_told_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path / "run", steps=2, report_to="tensorboard")
    told = EventAccumulator(str(folder / "localdpo")).Reload()
    for name in ("loss", "margin_inside", "grad_norm", "lr"):
        said = [(event.step, event.value) for event in told.Scalars(name)]
        written = [(line["step"], pytest.approx(line[name])) for line in alarms.read(folder / "metrics.jsonl")]
        assert said == written and len(said) == 2
    assert "localdpo" not in {path.name for path in run(tmp_path / "plain", steps=1).iterdir()}


def test_wandb_is_told_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run", steps=2, report_to="wandb")
    (file,) = tmp_path.rglob("offline-run-*/*.wandb")
    assert all(name in file.read_bytes() for name in (b"grad_norm", b"margin_inside", b"micro_batch"))


def test_trackio_is_told_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "told"))  # which it reads when it is imported
    pytest.importorskip("trackio")
    folder = run(tmp_path / "run", steps=2, report_to="trackio")
    import sqlite3

    (file,) = (tmp_path / "told").rglob("*.db")
    with sqlite3.connect(file) as base:
        told = [json.loads(text) for (text,) in base.execute("select metrics from metrics order by step")]
    assert [line["loss"] for line in told] == [line["loss"] for line in alarms.read(folder / "metrics.jsonl")]


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_launcher_that_would_split_the_model_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(Refused, match=f"{kind}: would split weights that fit .*\n.*--multi_gpu, or torchrun"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_processes_that_have_split_the_model_already_are_refused(tmp_path, monkeypatch):
    import accelerate

    split = mock.Mock(distributed_type=accelerate.utils.DistributedType.FSDP)
    monkeypatch.setattr(accelerate, "Accelerator", lambda **settings: split)
    with pytest.raises(Refused, match="FSDP: would split weights"):
        run(tmp_path / "run")


class Broken(Pairs):
    "Pairs whose fifth batch holds a NaN."

    def batch(self, indices):
        found = super().batch(indices)
        if self.read > 10:
            found.loser[1, 3, 0, 2, 1] = torch.nan
        return found


def test_a_number_that_is_none_stops_the_run_and_is_named(tmp_path):
    with pytest.raises(
        Failed, match=r"it began in loser \(first at \[1, 3, 0, 2, 1\].*\) of pairs clip.*\n.*step \d is kept"
    ):
        run(tmp_path / "run", pairs=Broken())
    assert checkpoints.latest(tmp_path / "run/checkpoints") is not None


def sounded(folder):
    "The alarms in the log of a run, the first four words of each, by step."
    lines = alarms.read(folder / "metrics.jsonl")
    return {line["step"]: [" ".join(text.split()[:4]) for text in line["alarms"]] for line in lines if "alarms" in line}


@pytest.mark.slow(1)
def test_a_policy_that_only_makes_losers_worse_sets_off_the_alarm(tmp_path):
    def away(e, batch):
        loss = (e.policy_w - e.policy_l).mean() - 2 * e.policy_w.mean()  # both errors grow, the loser's no less
        return loss, losses.dpo(e, 5000.0)[1] | dict(loser_share=0.99, logit_max=60.0)

    said = "(?s)99% of the margin comes from losers.*as large as 60: lower beta .localdpo train --probe-beta"
    with pytest.warns(alarms.Alarm, match=said):
        folder = run(tmp_path / "run", recipe=away, steps=22, save_every=100)
    assert sounded(folder) == {20: ["99% of the margin"]}


def test_a_trace_in_the_losers_sets_off_the_alarm(tmp_path):
    def found(e, batch):
        return losses.dpo(e, 5000.0)[0], dict(accuracy=1.0, logit_max=1.0)

    with pytest.warns(alarms.Alarm, match="were all told apart, 16 steps into the run"):
        folder = run(tmp_path / "run", recipe=found, steps=17, save_every=100)
    assert sounded(folder) == {16: ["the last 64 pairs"]}


@pytest.mark.slow(4)
def test_an_adapter_that_does_not_learn_sets_off_the_alarm(tmp_path):
    with pytest.warns(alarms.Alarm, match="the adapter does not learn"):
        folder = run(tmp_path / "run", recipe=methods.recipe("dpo", beta=1e-6), steps=24, save_every=100)
    assert sounded(folder) == {23: ["the adapter does not"]}


def test_a_healthy_run_is_quiet(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", alarms.Alarm)
        folder = run(tmp_path / "run", steps=12, save_every=100)
    assert len(alarms.read(folder / "metrics.jsonl")) == 12 and sounded(folder) == {}


def test_the_gradient_of_a_step_is_that_of_its_pairs_one_by_one():
    model, config = fresh(), TrainConfig(rank=4, **{k: v for k, v in SMALL.items() if k != "rank"}).filled(fresh())
    adapters.add(model, 4, 8)
    named, recipe = adapters.weights(model), methods.recipe("local_dpo")
    with torch.no_grad():
        for p in named.values():
            p.add_(0.02)
    pairs, grads = Pairs(), []
    for passes in ([((0, 1, 2, 3), 1.0)], [((i,), 0.25) for i in range(4)]):
        gradient(model, recipe, config, [(pairs.batch(i), [0] * len(i), share) for i, share in passes])
        grads.append(torch.cat([p.grad.flatten() for p in named.values()]))
        for p in named.values():
            p.grad = None
    together, alone = grads
    assert (together - alone).norm() < 1e-3 * together.norm()  # beta makes differences of rounding 5000 times larger


# -- beta and the command line --------------------------------------------------------------------------------------------


def test_a_probe_suggests_a_beta_and_keeps_nothing():
    from localdpo.training.beta import probe_beta

    model = fresh()
    before = weights_hash(model)
    settings = {name: value for name, value in SMALL.items() if name != "steps"}
    probe = probe_beta(model, Pairs(), methods.recipe("local_dpo"), TrainConfig(**settings), steps=6)
    assert probe.sizes["dpo"].shape == (6, 4) and probe.sizes["dpo"][0].max() == 0 and weights_hash(model) == before
    for term, sizes in probe.sizes.items():
        assert 0.9 < (sizes[3:] * probe.beta[term]).median() < 1.1
    assert "ra_dpo" in str(probe) and "(median)" in str(probe)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    "A tiny model on disk, and a store of pairs that belong to it."
    from localdpo import backbones
    from localdpo.backbones.identity import identity
    from localdpo.pairs.store import Pair, PairStore

    home = tmp_path_factory.mktemp("released")
    models.release(fresh().pipeline, home / "tiny-wan", {})
    model, some = backbones.load(home / "tiny-wan", "cpu"), Pairs().batch(range(6))
    store = PairStore(home / "pairs", dict(identity=identity(model)))
    store.append(
        [
            Pair(some.ids[i], "a red disc", 0.85, 0, some.winner[i], some.loser[i], some.mask[i], some.text[0])
            for i in range(6)
        ]
    )
    return home


def command(*words):
    from localdpo.cli import main as cli

    return cli.main(["train", *map(str, words)])


@pytest.mark.slow(1)
def test_the_command_line_trains_goes_on_and_probes(released, tmp_path, capsys):
    words = (released / "tiny-wan", released / "pairs", "--batch", 2, "--rank", 4, "--lr", 1e-3, "--device", "cpu")
    assert not command(*words, "--out", tmp_path / "run", "--steps", 2, "--beta", 500, "--set", "weights=[1,1,0]")
    assert f"adapter: {tmp_path / 'run/adapter'}" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/run.json").read_text())["identity"]["recipe"]["weights"] == [1, 1, 0]
    assert not command(*words, "--out", tmp_path / "run", "--steps", 3, "--beta", 500, "--set", "weights=[1,1,0]")
    assert [line["step"] for line in alarms.read(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]
    assert command(*words, "--out", tmp_path / "run", "--steps", 3) == 2
    assert "holds another run: recipe.beta was 500.0, is [300.0, 1000.0]" in capsys.readouterr().err
    assert not command(*words, "--probe-beta", "--out", tmp_path / "none") and not (tmp_path / "none").exists()
    assert "median" in (said := capsys.readouterr().out) and "to train with it: --set 'beta=[" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["--beta", "0"], "beta 0.0: does not suit"),
        (["--beta", "nan"], "beta nan: does not suit"),
        (["--set", "weights=[1,1]"], "weights [1, 1]: does not suit"),
        (["--set", "weights"], "is not a name=value"),
        (["--set", "beta=abc"], "says no number for beta\n  -> write a number, as in --set beta=300"),
        (["--set", "beta=nan"], "--set beta=nan: says no number for beta\n  -> write a number, as in --set beta=300"),
        (["--set", "beta=3", "--beta", "4"], "gives beta a second time"),
        (["--compile", "--device", "cpu"], "compile: brings nothing on cpu"),
        (["--device", "gpu"], "device 'gpu': is unknown"),
    ],
)
def test_a_mistake_on_the_command_line_is_refused_before_anything_is_written(released, tmp_path, capsys, words, said):
    assert command(released / "tiny-wan", released / "pairs", "--out", tmp_path / "run", *words) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == "" and not (tmp_path / "run").exists()


def test_a_mistyped_store_is_not_called_unfinished(released, capsys):
    assert command(released / "tiny-wan", released / "piars") == 2
    said = capsys.readouterr().err
    assert "piars: is not a store of pairs: there is no such folder" in said and "check the path" in said


def test_an_alarm_on_the_command_line_is_one_line_for_people(released, tmp_path, capsys):
    words = ("--out", tmp_path / "run", "--device", "cpu", "--recipe", "dpo", "--beta", 1e-6, "--steps", 22)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert not command(released / "tiny-wan", released / "pairs", *words, "--batch", 1, "--rank", 2, "--warmup", 0)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "the adapter does not learn" in line][0].startswith("localdpo: warning: step 21: ")
    assert not any("Alarm" in line or "loop.py" in line for line in said)


def test_a_model_of_another_autoencoder_is_refused(released, tmp_path, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    other = shutil.copytree(released / "tiny-wan", tmp_path / "tiny-wan")
    file = other / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    sums = json.loads((other / "checksums.json").read_text())
    sums["vae/diffusion_pytorch_model.safetensors"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (other / "checksums.json").write_text(json.dumps(sums))
    assert command(other, released / "pairs", "--out", tmp_path / "run") == 2
    assert "(vae differ)" in capsys.readouterr().err


def test_training_holds_no_weights_but_the_transformers_and_loads_them_quietly(released, capfd):
    from localdpo.backbones.hollow import network

    model = network(released / "tiny-wan", "cpu")
    assert {p.device.type for part in (model.vae, model.text_encoder) for p in part.parameters()} == {"meta"}
    assert {p.device.type for p in model.transformer.parameters()} == {"cpu"}
    assert "oading" not in capfd.readouterr().err


def test_pairs_of_another_model_are_refused(released, tmp_path, capsys):
    other = fresh()
    with torch.no_grad():
        next(other.transformer.parameters()).add_(1)
    models.release(other.pipeline, tmp_path / "tiny-other", {})
    assert command(tmp_path / "tiny-other", released / "pairs", "--out", tmp_path / "run") == 2
    assert "was made with another model than" in capsys.readouterr().err


def test_a_method_without_pairs_is_refused_by_the_command(released, tmp_path, capsys):
    for name in ("huvi_dpo",):
        assert command(released / "tiny-wan", released / "pairs", "--recipe", name, "--out", tmp_path / "run") == 2
        said = capsys.readouterr().err
        assert (
            f"method {name}: has no pairs to learn from" in said
            and "choose from dense_dpo, dpo, hybrid, local_dpo, sft, video_dpo" in said
        )
    assert not (tmp_path / "run").exists()
