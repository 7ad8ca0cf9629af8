"""Scores of single frames stand in a table of their own."""

import csv
import math

import pytest
from scorers import Fake, score

from localdpo.scoring import measures

pytestmark = pytest.mark.usefixtures("fakes")


def frames_of(path):
    with open(path, newline="") as file:
        return [(row["video"], int(row["frame"]), row["column"], row["value"]) for row in csv.DictReader(file)]


def test_single_frames_go_into_a_table_of_their_own(clips, tmp_path):
    words = clips, "--scorers", "fake,reads", "--per-frame", tmp_path / "frames.csv"
    status, rows = score(tmp_path, *words, "--prompts", tmp_path / "prompts.jsonl")
    assert not status and rows["2.mp4"]["length"] == "9.0"
    found = [one for one in frames_of(tmp_path / "frames.csv") if one[0] == "2.mp4"]
    corner = [("2.mp4", i, "corner", "20.0") for i in range(3)]
    assert found == corner + [("2.mp4", i, "fake_half", "10.0") for i in (1, 2)]
    assert (tmp_path / "frames.csv").read_text().startswith("video,frame,column,value\n")
    Fake.calls.clear()
    before = (tmp_path / "frames.csv").read_bytes()
    score(tmp_path, *words, "--prompts", tmp_path / "prompts.jsonl")
    assert not Fake.calls and (tmp_path / "frames.csv").read_bytes() == before


def test_single_frames_may_be_asked_for_later_and_nothing_is_computed_twice(clips, tmp_path, monkeypatch):
    words, asked, once = (clips, "--scorers", "measures"), [], measures.Measures.per_frame
    monkeypatch.setattr(measures.Measures, "per_frame", lambda self, *a: asked.append(1) or once(self, *a))
    score(tmp_path, *words)
    assert len(asked) == 4
    score(tmp_path, *words, "--per-frame", tmp_path / "frames.csv")
    assert len(asked) == 4  # the journal keeps the numbers that the score was made of
    found = frames_of(tmp_path / "frames.csv")
    assert {one[:3] for one in found if one[2] == "blur"} == {
        (f"{i}.mp4", n, "blur") for i in range(1, 5) for n in range(3)
    }
    assert {n for _, n, column, _ in found if column == "mse_next"} == {1, 2}


def test_a_table_of_single_frames_of_somebody_else_or_edited_is_not_lost(clips, tmp_path, capsys):
    (tmp_path / "frames.csv").write_text("mine")
    words = clips, "--scorers", "fake", "--per-frame", tmp_path / "frames.csv"
    assert score(tmp_path, *words)[0] == 2 and (tmp_path / "frames.csv").read_text() == "mine"
    (tmp_path / "frames.csv").unlink()
    score(tmp_path, *words)
    (tmp_path / "frames.csv").write_text("edited")
    score(tmp_path, *words)
    assert "frames.csv: was not as it was written" in capsys.readouterr().out
    assert (tmp_path / "frames.old.csv").read_text() == "edited" and len(frames_of(tmp_path / "frames.csv")) == 20


def test_a_value_of_a_frame_that_is_not_finite_is_nan(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(Fake, "per_frame", lambda self, frames, *_: dict(corner=[math.nan, 1.0, math.inf]))
    for _ in range(2):
        score(tmp_path, clips, "--scorers", "fake", "--per-frame", tmp_path / "frames.csv")
        assert [value for *_, value in frames_of(tmp_path / "frames.csv")][:3] == ["nan", "1.0", "nan"]
