import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from localdpo.clips import pools, world
from localdpo.ground.errors import Refused
from localdpo.miniature import reader as attributes

ITEMS = pools.pool("curated", 400, "held out", seed=2)
SPECS = [item.spec for item in ITEMS]
CLIPS = np.stack([item.clip().frames for item in ITEMS])


@pytest.fixture(scope="module")
def reader():
    return attributes.load()


@pytest.mark.slow(1)
@pytest.mark.parametrize("flaw, strength", [(None, 0.0), ("blur", 0.2), ("noise", 0.1), ("low contrast", 0.1)])
def test_held_out_clips_are_read_right(reader, flaw, strength):
    rng = np.random.default_rng(0)
    clips = CLIPS if flaw is None else np.stack([pools.spoil(clip, flaw, strength, rng) for clip in CLIPS])
    shares = attributes.agreement(reader.read(clips), SPECS)
    assert shares.keys() == vars(SPECS[0]).keys() and min(shares.values()) >= 0.97, shares


def test_every_word_is_read_right_not_only_the_frequent_ones(reader):
    words = reader.read(CLIPS)
    for name, known in attributes.WORDS.items():
        for word in known:
            read = [said[name] for said, spec in zip(words, SPECS, strict=True) if getattr(spec, name) == word]
            assert read.count(word) >= 0.9 * len(read) > 0, f"{name} {word}: {read}"


def test_what_it_reads_does_not_depend_on_the_company(reader):
    together, alone = reader.probabilities(CLIPS[:8]), reader.probabilities(CLIPS[3:4])
    for name, words in attributes.WORDS.items():
        assert together[name].shape == (8, len(words)) and np.allclose(together[name].sum(1), 1, atol=1e-5)
        assert np.allclose(together[name][3], alone[name][0], atol=1e-4)


def test_tensors_and_arrays_are_read_alike_and_none_at_all_is_no_error(reader):
    assert reader.read(torch.from_numpy(CLIPS[:4])) == reader.read(CLIPS[:4])
    assert reader.read(CLIPS[:0]) == []


@pytest.mark.parametrize("shape", [(9, 32, 32, 3), (2, 8, 32, 32, 3), (2, 9, 64, 64, 3), (2, 3, 9, 32, 32)])
def test_another_shape_is_refused_with_the_right_one(reader, shape):
    with pytest.raises(Refused) as refused:
        reader.read(np.zeros(shape, np.uint8))
    assert str(list(shape)) in refused.value.what and "[B,9,32,32,3]" in refused.value.why


def test_numbers_that_are_no_bytes_are_refused(reader):
    with pytest.raises(Refused, match="float32"):
        reader.read(np.zeros((1, 9, 32, 32, 3), np.float32))


def test_missing_weights_are_refused_with_the_way_to_make_them(tmp_path):
    with pytest.raises(Refused) as refused:
        attributes.load(tmp_path / "attributes.safetensors")
    assert "missing" in refused.value.why and "nbs/miniature/04_attributes.ipynb" in refused.value.then


@pytest.mark.parametrize("size", [0, 5, 2000, 100_000])
def test_weights_cut_short_are_refused(tmp_path, size):
    path = tmp_path / "attributes.safetensors"
    path.write_bytes(attributes.WEIGHTS.read_bytes()[:size])
    with pytest.raises(Refused) as refused:
        attributes.load(path)
    assert "holds no weights" in refused.value.why and refused.value.what == str(path)


def test_weights_of_something_else_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(Refused, match="holds no weights of the attribute reader"):
        attributes.load(tmp_path / "other.safetensors")


def test_weights_and_facts_survive_being_saved(tmp_path, reader):
    attributes.save(reader, tmp_path / "copy.safetensors", **reader.facts)
    copy = attributes.load(tmp_path / "copy.safetensors")
    assert copy.facts == reader.facts and copy.read(CLIPS[:16]) == reader.read(CLIPS[:16])


def test_the_weights_are_small_and_say_how_they_were_made(reader):
    assert attributes.WEIGHTS.stat().st_size <= 400_000
    assert {"steps", "seed", "date", "machine", "accuracy"} <= reader.facts.keys()
    assert min(reader.facts["accuracy"]["clear"].values()) >= 0.97


def test_agreement_counts_each_attribute_by_itself():
    words = [vars(spec) | {"camera": "still"} for spec in SPECS]
    still = sum(spec.camera == "still" for spec in SPECS) / len(SPECS)
    assert attributes.agreement(words, SPECS) == dict.fromkeys(attributes.WORDS, 1.0) | {"camera": still}
    with pytest.raises(ValueError):
        attributes.agreement(words[:3], SPECS)


@pytest.mark.parametrize(
    "share, count, low, high", [(0.5, 10, 0.2366, 0.7634), (1.0, 50, 0.9287, 1.0), (0.0, 50, 0.0, 0.0713)]
)
def test_the_interval_is_wilsons(share, count, low, high):
    assert attributes.interval(share, count) == pytest.approx((low, high), abs=1e-4)


def test_the_world_has_no_word_the_reader_lacks():
    assert attributes.WORDS.keys() == world.Spec.__dataclass_fields__.keys()
