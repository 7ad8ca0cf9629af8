"""The tiny models that come with the package: small, whole, made by the notebooks, and as good as they are said to be."""

import json
import re

import nbformat
import numpy as np
import pytest
import torch
from conftest import said

from localdpo import backbones
from localdpo.clips.pools import pool
from localdpo.clips.world import prompt, specs
from localdpo.engine import rerun
from localdpo.ground import paths
from localdpo.ground.errors import Refused
from localdpo.ground.noise import normal
from localdpo.miniature import models, reader
from localdpo.miniature.pretraining import pixels, psnr

NAMES = backbones.TINY


@pytest.fixture(scope="module", params=NAMES)
def backbone(request):
    return backbones.load(request.param)


@pytest.fixture(scope="module")
def clips():
    items = pool("curated", 64, "held out", seed=3)
    return items, torch.from_numpy(np.stack([item.clip().frames for item in items]))


def test_weights_keep_to_their_budget():
    sizes = [
        sum(file.stat().st_size for file in (backbones.WEIGHTS / name).rglob("*") if file.is_file()) for name in NAMES
    ]
    assert max(sizes) <= 8e6 and sum(sizes) <= 24e6


def test_weights_say_which_run_made_them():
    for name in NAMES:
        run = json.loads((backbones.WEIGHTS / name / "run.json").read_text())
        assert run["name"] == name and run["steps"] > 500 and run["held_out"] < 1
        while isinstance(run, dict):  # and the run that made the weights it began from
            assert run["commit"] and run["date"] and run["steps"]
            run = run.get("start")


def test_architectures_are_those_of_the_code(backbone):
    for part in ("transformer", "vae", "text_encoder"):
        fresh = {
            "transformer": lambda: models.transformer(backbone.name),
            "vae": lambda: models.autoencoder(models.family(backbone.name)),
            "text_encoder": lambda: models.text_encoder(models.family(backbone.name)),
        }[part]()
        shipped = getattr(backbone, part)
        assert type(shipped) is type(fresh)
        assert {k: v.shape for k, v in shipped.state_dict().items()} == {
            k: v.shape for k, v in fresh.state_dict().items()
        }


def test_tokenizer_knows_every_prompt_of_the_world(backbone):
    prompts = [prompt(spec, long) for spec in specs()[::97] for long in (False, True)]
    ids, mask = backbone.tokens(prompts)  # refuses unknown words and prompts that are too long
    assert ids.shape == (len(prompts), models.TEXT_LENGTH) and (ids[:, -1] == 0).all()
    assert (mask.sum(1) == (ids != 0).sum(1)).all()


@pytest.mark.slow(6)
def test_plain_diffusers_generates_without_our_package(tmp_path):
    folders = [backbones.WEIGHTS / name for name in NAMES]
    assert said("plain_diffusers.py", *folders, cwd=tmp_path) == "done\n"


@pytest.mark.slow(6)
def test_autoencoder_keeps_faces(backbone, clips):
    _, frames = clips
    back = backbone.decode(backbone.encode(frames))
    assert psnr(pixels(back), pixels(frames)).mean() >= 26


@pytest.mark.slow(2)
def test_latents_are_of_unit_size(backbone, clips):
    latents = backbone.encode(clips[1])
    assert abs(latents.mean()) < 0.3 and 0.8 < latents.std() < 1.25


def test_prediction_points_the_right_way(backbone, clips):
    """Inside the sprite at half noise the error is far below that of a model that says nothing, or says the opposite."""
    items, frames = clips
    z = backbone.encode(frames[:16])
    mask = torch.from_numpy(np.stack([item.clip().mask for item in items[:16]]))[:, ::4, ::4, ::4][:, None]
    noise = torch.stack([normal(z.shape[1:], seed=0, id=i, purpose="test") for i in range(16)])
    t = torch.full((16,), 500)
    text = backbone.embed([item.prompt() for item in items[:16]])
    target = backbone.target(z, noise, t)
    said = backbone.predict(backbone.add_noise(z, noise, t), t, text)
    error = ((said - target).square() * mask).sum() / (mask.sum() * z.shape[1])
    nothing = (target.square() * mask).sum() / (mask.sum() * z.shape[1])
    opposite = ((said + target).square() * mask).sum() / (mask.sum() * z.shape[1])
    assert error < 1.2 and error < 0.6 * nothing and opposite > 2 * nothing


@pytest.mark.slow(3)
def test_the_prompt_matters(backbone, clips):
    items, frames = clips
    z, t = backbone.encode(frames), torch.full((64,), 700)
    noise = torch.stack([normal(z.shape[1:], seed=0, id=i, purpose="test") for i in range(64)])
    noisy, target = backbone.add_noise(z, noise, t), backbone.target(z, noise, t)
    right, wrong = (
        (backbone.predict(noisy, t, backbone.embed(prompts)) - target).square().mean()
        for prompts in ([i.prompt() for i in items], [i.prompt() for i in items[1:] + items[:1]])
    )
    assert right < 0.97 * wrong


