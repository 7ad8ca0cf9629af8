"""The interface says exactly what diffusers' own pipelines compute, and refuses what they would get wrong in silence."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import random_model, said
from diffusers import DiffusionPipeline

from localdpo import backbones
from localdpo.backbones import files
from localdpo.ground.errors import Refused
from localdpo.miniature import models

PROMPT = "a red disc moving left on a striped blue background"
NAMES = tuple(models.SIZES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Each tiny model with random weights, in which nothing is zero, as a folder on disk."
    root = tmp_path_factory.mktemp("models")
    return {name: models.release(random_model(name).pipeline, root / name, {}) for name in NAMES}


@pytest.fixture(params=NAMES)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def backbone(folder):
    return backbones.load(folder)


@pytest.fixture
def plain(folder):
    "The same model without our package."
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(backbone, *shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample_plain(pipeline, latents, steps, cfg_scale, prompts, **options):
    "What the pipeline makes of our latents, in our order of axes if they stay latents."
    swapped = "CogVideoX" in type(pipeline).__name__
    frames, height, width = (latents.shape[2] - 1) * 4 + 1, latents.shape[3] * 4, latents.shape[4] * 4
    out = pipeline(
        prompts,
        latents=latents.transpose(1, 2) if swapped else latents,
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=cfg_scale,
        max_sequence_length=models.TEXT_LENGTH,
        **{"output_type": "latent"} | options,
    ).frames
    return out.transpose(1, 2) if swapped and torch.is_tensor(out) and "output_type" not in options else out


@pytest.mark.parametrize("height, width", [(32, 32), (32, 48)])
def test_prediction_is_the_pipelines_own_transformer_call(backbone, plain, height, width):
    calls = []
    plain.transformer.register_forward_hook(lambda *call: calls.append(call[-1][0]), with_kwargs=True)
    latents = noise(backbone, 2, *backbone.latent_shape(9, height, width))
    sample_plain(plain, latents, 2, 1.0, [PROMPT, "a white wheel growing"])
    t = backbone.sampler(2).timesteps[:1].repeat(2)
    ours = backbone.predict(latents, t, backbone.embed([PROMPT, "a white wheel growing"]))
    theirs = calls[0].transpose(1, 2) if calls[0].shape[1] != 16 else calls[0]
    assert torch.equal(ours, theirs)


def test_walk_from_noise_is_the_pipelines(backbone, plain):
    latents = noise(backbone, 2, *backbone.latent_shape(9, 32, 32))
    theirs = sample_plain(plain, latents, 8, 5.0, [PROMPT] * 2)
    ours = backbone.denoise(latents, backbone.embed([PROMPT] * 2), backbone.sampler(8), cfg_scale=5.0)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_decoded_clip_is_the_pipelines(backbone, plain):
    latents = noise(backbone, 1, *backbone.latent_shape(9, 32, 32))
    theirs = torch.from_numpy(sample_plain(plain, latents, 3, 1.0, [PROMPT], output_type="np"))
    ours = backbone.decode(backbone.denoise(latents, backbone.embed([PROMPT]), backbone.sampler(3), cfg_scale=1.0))
    assert ours.shape == (1, 9, 32, 32, 3) and ours.float().std() > 1
    assert ((theirs * 255).round() - ours).abs().max() <= 1


def test_latents_of_a_clip_are_scaled_and_come_back(backbone):
    frames = torch.randint(0, 256, (2, 9, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = backbone.encode(frames)
    assert latents.shape == (2, *backbone.latent_shape(9, 32, 32))
    raw = backbone.vae.encode(frames.movedim(-1, 1) / 127.5 - 1).latent_dist.mode()
    torch.testing.assert_close(backbone.unscale(latents), raw, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(latents, raw)
    torch.testing.assert_close(latents[1:], backbone.encode(frames[1]), atol=1e-5, rtol=1e-5)
    assert backbone.decode(latents).shape == frames.shape


def test_features_of_prompts_are_the_pipelines(backbone, plain):
    theirs, _ = plain.encode_prompt([PROMPT, ""], do_classifier_free_guidance=False, max_sequence_length=36)
    torch.testing.assert_close(backbone.embed([PROMPT, ""]), theirs, atol=1e-5, rtol=0)


def test_noise_and_target_are_undone_by_clean(backbone):
    z, e = noise(backbone, 3, 16, 3, 8, 8), noise(backbone, 3, 16, 3, 8, 8, seed=1)
    t = backbone.draw_timesteps(seed=0, ids=["a", "b", "c"], visits=[0, 0, 1])
    noisy, target = backbone.add_noise(z, e, t), backbone.target(z, e, t)
    torch.testing.assert_close(backbone.clean(noisy, target, t), z, atol=1e-5, rtol=0)
    assert not torch.allclose(noisy, z, atol=0.01)


def test_weighted_error_of_the_clip_is_the_error_of_the_velocity(folders):
    backbone = backbones.load(folders["tiny-cogvideox-2b"])
    z, e, guess = (noise(backbone, 4, 16, 3, 8, 8, seed=i) for i in range(3))
    t = torch.tensor([10, 400, 800, 999])
    noisy, v = backbone.add_noise(z, e, t), backbone.target(z, e, t)
    weight = 1 / (1 - backbone.scheduler.alphas_cumprod[t].float()).view(-1, 1, 1, 1, 1)
    weighted = weight * (backbone.clean(noisy, guess, t) - z).square()
    torch.testing.assert_close(weighted, (guess - v).square(), atol=2e-3, rtol=1e-3)


def test_velocity_agrees_with_the_scheduler(folders):
    backbone = backbones.load(folders["tiny-cogvideox-5b"])
    z, e, t = noise(backbone, 2, 16, 3, 8, 8), noise(backbone, 2, 16, 3, 8, 8, seed=1), torch.tensor([5, 950])
    torch.testing.assert_close(backbone.add_noise(z, e, t), backbone.scheduler.add_noise(z, e, t))
    torch.testing.assert_close(backbone.target(z, e, t), backbone.scheduler.get_velocity(z, e, t))


@pytest.mark.parametrize(
    "name, left",
    [
        ("tiny-cogvideox-2b", [0.099, 0.076, 0.056, 0.031, 0.011]),
        ("tiny-cogvideox-5b", [0.172, 0.134, 0.099, 0.055, 0.019]),
    ],
)
def test_share_of_the_clip_left_at_the_papers_noise_levels(folders, name, left):
    backbone = backbones.load(folders[name])
    t = torch.stack([backbone.sampler(50, last=n).timesteps[0] for n in (38, 40, 42, 45, 48)])
    assert t.tolist() == [759, 799, 839, 899, 959]
    one, zero = torch.ones(5, 1, 1, 1, 1), torch.zeros(5, 1, 1, 1, 1)
    torch.testing.assert_close(backbone.add_noise(one, zero, t).flatten(), torch.tensor(left), atol=6e-4, rtol=0)
    last = torch.tensor([999])
    assert torch.equal(backbone.add_noise(one[:1], zero[:1] + 2, last), zero[:1] + 2)  # no signal at the end


def test_wan_starts_at_the_shifted_levels(folders):
    backbone = backbones.load(folders["tiny-wan-1.3b"])
    starts = torch.stack([backbone.sampler(50, last=n).sigmas[0] for n in (38, 40, 42, 45, 48)])
    torch.testing.assert_close(starts, torch.tensor([0.904, 0.923, 0.940, 0.964, 0.986]), atol=2e-3, rtol=0)


def test_euler_and_unipc_walk_the_same_levels(folders):
    backbone = backbones.load(folders["tiny-wan-1.3b"])
    latents, text = noise(backbone, 1, 16, 3, 8, 8), backbone.embed([PROMPT])
    fine = [backbone.denoise(latents, text, backbone.sampler(40, solver=s), cfg_scale=1.0) for s in ("euler", "unipc")]
    assert 0 < (fine[0] - fine[1]).square().mean().sqrt() < 0.1 * fine[1].std()


def test_a_late_start_continues_the_whole_walk(backbone):
    latents, text, seen = noise(backbone, 1, 16, 3, 8, 8), backbone.embed([PROMPT]), []
    options = {"solver": "euler"} if "wan" in backbone.name else {}

    def each(i, x):
        seen.append(x)
        return x

    whole = backbone.denoise(latents, text, backbone.sampler(6, **options), cfg_scale=2.0, each=each)
    late = backbone.denoise(seen[3], text, backbone.sampler(6, last=2, **options), cfg_scale=2.0)
    assert torch.equal(late, whole)
    sampler = backbone.sampler(6, last=2, **options)
    assert torch.equal(sampler.renoise(latents, noise(backbone, *latents.shape), 2), latents)  # the end has no noise


def test_each_sample_has_its_own_timestep(backbone):
    latents, text = noise(backbone, 3, 16, 3, 8, 8), backbone.embed([PROMPT, "a pink star growing", ""])
    t = torch.tensor([20, 500, 980])
    together = backbone.predict(latents, t, text)
    alone = [backbone.predict(latents[i : i + 1], t[i : i + 1], text[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-6, rtol=0)
    assert not torch.allclose(together, backbone.predict(latents, t.flip(0), text), atol=1e-3)


def test_timesteps_depend_on_their_address_alone(backbone):
    many = backbone.draw_timesteps(seed=3, ids=range(2000), visits=[1] * 2000)
    one = backbone.draw_timesteps(seed=3, ids=[1234], visits=[1])
    assert torch.equal(many[1234:1235], one)
    assert 0 <= many.min() and many.max() <= 1000 and abs(many.float().mean() - 500) < 20
    if "wan" in backbone.name:
        middle = ((many > 337) & (many < 663)).float().mean()  # half of a logit-normal
        assert abs(middle - 0.5) < 0.05
        shifted = backbone.draw_timesteps(seed=3, ids=range(2000), visits=[1] * 2000, shift=3.0)
        torch.testing.assert_close(shifted, 3 * many / (1 + 2 * many / 1000), rtol=1e-4, atol=1e-2)


def test_timesteps_can_be_as_noisy_as_those_of_another_schedule(folders):
    two, five = (backbones.load(folders[f"tiny-cogvideox-{size}"]) for size in ("2b", "5b"))
    address = dict(seed=3, ids=range(500), visits=[1] * 500)
    theirs = five.draw_timesteps(**address)
    assert torch.equal(five.draw_timesteps(**address, shift=1.0), theirs)
    ours = two.draw_timesteps(**address, shift=1.0)
    signal = [model.scheduler.alphas_cumprod[t] for model, t in ((two, ours), (five, theirs))]
    torch.testing.assert_close(*signal, atol=4e-3, rtol=0)
    assert (ours < two.draw_timesteps(**address)).float().mean() > 0.95  # less noise than its own schedule


@pytest.mark.parametrize("frames", [0, 2, 8, 10, 12])
def test_frame_counts_that_do_not_fit_are_refused_with_those_that_do(backbone, frames):
    with pytest.raises(Refused, match=rf"{frames} frames.*\n.*use (1|5|9) or") as refusal:
        backbone.encode(torch.zeros(frames, 16, 16, 3, dtype=torch.uint8))
    below, above = (int(word) for word in refusal.value.then.split() if word.isdigit())
    for count in (below, above):
        assert backbone.decode(backbone.encode(torch.zeros(count, 16, 16, 3, dtype=torch.uint8))).shape[1] == count


def test_two_latents_that_cogvideox_would_decode_to_eight_frames_are_refused(folders):
    backbone = backbones.load(folders["tiny-cogvideox-2b"])
    assert backbone.vae.decode(torch.zeros(1, 16, 2, 8, 8)).sample.shape[2] == 8  # not five: why it is refused
    with pytest.raises(Refused, match="use 1 or 9 frames"):
        backbone.latent_shape(5, 32, 32)


def test_sizes_that_do_not_fit_are_refused(backbone):
    with pytest.raises(Refused, match="height 36.*multiple"):
        backbone.latent_shape(9, 36, 32)
    with pytest.raises(Refused, match="cannot be clips"):
        backbone.encode(torch.zeros(1, 9, 32, 32, 3))


def test_half_precision_is_refused_for_5b_alone(folders):
    with pytest.raises(Refused, match="(?s)tiny-cogvideox-5b in float16.*bfloat16"):
        backbones.load(folders["tiny-cogvideox-5b"], dtype=torch.float16)
    assert backbones.load(folders["tiny-cogvideox-2b"], dtype=torch.float16).dtype == torch.float16
    assert backbones.load(folders["tiny-wan-1.3b"], dtype=torch.bfloat16).vae.dtype == torch.float32


def test_prompts_that_would_be_cut_or_misread_are_refused(backbone):
    with pytest.raises(Refused, match="(?s)never saw: elephant.*world.prompt"):
        backbone.embed(["a red elephant"])
    with pytest.raises(Refused, match="has 41 tokens.*reads 36"):
        backbone.embed(["a red disc " + "and " * 37])


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(Refused, match="(?s)'tiny-cogvideo'.*tiny-cogvideox-2b.*cogvideox-5b.*wan2.1-1.3b"):
        backbones.load("tiny-cogvideo")
    with pytest.raises(Refused, match="'/no/such/folder'"):
        backbones.load("/no/such/folder")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_missing_and_damaged_weights_are_refused_by_name(folder, tmp_path, part):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = next((copy / part).glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(Refused, match=rf"(?s){part}/.*damaged or cut short.*download it again"):
        backbones.load(copy)
    weights.write_bytes(whole[:-100] + bytes(100))  # still opens, but it is not what was released
    with pytest.raises(Refused, match=rf"{part}/.*not the file that was released"):
        backbones.load(copy)
    weights.unlink()
    with pytest.raises(Refused, match=rf"{part}: holds no weights"):
        backbones.load(copy)
    shutil.rmtree(copy / part)
    with pytest.raises(Refused, match=rf"{part}: is missing"):
        backbones.load(copy)


BROKEN = {
    "model_index.json": ("{", "[]", "\x00", "[" * 100_000),
    "checksums.json": ("[]", "{"),
    "transformer/config.json": (None, "", "[]"),
    "vae/config.json": (None, "{"),
    "text_encoder/config.json": (None, "{"),
    "scheduler/scheduler_config.json": (None, "[1]"),
    "tokenizer/tokenizer_config.json": (None,),
}


@pytest.mark.parametrize("name, text", [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_a_broken_file_is_named_with_a_way_out(folders, tmp_path, name, text):
    copy = shutil.copytree(folders["tiny-cogvideox-2b"], tmp_path / "copy")
    if name != "checksums.json":  # without it nobody can tell in advance that a file is another
        (copy / "checksums.json").unlink()
        (copy / "run.json").unlink()
    (copy / name).unlink() if text is None else (copy / name).write_text(text)
    with pytest.raises(Refused, match="copy or download it again") as refusal:
        backbones.load(copy)
    assert refusal.value.what == str(copy / name)


def test_what_only_the_libraries_find_broken_names_the_folder(folders, tmp_path):
    copy = shutil.copytree(folders["tiny-cogvideox-2b"], tmp_path / "copy")
    (copy / "checksums.json").unlink()
    (copy / "run.json").unlink()
    (copy / "tokenizer" / "tokenizer.json").write_text('{"half": [')
    with pytest.raises(Refused, match="copy: cannot be loaded .*\n.*copy or download it again"):
        backbones.load(copy)


def test_a_tokenizer_without_words_is_named(folders, tmp_path):
    copy = shutil.copytree(folders["tiny-cogvideox-2b"], tmp_path / "copy")
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(Refused, match="tokenizer: holds no vocabulary"):
        backbones.load(copy)
    shutil.rmtree(copy / "tokenizer")
    (copy / "tokenizer").mkdir()
    with pytest.raises(Refused, match="tokenizer/tokenizer_config.json: is missing"):
        backbones.load(copy)


def test_a_broken_file_that_was_shipped_is_to_be_reinstalled(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WEIGHTS", tmp_path)
    copy = shutil.copytree(folders["tiny-cogvideox-2b"], tmp_path / "tiny-cogvideox-2b")
    (copy / "model_index.json").write_text("{")
    with pytest.raises(Refused, match="reinstall localdpo"):
        backbones.load("tiny-cogvideox-2b")


def test_the_reason_of_the_hub_is_cut_between_words(monkeypatch):
    def unreachable(name, **options):
        raise OSError("unreachable " * 40 + "\nand more")

    monkeypatch.setattr(DiffusionPipeline, "download", unreachable)
    with pytest.raises(Refused, match=r"OSError: (unreachable )+\.\.\.\)"):
        backbones.find("wan2.1-1.3b")


def test_a_small_model_is_loaded_without_bars(folders, capsys):
    backbones.load(folders["tiny-cogvideox-2b"])
    assert "oading" not in capsys.readouterr().err


def test_folders_of_something_else_are_refused(tmp_path):
    with pytest.raises(Refused, match="holds no diffusers pipeline"):
        backbones.load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(Refused, match="is a FluxPipeline"):
        backbones.load(tmp_path)


@pytest.mark.slow(6)
def test_too_little_memory_is_refused_before_loading():
    answer = said("little_memory.py", backbones.WEIGHTS / "tiny-wan-1.3b")
    assert "needs about 0.01 GiB" in answer and "dtype=torch.bfloat16" in answer


@pytest.mark.parametrize("wrong", [None, 1, {"prompt": "a"}])
def test_a_prompt_that_is_no_text_is_refused_by_its_place(backbone, wrong):
    for call in (backbone.generate, backbone.embed):
        with pytest.raises(Refused, match=re.escape(f"prompt 1: {wrong!r} is not a text\n  -> pass a text")):
            call(["a red disc", wrong])
    with pytest.raises(Refused, match="prompts None: are not texts"):
        backbone.generate(None)


def test_what_cannot_be_generated_is_refused(backbone):
    assert backbone.generate(PROMPT, steps=2).shape[0] == 1  # one prompt is a list of one
    with pytest.raises(Refused, match="make no clip"):
        backbone.generate([])


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(steps=0), "steps 0: is out of range\n.*1 to 1000"),
        (dict(steps=-1), "steps -1: is out of range"),
        (dict(steps=1.5), "steps 1.5: is not a whole number\n.*1 to 1000"),
        (dict(steps="2"), "steps '2': is not a whole number"),
        (dict(steps=1001), "steps 1001: is out of range"),
        (dict(cfg_scale=float("nan")), "cfg_scale nan: is out of range\n.*0 to 1000"),
        (dict(cfg_scale=-1), "cfg_scale -1: is out of range"),
        (dict(cfg_scale="6"), "cfg_scale '6': is not a number"),
        (dict(size=9), "size 9: is not three whole numbers\n.*49x480x720"),
        (dict(size="9x32x32"), "size 9x32x32: is not three whole numbers"),
        (dict(size=(9, 32.0, 32)), "size 9x32.0x32: is not three whole numbers"),
        (dict(size=()), "size : is not three whole numbers"),
        (dict(seed=0.5), "seed 0.5: is not a whole number"),
        (dict(seed=None), "seed None: is not a whole number"),
        (dict(batch=0), "batch 0: is out of range"),
        (dict(prompts=[" ".join([PROMPT] * 9)]), "tokens, .*\n.*--long-captions cut, in Python captions.read_caption"),
    ],
)
def test_what_makes_no_clip_is_refused_by_name_before_the_first_step(backbone, monkeypatch, wrong, said):
    monkeypatch.setattr(backbone, "denoise", lambda *words: pytest.fail("a step was made"))
    with pytest.raises(Refused, match=said):
        backbone.generate(**dict(prompts=[PROMPT]) | wrong)


def test_whole_numbers_of_numpy_are_whole_numbers(backbone):
    clips = backbone.generate(PROMPT, steps=np.int64(2), seed=np.uint8(3), cfg_scale=np.float32(6))
    assert torch.equal(clips, backbone.generate(PROMPT, steps=2, seed=3, cfg_scale=6.0))


def test_devices_and_number_formats_that_are_not_there_are_refused(folders):
    with pytest.raises(Refused, match="dtype 'float64'"):
        backbones.load(folders["tiny-wan-1.3b"], dtype="float64")
    if not torch.cuda.is_available():
        with pytest.raises(Refused, match="device cuda.*no GPU"):
            backbones.load(folders["tiny-wan-1.3b"], device="cuda")
    with pytest.raises(Refused, match="device 'gpu': is unknown"):
        backbones.load(folders["tiny-wan-1.3b"], device="gpu")


def test_pixels_are_rounded_once_on_their_way_into_16_bits(folders):
    backbone = backbones.load(folders["tiny-cogvideox-2b"], dtype=torch.bfloat16)
    levels = torch.arange(256, dtype=torch.uint8).repeat(108)[: 9 * 32 * 32 * 3].view(1, 9, 32, 32, 3)
    pixels = backbone._pixels(levels)
    assert pixels.dtype == torch.bfloat16
    exact = levels.movedim(-1, 1).double() / 127.5 - 1
    off = (pixels.double() - exact) * 127.5
    assert off.square().mean().sqrt() < 0.13 and torch.equal(pixels, exact.to(torch.bfloat16))
