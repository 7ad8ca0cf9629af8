"""Each measure moves with its flaw, agrees with scikit-image, and has a reason where it has no value."""

import functools
import math
import tracemalloc

import numpy as np
import pytest
from scorers import ITEMS
from skimage import measure, metrics

from localdpo.clips import pools, world
from localdpo.ground.noise import generator
from localdpo.scoring import measures
from localdpo.scoring.scorer import get_scorer, score_video

pytestmark = pytest.mark.usefixtures("fakes")


WAYS = [
    ("blur", "blur", 1),
    ("blur", "ssim_next", 1),
    ("noise", "warp_error", 1),
    ("noise", "mse_next", 1),
    ("flicker", "temporal_flickering", -1),
    ("flicker", "warp_error", 1),
    ("flicker", "ssim_next", -1),
    ("shake", "mse_next", 1),
    ("freeze", "motion", -1),
]


@functools.cache
def measured(flaw, strength):
    clips = [item.clip().frames for item in ITEMS[:3]]
    if strength is not None:
        rngs = [generator(seed=0, id=item.id, purpose="flaw") for item in ITEMS]
        clips = [pools.spoil(clip, flaw, strength, rng) for clip, rng in zip(clips, rngs, strict=False)]
    return [get_scorer("measures").score(clip, "", 8) for clip in clips]


@pytest.mark.parametrize("flaw, column, way", WAYS)
def test_a_measure_moves_with_the_strength_of_its_flaw(flaw, column, way):
    means = [np.mean([one[column] for one in measured(flaw, s)]) for s in (None, 0.1, 0.5, 1.0)]
    assert (np.diff(means) * way > 0).all(), means


def test_a_film_that_stands_still_has_no_motion_and_no_error():
    still = np.repeat(ITEMS[0].clip().frames[:1], 5, 0)
    scores = get_scorer("measures").score(still, "", 8)
    expected = dict(ssim_next=1, mse_next=0, temporal_flickering=1, warp_error=0, motion=0, colour_drift=0)
    assert {name: round(scores[name], 12) for name in expected} == expected


@pytest.mark.parametrize("level", [0, 90, 255])
def test_a_blank_video_is_the_worst_of_all_and_has_no_gap(level):
    blank = score_video(get_scorer("measures"), np.full((9, 32, 32, 3), level, np.uint8), "", 8)
    assert not blank.problems and (blank.scores["blur"], blank.scores["warp_error"], blank.scores["motion"]) == (
        1,
        1,
        0,
    )
    for item in ITEMS:
        sound = get_scorer("measures").score(item.clip().frames, "", 8)
        assert sound["blur"] < 1 and sound["warp_error"] < 1


def test_a_blank_frame_in_a_sound_clip_is_left_out_of_the_mean():
    frames = ITEMS[0].clip().frames.copy()
    whole = get_scorer("measures").per_frame(frames, "", 8)["blur"]
    frames[3] = 0
    each = get_scorer("measures").per_frame(frames, "", 8)["blur"]
    assert np.isnan(each[3]) and get_scorer("measures").score(frames, "", 8)["blur"] == pytest.approx(
        np.delete(whole, 3).mean()
    )


def test_motion_is_a_speed():
    frames = world.render(world.Spec("star", "red", "dotted", "blue", "right"), frames=17).frames
    every, half, slow = (
        get_scorer("measures").score(clip, "", fps)["motion"]
        for clip, fps in ((frames[4:13], 16), (frames[::2], 16), (frames[4:13], 8))
    )
    assert 1.7 < half / every < 2.3 and slow == every / 2


@pytest.mark.parametrize("size", [(2, 2), (6, 8), (10, 16), (12, 12), (16, 200), (330, 20)])
def test_small_and_long_frames_have_scores_or_reasons(size):
    frames = generator(seed=0, id="x", purpose="x").integers(0, 255, (3, *size, 3)).astype(np.uint8)
    scores, problems, _ = score_video(get_scorer("measures"), frames, "", 8)
    lost = [name for name, value in scores.items() if math.isnan(value)]
    expected = ["warp_error", "motion"] if min(size) < 12 else []
    expected += ["ssim_next", "blur"] if min(size) < 7 else []
    assert sorted(lost) == sorted(expected) and bool(problems) == bool(expected)


def test_one_frame_has_no_next():
    scores, problems, _ = score_video(get_scorer("measures"), ITEMS[0].clip().frames[:1], "", 8)
    assert [name for name, value in scores.items() if math.isfinite(value)] == ["blur"]
    assert problems[0].endswith("needs two frames")


def test_long_films_are_computed_in_parts_to_the_same_numbers(monkeypatch):
    frames = ITEMS[1].clip(9, 32).frames
    whole = get_scorer("measures").per_frame(frames, "", 8)
    monkeypatch.setattr(measures, "AT_ONCE", 2 * 32 * 32)
    parts = get_scorer("measures").per_frame(frames, "", 8)
    assert whole.keys() == parts.keys()
    assert all(np.allclose(parts[column], values, rtol=1e-5, atol=0) for column, values in whole.items())


@pytest.mark.slow(2)
def test_the_measures_of_a_large_film_need_little_memory_beside_the_film():
    frames = np.zeros((24, 512, 512, 3), np.uint8)
    frames[:] = np.random.default_rng(0).integers(0, 256, frames.shape[1:], np.uint8)
    tracemalloc.start()
    get_scorer("measures").score(frames, "", 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * frames.nbytes  # of which most is one part of 2**20 pixels


def test_similarity_and_blur_are_those_of_scikit_image():
    light = measures.grey(pools.pool("raw", 3)[2].clip(9, 48).frames)
    ours = measures.similarity(light[:-1], light[1:])
    pairs = zip(light[:-1].astype(float), light[1:].astype(float), strict=True)
    assert np.allclose(ours, [metrics.structural_similarity(a, b, data_range=255) for a, b in pairs], atol=1e-5)
    assert np.allclose(measures.blur(light), [measure.blur_effect(one.astype(float)) for one in light])


@pytest.mark.parametrize("long", [False, True])
def test_attributes_are_right_for_the_prompt_and_wrong_for_another(long):
    item = ITEMS[0]
    right, *_ = score_video(get_scorer("attributes"), item.clip().frames, item.prompt(long), 8)
    other = world.prompt(pools.misspell(item.spec, 1.0, generator(seed=0, id="x", purpose="x")), long)
    wrong, *_ = score_video(get_scorer("attributes"), item.clip().frames, other, 8)
    assert right["words_right"] == 1 and wrong["words_right"] == 0


def test_attributes_and_critics_know_the_same_prompts():
    for prompt in (ITEMS[0].prompt().capitalize() + ".", ITEMS[0].prompt(True).upper(), "a dog", "."):
        told = [score_video(get_scorer(n), ITEMS[0].clip().frames, prompt, 8)[1] for n in ("attributes", "critic-b")]
        assert bool(told[0]) == bool(told[1]) == (world.meant(prompt) is None), told


@pytest.mark.parametrize("prompt, size, why", [("a dog", 32, "a dog.*not of the sprite world"), (None, 64, "9x64x64")])
def test_attributes_name_what_they_cannot_read(prompt, size, why):
    frames = ITEMS[0].clip(9, size).frames
    scores, problems, _ = score_video(get_scorer("attributes"), frames, prompt or ITEMS[0].prompt(), 8)
    assert all(map(math.isnan, scores.values())) and len(problems) == 1
    assert pytest.importorskip("re").search(why, problems[0])
