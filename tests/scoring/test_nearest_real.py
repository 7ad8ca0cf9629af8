"A judge that nobody trained: real clips are faultless, each flaw that it should see costs more as it grows, and blur earns nothing."

import functools
import math

import numpy as np
import pytest

from localdpo.clips import nearest, pools, world
from localdpo.clips.motion import path, view
from localdpo.ground.noise import generator
from localdpo.media import video
from localdpo.scoring import nearest_real
from localdpo.scoring.scorer import get_scorer, score_video

ITEMS = pools.pool("curated", 40, "held out", seed=11)
SCORER = get_scorer("nearest_real")
ERRORS = [name for name in SCORER.columns if name.endswith("error")]


def scores(frames, item):
    return SCORER.score(frames, item.prompt(), 8)


@functools.cache
def spoiled(flaw, strength, count=3):
    "Mean of each column over clips with a flaw."
    rows = []
    for item in ITEMS[:count]:
        rng = generator(seed=0, id=item.id, purpose="flaw")
        other = world.render(pools.misspell(item.spec, 1.0, rng), 1).frames if flaw == "cut" else None
        frames = item.clip().frames
        rows.append(scores(frames if flaw is None else pools.spoil(frames, flaw, strength, rng, other), item))
    return {name: np.mean([row[name] for row in rows]) for name in SCORER.columns}


def is_real(row):
    return max(row[name] for name in ERRORS) < 0.002 and row["gradient_correlation"] > 0.9999


def test_a_real_clip_of_a_held_out_spec_is_found_again():
    assert is_real(scores(ITEMS[0].clip().frames, ITEMS[0]))


@pytest.mark.slow(1)
@pytest.mark.parametrize("motion", world.MOTIONS)
@pytest.mark.parametrize("camera", world.CAMERAS)
def test_real_clips_of_every_motion_and_camera_are_found_again(motion, camera):
    for seed, (shape, texture) in enumerate(zip(world.SHAPES, world.TEXTURES * 2, strict=False)):
        spec = world.Spec(shape, "red", texture, "blue", motion, camera)
        assert is_real(SCORER.score(world.render(spec, seed).frames, world.prompt(spec), 8)), (spec, seed)


@pytest.mark.slow(1)
@pytest.mark.parametrize("frames, size", [(2, 32), (5, 48), (17, 32)])
def test_real_clips_of_other_sizes_are_found_again(frames, size):
    assert is_real(scores(ITEMS[1].clip(frames, size).frames, ITEMS[1]))


@pytest.mark.slow(1)
def test_a_file_costs_less_than_weak_blur_of_the_sprite(tmp_path):
    for item in ITEMS[:6]:
        video.write(tmp_path / "clip.mp4", item.clip().frames, 8)
        row = scores(video.read(tmp_path / "clip.mp4").frames, item)
        assert row["pixel_error"] < 0.05 and row["face_error"] < 0.1 and row["edge_error"] < 0.35
        assert row["change_error"] < 0.02 and row["pixel_correlation"] > 0.95 and row["gradient_correlation"] > 0.88


@pytest.mark.slow(1)
@pytest.mark.parametrize("flaw", [*pools.SPATIAL, *pools.TEMPORAL])
def test_every_flaw_costs_more_as_it_grows(flaw):
    means = [spoiled(flaw, strength) for strength in (0.1, 0.5, 1.0)]
    for name in ("pixel_error", "edge_error"):
        steps = [spoiled(None, 0)[name], *(row[name] for row in means)]
        assert steps == sorted(set(steps)) and steps[1] > 10 * max(steps[0], 1e-4), (name, steps)


@pytest.mark.slow(1)
@pytest.mark.parametrize("kind", pools.SMEARS)
def test_details_cost_more_the_more_they_are_smeared(kind, monkeypatch):
    monkeypatch.setattr(pools, "SMEARS", {kind: pools.SMEARS[kind]})
    for item in ITEMS[:3]:
        clip = item.clip()
        smeared = (pools.smear(clip, s, generator(seed=0, id=item.id, purpose="x")).frames for s in (0.2, 1.0))
        costs = [scores(frames, item)["detail_error"] for frames in (clip.frames, *smeared)]
        assert costs[0] < 0.005 and costs[1] > 0.01 and costs == sorted(costs), (item.id, costs)


def test_a_sprite_that_strays_from_its_path_costs_edges_and_no_details():
    "The sprite of a real clip is drawn again a pixel or so from where it should be, in each frame elsewhere."
    item, rng = ITEMS[0], np.random.default_rng(0)
    found = nearest.fit(item.spec, item.clip().frames)
    way = path(item.spec, 9, found.chance)
    seen = view(way, 32)
    tone = world.tone(item.spec.texture, seen.u, seen.v, *(found.chance[name] for name in ("pitch", "a", "b")))
    there = view(way._replace(x=way.x + rng.normal(0, 1 / 32, 9), y=way.y + rng.normal(0, 1 / 32, 9)), 32)
    every = world.shares(item.spec.shape, there.x, there.y, there.sharp)
    every[4] *= tone
    every[5] -= every[4]
    frames = np.einsum("cp,pthw->thwc", world.paints(item.spec), every).round().astype(np.uint8)
    row = scores(frames, item)
    assert row["edge_error"] > 0.1 and row["detail_error"] < 0.02, row


