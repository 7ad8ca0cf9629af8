"""Each gap in a table has its reason: videos, prompts, weights or scorers that fail, and what is refused before work."""

import json
import math

import pytest
from scorers import Fake, grey, manifest, score

from localdpo.cli import main as cli
from localdpo.ground.errors import Refused

pytestmark = pytest.mark.usefixtures("fakes")


def test_videos_that_cannot_be_read_are_named_and_tried_again(clips, tmp_path, capsys):
    whole = (clips / "2.mp4").read_bytes()
    (clips / "2.mp4").write_bytes(whole[:600])
    (clips / "3.mp4").write_bytes(b"")
    (clips / "4.mp4").write_text("no film")
    status, rows = score(tmp_path, clips, "--scorers", "fake")
    assert not status and len(rows) == 4 and rows["2.mp4"]["corner"] == rows["2.mp4"]["frames"] == ""
    for name, why in {"2.mp4": "cut short", "3.mp4": "is empty", "4.mp4": "is not a video"}.items():
        assert why in rows[name]["problem"] and f"{name}: " in capsys.readouterr().out or why in rows[name]["problem"]
    (clips / "2.mp4").write_bytes(whole)
    Fake.calls.clear()
    rows = score(tmp_path, clips, "--scorers", "fake")[1]
    assert Fake.calls == [20] and rows["2.mp4"]["problem"] == ""


def test_what_disagrees_with_the_manifest_is_named_and_scored(clips, tmp_path, capsys):
    grey(clips / "1.mp4", 10, fps=16)
    manifest(clips)
    grey(clips / "2.mp4", 21)
    (clips / "3.mp4").unlink()
    _, rows = score(tmp_path, clips, "--scorers", "fake")
    assert rows["1.mp4"]["problem"] == "says 16 frames a second, and its manifest 8" and rows["1.mp4"]["fps"] == "16.0"
    assert "checksum is another" in rows["2.mp4"]["problem"] and rows["2.mp4"]["corner"] == "21.0"
    assert "No such file" in rows["3.mp4"]["problem"] and rows["4.mp4"]["problem"] == ""
    said = capsys.readouterr().out
    assert "1.mp4: says 16 frames" in said and "3.mp4: cannot be read" in said


def test_a_prompt_that_is_missing_costs_only_the_scorers_that_read_it(clips, tmp_path, capsys):
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[:3]))
    words = clips, "--prompts", tmp_path / "prompts.jsonl", "--scorers", "fake,reads"
    _, rows = score(tmp_path, *words)
    assert rows["4.mp4"]["corner"] == "40.0" and rows["4.mp4"]["length"] == "nan"
    expected = "has no prompt in prompts.jsonl; reads: needs a prompt, and the video has none"
    assert rows["4.mp4"]["problem"] == expected and "4.mp4: has no prompt" in capsys.readouterr().out


def test_videos_of_several_sizes_are_reported(clips, tmp_path, capsys):
    grey(clips / "5.mp4", 50, frames=5, size=20, fps=16)
    score(tmp_path, clips, "--scorers", "fake")
    assert "differ in size: 4 of 3x16x16 at 8 frames a second, 1 of 5x20x20 at 16" in capsys.readouterr().out
    about = json.loads((tmp_path / "scores.provenance.json").read_text())
    assert about["sizes"] == {"3x16x16 at 8 frames a second": 4, "5x20x20 at 16 frames a second": 1}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_stays_nan_with_its_reason(clips, tmp_path, odd, capsys):
    Fake.harm[20] = odd
    for _ in range(2):
        _, rows = score(tmp_path, clips, "--scorers", "fake")
        assert rows["2.mp4"]["fake_half"] == "nan" and rows["2.mp4"]["corner"] == "20.0"
        assert rows["2.mp4"]["problem"] == "fake: fake_half divides by nothing"
        assert "3 with all scores, 1 with some" in capsys.readouterr().out
    assert Fake.calls == [10, 20, 30, 40]


