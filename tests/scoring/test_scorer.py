"Whatever happens to videos, scorers or the machine, no score is lost, none is invented, and each gap has its reason."

import csv
import functools
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import alive, loaded_by, program, wait_for
from skimage import measure, metrics

from localdpo.cli import main as cli
from localdpo.clips import pools, world
from localdpo.ground import workers
from localdpo.ground.errors import Refused
from localdpo.ground.journal import Journal
from localdpo.ground.noise import generator
from localdpo.ground.seals import sealed, unsealed
from localdpo.ground.workers import Died, spread
from localdpo.media import video
from localdpo.sampling import videos as sampling
from localdpo.sampling.folders import find_videos
from localdpo.scoring import measures, table
from localdpo.scoring import scorer as core
from localdpo.scoring.scorer import Scorer, get_scorer, score_video
from localdpo.scoring.weights import WeightsMissing

ITEMS = pools.pool("curated", 6, "held out")
WORDS = dict(preprocessing="none", pooling="none", prompt="not used")


class Fake(Scorer):
    "Scores by the first pixel; `calls` counts, and `harm` says what goes wrong at which value of it."

    name, columns = "fake", ("corner", "fake_half")
    calls, harm, revision = [], {}, "1"

    def pooled(self, each, frames, prompt, fps):
        corner = int(frames[0, 0, 0, 0])
        self.calls.append(corner)
        if isinstance(harm := self.harm.get(corner, self.harm.get("all")), Exception):
            raise harm
        return dict(corner=corner, fake_half=corner / 2 if harm is None else harm)

    def per_frame(self, frames, prompt, fps):
        return dict(corner=frames[:, 0, 0, 0], fake_half=frames[1:, 0, 0, 0] / 2)

    def reason(self, column, frames, prompt, fps):
        return "divides by nothing"

    def provenance(self):
        return dict(scorer=self.name, checkpoint="none", revision=self.revision) | WORDS


class Reads(Fake):
    name, columns, needs_prompt = "reads", ("length",), True
    per_frame = Scorer.per_frame

    def pooled(self, each, frames, prompt, fps):
        self.calls.append(prompt)
        return dict(length=len(prompt))


class Absent(Fake):
    name, columns = "absent", ("beauty",)

    def weights(self):
        more = WeightsMissing("else/words", None, "vocab.json", "fetch the words")
        raise WeightsMissing("someone/judge", "0123", "judge.pt", "put it there", more)


class Blind(Absent):
    name, columns = "blind", ("ugliness",)


class Twin(Fake):
    name, columns = "twin", ("corner",)

    per_frame = Scorer.per_frame

    def pooled(self, each, frames, prompt, fps):
        return dict(corner=0.0)


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    for kind in (Fake, Reads, Absent, Blind, Twin):
        monkeypatch.setitem(core.SCORERS, kind.name, f"{__name__}:{kind.__name__}")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Fake.__module__])
    monkeypatch.setattr(Fake, "calls", [])
    monkeypatch.setattr(Reads, "calls", [])
    monkeypatch.setattr(Fake, "harm", {})


