"What is drawn and measured once is kept, and nothing is chosen on what is reported."

import numpy as np
import pytest
from conftest import random_model

from localdpo.ground.errors import Refused
from localdpo.paper.looks import Looks, errors


def test_a_look_is_drawn_and_measured_once(tmp_path):
    looks = Looks(tmp_path, "validation", 2)
    first = looks.measure("a", random_model("tiny-wan-1.3b"), 1, 2.0)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = Looks(tmp_path, "validation", 2).measure("a", None, 1, 2.0)  # None could draw nothing
    assert len(kept) == 2 and kept == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert all(np.array_equal(first[column], again[column]) for column in first)


@pytest.mark.slow(1)
def test_every_setting_has_looks_of_its_own(tmp_path):
    places = {
        Looks(tmp_path, split, count, seed)._place(name, steps, scale, "npy")
        for split, count, seed, name, steps, scale in [
            ("validation", 2, 0, "a", 1, 2.0), ("test", 2, 0, "a", 1, 2.0), ("validation", 3, 0, "a", 1, 2.0),
            ("validation", 2, 1, "a", 1, 2.0), ("validation", 2, 0, "b", 1, 2.0), ("validation", 2, 0, "a", 2, 2.0),
            ("validation", 2, 0, "a", 1, 2.5),
        ]
    }  # fmt: skip
    assert len(places) == 7


def test_the_best_guidance_is_chosen_on_validation_prompts_only(tmp_path):
    with pytest.raises(Refused, match="guidance on the test split.*choose on what is reported"):
        Looks(tmp_path, "test", 2).best("a", None, 1, [1.0, 2.0])


def test_the_best_guidance_has_the_least_error(tmp_path, monkeypatch):
    looks = Looks(tmp_path, "validation", 2)
    said = {1.0: 0.4, 2.0: 0.2, 4.0: 0.3}
    monkeypatch.setattr(looks, "measure", lambda name, model, steps, scale: {"detail_error": np.array([said[scale]])})
    assert looks.best("a", None, 1, list(said)) == 2.0


def test_a_name_with_a_slash_is_refused(tmp_path):
    with pytest.raises(Refused, match="a/b.*slash"):
        Looks(tmp_path, "validation", 2).measure("a/b", None, 1, 1.0)


def test_real_clips_have_no_error():
    items = Looks("unused", "validation", 2).items
    assert (
        max(errors([item.clip().frames for item in items], [item.prompt() for item in items])["detail_error"]) < 0.005
    )