@pytest.mark.parametrize("harm", [RuntimeError("CUDA out of memory"), Refused("x", "is too large", "cut it")])
def test_a_scorer_that_breaks_at_a_video_is_named_and_tried_again(clips, tmp_path, harm):
    Fake.harm[20] = harm
    status, rows = score(tmp_path, clips, "--scorers", "fake,measures")
    assert not status and rows["2.mp4"]["corner"] == "" and rows["2.mp4"]["mse_next"] == "0.0"
    assert rows["2.mp4"]["problem"].startswith("fake: ") and rows["1.mp4"]["corner"] == "10.0"
    Fake.harm.clear()
    Fake.calls.clear()
    assert score(tmp_path, clips, "--scorers", "fake,measures")[1]["2.mp4"]["corner"] == "20.0"
    assert Fake.calls == [20]


def test_without_its_weights_a_scorer_leaves_its_columns_empty(clips, tmp_path, capsys):
    status, rows = score(tmp_path, clips, "--scorers", "absent,fake")
    assert not status and {row["beauty"] for row in rows.values()} == {""}
    assert {row["problem"] for row in rows.values()} == {"absent: weights are missing"}
    said = capsys.readouterr().out
    assert "someone/judge" in said and "judge.pt at revision 0123" in said and "put it there" in said
    assert said.index("vocab.json") < said.index("put it there") < said.index("fetch the words")
    about = json.loads((tmp_path / "scores.provenance.json").read_text())
    assert "judge.pt" in about["scorers"]["absent"]["left_out"] and about["scorers"]["fake"]["revision"] == "1"


def test_what_is_missing_for_all_scorers_is_named_at_once_and_each_step_once(clips, tmp_path, capsys):
    score(tmp_path, clips, "--scorers", "absent,blind,fake")
    said = capsys.readouterr().out
    assert said.count("  -> put it there\n") == 1 and said.count("  -> fetch the words\n") == 1
    lost = [line.split(" is left out")[0] for line in said.splitlines() if "are missing on this machine" in line]
    assert lost == ["absent", "absent", "blind", "blind"]


def test_nothing_scored_is_status_1_and_the_table_says_why(clips, tmp_path, capsys):
    status, rows = score(tmp_path, clips, "--scorers", "absent")
    assert status == 1 and len(rows) == 4 and all(row["problem"] for row in rows.values())
    assert "nothing could be scored" in capsys.readouterr().err
    status, rows = score(tmp_path, clips, "--scorers", "reads", out="other.csv")
    assert status == 1 and rows["1.mp4"]["problem"] == "reads: needs a prompt, and the video has none"


@pytest.mark.parametrize(
    "words, why",
    [
        (["--scorers", "fake,mesures"], "'mesures': does not exist"),
        (["--scorers", "fake", "--prompts", "none.csv"], "none.csv: does not exist"),
        (["--scorers", ","], "--scorers ',': names no scorer"),
        (["--scorers", ""], "--scorers '': is empty\n  -> give it a value"),
        (["--scorers", "fake", "--per-frame", "frames.txt"], "frames.txt: would be a table in the form .txt"),
        (["--scorers", "fake", "--per-frame", "scores.csv"], "scores.csv: is the table of whole videos"),
        (["--scorers", "fake,twin"], "column corner of twin: would be a column of fake"),
        (["--scorers", "fake", "--batch", "0"], "--batch 0"),
        (["--scorers", "fake", "--device", "cuda:99"], "cuda:99: cannot be used"),
        (["--scorers", "fake", "--device", "gpu"], "device 'gpu': is unknown"),
        (["--scorers", "fake", "--out", "scores.xlsx"], "scores.xlsx: would be a table in the form .xlsx"),
    ],
)
def test_input_that_makes_no_sense_is_status_2_and_writes_nothing(clips, tmp_path, words, why, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["score", "clips", "--device", "cpu", *words]) == 2
    assert why in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before
    assert cli.main(["score"]) == 2