@pytest.fixture
def clips(tmp_path):
    "Four videos with the values 10, 20, 30, 40 in the first pixel, and prompts for them."
    for i in range(1, 5):
        grey(tmp_path / "clips" / f"{i}.mp4", 10 * i)
    rows = [dict(video=f"{i}.mp4", prompt="word " * i) for i in range(1, 5)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "clips"


def grey(path, value, frames=3, size=16, fps=8):
    video.write_lossless(path, np.full((frames, size, size, 3), value, np.uint8), fps)


def score(tmp_path, *words, out="scores.csv"):
    "The exit status of the command, and the rows of the table by video."
    status = cli.main(["score", "--device", "cpu", "--out", str(tmp_path / out), *map(str, words)])
    return status, rows_of(tmp_path / out)


def rows_of(path):
    if not path.exists():
        return None
    with open(path, newline="") as file:
        return {row["video"]: row for row in csv.DictReader(file)}


# -- the protocol ----------------------------------------------------------------------------------------------------


def test_an_unknown_scorer_is_refused_with_the_nearest():
    with pytest.raises(Refused, match="did you mean measures") as refusal:
        get_scorer("mesure")
    assert "attributes" in refusal.value.then


def test_what_help_needs_imports_nothing_heavy():
    names = "scoring scoring.scorer scoring.weights scoring.measures scoring.videos cli.score sampling.folders".split()
    loaded = set.union(*loaded_by(*(f"localdpo.{name}" for name in names)).values())
    assert not loaded & {"torch", "transformers", "diffusers"}


def test_missing_weights_cross_process_borders_whole():
    missing = WeightsMissing("a/b", "0123", "c.pt", "place it")
    copy = pickle.loads(pickle.dumps(missing))
    assert str(copy) == str(missing) and (copy.checkpoint, copy.revision, copy.missing) == ("a/b", "0123", "c.pt")
    both = WeightsMissing("d/e", None, "f.pt", "fetch it", missing)
    assert str(pickle.loads(pickle.dumps(both))) == str(both) and "c.pt" in str(both) and "f.pt" in str(both)


def test_a_scorer_that_breaks_the_contract_is_an_error_not_a_gap(monkeypatch):
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    monkeypatch.setattr(Fake, "pooled", lambda *words: dict(corner=1.0))
    with pytest.raises(TypeError, match="announces .*fake_half"):
        score_video(Fake(), frames, "", 8)
    monkeypatch.setattr(Fake, "provenance", lambda self: dict(scorer="fake"))
    with pytest.raises(TypeError, match="provenance of fake"):
        core.checked_provenance(Fake())


@pytest.mark.parametrize("value, low, high", [(7.59, -1, 1), (-0.2, 0, math.inf)])
def test_a_value_outside_its_bounds_is_no_score(monkeypatch, value, low, high):
    monkeypatch.setattr(Fake, "ranges", dict(corner=(low, high)))
    monkeypatch.setattr(Fake, "pooled", lambda *words: dict(corner=value, fake_half=1.0))
    scores, problems, _ = score_video(Fake(), np.zeros((2, 4, 4, 3), np.uint8), "", 8)
    assert math.isnan(scores["corner"]) and scores["fake_half"] == 1
    assert problems == [f"fake: corner is {value:g}, outside {low:g} to {high:g}"]


def test_a_scorer_with_frames_of_a_column_it_does_not_announce_is_an_error(monkeypatch):
    monkeypatch.setattr(Fake, "per_frame", lambda self, frames, *_: dict(other=[1.0]))
    with pytest.raises(TypeError, match="other"):
        score_video(Fake(), np.zeros((2, 4, 4, 3), np.uint8), "", 8)


@pytest.mark.parametrize("frames", [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4), np.uint8), [[1]], None])
def test_what_is_no_video_is_refused(frames):
    with pytest.raises(Refused, match="are not a video"):
        score_video(Fake(), frames, "", 8)


def test_every_scorer_in_the_package_announces_what_it_returns():
    for name in ("measures", "attributes"):
        scorer, clip = get_scorer(name), ITEMS[0].clip().frames
        scores, problems, _ = score_video(scorer, clip, ITEMS[0].prompt(), 8)
        assert tuple(scores) == scorer.columns and not problems and not scorer.weights()
        assert all(map(math.isfinite, scores.values())) and core.checked_provenance(scorer)["scorer"] == name


# -- measures --------------------------------------------------------------------------------------------------------

WAYS = [
    ("blur", "blur", 1),
    ("blur", "ssim_next", 1),
    ("noise", "warp_error", 1),
    ("noise", "mse_next", 1),
    ("flicker", "temporal_flickering", -1),
    ("flicker", "warp_error", 1),
    ("flicker", "ssim_next", -1),
    ("shake", "mse_next", 1),
    ("freeze", "motion", -1),
]


@functools.cache
def measured(flaw, strength):
    clips = [item.clip().frames for item in ITEMS[:3]]
    if strength is not None:
        rngs = [generator(seed=0, id=item.id, purpose="flaw") for item in ITEMS]
        clips = [pools.spoil(clip, flaw, strength, rng) for clip, rng in zip(clips, rngs, strict=False)]
    return [get_scorer("measures").score(clip, "", 8) for clip in clips]


@pytest.mark.parametrize("flaw, column, way", WAYS)
def test_a_measure_moves_with_the_strength_of_its_flaw(flaw, column, way):
    means = [np.mean([one[column] for one in measured(flaw, s)]) for s in (None, 0.1, 0.5, 1.0)]
    assert (np.diff(means) * way > 0).all(), means


def test_a_film_that_stands_still_has_no_motion_and_no_error():
    still = np.repeat(ITEMS[0].clip().frames[:1], 5, 0)
    scores = get_scorer("measures").score(still, "", 8)
    expected = dict(ssim_next=1, mse_next=0, temporal_flickering=1, warp_error=0, motion=0, colour_drift=0)
    assert {name: round(scores[name], 12) for name in expected} == expected


@pytest.mark.parametrize("level", [0, 90, 255])
def test_a_blank_video_is_the_worst_of_all_and_has_no_gap(level):
    blank = score_video(get_scorer("measures"), np.full((9, 32, 32, 3), level, np.uint8), "", 8)
    assert not blank.problems and (blank.scores["blur"], blank.scores["warp_error"], blank.scores["motion"]) == (
        1,
        1,
        0,
    )
    for item in ITEMS:
        sound = get_scorer("measures").score(item.clip().frames, "", 8)
        assert sound["blur"] < 1 and sound["warp_error"] < 1


