"""Which videos are scored and with which prompts: folders, manifests, files of prompts, and their contradictions."""

import json
import re
import shutil
from pathlib import Path

import pytest
from scorers import Fake, Reads, grey, manifest, score

from localdpo.ground.errors import Refused
from localdpo.ground.seals import sealed, unsealed
from localdpo.sampling.folders import find_videos

pytestmark = pytest.mark.usefixtures("fakes")


def test_a_manifest_gives_prompts_and_what_it_does_not_list_is_told(clips):
    manifest(clips)
    grey(clips / "more" / "5.mp4", 5)
    videos, told = find_videos([clips])
    assert [(one.name, one.prompt, one.fps) for one in videos] == [(f"{i}.mp4", f"prompt {i}", 8) for i in range(1, 5)]
    assert len(told) == 1 and "more/5.mp4" in told[0]


def test_two_manifests_below_a_folder_are_named_and_a_second_file_beside_one_does_no_harm(clips):
    for name in ("first", "second"):
        shutil.copytree(clips, clips.parent / "both" / name)
        manifest(clips.parent / "both" / name)
    both = clips.parent / "both"
    videos, told = find_videos([both])
    assert len(videos) == 8 and not any(one.prompt for one in videos)
    assert told == [f"{both}: its videos have no prompts; to read their manifests, name {both}/first, {both}/second"]
    videos, told = find_videos([both / "first", both / "second"])
    assert len(videos) == 8 and all(one.prompt for one in videos) and not told
    shutil.copy(both / "first" / "manifest.json", both / "first" / "manifest-2.json")
    assert len(find_videos([both / "first"])[0]) == 4


def test_a_changed_prompt_in_a_manifest_is_refused(clips, tmp_path):
    manifest(clips)
    file = clips / "manifest.json"
    file.write_text(file.read_text().replace("prompt 2", "prompt 7"))
    with pytest.raises(Refused, match="manifest.json: is damaged: it is not what was written"):
        find_videos([clips])


@pytest.mark.parametrize("name", ["../secret.mp4", "ABSOLUTE", "a/../../secret.mp4", "link/secret.mp4"])
def test_a_manifest_leads_nowhere_outside_its_folder(clips, tmp_path, name):
    grey(tmp_path / "secret.mp4", 7)
    (clips / "link").symlink_to(tmp_path)
    name = str(tmp_path / "secret.mp4") if name == "ABSOLUTE" else name
    entry = dict(id="a", prompt="a", seed=0, file=name, sha256="0")
    (clips / "manifest.json").write_text(json.dumps(dict(settings=dict(fps=8), videos=[entry])))
    with pytest.raises(Refused, match="which lies outside"):
        find_videos([clips])


def test_a_manifest_that_lost_its_seal_is_said(clips, tmp_path, capsys):
    manifest(clips)
    about = unsealed(clips / "manifest.json")
    assert find_videos([clips])[1] == []
    (clips / "manifest.json").write_text(json.dumps(about))
    assert score(tmp_path, clips)[0] is None
    assert (
        "manifest.json: carries no seal, so that a prompt changed in it would not be noticed" in capsys.readouterr().out
    )


def test_a_folder_that_is_not_finished_or_damaged_is_refused(clips):
    (clips / "settings.json").write_text("{}")
    (clips / "records").mkdir()
    with pytest.raises(Refused, match="is not finished"):
        find_videos([clips])
    for text in ("", '{"videos": [', "[]", '{"videos": [{}], "settings": {"fps": 8}}'):
        (clips / "manifest.json").write_text(text)
        with pytest.raises(Refused, match="manifest.json: is damaged"):
            find_videos([clips])


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet", "manifest.json"])
def test_a_table_is_not_taken_for_a_video(tmp_path, name):
    (tmp_path / name).write_text("video,sharp\n")
    with pytest.raises(Refused, match=f"{name}: is a table, not a video"):
        find_videos([tmp_path / name])


@pytest.mark.parametrize("sources", [["nowhere"], ["clips", "no.mp4"], ["empty"]])
def test_sources_that_are_no_videos_are_refused(clips, sources, monkeypatch):
    monkeypatch.chdir(clips.parent)
    Path("empty").mkdir()
    with pytest.raises(Refused, match="does not exist|holds no videos"):
        find_videos(sources)


