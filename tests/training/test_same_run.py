"A run is known by its weights, pairs, settings and the code of its objective, whatever the model is called."

import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import PROGRAMS
from test_loop import Pairs, Stop, final, fresh, run, stop_after

from localdpo import losses, methods
from localdpo.ground.errors import Refused
from localdpo.training import plan
from localdpo.training.config import TrainConfig


def called(name):
    model = fresh()
    return type(model)(model.pipeline, name)


@pytest.mark.slow(1)
@pytest.mark.parametrize("first, then", [("tiny-wan-1.3b", "/disk/my copy"), ("/disk/my copy", "tiny-wan-1.3b")])
def test_a_run_goes_on_with_the_same_weights_under_another_name(tmp_path, first, then):
    with pytest.raises(Stop):
        run(tmp_path / "run", called(first), Pairs(stop_after(3)), steps=6, lr=None, rank=None)
    run(tmp_path / "run", called(then), steps=6, lr=None, rank=None)
    whole = final(run(tmp_path / "whole", called("tiny-wan-1.3b"), steps=6, lr=None, rank=None))
    assert final(tmp_path / "run")[:3] == whole[:3]  # the fourth says what the model was called


def test_what_suits_a_model_goes_by_its_size():
    for numbers, beta, rank in ((1000, (300.0, 1000.0), 16), (10_000, 5000.0, 64)):
        model = SimpleNamespace(transformer=torch.nn.Linear(numbers, numbers, device="meta"), dtype=torch.float32)
        assert methods.recipe("local_dpo").filled(model).values["beta"] == beta
        assert TrainConfig().filled(model).rank == rank


TOY = (PROGRAMS / "toy_objective.py").read_text()


def objective(folder, text):
    "The function `toy` of a file with `text`."
    import importlib.util

    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    (folder / "mine.py").write_text(text)
    import linecache

    linecache.clearcache()
    spec = importlib.util.spec_from_file_location("mine", folder / "mine.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.toy


@pytest.mark.parametrize("old, new", [("e.policy_w)", "e.policy_w) / 2"), ("error.mean()", "error.mean() * 3")])
def test_a_run_whose_objective_was_edited_is_refused_with_the_way_out(tmp_path, old, new):
    run(tmp_path / "run", recipe=objective(tmp_path / "code", TOY), steps=2)
    edited = objective(tmp_path / "code", TOY.replace(old, new))
    with pytest.raises(Refused, match=r"the objective toy, or what it calls, was edited since\n.*another folder"):
        run(tmp_path / "run", recipe=edited, steps=3)
    explained = TOY.replace("    return error", '    "The mean."\n    # of all places\n    return error')
    run(tmp_path / "run", recipe=objective(tmp_path / "code", explained), steps=3)


def test_an_edited_objective_of_a_method_is_noticed(tmp_path, monkeypatch):
    run(tmp_path / "run", steps=2)
    usual = losses.ra_dpo

    def ra_dpo(*maps, **settings):
        return usual(*maps, **settings)

    monkeypatch.setattr(losses, "ra_dpo", ra_dpo)
    with pytest.raises(Refused, match="the objective local_dpo, or what it calls, was edited"):
        run(tmp_path / "run", steps=3)


def test_a_step_is_timed_on_the_device_it_runs_on(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    plan._timed(lambda: None, torch.device("cuda:1"))
    assert waited == [torch.device("cuda:1")] * 2
