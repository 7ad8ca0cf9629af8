import importlib.util

import numpy as np
import pytest

from localdpo.clips import world
from localdpo.ground.errors import Refused
from localdpo.masks import to_latent
from localdpo.pairs import object_masks


@pytest.fixture
def clip():
    return world.render(world.Spec("star", "red", "plain", "blue", "left"))


@pytest.mark.parametrize("room", [0, 1, 3])
def test_a_grown_mask_is_all_within_reach(room):
    mask = np.random.default_rng(room).random((2, 12, 15)) < 0.03
    expected = np.zeros_like(mask)
    for t, y, x in np.argwhere(mask):
        expected[t, max(y - room, 0) : y + room + 1, max(x - room, 0) : x + room + 1] = True
    assert np.array_equal(object_masks.grown(mask, room), expected)


def test_the_sprites_mask_goes_on_like_any_other(clip):
    mask = object_masks.sprite_mask(clip, grow=1)
    assert mask.dtype == bool and mask[clip.mask].all() and mask.sum() > clip.mask.sum()
    assert to_latent(mask, spatial=4).shape == (3, 8, 8)


@pytest.mark.parametrize("room", [-1, 1.5])
def test_room_that_is_no_number_of_pixels_is_refused(clip, room):
    with pytest.raises(Refused, match="is not a distance"):
        object_masks.sprite_mask(clip, room)


def test_without_torchvision_the_models_are_refused_before_anything_loads(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="torchvision.*\n.*score"):
        object_masks.ObjectMasks()


def test_when_nothing_is_found_there_is_no_mask(clip, monkeypatch):
    finder = object.__new__(object_masks.ObjectMasks)
    finder.find = finder.words = None
    monkeypatch.setattr(object_masks, "find", lambda *_: np.zeros((0, 4)))
    with pytest.raises(Refused, match="face, hand in the first frame: nothing was found"):
        finder(clip.frames, ["face", "hand"])