def test_a_blank_frame_in_a_sound_clip_is_left_out_of_the_mean():
    frames = ITEMS[0].clip().frames.copy()
    whole = get_scorer("measures").per_frame(frames, "", 8)["blur"]
    frames[3] = 0
    each = get_scorer("measures").per_frame(frames, "", 8)["blur"]
    assert np.isnan(each[3]) and get_scorer("measures").score(frames, "", 8)["blur"] == pytest.approx(
        np.delete(whole, 3).mean()
    )


def test_motion_is_a_speed():
    frames = world.render(world.Spec("star", "red", "dotted", "blue", "right"), frames=17).frames
    every, half, slow = (
        get_scorer("measures").score(clip, "", fps)["motion"]
        for clip, fps in ((frames[4:13], 16), (frames[::2], 16), (frames[4:13], 8))
    )
    assert 1.7 < half / every < 2.3 and slow == every / 2


@pytest.mark.parametrize("size", [(2, 2), (6, 8), (10, 16), (12, 12), (16, 200), (330, 20)])
def test_small_and_long_frames_have_scores_or_reasons(size):
    frames = generator(seed=0, id="x", purpose="x").integers(0, 255, (3, *size, 3)).astype(np.uint8)
    scores, problems, _ = score_video(get_scorer("measures"), frames, "", 8)
    lost = [name for name, value in scores.items() if math.isnan(value)]
    expected = ["warp_error", "motion"] if min(size) < 12 else []
    expected += ["ssim_next", "blur"] if min(size) < 7 else []
    assert sorted(lost) == sorted(expected) and bool(problems) == bool(expected)


def test_one_frame_has_no_next():
    scores, problems, _ = score_video(get_scorer("measures"), ITEMS[0].clip().frames[:1], "", 8)
    assert [name for name, value in scores.items() if math.isfinite(value)] == ["blur"]
    assert problems[0].endswith("needs two frames")


def test_long_films_are_computed_in_parts_to_the_same_numbers(monkeypatch):
    frames = ITEMS[1].clip(9, 32).frames
    whole = get_scorer("measures").per_frame(frames, "", 8)
    monkeypatch.setattr(measures, "AT_ONCE", 2 * 32 * 32)
    parts = get_scorer("measures").per_frame(frames, "", 8)
    assert whole.keys() == parts.keys()
    assert all(np.allclose(parts[column], values, rtol=1e-5, atol=0) for column, values in whole.items())


