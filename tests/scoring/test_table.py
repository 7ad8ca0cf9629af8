"""A table of scores loses no score, invents none, and computes only what changed."""

import csv
import json

import pytest
from scorers import ITEMS, Absent, Fake, Reads, grey, score

from localdpo.cli import main as cli
from localdpo.ground.errors import Refused
from localdpo.media import video
from localdpo.sampling import videos as sampling
from localdpo.sampling.folders import find_videos
from localdpo.scoring import scorer as core
from localdpo.scoring import table

pytestmark = pytest.mark.usefixtures("fakes")


def test_one_row_a_video_with_all_columns(clips, tmp_path, capsys):
    status, rows = score(tmp_path, clips, "--prompts", tmp_path / "prompts.jsonl", "--scorers", "fake,reads")
    assert not status and list(rows) == [f"{i}.mp4" for i in range(1, 5)]
    names = "video prompt fps frames height width corner fake_half length problem".split()
    assert list(rows["1.mp4"]) == names
    wanted = ["2.mp4", "word word", "8.0", "3", "16", "16", "20.0", "10.0", "9.0", ""]
    assert list(rows["2.mp4"].values()) == wanted
    assert "4 videos, 4 with all scores; 4 looked at now" in capsys.readouterr().out


@pytest.mark.slow(1)
def test_a_folder_of_sample_is_scored_by_its_manifest(tmp_path, capsys):
    from localdpo import backbones

    prompts = [dict(id=f"p{i}", prompt=item.prompt()) for i, item in enumerate(ITEMS[:2])]
    sampling.sample(backbones.load("tiny-cogvideox-2b", "cpu"), prompts, tmp_path / "videos", steps=2)
    status, rows = score(tmp_path, tmp_path / "videos", "--scorers", "measures,attributes")
    assert not status and list(rows) == ["videos/p0_seed0.mp4", "videos/p1_seed0.mp4"]
    assert [row["prompt"] for row in rows.values()] == [item.prompt() for item in ITEMS[:2]]
    assert not any(row["problem"] for row in rows.values()) and all(row["words_right"] for row in rows.values())
    file = tmp_path / "videos" / "manifest.json"
    file.write_text(file.read_text().replace(ITEMS[0].prompt(), "a red star"))
    with pytest.raises(Refused, match="manifest.json: is damaged: it is not what was written"):
        find_videos([tmp_path / "videos"])


def test_a_second_call_computes_nothing_and_writes_the_same_bytes(clips, tmp_path):
    words = clips, "--scorers", "fake"
    score(tmp_path, *words)
    before = (tmp_path / "scores.csv").read_bytes()
    Fake.calls.clear()
    score(tmp_path, *words)
    assert not Fake.calls and (tmp_path / "scores.csv").read_bytes() == before


def test_only_what_changed_is_computed_again(clips, tmp_path, monkeypatch):
    words = clips, "--prompts", tmp_path / "prompts.jsonl", "--scorers", "fake,reads"
    score(tmp_path, *words)

    def calls():
        Fake.calls.clear(), Reads.calls.clear()
        rows = score(tmp_path, *words)[1]
        return Fake.calls, Reads.calls, rows

    grey(clips / "2.mp4", 25)
    fake, reads, rows = calls()
    assert (fake, reads) == ([25], ["word word"]) and rows["2.mp4"]["corner"] == "25.0"
    (tmp_path / "prompts.jsonl").write_text((tmp_path / "prompts.jsonl").read_text().replace("word word ", "new ", 1))
    fake, reads, rows = calls()
    assert fake == [] and len(reads) == 1 and rows["2.mp4"]["length"] == "3.0"
    (clips / "3.mp4").rename(clips / "5.mp4")
    (tmp_path / "prompts.jsonl").write_text((tmp_path / "prompts.jsonl").read_text().replace("3.mp4", "5.mp4"))
    assert calls()[:2] == ([], [])
    monkeypatch.setattr(Fake, "revision", "2")
    fake, reads, rows = calls()
    assert fake == [10, 25, 40, 30] and reads == [] or sorted(fake) == [10, 25, 30, 40]
    grey(clips / "6.mp4", 60)
    assert calls()[0] == [60]


