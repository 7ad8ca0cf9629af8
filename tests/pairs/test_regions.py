"""What a loser is made with can be chosen, is said by its store, and older stores stay what they were."""

import hashlib
import json

import numpy as np
import pytest
import torch
from conftest import contents

from localdpo.cli import main as cli
from localdpo.clips.sources import from_world
from localdpo.ground.errors import Refused
from localdpo.masks import draw_mask, to_latent
from localdpo.pairs.builder import PairConfig, build
from localdpo.pairs.regions import RegionConfig, region
from localdpo.pairs.store import PairStore

SMALL = dict(steps=4, block=2)


@pytest.fixture(scope="module")
def clips():
    return from_world(count=2)


@pytest.fixture(scope="module")
def plain(backbone, clips, tmp_path_factory):
    return build(backbone, clips, tmp_path_factory.mktemp("plain") / "store", PairConfig(**SMALL))


@pytest.mark.parametrize(
    "given, known",
    [
        ({}, "2abd22663dd6f45a"),
        (dict(size=(9, 32, 32), steps=4, alpha_step=0.05, mask=dict(static=0.2), seed=3), "707311691c5c1065"),
    ],
)
def test_stores_of_older_settings_go_on(given, known):
    # a store knows its settings by this sum: with another one it would be begun anew
    assert hashlib.sha256(json.dumps(PairConfig(**given).settings()).encode()).hexdigest()[:16] == known


WALKS = [
    dict(alpha_mode="sigma"),
    dict(alpha_mode="train_t", alpha_range=(0.3, 0.5)),
    dict(rounding="ceil", alpha_range=(0.76, 0.86)),
    dict(dynamic_cfg=True),
    dict(negative_prompt="a blue disc"),
]


@pytest.mark.parametrize("how", WALKS, ids=lambda how: next(iter(how)))
def test_how_a_loser_is_walked_back_is_a_setting_of_its_store(backbone, clips, plain, tmp_path, how):
    store = build(backbone, clips, tmp_path / "store", PairConfig(**SMALL, **how))
    assert json.loads(json.dumps(how)).items() <= store.settings.items() and store.verify() == []
    assert torch.equal(store[0].mask, plain[0].mask) and not torch.equal(store[0].loser, plain[0].loser)
    assert [name for name in how if name in plain.settings] == [name for name in how if name == "alpha_range"]


def test_a_cell_or_a_patch_is_in_the_region_by_its_share(backbone, clips, monkeypatch):
    def of(**how):
        return region(backbone, clips[0], RegionConfig(size=(9, 32, 32), **how))[0]

    touched, half, full = (of(mask_cover=share) for share in (0.0, 0.5, 1.0))
    assert (touched >= half).all() and (half >= full).all() and touched.sum() > half.sum() > full.sum()
    assert torch.equal(of(mask_patches=True), half) and backbone.patch == 1
    monkeypatch.setattr(backbone, "patch", 2)  # that of the models at full size
    patches = of(mask_patches=True).reshape(3, 4, 2, 4, 2)
    assert torch.equal(patches.amax((2, 4)), patches.amin((2, 4)))


# -- masks of the user ------------------------------------------------------------------------------------------------


def square(frames=9, size=32, top=8):
    mask = np.zeros((frames, size, size), bool)
    mask[:, top : top + 12, 8:20] = True
    return mask


@pytest.fixture
def masked(clips, tmp_path):
    "A folder with a mask for each clip, one still and one that moves."
    (folder := tmp_path / "masks").mkdir()
    np.save(folder / f"{clips[0].id}.npy", square())
    np.save(folder / f"{clips[1].id}.npy", np.concatenate([square(5), square(4, top=16)]))
    return folder


def with_masks(folder, **how):
    return PairConfig(**SMALL, masks=str(folder), **how)