def test_the_measures_of_a_large_film_need_little_memory_beside_the_film():
    frames = np.zeros((24, 512, 512, 3), np.uint8)
    frames[:] = np.random.default_rng(0).integers(0, 256, frames.shape[1:], np.uint8)
    tracemalloc.start()
    get_scorer("measures").score(frames, "", 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * frames.nbytes  # of which most is one part of 2**20 pixels


def test_similarity_and_blur_are_those_of_scikit_image():
    light = measures.grey(pools.pool("raw", 3)[2].clip(9, 48).frames)
    ours = measures.similarity(light[:-1], light[1:])
    pairs = zip(light[:-1].astype(float), light[1:].astype(float), strict=True)
    assert np.allclose(ours, [metrics.structural_similarity(a, b, data_range=255) for a, b in pairs], atol=1e-5)
    assert np.allclose(measures.blur(light), [measure.blur_effect(one.astype(float)) for one in light])


@pytest.mark.parametrize("long", [False, True])
def test_attributes_are_right_for_the_prompt_and_wrong_for_another(long):
    item = ITEMS[0]
    right, *_ = score_video(get_scorer("attributes"), item.clip().frames, item.prompt(long), 8)
    other = world.prompt(pools.misspell(item.spec, 1.0, generator(seed=0, id="x", purpose="x")), long)
    wrong, *_ = score_video(get_scorer("attributes"), item.clip().frames, other, 8)
    assert right["words_right"] == 1 and wrong["words_right"] == 0


def test_attributes_and_critics_know_the_same_prompts():
    for prompt in (ITEMS[0].prompt().capitalize() + ".", ITEMS[0].prompt(True).upper(), "a dog", "."):
        told = [score_video(get_scorer(n), ITEMS[0].clip().frames, prompt, 8)[1] for n in ("attributes", "critic-b")]
        assert bool(told[0]) == bool(told[1]) == (world.meant(prompt) is None), told


@pytest.mark.parametrize("prompt, size, why", [("a dog", 32, "a dog.*not of the sprite world"), (None, 64, "9x64x64")])
def test_attributes_name_what_they_cannot_read(prompt, size, why):
    frames = ITEMS[0].clip(9, size).frames
    scores, problems, _ = score_video(get_scorer("attributes"), frames, prompt or ITEMS[0].prompt(), 8)
    assert all(map(math.isnan, scores.values())) and len(problems) == 1
    assert pytest.importorskip("re").search(why, problems[0])


# -- a process for each device ---------------------------------------------------------------------------------------


def deadly(device):
    def call(x):
        if x == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return device, x, os.getpid()

    return call


def test_each_device_has_a_process_and_every_job_an_answer():
    answers = dict(spread(deadly, [(x,) for x in range(8)], ["a", "b"]))
    assert [answers[i][1] for i in range(8)] == list(range(8)) and {answers[i][0] for i in range(8)} == {"a", "b"}
    assert os.getpid() not in {answer[2] for answer in answers.values()}


@pytest.mark.slow(1)
def test_a_process_that_dies_costs_its_own_job_only():
    answers = dict(spread(deadly, [(0,), ("die",), (2,), ("die",), (4,)], ["a", "b"]))
    assert [i for i, answer in answers.items() if isinstance(answer, Died)] in ([1, 3], [3, 1])
    assert answers[1].exitcode == -9 and [answers[i][1] for i in (0, 2, 4)] == [0, 2, 4]


@pytest.mark.slow(2)
def test_when_the_first_process_is_killed_the_others_end(tmp_path):
    first = subprocess.Popen(program("sleepers.py", tmp_path))
    wait_for(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"))
    others = [int((tmp_path / name).read_text()) for name in "01"]
    assert len({*others, first.pid}) == 3 and all(map(alive, others))
    first.kill()
    first.wait()
    wait_for(lambda: not any(map(alive, others)), 20)


# -- videos and prompts ----------------------------------------------------------------------------------------------


def manifest(folder, fps=8.0):
    "The clips in `folder` as `localdpo sample` lists them."
    files = sorted(folder.glob("*.mp4"))
    entries = [
        dict(id=f"p{f.stem}", prompt=f"prompt {f.stem}", seed=0, file=f.name, sha256=table.sum_of(f)) for f in files
    ]
    (folder / "manifest.json").write_text(sealed(dict(settings=dict(fps=fps), videos=entries)))


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


def test_rows_of_many_videos_that_are_not_there_are_told_in_one_line(clips, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("video,prompt\n" + "".join(f"{i}.mp4,one\n" for i in range(1, 65)))
    _, rows = score(tmp_path, clips, "--prompts", tmp_path / "p.csv", "--scorers", "fake")
    said = capsys.readouterr().out
    assert "5.mp4, 6.mp4, 7.mp4 and 57 more: p.csv names a video that is not there\n" in said
    assert said.count("not there") == 1 and len(rows) == 64
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
        ("p.parquet", "PAR1", "pyarrow|is not a parquet"),
    ],
)
def test_a_file_of_prompts_that_is_none_is_refused(clips, name, text, why):
    if text is not None:
        (clips / name).write_text(text)
    with pytest.raises(Refused, match=why):
        find_videos([clips], clips / name)


# -- the table -------------------------------------------------------------------------------------------------------


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


# -- single frames ---------------------------------------------------------------------------------------------------


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


# -- which form of a prompt ------------------------------------------------------------------------------------------


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
        (["--scorers", ""], "--scorers '': names no scorer\n  -> give some of measures"),
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
    assert f"{name}: is a folder, and a file of that name is to be written" in capsys.readouterr().err
    assert not Fake.calls


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


# -- killed, and several devices -------------------------------------------------------------------------------------


def many(folder, count):
    for i in range(count):
        video.write_lossless(folder / f"{i:02}.mp4", ITEMS[i % 6].clip(9, 64).frames + np.uint8(i), 8)
    return folder


def started(tmp_path, out, *words):
    line = [Path(sys.executable).with_name("localdpo"), "score", "clips", "--out", out, *words]
    return subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


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


def test_the_list_names_columns_and_what_is_missing(capsys, monkeypatch):
    for name in set(core.SCORERS) - {"measures", "absent"}:
        monkeypatch.delitem(core.SCORERS, name)
    monkeypatch.setitem(core.SCORERS, "broken", "localdpo.no_such_module:Broken")
    assert cli.main(["score", "--list"]) == 0
    said = capsys.readouterr().out
    assert "measures" in said and "colour_drift" in said and "judge.pt" in said and "put it there" in said
    assert "no_such_module" in said
    lines = said.splitlines()
    starts = {len(line) - len(line.removeprefix(line.split()[0]).lstrip()) for line in lines if line[0] != " "}
    assert starts == {19} and all(line[:19].isspace() for line in lines if line[0] == " ")
