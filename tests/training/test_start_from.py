"A run that starts from an adapter learns on top of it, against a reference that has it too; and its own adapter holds both."

import json
import math
import shutil

import pytest
import torch
from test_loop import Pairs, Stop, final, fresh, run, stop_after

from localdpo import losses, methods
from localdpo.backbones import adapters, stacking
from localdpo.ground.errors import Refused
from localdpo.ground.seals import file_sum
from localdpo.training import alarms
from localdpo.training.error_maps import error_maps

SFT = methods.recipe("sft")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    "A run of two steps of SFT; not to be changed."
    return run(tmp_path_factory.mktemp("first") / "run", recipe=SFT, steps=2, lr=1e-2)


def on_top(folder, first, pairs=None, **settings):
    settings = dict(recipe=methods.recipe("dpo", beta=1000.0), steps=4, start_from=str(first)) | settings
    return run(folder, fresh(), pairs or Pairs(), **settings)


def errors(*folders):
    "The errors of the model with the adapter of a run, or none, on two pairs."
    model = fresh()
    for folder in folders:
        adapters.load(model, folder / "adapter")
    with torch.no_grad():
        return error_maps(model, Pairs().batch([0, 1]), seed=0)


def test_the_first_step_is_log_two_at_the_model_that_was_started_from(tmp_path, first, monkeypatch):
    seen = []
    plain = losses.dpo
    monkeypatch.setattr(losses, "dpo", lambda maps, **settings: (seen.append(maps), plain(maps, **settings))[1])
    line = alarms.read(on_top(tmp_path / "run", first, steps=1, batch=2) / "metrics.jsonl")[0]
    assert math.isclose(line["loss"], math.log(2), rel_tol=1e-7) and line["margin"] == line["logit_max"] == 0
    maps = seen[-1]
    assert torch.equal(maps.policy_w, maps.ref_w) and torch.equal(maps.policy_l, maps.ref_l)


@pytest.mark.slow(1)
def test_the_reference_has_the_adapter_beneath_and_the_tuned_model_both(tmp_path, first):
    "What the adapter of the run does on the bare model is what the policy did in the run."
    folder = on_top(tmp_path / "run", first, lr=1e-2)
    below, both = adapters.read(first / "adapter"), adapters.read(folder / "adapter")
    assert both.rank == 2 * below.rank == 8
    for key, matrix in both.matrices.items():
        part = matrix[:4] if ".lora_A." in key else matrix[:, :4]
        assert torch.equal(part, below.matrices[key])
    model = fresh()
    stacking.put_beneath(model, first / "adapter")
    adapters.add(model, below.rank, below.alpha)
    stacking.waken(model)
    with torch.no_grad():
        for key, p in adapters.weights(model).items():
            p.copy_(stacking.top(both, 4)[key])
        beside = error_maps(model, Pairs().batch([0, 1]), seed=0)
    alone = errors(folder)
    torch.testing.assert_close(beside.policy_w, alone.policy_w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(beside.ref_w, errors(first).policy_w, rtol=1e-4, atol=1e-5)
    assert torch.equal(alone.ref_w, errors().policy_w) and not torch.allclose(alone.policy_w, beside.ref_w)


@pytest.mark.slow(2)
def test_a_stopped_run_on_top_of_another_ends_bit_for_bit_like_one_that_was_not(tmp_path, first):
    moved = shutil.copytree(first, tmp_path / "moved")  # the file counts, not its place
    with pytest.raises(Stop):
        on_top(tmp_path / "run", first, Pairs(stop_after(3)))
    assert adapters.read(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]).rank == 8
    on_top(tmp_path / "run", moved)
    assert final(tmp_path / "run") == final(on_top(tmp_path / "whole", first))


def test_a_run_says_what_it_started_from(tmp_path, first):
    said = json.loads((on_top(tmp_path / "run", first) / "run.json").read_text())
    file = first / "adapter" / adapters.FILE
    assert said["started"]["adapter"] == said["config"]["start_from"] == str(file)
    assert said["identity"]["started"] == file_sum(file)
    assert said["started"]["run"] == json.loads((first / "run.json").read_text())["identity"]


def test_who_judged_the_pairs_below_judges_no_run_on_top(tmp_path, first):
    judged = shutil.copytree(first, tmp_path / "judged")
    said = json.loads((judged / "run.json").read_text()) | dict(judges=["critic-a"])
    (judged / "run.json").write_text(json.dumps(said))
    folder = on_top(tmp_path / "run", judged, steps=1)
    assert json.loads((folder / "run.json").read_text())["judges"] == ["critic-a"]


@pytest.mark.slow(1)
def test_three_in_a_row_and_plain_diffusers_reads_the_last(tmp_path, first):
    second = on_top(tmp_path / "second", first, alpha=3.0, rank=2, lr=1e-2)
    third = on_top(tmp_path / "third", second, rank=3, lr=1e-2)
    model = fresh()
    model.pipeline.load_lora_weights(third / "adapter")
    with torch.no_grad():
        found = error_maps(model, Pairs().batch([0, 1]), seed=0).policy_w
    expected = errors(third).policy_w
    assert adapters.read(third / "adapter").rank == 4 + 2 + 3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def damaged(first, tmp_path):
    copy = shutil.copytree(first / "adapter", tmp_path / "copy" / "adapter").parent
    shutil.copy(first / "run.json", copy)
    file = copy / "adapter" / adapters.FILE
    file.write_bytes(file.read_bytes()[:-1])
    return copy


@pytest.mark.parametrize(
    "start, message",
    [
        (lambda first, tmp_path: tmp_path / "nothing", "nothing: does not exist"),
        (lambda first, tmp_path: tmp_path, "holds no adapter"),
        (damaged, "is damaged: pytorch_lora_weights.safetensors is not what was written"),
        (lambda first, tmp_path: tmp_path / "run", "is of the run .* itself"),
        (lambda first, tmp_path: tmp_path / "run" / "adapter", "is of the run .* itself"),
    ],
)
def test_what_is_no_start_is_refused_before_anything_is_made(tmp_path, first, start, message):
    with pytest.raises(Refused, match=message):
        on_top(tmp_path / "run", start(first, tmp_path))
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_model_is_refused(tmp_path, first):
    with pytest.raises(Refused, match="does not fit tiny-cogvideox-2b: .*it was made for tiny-wan-1.3b"):
        run(tmp_path / "run", fresh("tiny-cogvideox-2b"), start_from=str(first))
    assert not (tmp_path / "run").exists()


def test_another_start_is_another_run(tmp_path, first):
    on_top(tmp_path / "run", first)
    other = run(tmp_path / "other", recipe=SFT, steps=1)
    with pytest.raises(Refused, match="holds another run: started was "):
        on_top(tmp_path / "run", other, steps=5)
    with pytest.raises(Refused, match="holds another run: started was .*, is none"):
        on_top(tmp_path / "run", None, steps=5, start_from=None)
    with pytest.raises(Refused, match="holds another run: .*started was none"):
        run(other, recipe=SFT, steps=2, start_from=str(first))


def test_the_model_is_afterwards_as_it_was(tmp_path, first):
    model = fresh()
    adapters.add(model, 2, 4, "mine")
    before = {name: p.clone() for name, p in model.transformer.named_parameters()}
    run(tmp_path / "run", model, steps=1, start_from=str(first))
    after = dict(model.transformer.named_parameters())
    assert adapters.names(model) == ("mine",) and before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
