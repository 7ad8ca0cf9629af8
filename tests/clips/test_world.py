import hashlib

import numpy as np
import pytest

from localdpo.clips import world
from localdpo.ground.errors import Refused

RNG = np.random.default_rng(0)
EVERY = world.specs()
SOME = [EVERY[i] for i in RNG.choice(len(EVERY), 48, replace=False)]


def test_the_bits_stay_what_they_are():
    # models are trained on these pixels, so they are a promise
    clip = world.render(world.Spec("star", "red", "striped", "blue", "spin", "pan"), seed=3)
    assert (
        hashlib.sha256(clip.frames.tobytes()).hexdigest()
        == "6c4d38520db55c430625579234f7df9ad3cc48ab0fcfe7e65759c30e9db3b29e"
    )


@pytest.mark.parametrize("frames, size", [(9, 32), (5, 64), (2, 48)])
def test_a_clip_comes_with_its_truth(frames, size):
    clip = world.render(SOME[0], 1, frames, size)
    assert clip.frames.shape == (frames, size, size, 3) and clip.frames.dtype == np.uint8
    assert clip.mask.shape == (frames, size, size) and clip.mask.dtype == bool
    assert clip.flow.shape == (frames - 1, size, size, 2) and clip.flow.dtype == np.float32


def test_the_seed_changes_the_accidents_and_nothing_else_does():
    spec = SOME[1]
    assert np.array_equal(world.render(spec, 5).frames, world.render(spec, np.int64(5)).frames)
    assert not np.array_equal(world.render(spec, 5).frames, world.render(spec, 6).frames)


@pytest.mark.parametrize("spec", SOME[:24], ids=str)
def test_the_sprite_fills_much_of_the_frame_and_stays_in_it(spec):
    share = world.render(spec, 0, size=64).mask.mean((1, 2))
    assert share.min() > 0.08 and share.max() < 0.75


@pytest.mark.parametrize("spec", SOME, ids=str)
def test_the_flow_leads_to_the_same_colour(spec):
    clip = world.render(spec, 2, frames=17, size=64)
    here = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1)
    for t in range(0, 16, 5):
        there = (here + clip.flow[t]).round().astype(int)
        inside = ((there >= 0) & (there < 64)).all(-1)
        x, y = there[inside].T
        kept = clip.mask[t][inside] == clip.mask[t + 1][y, x]  # what is covered or uncovered has no partner
        change = np.abs(clip.frames[t].astype(int)[inside] - clip.frames[t + 1][y, x]).mean(-1)[kept]
        stays = np.abs(clip.frames[t].astype(int) - clip.frames[t + 1]).mean()
        assert np.median(change) < 4 and change.mean() < max(12, stays), (t, change.mean(), stays)


def test_a_word_that_is_unknown_is_refused_with_the_list():
    with pytest.raises(Refused, match="shape='hexagon': is not a word.*\n.*disc, square"):
        world.Spec("hexagon", "red", "plain", "blue", "spin")
    with pytest.raises(Refused, match="could not be seen"):
        world.Spec("disc", "red", "plain", "red", "spin")


def test_held_out_specs_are_fixed_and_leave_every_word_to_train_on():
    kept = [spec for spec in EVERY if not world.held_out(spec)]
    assert hashlib.sha256(repr([world.held_out(spec) for spec in EVERY]).encode()).hexdigest()[:12] == "c00c7c408ad5"
    for name in vars(EVERY[0]):
        words = {getattr(spec, name) for spec in EVERY}
        assert words == {getattr(spec, name) for spec in kept} == {getattr(s, name) for s in EVERY if world.held_out(s)}


@pytest.mark.parametrize("long", [False, True])
def test_a_prompt_says_every_word_of_its_spec(long):
    for spec in SOME:
        text = world.prompt(spec, long).lower()
        assert spec.colour in text and spec.shape in text and spec.ground in text and world.MOTIONS[spec.motion] in text
        assert (world.CAMERAS[spec.camera] or "camera does not move" if long else world.CAMERAS[spec.camera]) in text
