"""Whatever happened to a table or its journal is named and made whole: half-written, edited, somebody else's, killed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_for
from scorers import ITEMS, Fake, lines, score

from localdpo.cli import main as cli
from localdpo.ground import workers
from localdpo.ground.journal import Journal
from localdpo.ground.workers import Died
from localdpo.media import video

pytestmark = pytest.mark.usefixtures("fakes")


def test_a_table_of_somebody_else_is_not_overwritten(clips, tmp_path):
    (tmp_path / "scores.csv").write_text("mine")
    status, _ = score(tmp_path, clips, "--scorers", "fake")
    assert status == 2 and (tmp_path / "scores.csv").read_text() == "mine"


def test_half_written_results_are_named_and_made_whole(clips, tmp_path, capsys):
    words = clips, "--scorers", "fake"
    score(tmp_path, *words)
    files = {name: tmp_path / f"scores.{name}" for name in ("csv", "provenance.json", "partial.jsonl")}
    before = {name: file.read_bytes() for name, file in files.items()}
    for file in files.values():
        file.write_bytes(file.read_bytes()[:-40])
    Fake.calls.clear()
    capsys.readouterr()
    score(tmp_path, *words)
    said = capsys.readouterr().out
    assert Fake.calls == [40] and files["csv"].read_bytes() == before["csv"]
    assert "its last line was half-written" in said and "provenance.json: was half-written" in said
    assert "kept as scores.old.csv" in said and (tmp_path / "scores.old.csv").read_bytes() == before["csv"][:-40]
    assert json.loads(files["provenance.json"].read_text())["videos"] == 4


@pytest.mark.parametrize(
    "line", ["{}", '{"video": "x"}', '{"video": "x", "sha256": "0", "facts": {}, "said": {}}', "]"]
)
def test_lines_of_the_journal_that_make_no_sense_are_named(clips, tmp_path, line, capsys):
    (tmp_path / "scores.partial.jsonl").write_text(line + "\n")
    status, rows = score(tmp_path, clips, "--scorers", "fake")
    assert not status and rows["4.mp4"]["corner"] == "40.0" and "is damaged" in capsys.readouterr().out


def test_a_changed_digit_in_the_journal_is_named_and_its_video_scored_anew(clips, tmp_path, capsys):
    score(tmp_path, clips, "--scorers", "fake")
    journal = tmp_path / "scores.partial.jsonl"
    journal.write_text(journal.read_text().replace('"corner": 20', '"corner": 70'))
    Fake.calls.clear()
    rows = score(tmp_path, clips, "--scorers", "fake")[1]
    assert rows["2.mp4"]["corner"] == "20.0" and Fake.calls == [20]
    assert "the line of '2.mp4' is damaged: it is not as it was written" in capsys.readouterr().out


def test_a_value_outside_its_bounds_is_not_taken_from_the_journal(clips, tmp_path, monkeypatch, capsys):
    score(tmp_path, clips, "--scorers", "fake")
    monkeypatch.setattr(Fake, "ranges", dict(corner=(0, 35)))
    Fake.calls.clear()
    rows = score(tmp_path, clips, "--scorers", "fake")[1]
    assert Fake.calls == [40] and rows["4.mp4"]["corner"] == "nan" and rows["3.mp4"]["corner"] == "30.0"
    said = capsys.readouterr().out
    assert "corner is 40, outside 0 to 35; the video is scored anew" in said
    assert rows["4.mp4"]["problem"] == "fake: corner is 40, outside 0 to 35"


@pytest.mark.parametrize("name", ["scores.csv", "scores.provenance.json", "scores.partial.jsonl", "frames.csv"])
def test_a_folder_in_a_files_place_is_refused_before_anything_is_scored(clips, tmp_path, name, capsys):
    (tmp_path / name).mkdir()
    words = "--scorers", "fake", "--per-frame", str(tmp_path / "frames.csv")
    assert cli.main(["score", "--device", "cpu", "--out", str(tmp_path / "scores.csv"), str(clips), *words]) == 2
    assert f"{name}: is a folder where a file belongs" in capsys.readouterr().err
    assert not Fake.calls


def many(folder, count):
    for i in range(count):
        video.write_lossless(folder / f"{i:02}.mp4", ITEMS[i % 6].clip(9, 64).frames + np.uint8(i), 8)
    return folder


def started(tmp_path, out, *words):
    line = [Path(sys.executable).with_name("localdpo"), "score", "clips", "--out", out, *words]
    return subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow(7)
@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_table(tmp_path, device):
    many(tmp_path / "clips", 24)
    words = "--scorers", "measures", "--device", device
    journal, kept = tmp_path / "killed.partial.jsonl", []
    for count in (1, 5):
        process = started(tmp_path, "killed.csv", *words)
        wait_for(lambda n=count, p=process: lines(journal) >= n or p.poll() is not None)
        process.kill()
        process.communicate()
        kept.append(lines(journal))
        assert not (tmp_path / "killed.csv").exists()
    assert 1 <= kept[0] <= kept[1] < 24
    with open(journal, "ab") as file:
        file.write(b'{"video": "09.mp4", "sha')  # the worst moment
    said = started(tmp_path, "killed.csv", *words).communicate()[0]
    assert "half-written" in said and f"24 videos, 24 with all scores; {24 - kept[1]} looked at now" in said
    assert lines(journal) == 24
    started(tmp_path, "whole.csv", *words).communicate()
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_second_process_for_the_same_table_is_refused(clips, tmp_path, capsys):
    with Journal(tmp_path / "scores.partial.jsonl"):
        assert score(tmp_path, clips, "--scorers", "fake") == (2, None)
    assert "in use by another process" in capsys.readouterr().err


def test_a_video_whose_process_dies_is_named_and_tried_again(clips, tmp_path, monkeypatch):
    work = workers._spread

    def died(*words):
        return ((i, Died("b", -9) if i == 1 else answer) for i, answer in work(*words))

    monkeypatch.setattr(workers, "_spread", died)
    words = clips, "--scorers", "measures", "--device", "cpu,cpu"
    status, rows = score(tmp_path, *words)
    why = "its process on b died (exit code -9); the same command tries it again"
    assert status == 1 and rows["2.mp4"]["problem"] == why and rows["2.mp4"]["mse_next"] == ""
    monkeypatch.setattr(workers, "_spread", work)
    assert score(tmp_path, *words)[1]["2.mp4"]["mse_next"] == "0.0" and lines(tmp_path / "scores.partial.jsonl") == 4