def test_folders_and_files_together_are_named_as_given(clips, monkeypatch):
    monkeypatch.chdir(clips.parent)
    videos, _ = find_videos(["clips/2.mp4", "clips", "clips/2.mp4"])
    assert [one.name for one in videos] == ["clips/2.mp4", "clips/1.mp4", "clips/3.mp4", "clips/4.mp4"]


PROMPT_FILES = {
    "a.jsonl": '{"video": "1.mp4", "prompt": "one"}\n{"video": "2", "prompt": "two"}\n',
    "a.csv": 'file,caption\n1.mp4,one\n2,"two"\n',
    "a.txt": "1.mp4\tone\n\n2\ttwo\n",
    "ids.csv": "id,prompt\np1,one\np2,two\n",
}


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_prompts_are_read_in_each_form(clips, name):
    if name == "ids.csv":
        manifest(clips)
    (clips / name).write_text(PROMPT_FILES[name])
    videos, told = find_videos([clips], clips / name)
    assert [one.prompt for one in videos[:2]] == ["one", "two"] and not videos[0].notes
    if name == "ids.csv":
        assert [one.prompt for one in videos[2:]] == ["prompt 3", "prompt 4"] and not videos[2].notes
        assert told == ["ids.csv has no prompt for 2 of 4 videos; the manifest's stays"]
    else:
        assert [one.prompt for one in videos[2:]] == ["", ""] and not told
        assert videos[2].notes == (f"has no prompt in {name}",)


@pytest.mark.parametrize("harm, problem", [
    (lambda file: file.unlink(), "cannot be read (No such file or directory)"),
    (lambda file: file.write_bytes(file.read_bytes()[:99]), "is not the file that its manifest lists"),
])  # fmt: skip
def test_a_listed_video_that_is_gone_or_damaged_ends_in_status_1_with_all_others_scored(
    clips, tmp_path, capsys, harm, problem
):
    manifest(clips)
    harm(clips / "2.mp4")
    status, rows = score(tmp_path, clips, "--scorers", "fake")
    assert status == 1 and [bool(row["corner"]) for row in rows.values()] == [True, False, True, True]
    assert problem in rows["2.mp4"]["problem"]
    assert "1 listed video (2.mp4) is gone or damaged; the others are scored\n  -> give" in capsys.readouterr().err


CAFE = "1\ta caf\xe9\n2\ttwo\n"


@pytest.mark.parametrize("name", ["p.txt", "p.csv"])
@pytest.mark.parametrize("data, old, new", [(CAFE.encode("cp1252"), "cp1252", "utf-8"),
    (CAFE.encode().decode("cp1252").encode(), "utf-8", "cp1252"), (CAFE.encode("utf-16"), "utf-16", "utf-8")])  # fmt: skip
def test_a_file_of_prompts_in_another_encoding_is_told_how_to_be_converted(clips, tmp_path, name, data, old, new):
    (file := clips / name).write_bytes(data)
    if name == "p.csv" and old != "utf-16":
        file.write_bytes(b"video,prompt\n" + data.replace(b"\t", b","))
    advice = f"iconv -f {old} -t {new} .*{name} > .*utf8-{name}"
    if old == "utf-16":
        with pytest.raises(Refused, match=advice):
            find_videos([clips], file)
    else:
        videos, told = find_videos([clips], file)
        assert videos[0].notes and videos[1].prompt == "two" and re.search(advice, told[0])


