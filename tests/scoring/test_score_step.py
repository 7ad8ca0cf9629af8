"The step of the graph that scores: sizes come from the table, and videos are read one look at a time."

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from localdpo.clips import pools
from localdpo.engine import rerun
from localdpo.ground import paths
from localdpo.media import video

ITEMS = pools.pool("curated", 4, "held out")


@pytest.fixture
def looks(tmp_path, monkeypatch):
    "Two looks of two prompts with two videos each, and the list of them that the step before writes."
    monkeypatch.chdir(tmp_path)
    listed = {}
    for look in ("0", "5"):
        entries = []
        for i, item in enumerate(ITEMS):
            file = Path(f"look-{look}") / f"{i}.mp4"
            video.write_lossless(file, item.clip().frames, 8)
            entries.append(dict(id=f"p{i // 2}", prompt=item.prompt(), seed=i % 2, file=file.name))
            entries[-1]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        listed[look] = dict(folder=f"look-{look}", videos=entries)
    Path("videos.json").write_text(json.dumps(listed))


def step():
    values = dict(videos="videos.json", scores="scores.csv", features="features.npz", scorers=["attributes"], others=9)
    return rerun.run(paths.notebooks() / "rerun/steps/score.ipynb", "score.ipynb", values).read_text()


@pytest.mark.slow(15)
def test_features_come_look_by_look_with_the_prompt_of_each_video(looks):
    step()
    with np.load("features.npz") as found:
        assert {*found} == {"step 0", "step 5", "prompts of step 0", "prompts of step 5", "others"}
        assert found["others"].shape == (9, 64)
        assert found["step 5"].shape[0] == 4 and found["prompts of step 5"].tolist() == ["p0", "p0", "p1", "p1"]
        assert np.array_equal(found["step 0"], found["step 5"])


@pytest.mark.slow(15)
def test_a_video_that_cannot_be_read_leaves_the_distance_out_and_the_other_scores_in(looks):
    Path("look-5/3.mp4").write_bytes(Path("look-5/3.mp4").read_bytes()[:500])
    assert "no Fréchet distance: 1 of 8 videos cannot be read, such as look-5/3.mp4" in step()
    with np.load("features.npz") as found:
        assert {*found} == {"none"}
    assert Path("scores.csv").read_text().count("1.0") >= 7
