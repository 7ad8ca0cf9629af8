"Where the machine ran short of something, the video is not blamed, and the same command tries it again."

import csv
import errno

import numpy as np
import pytest

from localdpo.cli import main as cli
from localdpo.ground.errors import Starved, patiently
from localdpo.media import forms, video
from localdpo.sampling.folders import find_videos
from localdpo.scoring import measures
from localdpo.scoring.videos import score_videos

SIZES = {"small.mp4": (3, 16), "large.mp4": (20, 256)}


@pytest.fixture
def videos(tmp_path):
    for name, (frames, side) in SIZES.items():
        video.write_lossless(tmp_path / "videos" / name, np.zeros((frames, side, side, 3), np.uint8), 8)
    return tmp_path / "videos"


def rows(path):
    with open(path, newline="") as file:
        return {row["video"]: row for row in csv.DictReader(file)}


@pytest.mark.slow(7)
def test_a_video_for_which_memory_was_short_is_scored_by_the_same_command(videos, tmp_path, monkeypatch, capsys):
    words = ["score", str(videos), "--device", "cpu", "--out", str(tmp_path / "scores.csv")]
    with monkeypatch.context() as short:
        short.setattr(forms, "free_memory", lambda: 10 * 2**20)
        assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "1 video (large.mp4): was not scored for want of memory" in said and "give the same command again" in said
    found = rows(tmp_path / "scores.csv")
    assert found["small.mp4"]["mse_next"] and not found["large.mp4"]["mse_next"]
    assert "takes 0.0" in found["large.mp4"]["problem"] and "same command" in found["large.mp4"]["problem"]
    assert not cli.main(words)
    assert rows(tmp_path / "scores.csv")["large.mp4"]["mse_next"] and "1 looked at now" in capsys.readouterr().out


@pytest.mark.slow(10)
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_a_step_whose_scorer_was_starved_is_not_done(videos, tmp_path, monkeypatch, error):
    usual = measures.Measures.pooled

    def pooled(self, each, frames, prompt, fps):
        if len(frames) == 20:
            raise error
        return usual(self, each, frames, prompt, fps)

    found, _ = find_videos([str(videos)])
    with monkeypatch.context() as short:
        short.setattr(measures.Measures, "pooled", pooled)
        with pytest.raises(Starved, match="was not scored for want of"):
            score_videos(found, ["measures"], tmp_path / "scores.csv")
    assert rows(tmp_path / "scores.csv")["small.mp4"]["mse_next"]
    assert score_videos(found, ["measures"], tmp_path / "scores.csv").computed == 1


@pytest.mark.slow(1)
def test_want_that_passes_is_waited_for():
    tries = iter([MemoryError(), OSError(errno.EAGAIN, "try again"), None])

    def work():
        if error := next(tries):
            raise error
        return "done"

    assert patiently(work, "a clip", pauses=(0, 0)) == "done"
    with pytest.raises(Starved, match="a clip: could not be looked at for want of memory"):
        patiently(lambda: (_ for _ in ()).throw(MemoryError()), "a clip", pauses=(0,))
    with pytest.raises(FileNotFoundError):
        patiently(lambda: open("/no such file"), "a clip")