@pytest.fixture
def copies(tmp_path):
    "One clip under two names, asked for by its own prompt and by another."
    clip, other = ITEMS[0].clip().frames, "A green wheel growing on a striped blue background."
    for name in "ab":
        video.write_lossless(tmp_path / "clips" / f"{name}.mp4", clip, 8)
    (tmp_path / "prompts.txt").write_text(f"a.mp4\t{ITEMS[0].prompt()}\nb.mp4\t{other}")
    return tmp_path / "clips", "--prompts", tmp_path / "prompts.txt", "--scorers", "critic-b,attributes"


def test_copies_of_a_video_with_two_prompts_have_two_marks_for_words(copies, tmp_path):
    _, rows = score(tmp_path, *copies)
    a, b = rows["a.mp4"], rows["b.mp4"]
    assert a["critic_b_vq"] == b["critic_b_vq"] and a["words_right"] == "1.0" > b["words_right"]
    assert float(a["critic_b_ta"]) > float(b["critic_b_ta"]) and a["critic_b_overall"] != b["critic_b_overall"]
    about = json.loads((tmp_path / "scores.provenance.json").read_text())["scorers"]["critic-b"]
    assert about["prompt_variant"] != "not used" and not a["problem"] + b["problem"]


def test_a_critic_is_asked_again_when_the_prompt_has_changed(copies, tmp_path):
    before = score(tmp_path, *copies)[1]["a.mp4"]
    path = tmp_path / "prompts.txt"
    path.write_text(path.read_text().replace(ITEMS[0].prompt(), "a dog"))
    after = score(tmp_path, *copies)[1]["a.mp4"]
    assert after["critic_b_vq"] == before["critic_b_vq"] and after["critic_b_ta"] == after["critic_b_overall"] == "nan"
    assert "'a dog' is not one" in after["problem"]


def test_another_scorer_later_does_not_disturb_the_first(clips, tmp_path):
    score(tmp_path, clips, "--scorers", "fake")
    Fake.calls.clear()
    rows = score(tmp_path, clips, "--scorers", "measures,fake")[1]
    assert not Fake.calls and rows["1.mp4"]["corner"] == "10.0" and rows["1.mp4"]["mse_next"] == "0.0"


def test_scorers_that_are_not_asked_for_keep_their_columns(clips, tmp_path, capsys):
    words = clips, "--prompts", tmp_path / "prompts.jsonl", "--scorers"
    score(tmp_path, *words, "fake,reads")
    Fake.calls.clear(), Reads.calls.clear()
    status, rows = score(tmp_path, *words, "measures")
    assert not status and not Fake.calls and not Reads.calls
    assert (rows["2.mp4"]["corner"], rows["2.mp4"]["length"], rows["2.mp4"]["mse_next"]) == ("20.0", "9.0", "0.0")
    assert {row["problem"] for row in rows.values()} == {""}
    assert not (tmp_path / "scores.old.csv").exists()
    about = json.loads((tmp_path / "scores.provenance.json").read_text())["scorers"]
    assert set(about) == {"fake", "reads", "measures"} and about["fake"]["revision"] == "1"
    score(tmp_path, *words, "fake")
    rows = score(tmp_path, *words, "fake,measures")[1]
    assert rows["3.mp4"]["length"] == "14.0" and rows["3.mp4"]["mse_next"] == "0.0" and not Fake.calls


def test_a_column_that_is_kept_says_which_videos_it_lacks(clips, tmp_path):
    score(tmp_path, clips, "--scorers", "fake")
    grey(clips / "2.mp4", 25)
    grey(clips / "5.mp4", 50)
    rows = score(tmp_path, clips, "--scorers", "measures")[1]
    found = [row["problem"] for row in rows.values()]
    said = "fake: was not asked for, and has no score of this video and prompt"
    assert found == ["", said, "", "", said] and rows["2.mp4"]["corner"] == ""
    assert score(tmp_path, clips, "--scorers", "fake")[1]["5.mp4"]["corner"] == "50.0"