@pytest.mark.slow(1)
def test_pairs_are_made_inside_the_masks_of_a_folder(backbone, clips, plain, masked, tmp_path):
    store = build(backbone, clips, tmp_path / "store", with_masks(masked))
    assert store.verify() == [] and store.settings["masks"] == "from files" and "masks" not in plain.settings
    for pair, clip in zip(store, clips, strict=True):
        expected = to_latent(np.load(masked / f"{clip.id}.npy"), 4, 4)
        assert np.array_equal(pair.mask, expected) and pair.facts["area"] == pytest.approx(expected.mean(), abs=1e-6)
        assert pair.facts["mask_by"] == f"{clip.id}.npy" and len(pair.facts["mask_sum"]) == 64
    assert [pair.facts["moving"] for pair in store] == [False, True]
    moved = masked.rename(tmp_path / "elsewhere")  # where the masks are is no part of what they are
    assert contents(build(backbone, clips, tmp_path / "again", with_masks(moved)).path) == contents(store.path)


@pytest.mark.slow(2)
@pytest.mark.parametrize("bytes_too", [False, True])
def test_a_mask_that_was_replaced_is_noticed_as_a_clip_is(backbone, clips, masked, tmp_path, bytes_too):
    before = build(backbone, clips, tmp_path / "store", with_masks(masked))[0]
    other = square(top=0)
    np.save(masked / f"{clips[0].id}.npy", other[0] if bytes_too else other)
    why = "its clips or captions changed" if bytes_too else f"{clips[0].id} in .*: has other content than"
    with pytest.raises(Refused, match=why):
        build(backbone, clips, tmp_path / "store", with_masks(masked))
    after = build(backbone, clips, tmp_path / "store", with_masks(masked), renew=True)[0]
    assert np.array_equal(after.mask, to_latent(other, 4, 4)) and not torch.equal(after.mask, before.mask)
    assert after.facts["mask_sum"] != before.facts["mask_sum"]


BAD = {
    "is 16x16 pixels, not 32x32": lambda file: np.save(file, square(size=16, top=0)),
    "has 8 frames, not 9": lambda file: np.save(file, square(8)),
    "is empty: no pixel of it is inside the mask": lambda file: np.save(file, square() & False),
    "cannot be read as an array": lambda file: file.write_text("not an array"),
    "has no mask": lambda file: file.unlink(),
    "has two masks": lambda file: file.with_suffix(".png").touch(),
}


@pytest.mark.parametrize("why", BAD)
def test_a_bad_mask_is_listed_with_its_clip_and_the_others_go_on(backbone, clips, masked, tmp_path, why):
    BAD[why](masked / f"{clips[0].id}.npy")
    store = build(backbone, clips, tmp_path / "store", with_masks(masked))
    (bad,) = store.bad
    assert store.ids == [clips[1].id] and bad.name == clips[0].id and why in bad.why and bad.then
    assert f"{clips[0].id}.{'png' if why == 'has no mask' else 'npy'}" in bad.why + bad.then


def test_masks_follow_what_words_name(backbone, clips, tmp_path):
    shape = clips[0].prompt.split()[2]
    store = build(backbone, clips, tmp_path / "store", PairConfig(**SMALL, objects=("sprite",)))
    for pair, clip in zip(store, clips, strict=True):
        seen = to_latent(clip.objects(9, 32, 32)["sprite"], 4, 4)
        assert pair.mask.numpy()[seen].all() and pair.facts["mask_by"] == "the world that drew it"
    only = build(backbone, clips, tmp_path / "only", PairConfig(**SMALL, objects=(shape,)))
    assert only.ids == [clips[0].id] and f"shows no {shape}" in only.bad[0].why and "sprite" in only.bad[0].then


def test_words_for_real_clips_need_models_which_are_refused_before_anything_is_made(
    backbone, clips, tmp_path, monkeypatch
):
    from localdpo.pairs import object_masks

    monkeypatch.setattr(object_masks.importlib.util, "find_spec", lambda name: None)
    object_masks.loaded.cache_clear()
    real = [clip._replace(objects=None) for clip in clips]
    with pytest.raises(Refused, match="torchvision.*\n.*score"):
        build(backbone, real, tmp_path / "store", PairConfig(**SMALL, objects=("face",)))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("how", [dict(objects=("sprite",)), dict(mask=dict(size=0.15, shapes=1, area=[0, 1]))])