@pytest.mark.slow(2)
def test_clips_do_not_depend_on_their_batch(backbone):
    prompts = [prompt(spec) for spec in specs()[:3]]
    together = backbone.generate(prompts, steps=4, seed=5)
    alone = backbone.generate(prompts[1:2], steps=4, seed=5)
    assert (together[1:2].int() - alone.int()).abs().max() <= 1
    twice = backbone.generate(prompts[:1] * 2, steps=4, seed=5)
    once = backbone.generate(prompts[:1], steps=4, seed=5)
    assert (twice[:1].int() - once.int()).abs().max() <= 1
    assert (twice[0].int() - twice[1].int()).abs().max() > 20  # a prompt given twice gives two clips


BARS = dict(texture=0.95, ground=0.95, colour=0.95, motion=0.9, shape=0.7)


@pytest.mark.long(83)
@pytest.mark.timeout(900)
def test_clips_show_what_the_prompt_says(backbone):
    items = pool("curated", 96, "held out", seed=11)
    guidance = json.loads((backbones.WEIGHTS / backbone.name / "check.json").read_text())["cfg_scale"]
    clips = backbone.generate([item.prompt() for item in items], steps=20, cfg_scale=guidance)
    right = reader.agreement(reader.load().read(clips), [item.spec for item in items])
    missed = {name: right[name] for name, bar in BARS.items() if reader.interval(right[name], 96)[1] < bar}
    assert not missed


@pytest.mark.long(32)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["tiny-cogvideox-5b", "tiny-wan-1.3b"])
def test_training_notebooks_make_a_model_from_nothing(name, tmp_path):
    family = models.family(name)
    folder = paths.notebooks() / "miniature"
    few = dict(steps=4, checks=4, batch_size=2)
    rerun.run(
        folder / "01_vae.ipynb",
        tmp_path / "vae.ipynb",
        few | dict(family=family, clips=8, folder=str(tmp_path / "vae")),
    )
    model = dict(name=name, vae=str(tmp_path / "vae" / "vae"), folder=str(tmp_path / name), compiled=False)
    rerun.run(folder / "02_transformer.ipynb", tmp_path / "model.ipynb", few | model | dict(clips=8))
    made = backbones.load(tmp_path / name / "model")
    assert made.generate([prompt(specs()[0])], steps=2).shape == (1, 9, 32, 32, 3)
    assert json.loads((tmp_path / name / "model" / "run.json").read_text())["steps"] == 4
    check = dict(model=str(tmp_path / name / "model"), clips=8, steps=2, cfg_scales="1 2", out=str(tmp_path))
    rerun.run(folder / "03_check.ipynb", tmp_path / "check.ipynb", check)
    assert set(json.loads((tmp_path / "check.json").read_text())["shares"]) == {"real", "autoencoder", "generated"}


@pytest.mark.long(31)
@pytest.mark.timeout(900)
def test_the_comparison_of_objectives_runs_small_and_draws_nothing_twice(tmp_path):
    few = dict(pairs=4, pair_steps=2, steps=2, every=1, batch=2, micro_batch=2, clips=40, sampler_steps=1)
    few |= dict(model="tiny-cogvideox-2b", arms="sft, local_dpo 300", folder=str(tmp_path / "run"))
    notebook = paths.notebooks() / "miniature" / "05_tuning.ipynb"
    rerun.run(notebook, tmp_path / "first.ipynb", few)
    looks = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").glob("*.npy")}
    assert len(looks) == 5  # untuned, and two objectives after one step and after two
    rerun.run(notebook, tmp_path / "second.ipynb", few)
    assert looks == {file: file.stat().st_mtime_ns for file in (tmp_path / "run").glob("*.npy")}
    said = [
        "".join(
            out.get("text", "")
            for cell in nbformat.read(tmp_path / f"{name}.ipynb", 4).cells
            for out in cell.get("outputs", [])
        )
        for name in ("first", "second")
    ]
    results = [re.findall(r"^(?:untuned|sft|local_dpo 300) .*details.*$", text, re.M) for text in said]
    assert len(results[0]) >= 3 and results[0] == results[1]


@pytest.mark.slow(1)
def test_a_deeper_model_starts_where_a_smaller_one_ended(monkeypatch):
    size = models.SIZES["tiny-cogvideox-2b"]
    monkeypatch.setitem(models.SIZES, "deeper-2b", size | dict(num_layers=size["num_layers"] + 2))
    source, deeper = backbones.load("tiny-cogvideox-2b"), models.backbone("deeper-2b", device="cpu")
    models.inherit(deeper.pipeline, "tiny-cogvideox-2b")
    z, t = normal((16, 3, 8, 8), seed=0, id=0, purpose="test")[None], torch.tensor([500])
    with torch.no_grad():
        texts = [model.embed([prompt(specs()[0])]) for model in (source, deeper)]
        ours, theirs = (model.predict(z, t, text) for model, text in zip((deeper, source), texts[::-1], strict=True))
    torch.testing.assert_close(ours, theirs)


def test_a_model_of_another_kind_is_no_start():
    with pytest.raises(Refused, match="tiny-wan-1.3b.*is not a smaller CogVideoX"):
        models.inherit(models.backbone("tiny-cogvideox-2b", device="cpu").pipeline, "tiny-wan-1.3b")
