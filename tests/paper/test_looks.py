"What is drawn and measured once is kept, and nothing is chosen on what is reported."

import numpy as np
import pytest
from conftest import random_model

from localdpo.ground.errors import Refused
from localdpo.paper import looks
from localdpo.paper.looks import Looks, errors


def test_a_look_is_drawn_and_measured_once(tmp_path):
    kept_in, model = Looks(tmp_path, "validation", 2), random_model("tiny-wan-1.3b")
    first = kept_in.measure("a", model, 1, 2.0)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = Looks(tmp_path, "validation", 2).measure("a", model, 1, 2.0)
    assert len(kept) == 2 and kept == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert all(np.array_equal(first[column], again[column]) for column in first)


@pytest.mark.slow(1)
def test_other_weights_and_other_settings_have_looks_of_their_own(tmp_path):
    one, other = random_model("tiny-wan-1.3b"), random_model("tiny-wan-1.3b")
    other.transformer.blocks[0].attn1.to_q.weight.data[0, 0] += 1
    places = {
        looks._place(Looks(tmp_path, split, count, seed), name, model, steps, scale, "npy")
        for split, count, seed, name, steps, scale, model in [
            ("validation", 2, 0, "a", 1, 2.0, one), ("test", 2, 0, "a", 1, 2.0, one), ("validation", 3, 0, "a", 1, 2.0, one),
            ("validation", 2, 1, "a", 1, 2.0, one), ("validation", 2, 0, "b", 1, 2.0, one), ("validation", 2, 0, "a", 2, 2.0, one),
            ("validation", 2, 0, "a", 1, 2.0000001, one), ("validation", 2, 0, "a", 1, 2.0, other),
        ]
    }  # fmt: skip
    assert len(places) == 8


@pytest.mark.parametrize("suffix, text", [("npy", b""), ("npy", b"no array"), ("json", b"{"), ("json", b"\xff")])
def test_a_damaged_look_is_named(tmp_path, suffix, text):
    model, kept = random_model("tiny-wan-1.3b"), Looks(tmp_path, "validation", 2)
    looks._place(kept, "a", model, 1, 2.0, suffix).write_bytes(text)
    with pytest.raises(Refused, match="guidance 2.0.*cannot be read"):
        kept.measure("a", model, 1, 2.0)


def test_the_best_guidance_is_chosen_on_validation_prompts_only(tmp_path):
    with pytest.raises(Refused, match="best guidance.*of the test split"):
        Looks(tmp_path, "test", 2).best("a", None, 1, [1.0, 2.0])
    with pytest.raises(Refused, match="by pixel_correlation"):
        Looks(tmp_path, "validation", 2).best("a", None, 1, [1.0, 2.0], "pixel_correlation")


def test_the_best_guidance_has_the_least_error(tmp_path, monkeypatch):
    kept = Looks(tmp_path, "validation", 2)
    said = {1.0: 0.4, 2.0: 0.2, 4.0: 0.3}
    monkeypatch.setattr(kept, "measure", lambda name, model, steps, scale: {"detail_error": np.array([said[scale]])})
    assert kept.best("a", None, 1, list(said)) == 2.0


def test_a_name_with_a_slash_is_refused(tmp_path):
    with pytest.raises(Refused, match="a/b.*slash"):
        Looks(tmp_path, "validation", 2).measure("a/b", random_model("tiny-wan-1.3b"), 1, 1.0)


def test_real_clips_have_no_error():
    items = Looks("unused", "validation", 2).items
    assert (
        max(errors([item.clip().frames for item in items], [item.prompt() for item in items])["detail_error"]) < 0.005
    )