def test_a_mask_is_brought_to_the_area_of_the_random_one(backbone, clips, masked, how):
    how = dict(masks=str(masked)) | how if "objects" not in how else how
    for clip in RegionConfig(**how).sources(clips):
        target = draw_mask(9, 32, 32, seed=0, id=clip.id, **how.get("mask", {})).mask.mean()
        config = RegionConfig(size=(9, 32, 32), **how)
        far, near = (
            region(backbone, clip, RegionConfig(size=config.size, match_area=on, **how)) for on in (False, True)
        )
        assert near[1]["grown"] != 0 and "grown" not in far[1]
        assert abs(near[1]["area"] - target) < abs(far[1]["area"] - target) or abs(near[1]["area"] - target) < 0.06


# -- the command, and what is refused ---------------------------------------------------------------------------------


@pytest.mark.slow(2)
def test_the_command_has_these_settings_and_takes_them_from_a_finished_store(plain, tmp_path, capsys):
    words = ["pairs", "build", "--model", "tiny-cogvideox-2b", "--world", "curated:1", "--device", "cpu"]
    flags = "--steps 2 --alpha-mode sigma --mask-cover 0 --dynamic-cfg --objects sprite --match-area --mask release static=1"
    assert not cli.main([*words, str(tmp_path / "one"), *flags.split()])
    again = [*words, str(tmp_path / "two"), "--config", str(tmp_path / "one" / "store.json")]
    assert not cli.main(again), capsys.readouterr().err
    one, two = (PairStore(tmp_path / name) for name in ("one", "two"))
    assert one.settings == two.settings and one.settings["mask_cover"] == 0 and one.settings["objects"] == ["sprite"]
    assert one.settings["mask"]["static"] == 1 and one.settings["mask"]["size"] == [0.19, 0.57]


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(alpha_mode="sigmas"), "alpha_mode sigmas: is not a way to read noise_alpha\n  -> did you mean sigma?"),
        (dict(rounding="floor"), "rounding floor: is not a way to read noise_alpha\n  -> there are round, ceil"),
        (dict(rounding="ceil", alpha_mode="sigma"), "rounding ceil: rounds steps, and alpha_mode sigma counts none"),
        (dict(dynamic_cfg="yes"), "dynamic_cfg 'yes': is not true or false"),
        (dict(negative_prompt=None), "negative_prompt None: is not a text"),
        (dict(negative_prompt="blurry", cfg_scale=1), "negative_prompt blurry: says what to lead away from"),
        (dict(mask_cover=1.5), "mask_cover 1.5: is out of range\n  -> use a number from 0 to 1: 0.5 for half"),
        (dict(mask_cover="half"), "mask_cover 'half': is not a number"),
        (dict(masks="no/such"), "no/such: is not a folder\n  -> name the folder with the masks"),
        (dict(masks=".", objects=("face",)), "objects ('face',): do not go with masks from a folder"),
        (dict(objects="face"), "objects face: are not words"),
        (dict(objects=("face", "")), "objects ('face', ''): are not words"),
        (dict(match_area=True), "match_area True: has nothing to match"),
        (dict(mask_patches=2), "mask_patches 2: is not true or false"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_where_it_is_given(settings, said):
    with pytest.raises(Refused) as refusal:
        PairConfig(**settings)
    assert str(refusal.value).startswith(said)


def test_a_negative_prompt_that_the_model_cannot_read_is_refused_before_anything_is_made(backbone, clips, tmp_path):
    with pytest.raises(Refused, match="has words that .* never saw: ugly"):
        build(backbone, clips, tmp_path / "store", PairConfig(**SMALL, negative_prompt="an ugly disc"))
    assert not (tmp_path / "store").exists()


def test_a_low_noise_level_is_walked_where_rounding_or_the_mode_says_so():
    for how in (dict(rounding="ceil"), dict(alpha_mode="sigma"), dict(alpha_mode="train_t")):
        PairConfig(steps=2, alpha_range=(0.05, 0.2), **how)
    with pytest.raises(Refused, match="none of 2 steps is walked"):
        PairConfig(steps=2, alpha_range=(0.05, 0.2))


def test_no_random_mask_is_drawn_where_masks_are_given(backbone, clips):
    config = PairConfig(size=backbone.native, objects=("sprite",), mask=dict(area=(0.999, 1.0)))  # none is so large
    assert region(backbone, clips[0], config)[1]["mask_by"] == "the world that drew it"
