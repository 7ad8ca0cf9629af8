"""What a loser is made with can be chosen, is said by its store, and older stores stay what they were."""

import hashlib
import json

import pytest
import torch

from localdpo.cli import main as cli
from localdpo.clips.sources import from_world
from localdpo.ground.errors import Refused
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


@pytest.mark.slow(2)
def test_the_command_has_these_settings_and_takes_them_from_a_finished_store(plain, tmp_path, capsys):
    words = ["pairs", "build", "--model", "tiny-cogvideox-2b", "--world", "curated:1", "--device", "cpu"]
    flags = "--steps 2 --alpha-mode sigma --mask-cover 0 --mask-patches --dynamic-cfg"
    assert not cli.main([*words, str(tmp_path / "one"), *flags.split()])
    again = [*words, str(tmp_path / "two"), "--config", str(tmp_path / "one" / "store.json")]
    assert not cli.main(again), capsys.readouterr().err
    one, two = (PairStore(tmp_path / name) for name in ("one", "two"))
    assert one.settings == two.settings and one.settings["mask_cover"] == 0 and one.settings["mask_patches"] is True


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