@pytest.mark.slow(1)
@pytest.mark.parametrize("flaw", ["noise", "shake", "flicker", "cut"])
def test_what_comes_and_goes_costs_more_over_time_than_what_stays(flaw):
    assert spoiled(flaw, 1.0)["change_error"] > 2 * spoiled("blur", 1.0)["change_error"]


def test_a_wrong_caption_costs_and_the_pixels_do_not_tell_which_of_both_is_wrong():
    item, frames = ITEMS[0], ITEMS[0].clip().frames
    for name, word in (("shape", "wheel"), ("colour", "white"), ("texture", "striped")):
        changed = [w for w in dict(shape=world.SHAPES, colour=world.COLOURS, texture=world.TEXTURES)[name]]
        other = next(w for w in [word, *changed] if w not in (getattr(item.spec, name), item.spec.ground))
        spec = world.Spec(**{**vars(item.spec), name: other})
        row = SCORER.score(frames, world.prompt(spec), 8)
        assert row["edge_error"] > 0.02 or row["pixel_error"] > 0.02, (name, row)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_clip_has_all_its_edges_missing(level):
    row, problems, _ = score_video(SCORER, np.full((9, 32, 32, 3), level, np.uint8), ITEMS[0].prompt(), 8)
    assert not problems and all(map(math.isfinite, row.values()))
    assert row["edge_error"] == pytest.approx(1) and row["pixel_error"] > 0.1
    assert row["pixel_correlation"] == row["gradient_correlation"] == 0


@pytest.mark.slow(1)
def test_noise_scores_badly_everywhere():
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    row = scores(frames, ITEMS[0])
    assert row["pixel_error"] > 0.2 and row["edge_error"] > 0.7 and row["gradient_correlation"] < 0.2


@pytest.mark.slow(1)
def test_blur_earns_next_to_nothing_at_edges_that_are_out_of_place():
    for item in ITEMS[:3]:
        shaken = pools.spoil(item.clip().frames, "shake", 0.3, generator(seed=0, id=item.id, purpose="flaw"))
        softer = [pools.spoil(shaken, "blur", s, generator(seed=0, id=0, purpose="flaw")) for s in (0.0, 0.3, 1.0)]
        costs = [scores(clip, item)["edge_error"] for clip in (shaken, *softer)]
        print(costs)
        assert min(costs) > costs[0] - 0.02 and costs[3] > costs[0] + 0.05, costs


@pytest.mark.slow(1)
def test_blur_earns_little_even_in_a_clip_of_another_prompt():
    for item, wrong in zip(ITEMS[:3], ITEMS[3:6], strict=True):
        frames = wrong.clip().frames
        softer = [pools.spoil(frames, "blur", s, generator(seed=0, id=0, purpose="flaw")) for s in (0.2, 1.0)]
        costs = [scores(clip, item)["edge_error"] for clip in (frames, *softer)]
        assert min(costs) > 0.5 and min(costs) > costs[0] - 0.04, costs


def test_the_same_clip_gives_the_same_numbers():
    frames = pools.spoil(ITEMS[2].clip().frames, "shake", 0.5, generator(seed=0, id=0, purpose="flaw"))
    assert scores(frames, ITEMS[2]) == scores(frames.copy(), ITEMS[2])


@pytest.mark.parametrize(
    "prompt, shape, why",
    [
        ("a red star on fire", (9, 32, 32, 3), "knows no such prompt"),
        (None, (9, 32, 48, 3), "9x32x48"),
        (None, (1, 32, 32, 3), "2 frames or more"),
        (None, (9, 128, 128, 3), "16 to 64 pixels"),
    ],
)
def test_what_cannot_be_fitted_is_named(prompt, shape, why):
    row, problems, _ = score_video(SCORER, np.zeros(shape, np.uint8), prompt or ITEMS[0].prompt(), 8)
    assert all(map(math.isnan, row.values())) and why in problems[0]


def test_the_fault_is_in_the_region_where_it_was_put():
    item = ITEMS[0]
    clip = item.clip()
    found = nearest.fit(item.spec, np.where(clip.mask[..., None], clip.frames, clip.frames // 2))
    row = {name: each.mean() for name, each in nearest_real.errors(found).items()}
    assert row["ground"] > 3 * row["sprite"] and row["pixel"] > row["face"], row
