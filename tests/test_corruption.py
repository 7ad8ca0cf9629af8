"""A loser is its winner outside the mask, bit for bit, and what the frozen model makes of it inside."""

import pytest
import torch
from conftest import random_model

from localdpo import backbones
from localdpo.corruption import Walk, corrupt, fuse, steps_to_walk
from localdpo.ground.errors import Refused
from localdpo.ground.noise import normal_batch

PROMPTS = ["a red disc growing on a plain blue background", "a white wheel spinning on a dotted red background"] * 2


@pytest.fixture(scope="module", params=backbones.TINY)
def backbone(request):
    return random_model(request.param)


@pytest.fixture(scope="module")
def scene(backbone):
    "Four clips, their text and masks of different sizes."
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, *backbone.latent_shape(9, 32, 32), generator=generator)
    mask = torch.zeros(4, *latents.shape[2:], dtype=torch.bool)
    for i in range(4):
        mask[i, i % 3 :, 1 : 4 + i, 2:6] = True
    return latents, backbone.embed(PROMPTS), mask


def losers(backbone, scene, rows=slice(None), alphas=(0.75, 0.5, 1.0, 0.9), steps=8, **options):
    latents, text, mask = (part[rows] for part in scene)
    ids = list(range(4))[rows]
    return corrupt(backbone, latents, text, mask, torch.tensor(alphas)[rows], steps, ids=ids, **options)


def test_outside_the_mask_a_loser_is_its_winner_bit_for_bit(backbone, scene):
    latents, _, mask = scene
    made, inside = losers(backbone, scene), mask[:, None].expand_as(scene[0])
    assert torch.equal(made[~inside], latents[~inside])
    for i in range(4):
        assert (made[i][inside[i]] - latents[i][inside[i]]).abs().mean() > 0.1


def test_fusion_is_equation_3(scene):
    latents, _, mask = scene
    other, m = latents.flip(0), mask[:, None].float()
    assert torch.equal(fuse(mask, other, latents), m * other + (1 - m) * latents)


def test_an_empty_mask_gives_the_winner(backbone, scene):
    latents, text, mask = scene
    assert torch.equal(corrupt(backbone, latents, text, torch.zeros_like(mask), 0.8, 6), latents)


def test_a_full_mask_is_plain_denoising_from_there(backbone, scene):
    latents, text, mask = scene
    made = corrupt(backbone, latents, text, torch.ones_like(mask), 0.75, 8, cfg_scale=3.0, seed=4)
    noise = normal_batch(latents.shape[1:], seed=4, ids=range(4), visits=[0] * 4, purpose="corrupt")
    sampler = backbone.single_steps(8)
    start = sampler.renoise(latents, noise, 2)  # 6 of 8 steps are left
    for i in range(2, 8):
        start = sampler.step(
            backbone.guided(start, sampler.timesteps[i].expand(4), text, 3.0, backbone.embed([""] * 4)), i, start
        )
    assert torch.equal(made, start)


@pytest.mark.slow(2)
def test_clips_of_different_levels_share_a_batch_without_knowing(backbone, scene):
    together = losers(backbone, scene)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], losers(backbone, scene, slice(i, i + 1)), atol=2e-5, rtol=1e-4)


def test_each_clip_takes_exactly_its_steps_with_both_halves_of_guidance_in_one_batch(backbone, scene):
    sizes = []
    hook = backbone.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    losers(backbone, scene)  # 6, 4, 8 and 7 of 8 steps
    hook.remove()
    assert sizes == [2, 4, 6, 6, 8, 8, 8, 8]


@pytest.mark.slow(3)
def test_a_loser_depends_on_its_seed_and_id_alone(backbone, scene):
    first = losers(backbone, scene)
    assert torch.equal(first, losers(backbone, scene))
    assert not torch.equal(first, losers(backbone, scene, seed=1))
    latents, text, mask = scene
    other = corrupt(backbone, latents, text, mask, torch.tensor([0.75, 0.5, 1.0, 0.9]), 8, ids=["a", "b", "c", "d"])
    assert not torch.equal(first, other)


def test_the_adapter_plays_no_part_in_the_reference(backbone, scene):
    first = losers(backbone, scene)
    with backbone.reference():
        assert torch.equal(first, losers(backbone, scene))


@pytest.mark.slow(2)
def test_guidance_and_its_dynamic_form_matter(backbone, scene):
    made = [losers(backbone, scene, **o) for o in (dict(cfg_scale=1.0), dict(cfg_scale=6.0), dict(dynamic_cfg=True))]
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[1], made[2])


@pytest.mark.parametrize(
    "noise_alpha, walked", [(0.75, 38), (0.8, 40), (0.85, 42), (0.9, 45), (0.95, 48), (0, 0), (1, 50)]
)
def test_share_of_steps_is_that_of_the_release(backbone, noise_alpha, walked):
    assert steps_to_walk(backbone, noise_alpha, Walk()) == walked


def test_other_ways_to_read_the_level(backbone):
    assert steps_to_walk(backbone, 0.81, Walk(rounding="ceil")) == 41
    for mode in ("sigma", "train_t"):
        walked = [steps_to_walk(backbone, a, Walk(alpha_mode=mode)) for a in (0, 0.3, 0.6, 0.9, 1)]
        assert walked == sorted(walked) and walked[0] == 0 and walked[-1] == 50
    t = backbone.sampler(50, last=steps_to_walk(backbone, 0.6, Walk(alpha_mode="train_t"))).timesteps[0]
    assert abs(t / 1000 - 0.6) < 0.03
    with pytest.raises(Refused, match="alpha_mode='sigmas'.*\n.*steps or sigma or train_t"):
        Walk(alpha_mode="sigmas")
    with pytest.raises(Refused, match="rounding='floor'.*\n.*round or ceil"):
        Walk(rounding="floor")
    with pytest.raises(Refused, match="noise_alpha=75"):
        steps_to_walk(backbone, 75, Walk())


def test_parts_that_do_not_belong_together_are_refused(backbone, scene):
    latents, text, mask = scene
    for bad in ((latents, text[:3], mask), (latents, text, mask[:, 1:]), (latents, text, mask.float())):
        with pytest.raises(Refused, match=r"(?s)do not belong together.*to_latent"):
            corrupt(backbone, *bad, 0.8, 4)