def test_rows_of_many_videos_that_are_not_there_are_told_in_one_line(clips, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("video,prompt\n" + "".join(f"{i}.mp4,one\n" for i in range(1, 65)))
    status, rows = score(tmp_path, clips, "--prompts", tmp_path / "p.csv", "--scorers", "fake")
    said = capsys.readouterr().out
    assert "5.mp4, 6.mp4, 7.mp4, and 57 more: p.csv names a video that is not there\n" in said
    assert said.count("not there") == 1 and len(rows) == 64 and status == 1
    assert rows["9.mp4"]["problem"] == "p.csv row 9 names a video that is not there"


def test_prompts_that_contradict_each_other_or_lack_a_video_are_named(clips):
    rows = "video,prompt\n1,one\n1.mp4,other\n2,two\n2.mp4,two\n3,\n,lost\n9,nine\n4,caf\xc3\xa9\n"
    (clips / "p.csv").write_text(rows)
    videos, _ = find_videos([clips], clips / "p.csv")
    one, two, three, four, lost, nine = videos
    assert one.notes == ("has no prompt: p.csv row 1 and p.csv row 2 say different things",) and two.prompt == "two"
    assert three.notes == ("p.csv row 5 has no prompt",) and "wrong encoding" in four.notes[0]
    assert (lost.fault, nine.fault) == ("p.csv row 6 names no video", "p.csv row 7 names a video that is not there")


@pytest.mark.parametrize(
    "name, text, why",
    [
        ("p.csv", "film,prompt\n1,one\n", "has no column video; it has film, prompt"),
        ("p.csv", "video,words\n1,one\n", "has no column prompt; it has video, words"),
        ("p.csv", "", "has no column video; it has none"),
        ("p.jsonl", '{"video": "1"\n', "line 1: is not JSON"),
        ("p.csv", "video,prompt\n1,a red disc, moving left\n", "row 1: has more cells than there are columns"),
        ("p.csv", 'video,prompt\n1,"a red disc\n2,a blue ring\n', "row 1: has a quote that is not closed"),
        ("p.csv", 'video,prompt\n1,"x"y\n', "row 1: has a quote that is not closed, or text beside a quoted cell"),
        ("p.doc", "1", "in no form"),
        ("p.txt", None, "does not exist"),
        ("p.txt", "one prompt\nanother\n", "has no tab in any line"),
        ("p.parquet", "PAR1", "pyarrow|is not a parquet"),
    ],
)
def test_a_file_of_prompts_that_is_none_is_refused(clips, name, text, why):
    if text is not None:
        (clips / name).write_text(text)
    with pytest.raises(Refused, match=why):
        find_videos([clips], clips / name)


def test_the_short_prompt_is_scored_where_videos_were_drawn_from_the_long_one(clips, tmp_path):
    manifest(clips)
    about = json.loads((clips / "manifest.json").read_text())
    for i, entry in enumerate(about["videos"][:3]):
        entry["short"] = entry["prompt"] if i == 2 else f"few {i}"
    about.pop("seal")
    (clips / "manifest.json").write_text(sealed(about))
    words = clips, "--scorers", "reads,fake"
    rows = score(tmp_path, *words)[1]
    assert [row["prompt"] for row in rows.values()] == ["few 0", "few 1", "prompt 3", "prompt 4"]
    told = json.loads((tmp_path / "scores.provenance.json").read_text())
    assert told["prompts"] == {"short": 3, "as given": 1}
    assert told["scorers"]["reads"]["prompt_variant"] == "short, as given"
    assert told["scorers"]["fake"]["prompt_variant"] == "not used"
    Fake.calls.clear(), Reads.calls.clear()
    rows = score(tmp_path, *words, "--form", "long")[1]
    assert [row["prompt"] for row in rows.values()] == [f"prompt {i}" for i in range(1, 5)]
    assert not Fake.calls and Reads.calls == ["prompt 1", "prompt 2"]
    told = json.loads((tmp_path / "scores.provenance.json").read_text())
    assert told["prompts"] == {"long": 2, "short": 1, "as given": 1}


def test_a_file_of_long_prompts_says_the_short_ones_too(clips, tmp_path):
    entries = [dict(id=f"{i}", prompt=f"few {i}", expanded=f"many words {i}", about={}) for i in (1, 2)]
    (tmp_path / "entries.jsonl").write_text("\n".join(map(json.dumps, entries)))
    rows = [dict(id=f"{i}", prompt=f"many words {i}", short=f"few {i}") for i in (1, 2)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("entries.jsonl", "long.jsonl"):
        for form, words in (("short", "few"), ("long", "many words")):
            found = find_videos([clips], tmp_path / name, form)[0][:2]
            assert [(one.prompt, one.form) for one in found] == [(f"{words} 1", form), (f"{words} 2", form)]
    with pytest.raises(Refused, match="form 'wide'"):
        find_videos([clips], form="wide")
