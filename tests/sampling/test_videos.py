"A video is a function of its prompt and its seed; a folder of videos says whose they are, and mixes nothing."

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import adapted

from localdpo import backbones
from localdpo.backbones import adapters
from localdpo.cli import main as cli
from localdpo.clips import pools
from localdpo.ground.errors import Failed, Refused
from localdpo.ground.seals import unsealed
from localdpo.media import video
from localdpo.prompts.files import Prompt
from localdpo.sampling import records, videos
from localdpo.sampling.folders import find_videos
from localdpo.sampling.videos import as_prompts, read_prompts, sample
from localdpo.training import checkpoints
from localdpo.training.runs import find_adapter

TEXTS = [item.prompt() for item in pools.pool("curated", 5, "held out")]
PROMPTS = [dict(id=f"p{i}", prompt=text) for i, text in enumerate(TEXTS)]
FEW = dict(steps=2)


@pytest.fixture(scope="module")
def tiny():
    return backbones.load("tiny-cogvideox-2b", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "The folder of a run that is done, with an adapter that shows."
    folder = tmp_path_factory.mktemp("run")
    adapters.save(adapted(backbones.load("tiny-cogvideox-2b", "cpu"), 4, 12, std=0.2), folder / "adapter")
    return folder


def contents(folder, *parts):
    "The bytes of all that belongs to the videos; settings.json also says when and where they were begun."
    files = (path for part in parts or ("manifest.json", "videos", "records") for path in walk(Path(folder) / part))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def walk(path):
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


@pytest.fixture
def made(tiny, monkeypatch):
    "The names of the videos that were computed since."
    names, work = [], videos.make_batch

    def watched(backbone, jobs, settings):
        names.extend(job.name for job in jobs)
        return work(backbone, jobs, settings)

    monkeypatch.setattr(videos, "make_batch", watched)
    return names


# -- a video ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow(1)
def test_a_bare_prompt_gives_the_clip_that_the_model_generates(tiny, tmp_path):
    manifest = sample(tiny, TEXTS[:2], tmp_path / "out", seed=3, seeds=2, lossless=True, **FEW)
    assert [(entry["id"], entry["seed"]) for entry in manifest["videos"]] == [(t, s) for s in (3, 4) for t in TEXTS[:2]]
    for entry in manifest["videos"]:
        clip = video.read(tmp_path / "out" / entry["file"])
        expected = tiny.generate([entry["prompt"]], seed=entry["seed"], steps=2)[0].numpy()
        assert np.array_equal(clip.frames, expected) and clip.fps == 8


def test_the_noise_depends_on_prompt_id_and_seed_and_on_nothing_else(tiny, run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tiny, "denoise", lambda latents, *words: seen.append(latents) or latents)
    monkeypatch.setattr(tiny, "decode", lambda latents: torch.zeros(len(latents), 9, 32, 32, 3, dtype=torch.uint8))
    sample(tiny, PROMPTS[:3], tmp_path / "a", **FEW)
    sample(tiny, PROMPTS[2::-1], tmp_path / "b", run, batch=3, **FEW)
    sample(tiny, [dict(id="p0", prompt=TEXTS[4])], tmp_path / "c", **FEW)
    sample(tiny, PROMPTS[:1], tmp_path / "d", seed=1, **FEW)
    first, reversed_, other_text, other_seed = torch.cat(seen[:3]), seen[3], seen[4], seen[5]
    assert torch.equal(first, reversed_.flip(0)) and torch.equal(first[:1], other_text)
    flat = torch.cat([first, other_seed]).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.15


@pytest.mark.slow(1)
def test_the_size_of_a_batch_moves_last_bits_only_and_is_not_mixed(tiny, tmp_path):
    clips = {}
    for batch in (1, 3):
        manifest = sample(tiny, PROMPTS[:3], tmp_path / str(batch), batch=batch, lossless=True, **FEW)
        files = [tmp_path / str(batch) / entry["file"] for entry in manifest["videos"]]
        clips[batch] = np.stack([video.read(file).frames for file in files]).astype(int)
    off = np.abs(clips[1] - clips[3])
    assert off.max() <= 1 and off.mean() < 0.01
    with pytest.raises(Refused, match="batch was 1, is 3"):
        sample(tiny, PROMPTS[:3], tmp_path / "1", batch=3, lossless=True, **FEW)


@pytest.mark.slow(1)
def test_neighbours_in_a_batch_do_not_matter(tiny, tmp_path):
    all_of_them = sample(tiny, PROMPTS[:4], tmp_path / "all", batch=3, **FEW)["videos"]
    some = sample(tiny, [PROMPTS[3], PROMPTS[1]], tmp_path / "some", batch=3, **FEW)["videos"]
    assert [entry["sha256"] for entry in some] == [all_of_them[i]["sha256"] for i in (3, 1)]


def test_latents_that_are_not_finite_make_no_video(tiny, tmp_path, monkeypatch):
    work = tiny.denoise
    monkeypatch.setattr(tiny, "denoise", lambda *words: work(*words) * float("nan"))
    with pytest.raises(Failed, match="p0_seed0: the latents are not finite"):
        sample(tiny, PROMPTS, tmp_path / "out", **FEW)
    assert not (tmp_path / "out" / "videos").exists()


# -- a folder --------------------------------------------------------------------------------------------------------


@pytest.mark.slow(2)
@pytest.mark.parametrize("batch", [1, 2])
def test_workers_that_know_nothing_of_each_other_make_the_same_folder(tiny, tmp_path, batch):
    settings = dict(seeds=2, batch=batch, **FEW)
    whole = sample(tiny, PROMPTS[:3], tmp_path / "one", **settings)
    for i in (2, 0):
        assert sample(tiny, PROMPTS[:3], tmp_path / "three", worker=(i, 3), **settings) is None
        assert not (tmp_path / "three" / "manifest.json").exists()
    assert sample(tiny, PROMPTS[:3], tmp_path / "three", worker=(1, 3), **settings) == whole
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_second_call_computes_nothing_and_says_so_in_a_line(tiny, tmp_path, made, capfd):
    first = sample(tiny, PROMPTS, tmp_path / "out", **FEW)
    before = contents(tmp_path / "out")
    made.clear(), capfd.readouterr()
    assert sample(tiny, PROMPTS, tmp_path / "out", **FEW) == first
    assert not made and contents(tmp_path / "out") == before
    assert capfd.readouterr() == (f"{tmp_path / 'out'}: all 5 videos are there already\n", "")
    sample(tiny, PROMPTS, tmp_path / "out", worker=(1, 2), **FEW)
    assert capfd.readouterr().out.endswith(": all 2 videos of worker 1 of 2 are there already\n")
    sample(tiny, PROMPTS, tmp_path / "out", worker=(1, 5), **FEW)
    assert capfd.readouterr().out.endswith(": the video of worker 1 of 5 is there already\n")
    sample(tiny, PROMPTS, tmp_path / "out", worker=(5, 6), **FEW)
    assert capfd.readouterr().out.endswith(": worker 5 of 6 has no videos to make\n")


def flipped(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


HARM = {
    "no video": lambda folder: (folder / "videos" / "p1_seed0.mp4").unlink(),
    "cut video": lambda folder: (folder / "videos" / "p1_seed0.mp4").write_bytes(b"\0\0\0\x20ftypisom"),
    "bit in video": lambda folder: flipped(folder / "videos" / "p1_seed0.mp4"),
    "no record": lambda folder: (folder / "records" / "p1_seed0.json").unlink(),
    "bit in record": lambda folder: flipped(folder / "records" / "p1_seed0.json"),
    "empty record": lambda folder: (folder / "records" / "p1_seed0.json").write_bytes(b""),
    "another's": lambda folder: [
        shutil.copy(folder / part / f"p0_seed0.{kind}", folder / part / f"p1_seed0.{kind}")
        for part, kind in (("videos", "mp4"), ("records", "json"))
    ],
}


@pytest.mark.slow(1)
@pytest.mark.parametrize("harm", HARM)
def test_what_is_missing_or_damaged_is_made_again_to_the_same_bytes(tiny, tmp_path, made, harm, capsys):
    sample(tiny, PROMPTS[:3], tmp_path / "out", **FEW)
    before = contents(tmp_path / "out")
    HARM[harm](tmp_path / "out")
    made.clear()
    capsys.readouterr()
    sample(tiny, PROMPTS[:3], tmp_path / "out", **FEW)
    assert made == ["p1_seed0"] and contents(tmp_path / "out") == before
    assert "2 of 3 videos are there, 1 damaged or without a record, made again" in capsys.readouterr().out


@pytest.mark.slow(1)
def test_a_video_of_a_batch_that_is_whole_is_left_alone(tiny, tmp_path):
    sample(tiny, PROMPTS[:3], tmp_path / "out", batch=3, **FEW)
    before, file = contents(tmp_path / "out"), tmp_path / "out" / "videos" / "p0_seed0.mp4"
    when = file.stat().st_mtime_ns
    HARM["cut video"](tmp_path / "out")
    sample(tiny, PROMPTS[:3], tmp_path / "out", batch=3, **FEW)
    assert contents(tmp_path / "out") == before and file.stat().st_mtime_ns == when


@pytest.mark.slow(1)
def test_a_negative_seed_is_a_seed_of_its_own(tiny, tmp_path):
    manifest = sample(tiny, PROMPTS[:1], tmp_path / "out", seed=-1, seeds=3, lossless=True, **FEW)
    assert [entry["seed"] for entry in manifest["videos"]] == [-1, 0, 1]
    assert len({entry["sha256"] for entry in manifest["videos"]}) == 3


@pytest.mark.slow(1)
def test_more_seeds_and_prompts_add_to_a_folder(tiny, tmp_path, made):
    sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
    before = contents(tmp_path / "out", "videos", "records")
    made.clear()
    manifest = sample(tiny, PROMPTS[:2], tmp_path / "out", seeds=2, **FEW)
    assert sorted(made) == ["p0_seed1", "p1_seed0", "p1_seed1"] and len(manifest["videos"]) == 4
    assert before.items() <= contents(tmp_path / "out").items()
    sample(tiny, PROMPTS[:2], tmp_path / "at once", seeds=2, **FEW)
    assert contents(tmp_path / "at once") == contents(tmp_path / "out")


def test_a_folder_whose_larger_sample_was_stopped_is_not_finished(tiny, tmp_path, monkeypatch):
    first, whole, keep = sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW), contents(tmp_path / "out"), videos.keep

    def stopped(out, job, *rest):
        if job.id == "p2":
            raise KeyboardInterrupt
        keep(out, job, *rest)

    monkeypatch.setattr(videos, "keep", stopped)
    with pytest.raises(KeyboardInterrupt):
        sample(tiny, PROMPTS[:3], tmp_path / "out", **FEW)
    with pytest.raises(Refused, match=r"out: is not finished.*\n.*`localdpo sample ... --out .*out` again"):
        find_videos([tmp_path / "out"])
    assert sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW) == first
    assert whole.items() <= contents(tmp_path / "out").items()