def test_a_table_with_scores_that_the_new_one_lacks_is_kept(clips, tmp_path, capsys):
    score(tmp_path, clips, "--scorers", "fake")
    before = (tmp_path / "scores.csv").read_bytes()
    for i in (1, 2):
        score(tmp_path, clips / f"{i}.mp4", "--scorers", "fake")
    said = capsys.readouterr().out
    assert "had scores that are not in the new table (corner, fake_half of 3 videos" in said or "of 4 videos" in said
    assert (tmp_path / "scores.old.csv").read_bytes() == before and (tmp_path / "scores.old-2.csv").exists()


def test_a_column_of_the_old_table_cannot_be_that_of_another_scorer(clips, tmp_path, capsys):
    score(tmp_path, clips, "--scorers", "fake")
    before = (tmp_path / "scores.csv").read_bytes()
    assert score(tmp_path, clips, "--scorers", "twin")[0] == 2 and (tmp_path / "scores.csv").read_bytes() == before
    assert "column corner of fake: would be a column of twin too" in capsys.readouterr().err


def test_when_weights_are_gone_the_scores_that_are_known_stay(clips, tmp_path, monkeypatch, capsys):
    score(tmp_path, clips, "--scorers", "fake")
    grey(clips / "2.mp4", 25)
    monkeypatch.setattr(Fake, "weights", Absent.weights)
    rows = score(tmp_path, clips, "--scorers", "fake")[1]
    assert rows["1.mp4"]["corner"] == "10.0" and rows["1.mp4"]["problem"] == ""
    assert rows["2.mp4"]["corner"] == "" and rows["2.mp4"]["problem"] == "fake: weights are missing"
    about = json.loads((tmp_path / "scores.provenance.json").read_text())["scorers"]["fake"]
    assert about["revision"] == "1" and "judge.pt" in about["not_here_now"]


@pytest.mark.parametrize("prompt", ["=1+1", '=HYPERLINK("http://x")', "+1", "-a dog", "@cmd", "'=1", "\t=1"])
def test_no_text_in_the_table_is_run_by_a_spreadsheet(clips, tmp_path, prompt):
    (clips / "1.mp4").rename(clips / "=1.mp4")
    (tmp_path / "p.jsonl").write_text(json.dumps(dict(video="=1.mp4", prompt=prompt)))
    for _ in range(2):
        score(tmp_path, clips, "--scorers", "fake,reads", "--prompts", tmp_path / "p.jsonl")
    with open(tmp_path / "scores.csv", newline="") as file:
        texts = [row[name] for row in csv.DictReader(file) for name in ("video", "prompt", "problem")]
    assert "'=1.mp4" in texts and not any(text.startswith(tuple("=+-@\t\r")) for text in texts)
    rows = {row["video"]: row["prompt"] for row in table._read(tmp_path / "scores.csv")}
    assert rows["=1.mp4"] == prompt.strip() and not (tmp_path / "scores.old.csv").exists()


def test_numbers_below_zero_stay_numbers(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(Fake, "pooled", lambda *words: dict(corner=-0.5, fake_half=1.0))
    assert score(tmp_path, clips, "--scorers", "fake")[1]["1.mp4"]["corner"] == "-0.5"


def test_parquet_needs_pyarrow_and_says_so_first(clips, tmp_path, capsys):
    words = clips, "--scorers", "fake"
    try:
        from pyarrow import parquet
    except ImportError:
        assert score(tmp_path, *words, out="s.parquet") == (2, None)
        assert "pip install pyarrow" in capsys.readouterr().err and not Fake.calls
        return
    cli.main(["score", "--device", "cpu", "--out", str(tmp_path / "s.parquet"), *map(str, words)])
    rows = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    assert [row["corner"] for row in rows] == [10, 20, 30, 40] and rows[0]["frames"] == 3


def test_the_provenance_says_what_the_numbers_were_made_with(clips, tmp_path):
    score(tmp_path, clips, "--scorers", "fake,measures")
    about = json.loads((tmp_path / "scores.provenance.json").read_text())
    assert set(core.PROVENANCE) < set(about["scorers"]["measures"]) and about["table"] == "scores.csv"
    assert about["scorers"]["fake"]["columns"] == ["corner", "fake_half"] and about["made_with"]["localdpo"]
    assert about["sha256"] == table.sum_of(tmp_path / "scores.csv")
