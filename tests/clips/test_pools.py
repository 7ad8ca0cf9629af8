import hashlib

import numpy as np
import pytest

from localdpo.clips import pools, world
from localdpo.ground.errors import Refused
from localdpo.ground.noise import generator
from localdpo.prompts import suites

SPEC = world.Spec("disc", "yellow", "dotted", "green", "right")
CLIP = world.render(SPEC).frames
OTHER = world.render(world.Spec("star", "pink", "plain", "purple", "left")).frames


def spoil(flaw, strength, frames=CLIP):
    return pools.spoil(frames, flaw, strength, generator(seed=0, id=flaw, purpose="test"), OTHER)


@pytest.mark.parametrize("flaw", pools.SPATIAL | pools.TEMPORAL)
def test_a_stronger_flaw_changes_more(flaw):
    change = [np.abs(spoil(flaw, strength).astype(int) - CLIP).mean() for strength in (0, 0.5, 1)]
    assert 0 < change[0] < change[1] < change[2]


@pytest.mark.parametrize("flaw", pools.SPATIAL | pools.TEMPORAL)
@pytest.mark.parametrize("frames, size", [(2, 32), (5, 48), (17, 64)])
def test_a_flaw_keeps_the_shape_and_takes_any_size(flaw, frames, size):
    clip = world.render(SPEC, 0, frames, size).frames
    spoiled = pools.spoil(clip, flaw, 1.0, generator(seed=0, id=1, purpose="x"), np.zeros_like(clip))
    assert spoiled.shape == clip.shape and spoiled.dtype == np.uint8


def test_a_frozen_clip_stands_still_and_a_cut_one_jumps():
    step = lambda frames: np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))  # noqa: E731
    assert (step(spoil("freeze", 1.0)) == 0).all() and (step(CLIP) > 0).all()
    assert step(spoil("cut", 1.0)).max() > 3 * step(CLIP).max()


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: pools.pool("raw", -1), "count -1: is out of range"),
        (lambda: pools.pool("raw", "3"), "count '3': is not a whole number"),
        (lambda: pools.smear(world.render(SPEC), -0.1, None), "strength -0.1: is out of range\n.*from 0 to 1"),
        (lambda: pools.smear(world.render(SPEC), 1.5, None), "strength 1.5: is out of range"),
        (lambda: pools.smear(world.render(SPEC), float("nan"), None), "strength nan: is out of range"),
        (lambda: pools.pool("raw", 1)[0].clip(9, 8), "size 8: is out of range\n.*from 10 to"),
        (lambda: pools.pool("raw", 1)[0].clip(0), "frames 0: is out of range"),
    ],
)
def test_what_no_clip_of_a_pool_can_be_is_refused(call, said):
    with pytest.raises(Refused, match=said):
        call()


def test_the_smallest_clip_of_a_pool_takes_every_flaw():
    assert {item.clip(2, 10).frames.shape for item in pools.pool("raw", 200)} == {(2, 10, 10, 3)}


@pytest.mark.parametrize("flaw, strength", [("dust", 0.5), ("caption", 0.5), ("blur", 1.5), ("blur", -0.1)])
def test_what_is_no_flaw_is_refused(flaw, strength):
    with pytest.raises(Refused, match=flaw):
        spoil(flaw, strength)


@pytest.mark.parametrize("strength, words", [(0.0, 1), (0.4, 3), (1.0, 6)])
def test_a_wrong_caption_is_wrong_in_as_many_words_as_it_is_strong(strength, words):
    for seed in range(50):
        wrong = pools.misspell(SPEC, strength, generator(seed=seed, id=0, purpose="x"))
        assert sum(getattr(wrong, name) != value for name, value in vars(SPEC).items()) == words


@pytest.mark.parametrize("name", ["raw", "curated"])
def test_what_is_held_out_is_never_trained_on(name):
    train, kept = ({item.spec for item in pools.pool(name, 400, split)} for split in ("train", "held out"))
    assert not train & kept and all(map(world.held_out, kept)) and not any(map(world.held_out, train))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_half_of_what_is_held_out_is_that_of_the_prompts(split):
    found, half = pools.pool("raw", 200, split), set(suites.sprite_specs("motion", split))
    assert {item.spec for item in found} <= half and found[0].id == f"raw-{split}-0-0"
    both = {item.spec for item in pools.pool("raw", 200, "held out")}
    assert both & half and both - half


def test_what_is_held_out_stays_what_it_is():
    items = [item for name in ("raw", "curated") for item in pools.pool(name, 50, "held out")]
    words = "|".join(item.id + item.prompt(True) + str(item.flaw) for item in items)
    assert (
        hashlib.sha256(words.encode()).hexdigest() == "1f2ddc9462fdf5d12af5b3842963dca1c9450f9810b7faa5c008b0b8917f3f67"
    )


def test_the_bits_of_a_pool_stay_what_they_are():
    digest = hashlib.sha256()
    for item in pools.pool("raw", 60):
        digest.update(item.prompt(long=True).encode() + str(item.flaw).encode() + item.clip().frames.tobytes())
    assert digest.hexdigest() == "362dc003c11b185a3a6ee9417d4032805aa776f19101ff91613bf9fe885512f4"


def test_smeared_details_are_common_in_the_raw_pool_and_nobody_mentions_them():
    raw = pools.pool("raw", 400)
    smeared = [item for item in raw if item.smeared]
    assert abs(len(smeared) / len(raw) - pools.SMEARED) < 0.06 and not any(i.smeared for i in pools.pool("curated", 99))
    assert all(item.caption_spec == item.spec for item in smeared if item.flaw != "caption")


@pytest.mark.parametrize("kind", pools.SMEARS)
@pytest.mark.parametrize("frames, size", [(9, 32), (17, 64)])
def test_a_smear_stays_on_the_sprite_and_grows_with_its_strength(kind, frames, size, monkeypatch):
    monkeypatch.setattr(pools, "SMEARS", {kind: pools.SMEARS[kind]})
    clip = world.render(SPEC, 0, frames, size)
    smeared = [pools.smear(clip, s, generator(seed=3, id=0, purpose="x")).frames for s in (0.1, 0.5, 1.0)]
    change = [np.abs(after.astype(int) - clip.frames).mean(-1) for after in smeared]
    assert 0 < change[0].mean() < change[1].mean() < change[2].mean()
    touched = change[2] > 2
    assert (touched & clip.mask).sum() > 0.5 * touched.sum() and touched.mean() < 0.5
    assert (touched.any((1, 2))).sum() >= frames // 2


@pytest.mark.slow(1)
def test_ids_are_unique_and_seeds_make_other_pools():
    items = [item for seed in (0, 1) for name in ("raw", "curated") for item in pools.pool(name, 50, seed=seed)]
    assert len({item.id for item in items}) == len(items)
    assert [i.spec for i in pools.pool("raw", 50, seed=0)] != [i.spec for i in pools.pool("raw", 50, seed=1)]


def test_mask_and_flow_are_those_of_the_scene():
    item = next(item for item in pools.pool("raw", 200) if item.flaw == "noise")
    assert np.array_equal(item.clip().mask, world.render(item.spec, int(item.id.rpartition("-")[2])).mask)


@pytest.mark.parametrize("name, split", [("rwa", "train"), ("raw", "tset")])
def test_an_unknown_pool_is_refused(name, split):
    with pytest.raises(Refused, match="pools are raw and curated"):
        pools.pool(name, 1, split)