def test_only_its_own_leftovers_are_swept(tiny, tmp_path):
    "A sampler with more prompts may be at work in the same folder."
    videos = tmp_path / "out" / "videos"
    videos.mkdir(parents=True)
    own, others = videos / ".p0_seed0-abcdefgh.mp4", videos / ".p1_seed0-abcdefgh.mp4"
    own.touch(), others.touch()
    sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
    assert not own.exists() and others.exists()


@pytest.mark.parametrize(
    "other, said",
    [
        (dict(steps=3), "steps was 2, is 3"),
        (dict(cfg_scale=2.0), "cfg_scale was 6.0, is 2.0"),
        (dict(fps=16), "fps was 8.0, is 16.0"),
        (dict(size=(9, 32, 48)), r"size was \[9, 32, 32\], is \[9, 32, 48\]"),
        (dict(lossless=True), "lossless was false, is true"),
        (dict(adapter="run"), "adapter was none, is .*sha256"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_changes(tiny, run, tmp_path, made, other, said):
    sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
    before = contents(tmp_path / "out", ".")
    made.clear()
    other = {name: run if value == "run" else value for name, value in other.items()}
    with pytest.raises(Refused, match=said) as refusal:
        sample(tiny, PROMPTS[:2], tmp_path / "out", **FEW | other)
    assert refusal.value.why.count(" was ") == 1
    assert not made and contents(tmp_path / "out", ".") == before and adapters.names(tiny) == ()


def test_other_weights_are_other_settings(tiny, tmp_path):
    sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
    other = backbones.load("tiny-cogvideox-2b", "cpu")
    with torch.no_grad():
        other.transformer.proj_out.weight[0, 0] += 0.1
    with pytest.raises(Refused, match="identity.transformer was"):
        sample(other, PROMPTS[:1], tmp_path / "out", **FEW)


def test_another_prompt_under_the_same_id_is_refused(tiny, tmp_path):
    sample(tiny, PROMPTS[:2], tmp_path / "out", **FEW)
    before = contents(tmp_path / "out")
    with pytest.raises(Refused, match="p1_seed0.mp4: is of another prompt with the id 'p1'"):
        sample(tiny, [PROMPTS[0], dict(id="p1", prompt=TEXTS[4])], tmp_path / "out", **FEW)
    assert contents(tmp_path / "out") == before


def test_a_folder_of_something_else_is_refused(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for out, why in {
        tmp_path: "is not a folder of videos: it holds thesis.tex",
        tmp_path / "thesis.tex": "is a file",
    }.items():
        with pytest.raises(Refused, match=why):
            sample(tiny, PROMPTS[:1], out, **FEW)


def test_damaged_settings_are_noticed(tiny, tmp_path):
    sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
    flipped(tmp_path / "out" / "settings.json")
    with pytest.raises(Refused, match="settings.json: is damaged"):
        sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
    (tmp_path / "out" / "settings.json").unlink()
    sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)


@pytest.mark.parametrize("settings", [None, dict(steps=3)])
def test_videos_of_other_settings_are_never_made_again_in_their_place(tiny, tmp_path, made, settings):
    out = tmp_path / "out"
    sample(tiny, PROMPTS[:1], out, **FEW)
    (out / "settings.json").unlink()
    if settings:  # those of another folder were copied
        sample(tiny, PROMPTS[:1], tmp_path / "other", **settings)
        shutil.copy(tmp_path / "other" / "settings.json", out)
    made.clear()
    before = contents(out, ".")
    with pytest.raises(
        Refused, match="p0_seed0.json: is of a video that was made with other settings\n.*manifest.json"
    ):
        sample(tiny, PROMPTS[: 1 if settings else 2], out, steps=3)
    assert not made and contents(out, ".") == before
    (out / "settings.json").unlink(missing_ok=True)
    assert sample(tiny, PROMPTS[:1], out, **FEW) and not made


def test_the_manifest_knows_the_short_form_of_a_long_prompt(tiny, tmp_path, made):
    prompts = [
        dict(id="p0", prompt="a green disc moving up", short="a green disc"),
        dict(id="p1", prompt="a red star"),
    ]
    sample(tiny, [dict(id=p["id"], prompt=p["prompt"]) for p in prompts], tmp_path / "out", **FEW)
    before = list(made)
    manifest = sample(tiny, prompts, tmp_path / "out", **FEW)  # of a folder that did not know it, too
    assert [entry.get("short") for entry in manifest["videos"]] == ["a green disc", None] and made == before
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    assert [prompt.short for prompt in read_prompts(tmp_path / "prompts.jsonl")] == ["a green disc", None]
    with pytest.raises(Refused, match="prompt 0: has no short prompt"):
        as_prompts([dict(id="a", prompt="b", short=7)])


def test_the_manifest_says_whose_videos_they_are(tiny, run, tmp_path):
    manifest = sample(tiny, PROMPTS[:1], tmp_path / "out", run, seed=5, cfg_scale=4, **FEW)
    assert manifest == unsealed(tmp_path / "out" / "manifest.json")
    assert manifest["model"] == "tiny-cogvideox-2b" and manifest["adapter"] == str(run / "adapter" / adapters.FILE)
    settings, (entry,), (versions,) = manifest["settings"], manifest["videos"], manifest["made_with"]
    expected = dict(steps=2, cfg_scale=4.0, fps=8.0, size=[9, 32, 32], batch=1, computed_in="float32 on cpu")
    assert expected.items() <= settings.items() and len(settings["identity"]["transformer"]) == 64
    weights = (run / "adapter" / adapters.FILE).read_bytes()
    assert settings["adapter"] == dict(sha256=hashlib.sha256(weights).hexdigest(), rank=4, alpha=12.0)
    assert (manifest["seed"], manifest["seeds"], entry["seed"], entry["id"]) == (5, 1, 5, "p0")
    assert entry["sha256"] == hashlib.sha256((tmp_path / "out" / entry["file"]).read_bytes()).hexdigest()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert {"localdpo", "python", "diffusers"} <= versions.keys()
    begun = json.loads((tmp_path / "out" / "settings.json").read_text())["begun"]
    assert {"commit", "host", "date"} <= begun.keys()


def test_a_wan_is_sampled_by_name_alone(tmp_path):
    wan = backbones.load("tiny-wan-1.3b", "cpu")
    manifest = sample(wan, PROMPTS[:1], tmp_path / "out", lossless=True, **FEW)
    clip = video.read(tmp_path / "out" / manifest["videos"][0]["file"])
    assert clip.frames.shape == (9, 32, 32, 3) and clip.fps == 16


@pytest.mark.parametrize(
    "bad, what",
    [
        (dict(steps=0), "steps 0"),
        (dict(steps=1001), "steps 1001"),
        (dict(steps=2.5), "steps 2.5"),
        (dict(seeds=0), "seeds 0"),
        (dict(seed=2**63), "seed 9223372036854775808"),
        (dict(seed=2**63 - 1, seeds=2), "seed 9223372036854775808"),
        (dict(seed=True), "seed True"),
        (dict(batch=0), "batch 0"),
        (dict(cfg_scale=float("nan")), "cfg_scale nan"),
        (dict(fps=0), "fps 0"),
        (dict(size=(1, 32, 32)), "size 1x32x32"),
        (dict(size=(9, 32)), "size 9x32"),
        (dict(size=(10, 32, 32)), "10 frames"),
        (dict(size=(9, 30, 32)), "height 30"),
        (dict(worker=(2, 2)), r"worker \(2, 2\): has nothing to do"),
        (dict(worker="0/1"), "worker '0/1': does not say which worker of how many\n.*as in \\(0, 4\\)"),
        (dict(worker=(0.0, 1)), "does not say which worker"),
        (dict(size=9), "size 9: is not three whole numbers"),
        (dict(lossless="no"), "lossless 'no': is neither True nor False"),
        (dict(cfg_scale="6"), "cfg_scale '6': is not a number"),
        (dict(fps="8"), "fps '8': is not a number"),
        (dict(seeds="2"), "seeds '2': is not a whole number"),
        (dict(prompts=None), "prompts None: are not a list\n.*pass a list"),
        (dict(prompts=[3]), "prompt 0: is 3, and no text"),
        (dict(prompts=["a purple elephant"]), "a purple elephant.*purple, elephant|words that .* never saw"),
        (dict(prompts=[]), "the prompts: are an empty list"),
    ],
)
def test_what_makes_no_video_is_refused_before_anything_is_written(tiny, tmp_path, bad, what):
    prompts = bad.get("prompts", PROMPTS)
    settings = {name: value for name, value in bad.items() if name != "prompts"}
    with pytest.raises(Refused, match=what):
        sample(tiny, prompts, tmp_path / "out", **FEW | settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", [None, "", 3])
def test_a_folder_without_a_name_is_refused(tiny, out):
    with pytest.raises(Refused, match=f"out {out!r}: names nothing"):
        sample(tiny, PROMPTS, out, **FEW)


def test_numbers_of_numpy_make_the_same_folder(tiny, tmp_path, made):
    sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
    made.clear()
    sample(tiny, PROMPTS[:1], tmp_path / "out", steps=np.int64(2), seed=np.int32(0), size=tuple(np.array([9, 32, 32])))
    assert not made


LONG = " ".join([TEXTS[0]] * 5)


def test_a_prompt_longer_than_the_model_reads_is_refused_or_cut_and_written_down(tiny, tmp_path, made, capsys):
    prompts = [PROMPTS[0], dict(id="long", prompt=LONG)]
    with pytest.raises(Refused, match="tokens, tiny-cogvideox-2b reads 36\n.*--long-captions cut"):
        sample(tiny, prompts, tmp_path / "out", **FEW)
    manifest = sample(tiny, prompts, tmp_path / "out", long_captions="cut", **FEW)
    assert (
        "1 prompt of 2 cut, the longest of 51 tokens" in capsys.readouterr().out and manifest["long_captions"] == "cut"
    )
    short, long = manifest["videos"]
    assert "read" not in short and long["prompt"] == LONG and LONG.startswith(long["read"]) and long["tokens"] > 36
    made.clear()
    assert sample(tiny, prompts, tmp_path / "out", long_captions="cut", **FEW) == manifest and not made
    same = sample(tiny, [dict(id="long", prompt=long["read"])], tmp_path / "short", **FEW)["videos"][0]
    assert same["sha256"] == long["sha256"]  # the rest of the prompt does nothing


@pytest.mark.parametrize(
    "size, said",
    [
        ((9, 12000, 12000), "1 video of 9x12000x12000: needs at least .* GiB on cpu"),
        ((9, 32000, 32000), "size 9x32000x32000: has more than"),
        ((9, 3200000, 3200000), "size 9x3200000x3200000: has more than"),
    ],
)
def test_a_size_that_cannot_fit_is_refused_before_memory_is_taken(tiny, tmp_path, size, said):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Refused, match=said):
        sample(tiny, PROMPTS[:1], tmp_path / "out", size=size, **FEW)
    assert not (tmp_path / "out").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize("name", ["videos/p0_seed0.mp4", "records/p0_seed0.json", "manifest.json", "settings.json"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_in_a_files_place_is_named(tiny, tmp_path, name, begun):
    if begun:
        sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(Refused, match=f"{name}: is a folder where a file belongs\n.*move it elsewhere"):
        sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
    if name == "manifest.json":
        with pytest.raises(Refused, match=f"{name}: is a folder where a file belongs\n.*move it elsewhere"):
            find_videos([tmp_path / "out"])


# -- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.slow(1)
def test_with_the_adapter_off_again_it_is_the_base_model(tiny, run, tmp_path):
    base = sample(tiny, PROMPTS[:2], tmp_path / "base", **FEW)
    tuned = sample(tiny, PROMPTS[:2], tmp_path / "tuned", run, **FEW)
    assert adapters.names(tiny) == () and sample(tiny, PROMPTS[:2], tmp_path / "again", **FEW) == base
    assert contents(tmp_path / "base") == contents(tmp_path / "again")
    sums = [{entry["sha256"] for entry in manifest["videos"]} for manifest in (base, tuned)]
    assert not sums[0] & sums[1]


def test_the_adapter_comes_off_when_sampling_fails(tiny, run, tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "make_batch", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(tiny, PROMPTS[:1], tmp_path / "out", run, **FEW)
    assert adapters.names(tiny) == ()


@pytest.mark.slow(1)
def test_a_tuned_video_is_that_of_plain_diffusers_with_the_adapter(run, tmp_path):
    ours, plain = (backbones.load("tiny-cogvideox-2b", "cpu") for _ in range(2))
    manifest = sample(ours, PROMPTS[:1], tmp_path / "out", run, lossless=True, **FEW)
    plain.pipeline.load_lora_weights(str(run / "adapter"))
    job = videos.Job("p0", TEXTS[0], 0, "plain")
    expected = videos.make_batch(plain, [job], manifest["settings"])[0]
    assert np.array_equal(video.read(tmp_path / "out" / manifest["videos"][0]["file"]).frames, expected)


def test_a_run_a_folder_and_a_file_are_the_same_adapter(tiny, run, tmp_path, made):
    sample(tiny, PROMPTS[:1], tmp_path / "out", run, **FEW)
    made.clear()
    for path in (run / "adapter", run / "adapter" / adapters.FILE, str(run)):
        sample(tiny, PROMPTS[:1], tmp_path / "out", path, **FEW)
    assert not made


def test_of_a_run_that_is_not_done_the_newest_whole_checkpoint_is_used(run, tmp_path, capsys):
    for step in (10, 20):
        checkpoints.save(
            tmp_path / "checkpoints",
            step,
            lambda path: shutil.copy(run / "adapter" / adapters.FILE, path / adapters.FILE),
        )
    assert find_adapter(tmp_path) == tmp_path / "checkpoints" / "step-000020" / adapters.FILE
    assert "is not finished; its newest checkpoint is used: step-000020" in capsys.readouterr().out
    flipped(tmp_path / "checkpoints" / "step-000020" / adapters.FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_adapter(tmp_path).parent.name == "step-000010"
    assert f"step-000020 is damaged: {adapters.FILE} is not what was written\n" in capsys.readouterr().out
    assert find_adapter(tmp_path / "checkpoints" / "step-000010").parent.name == "step-000010"
    flipped(tmp_path / "checkpoints" / "step-000010" / adapters.FILE)
    with pytest.raises(Refused) as refusal:
        find_adapter(tmp_path)
    assert "step-000020 is damaged" in refusal.value.why and "step-000010 is damaged" in refusal.value.why
    assert "give its `localdpo train` again" in refusal.value.then
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    checkpoints.seal(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_adapter(tmp_path) == tmp_path / "adapter" / adapters.FILE


def test_the_checksums_of_a_run_hold_whichever_way_its_adapter_is_named(run, tmp_path):
    whole = shutil.copytree(run, tmp_path / "run")
    (whole / "run.json").write_text("{}")
    checkpoints.seal(whole / "adapter")
    names = (whole, whole / "adapter", whole / "adapter" / adapters.FILE)
    assert len({find_adapter(name) for name in names}) == 1
    sums = (whole / "adapter" / checkpoints.SUMS).read_text()
    for other in (sums.replace("a", "b"), "", sums.replace("pytorch", "pytorcj")):
        (whole / "adapter" / checkpoints.SUMS).write_text(other)
        for name in names:
            with pytest.raises(Refused, match="adapter: is damaged"):
                find_adapter(name)
    for end in (len(sums) - 1, 80, 66, 30):
        (whole / "adapter" / checkpoints.SUMS).write_text(sums[:end])
        with pytest.raises(Refused, match=f"adapter: is damaged: {checkpoints.SUMS} is not what was written"):
            find_adapter(whole)
    (whole / "adapter" / checkpoints.SUMS).unlink()
    for name in names:
        with pytest.raises(Refused, match="SHA256SUMS: is missing"):
            find_adapter(name)
    (tmp_path / "bare").mkdir()
    copied = shutil.copy(run / "adapter" / adapters.FILE, tmp_path / "bare")  # nobody promised checksums here
    assert str(find_adapter(copied)) == copied


def test_what_is_no_adapter_is_refused_with_the_reason(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text("{}")
    (tmp_path / "note.safetensors").write_text("not an adapter")
    faults = {
        "gone": "does not exist",
        "empty": "holds no adapter",
        "begun": "without a checkpoint",
        "note.safetensors": "damaged",
    }
    for name, why in faults.items():
        with pytest.raises(Refused, match=why):
            sample(tiny, PROMPTS[:1], tmp_path / "out", tmp_path / name, **FEW)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_model_is_refused_before_anything_is_written(run, tmp_path):
    wan = backbones.load("tiny-wan-1.3b", "cpu")
    with pytest.raises(Refused, match="does not fit tiny-wan-1.3b"):
        sample(wan, PROMPTS[:1], tmp_path / "out", run, **FEW)
    assert not (tmp_path / "out").exists()


def test_a_model_with_an_adapter_in_memory_is_refused(run, tmp_path):
    model = backbones.load("tiny-cogvideox-2b", "cpu")
    adapters.load(model, run / "adapter")
    for adapter in (None, run):
        with pytest.raises(Refused, match="'policy' on tiny-cogvideox-2b: has no file"):
            sample(model, PROMPTS[:1], tmp_path / "out", adapter, **FEW)


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_are_read_from_texts_rows_and_tables(tmp_path):
    files = {
        "a.txt": "\ufeffa red disc\n\n  a blue ring, turning \r\n",
        "a.jsonl": '{"id": 7, "prompt": "a red disc", "kind": "x"}\n\n{"id": "ü/1", "prompt": "a blue ring, turning"}\n',
        "a.csv": '\ufeffprompt,id\r\na red disc,7\r\n"a blue ring, turning",ü/1\r\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_bytes(text.encode())
    red, blue = "a red disc", "a blue ring, turning"
    assert read_prompts(tmp_path / "a.txt") == [Prompt(red, red), Prompt(blue, blue)] == as_prompts([red, blue])
    named = [Prompt("7", red), Prompt("ü/1", blue)]
    assert read_prompts(tmp_path / "a.jsonl") == read_prompts(tmp_path / "a.csv") == named
    assert as_prompts([dict(id=7, prompt=red), blue]) == [Prompt("7", red), Prompt(blue, blue)]


@pytest.mark.parametrize(
    "name, data, said",
    [
        (
            "a.jsonl",
            b'{"id": 1, "prompt": "x"}\n{"id": 1, "prompt": "y"}',
            r"a.jsonl line 2: has the id '1', as .*line 1",
        ),
        ("a.jsonl", b'{"id": 1, "prompt": "x"}\n{"id": "1", "prompt": "y"}', "line 2: has the id '1'"),
        ("a.jsonl", b'{"id": 1, "prompt": "x"}\n{"prompt": "y"}', "line 2: has no id; it has prompt"),
        ("a.jsonl", b'{"id": 1, "text": "x"}', "line 1: has no prompt; it has id, text"),
        ("a.jsonl", b'{"id": 1, "prompt": "  "}', "line 1: has no prompt"),
        ("a.jsonl", b'{"id": 1, "prompt": null}', "line 1: has no prompt"),
        ("a.jsonl", b'{"id": true, "prompt": "x"}', "line 1: has the id True"),
        ("a.jsonl", b'{"id": " ", "prompt": "x"}', "line 1: has the id ' '"),
        ("a.jsonl", b'{"id": 1, "prompt"', "line 1: is not JSON"),
        ("a.jsonl", b'["x"]', "line 1: is not a JSON object"),
        ("a.jsonl", b'{"id": 1, "prompt": "caf\xe9"}', "line 1: has a prompt that is not UTF-8"),
        ("a.csv", b"id,prompt\n1,x\n1,y\n", "row 2: has the id '1'"),
        ("a.csv", b"id,caption\n1,x\n", "row 1: has no prompt; it has id, caption"),
        ("a.csv", b"id,prompt\n1,\n", "row 1: has no prompt"),
        ("a.csv", b"id,prompt\n1,a disc, red\n", "row 1: has more cells"),
        ("a.csv", b'id,prompt\n1,"a disc\n2,a ring\n', "row 1: has a quote that is not closed"),
        ("a.csv", b"id,prompt\n", "a.csv: holds no prompts"),
        ("a.txt", b"a disc\na ring\na disc\n", r"a.txt line 3: has the id 'a disc', as .*line 1"),
        ("a.txt", b"a disc\ncaf\xe9\n", "a.txt line 2: has a prompt that is not UTF-8"),
        ("a.txt", "a disc".encode("utf-16"), "a.txt: is in UTF-16"),
        ("a.txt", "a caf\u00c3\u00a9".encode(), "a.txt line 1: .*wrong encoding"),
        ("a.txt", b"\n \n", "a.txt: holds no prompts"),
        ("a.yaml", b"- x", "a.yaml: is in no form"),
    ],
)
def test_what_is_wrong_with_a_file_of_prompts_is_said_with_its_place(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Refused, match=said) as refusal:
        read_prompts(tmp_path / name)
    assert refusal.value.what.startswith(str(tmp_path))


@pytest.mark.parametrize(
    "name, text, place",
    [
        ("a.txt", f"{TEXTS[0]}\n\na rde disc\n", "a.txt line 3"),
        ("a.jsonl", f'{{"id": 1, "prompt": "{TEXTS[0]}"}}\n{{"id": 2, "prompt": "a rde disc"}}\n', "a.jsonl line 2"),
        ("a.csv", f"id,prompt\n1,{TEXTS[0]}\n2,a rde disc\n", "a.csv row 2"),
    ],
)
def test_words_that_a_model_never_saw_are_named_with_file_and_line(tiny, tmp_path, name, text, place):
    (tmp_path / name).write_text(text)
    for prompts in (read_prompts(tmp_path / name), as_prompts(read_prompts(tmp_path / name))):
        with pytest.raises(Refused, match="has words that tiny-cogvideox-2b never saw: rde") as refusal:
            sample(tiny, prompts, tmp_path / "out", **FEW)
        assert refusal.value.what == f"{tmp_path / place}, prompt 'a rde disc'"
    with pytest.raises(Refused, match="^prompt 'a rde disc': has words"):
        sample(tiny, [TEXTS[0], "a rde disc"], tmp_path / "out", **FEW)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, data, place, byte",
    [
        ("a.txt", "a red disc\na grün disc\n", "a.txt line 2", "character 5 is the byte 0xFC"),
        ("a.csv", "id,prompt\n1,a red disc\na grün disc,x\n", "a.csv row 2", "character 5 is the byte 0xFC"),
        ("a.jsonl", '{"id": "ü", "prompt": "a red disc"}', "a.jsonl line 1", "character 1 is the byte 0xFC"),
    ],
)
def test_a_file_in_another_encoding_is_told_how_to_be_converted(tmp_path, name, data, place, byte):
    (tmp_path / name).write_bytes(data.encode("cp1252"))
    with pytest.raises(Refused) as refusal:
        read_prompts(tmp_path / name)
    assert refusal.value.what.endswith(place) and "is not UTF-8" in refusal.value.why and byte in refusal.value.why
    words = refusal.value.then.partition("as in: ")[2]
    assert subprocess.run(words, shell=True, check=True).returncode == 0
    assert "ü" in "".join(prompt.id for prompt in read_prompts(tmp_path / f"utf8-{name}"))
    (tmp_path / name).write_bytes(data.encode("utf-16"))
    with pytest.raises(Refused, match=f"{name}: is in UTF-16\n.*iconv -f utf-16 -t utf-8"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("name", ["gone.txt", "gone.jsonl", "gone.csv"])
def test_a_file_of_prompts_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(Refused, match=f"{name}: does not exist"):
        read_prompts(tmp_path / name)


@pytest.mark.parametrize("bad", ["a red disc", dict(id=1, prompt="x"), Path("prompts.txt")])
def test_one_prompt_is_no_list_of_prompts(bad):
    with pytest.raises(Refused, match="are not a list"):
        as_prompts(bad)


def test_ids_become_names_that_every_disk_takes(tiny, tmp_path):
    ids = ["plain-1.a", "a/b", "a b", "../up", "ü", "x" * 300, "x" * 301, ".hidden", "a:b*?"]
    jobs = records.jobs_of(as_prompts([dict(id=id, prompt="x") for id in ids]), 0, 1)
    names = [job.name for job in jobs]
    assert names[0] == "plain-1.a_seed0" and len({name.lower() for name in names}) == len(ids)
    for name in names:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert len(name) < 100 and name[0] not in "-."
    with pytest.raises(Refused, match="'Clip'.*same name as 'clip'"):
        sample(tiny, [dict(id=id, prompt=TEXTS[0]) for id in ("clip", "Clip")], tmp_path / "out", **FEW)


# -- the command line ------------------------------------------------------------------------------------------------


def command(*words):
    return [Path(sys.executable).with_name("localdpo"), "sample", *map(str, words), "--steps", "2", "--device", "cpu"]


@pytest.mark.slow(2)
def test_from_a_file_of_prompts_to_videos(run, tmp_path, monkeypatch, tiny, capsys):
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS[:2])))
    words = ["sample", "tiny-cogvideox-2b", tmp_path / "prompts.jsonl", "--adapter", run, "--seeds", 2, "--seed", 1]
    words += ["--out", tmp_path / "out", "--cfg-scale", 3, "--size", "9x32x48", "--fps", 12, "--batch", 2]
    words += ["--steps", 2, "--device", "cpu"]
    for i in (0, 1):
        assert cli.main([*map(str, words), "--worker", f"{i}/2"]) is None
        assert ("others are not" in (said := capsys.readouterr().out)) is (i == 0)
    assert "4 videos of 2 prompts, listed in manifest.json" in said
    settings = dict(seeds=2, seed=1, cfg_scale=3, size=(9, 32, 48), fps=12, batch=2)
    sample(tiny, PROMPTS[:2], tmp_path / "direct", run, **FEW | settings)
    assert contents(tmp_path / "out") == contents(tmp_path / "direct")


@pytest.mark.slow(13)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tiny, tmp_path):
    words = command(
        "tiny-cogvideox-2b", *(word for text in TEXTS for word in ("--prompt", text)), "--out", tmp_path / "out"
    )
    going = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while going.poll() is None and len(list((tmp_path / "out").glob("records/*.json"))) < 2:
        time.sleep(0.005)
    going.send_signal(signal.SIGKILL)
    assert going.wait() == -signal.SIGKILL and not (tmp_path / "out" / "manifest.json").exists()
    sample(tiny, TEXTS, tmp_path / "out", **FEW)
    sample(tiny, TEXTS, tmp_path / "at once", **FEW)
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")


@pytest.mark.parametrize(
    "words, said",
    [
        (["--out", "out"], "sample: needs prompts"),
        (["prompts.txt", "--prompt", "x", "--out", "out"], "prompts.txt and --prompt: name the prompts twice"),
        (["gone.txt", "--out", "out"], "gone.txt: does not exist"),
        (["--prompt", "x", "--out", "out", "--size", "9x32"], "--size 9x32: is not understood"),
        (["--prompt", "x", "--out", "out", "--worker", "1"], "--worker 1: is not understood"),
        (["--prompt", "x", "--out", "out", "--adapter", "gone"], "gone: does not exist"),
    ],
)
def test_a_senseless_command_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backbones, "load", lambda *words: 1 / 0)
    assert cli.main(["sample", "tiny-cogvideox-2b", *words]) == 2
    assert capsys.readouterr().err.startswith(f"localdpo: {said}")


@pytest.mark.parametrize(
    "states, said",
    [
        ("m", "0 of 1 video is there"),
        ("mw", "1 of 2 videos are there"),
        ("d", "0 of 1 video is there, 1 damaged or without a record, made again"),
        ("w", "the video is there already"),
        ("ww", "all 2 videos are there already"),
    ],
)
def test_what_is_there_is_counted_as_people_count(states, said):
    kinds = dict(m=records.MISSING, d=records.DAMAGED, w=records.Found("whole", {}))
    assert records.seen([kinds[state] for state in states], 0, 1) == said


def test_one_video_of_one_prompt_is_no_plural(tiny, tmp_path, capsys):
    assert not cli.main(
        ["sample", tiny.name, "--prompt", "a red disc", "--out", str(tmp_path), "--steps", "1", "--device", "cpu"]
    )
    assert "1 video of 1 prompt, listed in manifest.json" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["records", "videos"])
def test_a_file_where_a_folder_belongs_is_named_at_once(tiny, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("a note")
    with pytest.raises(Refused, match=f"{name}: is a file"):
        sample(tiny, PROMPTS[:1], tmp_path / "out", **FEW)
    assert (tmp_path / "out" / name).read_text() == "a note"
