"""Pairs that people have become a store like any other, and each that cannot be used is named with the file, the reason and the way out."""

import json
import shutil
import sys
import tarfile

import numpy as np
import pytest
import torch
from conftest import contents

from localdpo import backbones
from localdpo.cli import main as cli
from localdpo.ground.errors import Refused
from localdpo.media import sheets, video
from localdpo.miniature import models
from localdpo.pairs.imports import ImportConfig, fitting, import_pairs
from localdpo.pairs.layouts import from_folders, from_table
from localdpo.pairs.releases import find

PROMPT = "a red disc moving left on a plain blue background"
SPOT = np.zeros((9, 32, 32), bool)
SPOT[:, 8:24, 8:24] = True


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Two clips, the same with a region turned, and its mask."
    folder = tmp_path_factory.mktemp("made")
    for name, kind in dict(a=1, b=2).items():
        clip = sheets.demo_clip(kind, 9, 32, 32)
        video.write(folder / "won" / f"{name}.mp4", clip, 8, crf=1)
        video.write(folder / "lost" / f"{name}.mp4", np.where(SPOT[..., None], 255 - clip, clip), 8, crf=1)
        (folder / "masks").mkdir(exist_ok=True)
        np.save(folder / "masks" / f"{name}.npy", SPOT)
        (folder / "won" / f"{name}.txt").write_text(PROMPT)
    video.write(folder / "lost" / "longer.mp4", sheets.demo_clip(1, 13, 32, 32), 8)
    video.write(folder / "lost" / "small.mp4", sheets.demo_clip(1, 9, 48, 32), 8)
    (folder / "lost" / "broken.mp4").write_bytes((folder / "lost" / "a.mp4").read_bytes()[:-500])
    for name, mask in dict(other=SPOT[:, :16], short=SPOT[:4], empty=SPOT & False, full=SPOT | True).items():
        np.save(folder / "masks" / f"{name}.npy", mask)
    np.save(folder / "masks" / "grey.npy", SPOT * 9)
    return folder


def row(name="a", **changes):
    said = dict(winner=f"won/{name}.mp4", loser=f"lost/{name}.mp4", mask=f"masks/{name}.npy", noise_alpha=0.85)
    return {key: value for key, value in (said | dict(prompt=PROMPT, id=name) | changes).items() if value is not None}


def table(folder, *rows, **options):
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in rows)
    (folder / "pairs.jsonl").write_text(text)
    return from_table(folder / "pairs.jsonl", **options)


BAD = {  # what stands in a table beside a good pair, why it cannot be used, and what to do
    "a loser that is missing": (row("b", loser=None), "its loser is not named", "name its file"),
    "a file that is absent": (row("b", loser="lost/gone.mp4"), "lost/gone.mp4 does not exist", "--root"),
    "a file outside": (row("b", loser="../a.mp4"), "'../a.mp4' lies outside of", "--root"),
    "another length": (row("b", loser="lost/longer.mp4"), "a winner of 9 frames and a loser of 13", "cut both"),
    "another size": (row("b", loser="lost/small.mp4"), "32x32 pixels and a loser of 48x32", "scale one"),
    "a damaged video": (row("b", loser="lost/broken.mp4"), "loser lost/broken.mp4 is cut short", "download it again"),
    "a text as a video": (row("b", loser="won/b.txt"), "its loser won/b.txt is not a video", "pass an mp4"),
    "one file as both": (row("b", loser="won/b.mp4"), "one file as winner and loser, won/b.mp4", "name two"),
    "swapped columns": (row("b", winner="lost/b.mp4", loser="won/b.mp4"), "named like a loser", "swap the two"),
    "a taken id": (row("b", id="a"), "has the id of another pair, number 1", "an id of its own"),
    "no caption": (row("b", prompt=" "), "has no caption", "--captions FILE"),
    "words that the model lacks": (row("b", prompt="a quantum sprite"), "never saw: quantum", "write it like"),
    "a damaged line": ('{"winner": "won/b', "is not JSON", "mend that line"),
    "a line of something else": ("[1]", "is not a JSON object", "mend that line"),
    "a level that is a word": (row("b", noise_alpha="high"), "'high' is not a number", "such as 0.85"),
    "a level of nothing": (row("b", noise_alpha=0), "level 0 is not above 0 and at most 1", "0.85"),
    "a level above one": (row("b", noise_alpha="1.5"), "'1.5' is not above 0 and at most", "0.85"),
    "a missing mask": (row("b", mask=None), "its mask is not named", "name its file"),
    "a mask of another size": (
        row("b", mask="masks/other.npy"),
        "other.npy is 16x32 pixels, not 32x32",
        "at the size of",
    ),
    "a mask of another length": (
        row("b", mask="masks/short.npy"),
        "short.npy has 4 frames, not 9",
        "one frame for all",
    ),
    "an empty mask": (row("b", mask="masks/empty.npy"), "its mask masks/empty.npy is empty", "paint the region"),
    "a full mask": (row("b", mask="masks/full.npy"), "its mask masks/full.npy is full", "leave the masks out"),
    "a grey mask": (row("b", mask="masks/grey.npy"), "grey.npy has values up to 9, which", "in black and white"),
    "a text as a mask": (row("b", mask="won/b.txt"), "won/b.txt is no mask by its name", "ends in .png"),
}


@pytest.fixture(scope="module")
def spoilt(backbone, made, tmp_path_factory):
    "A store of one good pair, from a table with all that is bad beside it."
    rows = [
        one | dict(id=kind) if isinstance(one, dict) and one["id"] == "b" else one for kind, (one, *_) in BAD.items()
    ]
    store = tmp_path_factory.mktemp("spoilt") / "store"
    return import_pairs(backbone, table(made, row(), *rows), store, ImportConfig(block=100))


@pytest.mark.parametrize("kind", BAD)
def test_a_pair_that_cannot_be_used_is_named_with_the_reason_and_the_way_out(spoilt, kind):
    _, why, then = BAD[kind]
    line = list(BAD).index(kind) + 2
    names = (kind, f"{kind} (pairs.jsonl line {line})", f"pairs.jsonl line {line}", f"a (number {line})")
    (fault,) = (fault for fault in spoilt.bad if fault.name in names)
    assert why in fault.why and then in fault.then, fault
    assert fault.name in (spoilt.path / "bad_clips.csv").read_text()


def test_a_pair_that_cannot_be_used_costs_no_other(spoilt):
    assert spoilt.ids == ["a"] and len(spoilt.bad) == len(BAD) and spoilt.verify() == []


def test_of_two_pairs_that_contradict_each_other_neither_is_used(made):
    ways = [row(id="x", winner="won/a.mp4", loser="won/b.mp4"), row(id="y", winner="won/b.mp4", loser="won/a.mp4")]
    assert [pair.fault[:26] for pair in table(made, *ways).pairs] == [
        "says the opposite of y: ea",
        "says the opposite of x: ea",
    ]


@pytest.mark.parametrize(
    "columns, why",
    [
        (dict(winner="nope"), "pairs.jsonl: has no column nope; its columns are winner, loser"),
        (dict(wins="winner"), "--columns wins=winner: is unknown\n  -> did you mean winner?"),
    ],
)
def test_a_column_that_is_unknown_is_refused_with_those_there_are(made, columns, why):
    with pytest.raises(Refused) as refused:
        table(made, row(), columns=columns)
    assert why in str(refused.value)


def test_folders_tables_and_their_names_lead_to_the_same_pairs(backbone, made, tmp_path):
    folders = from_folders(made / "won", made / "lost", made / "masks")
    first = import_pairs(backbone, folders, tmp_path / "folders", ImportConfig(noise_alpha=0.85))
    names = dict(winner="chosen", loser="rejected", prompt="gen_caption", noise_alpha="yita", id="vid")
    renamed = [{names.get(key, key): value for key, value in row(name).items()} for name in "ab"]
    other = import_pairs(backbone, table(made, *renamed), tmp_path / "table")
    assert first.ids == other.ids == ["a", "b"] and first.method == other.method == "local_dpo"
    for a, b in zip(first, other, strict=True):
        assert torch.equal(a.winner, b.winner) and torch.equal(a.loser, b.loser) and torch.equal(a.mask, b.mask)
        assert a.noise_alpha == b.noise_alpha == 0.85 and a.prompt == b.prompt == PROMPT
    left = {fault.name: fault.why for fault in first.bad}
    assert "has no winner: there is no longer.* in" in left["longer"] and "has no winner" in left["empty"]


def test_what_the_release_of_local_dpo_wrote_is_read(backbone, made, tmp_path):
    for place in ("original_videos", "edited_videos", "masks"):
        (tmp_path / place).mkdir()
    for name, level in dict(a="0.8500000000000001", b="low").items():
        shutil.copy(made / "won" / f"{name}.mp4", tmp_path / "original_videos")
        edited = tmp_path / "edited_videos" / f"{name}-yita-{level}-cc-3-fix-1.mp4"
        shutil.copy(made / "lost" / f"{name}.mp4", edited)
        torch.save(torch.from_numpy(SPOT[:3].astype(np.int64)), tmp_path / "masks" / f"{name}.pt")
    lines = [json.dumps(dict(video_path=f"/data/{name}.mov", description=PROMPT, vid=name)) for name in "ab"]
    (tmp_path / "meta.jsonl").write_text("\n".join(lines))
    source = find(tmp_path, tmp_path / "meta.jsonl")
    store = import_pairs(backbone, source, tmp_path / "store")
    pair, (fault,) = store[0], store.bad
    assert store.ids == ["a"] and pair.noise_alpha == 0.85 and pair.mask.sum() == 48 and store.method == "local_dpo"
    assert fault.name == "b" and "'low' in the name of" in fault.why and "b-yita-low-cc-3-fix-1.mp4" in fault.why


def test_video_dpos_pair_json_is_read_and_other_labels_are_not_guessed(backbone, made, tmp_path):
    films = []
    for name, place in (("won", "winvideos"), ("lost", "losevideos")):
        shutil.copytree(made / name, tmp_path / place)
        films.append(dict(basic=dict(clip_path=f"/elsewhere/{place}/a.mp4"), misc=dict(frame_caption=[PROMPT])))
    pair = dict(video1=0, video2=1, label=0, frame_caption=PROMPT)
    rows = [pair, pair | dict(label=1), pair | dict(video2=7)]
    (tmp_path / "pair.json").write_text(json.dumps(rows))
    (tmp_path / "metadata.json").write_text(json.dumps(films))
    store = import_pairs(backbone, find(tmp_path), tmp_path / "store")
    assert store.ids == ["winvideos/a.mp4 > losevideos/a.mp4"] and store.method == "dpo" and store[0].mask is None
    assert [(fault.name, fault.why) for fault in store.bad] == [
        ("pair.json entry 1", "has the label 1"),
        ("pair.json entry 2", "its video2 7 is no entry of metadata.json with a basic.clip_path"),
    ]


def test_a_cell_may_hold_its_video_and_tables_of_arrow_need_pyarrow(backbone, made, tmp_path, monkeypatch):
    held = {what: dict(path=f"{what}.mp4", bytes=(made / what / "a.mp4").read_bytes()) for what in ("won", "lost")}
    rows = [("row 0", dict(chosen=held["won"], rejected=held["lost"], prompt=PROMPT))]
    store = import_pairs(backbone, from_table(tmp_path / "table", rows=rows), tmp_path / "store")
    assert store.ids == ["won.mp4 > lost.mp4"] and store.bad == store.verify() == []
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data-00000-of-00001.arrow").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Refused, match="saved: needs pyarrow to be read\n  -> pip install pyarrow"):
        find(tmp_path / "saved")


def test_outside_its_mask_a_loser_stays_as_it_is_unless_the_winner_is_asked_for(backbone, made, tmp_path):
    source = table(made, row("a"), row("b"))
    given, pasted = (
        import_pairs(backbone, source, tmp_path / outside, ImportConfig(outside=outside))
        for outside in ("as-is", "winner")
    )
    for a, b in zip(given, pasted, strict=True):
        assert torch.equal(a.loser[:, a.mask], b.loser[:, b.mask]) and a.facts["outside"] > 0
        assert torch.equal(b.loser[:, ~b.mask], b.winner[:, ~b.mask]) and not torch.equal(a.loser, b.loser)
    assert given.verify() == pasted.verify() == []


def test_workers_share_an_import_and_leave_the_same_bytes(backbone, made, tmp_path):
    source, config = table(made, row("a"), row("b"), "{"), ImportConfig(block=1)
    import_pairs(backbone, source, tmp_path / "one", config)
    assert import_pairs(backbone, source, tmp_path / "two", config, (1, 2)) is None
    import_pairs(backbone, source, tmp_path / "two", config, (0, 2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with pytest.raises(Refused, match='method was "local_dpo", is "dpo"'):
        import_pairs(backbone, source, tmp_path / "two", ImportConfig(block=1, method="dpo"))


def test_a_loser_that_was_replaced_is_noticed(backbone, made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    source = table(tmp_path / "made", row("a"), row("b"))
    import_pairs(backbone, source, tmp_path / "store")
    data = (made / "lost" / "b.mp4").read_bytes()
    (tmp_path / "made" / "lost" / "a.mp4").write_bytes(data + bytes(8))
    (tmp_path / "made" / "lost" / "b.mp4").write_bytes(data)  # touched, with the same content
    sized = table(tmp_path / "made", row("a"), row("b"))
    with pytest.raises(Refused, match=r"its clips or captions changed \(block 0\)"):
        import_pairs(backbone, sized, tmp_path / "store")
    assert import_pairs(backbone, sized, tmp_path / "store", renew=True).verify() == []


def test_the_command_imports_and_says_what_it_could_not_use(backbone, made, tmp_path, capsys):
    models.release(backbone.pipeline, tmp_path / "model", {})
    table(made, row("a"), row("b", loser="lost/gone.mp4"), "{")
    words = ["pairs", "import", str(tmp_path / "store"), "--model", str(tmp_path / "model"), "--device", "cpu"]
    assert not cli.main([*words, "--from", str(made / "pairs.jsonl"), "--columns", "prompt=prompt"])
    said = capsys.readouterr().out
    assert "read as     a table, pairs.jsonl: 3 pairs\n" in said
    assert "store: 1 pair, 2 pairs that cannot be used (see bad_clips.csv)\n" in said
    assert "without     1 pair (b (pairs.jsonl line 2)): its loser lost/gone.mp4 does not exist in" in said
    assert "\n  -> mend its name or copy the file there; other folders go by --root\n  -> mend that line" in said
    assert not cli.main(["pairs", "verify", str(tmp_path / "store")])
    assert not cli.main(["pairs", "show", str(tmp_path / "store")]) and "gap outside 0." in capsys.readouterr().out


@pytest.fixture
def layouts(made, tmp_path, monkeypatch):
    "A table without masks and one with, folders, a list in JSON and a tar of somebody, in the folder we are in."
    monkeypatch.chdir(tmp_path)
    plain = row(mask=None, noise_alpha=None)
    for name, one in dict(plain=plain, masked=row(noise_alpha=None)).items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(one))
    for name in ("winners", "losers"):
        (tmp_path / "folders" / name).mkdir(parents=True)
    (tmp_path / "pairs.json").write_text(json.dumps([plain]))
    (tmp_path / "clip.txt").write_text(PROMPT)
    with tarfile.open(tmp_path / "clips.tar", "w") as tar:
        tar.add("clip.txt")
    shutil.copytree(made / "won", tmp_path / "won")
    shutil.copytree(made / "lost", tmp_path / "lost")
    shutil.copytree(made / "masks", tmp_path / "masks")


@pytest.mark.parametrize(
    "words, why",
    [
        ("plain.jsonl --captions x", "--captions: does not go with plain.jsonl, which is a table\n  -> leave it out"),
        ("plain.jsonl --root nowhere", "--root nowhere: is not a folder"),
        ("folders --root .", "--root: does not go with folders, which is a folder with winners/ and losers/"),
        ("clips.tar --columns prompt=x", "--columns: does not go with clips.tar, which is a tar shard"),
        ("clips.tar", "clips.tar: is not written as pairs: no NAME.json in it names a winner and a loser"),
        ("pairs.json", "pairs.json: is no pair.json of VideoDPO: it has no metadata.json beside it\n  -> copy"),
        ("plain.jsonl --outside winner", "outside winner: is for pairs with masks, and these have none"),
        ("plain.jsonl --latents encode", "latents encode: is for an export"),
        ("plain.jsonl --method local_dpo", "method local_dpo: looks inside masks, and these pairs have none"),
        ("plain.jsonl --method video_dpo", "method video_dpo: learns from what its own judge says of a pair"),
        ("plain.jsonl --method dense_dpo", "method dense_dpo: learns from what its own judge says of a pair"),
        ("masked.jsonl", "the pairs: say no noise level, by which local_dpo weighs\n  -> say the share"),
    ],
)
def test_options_and_methods_that_do_not_fit_what_was_found_are_refused_by_name(layouts, capsys, words, why):
    assert cli.main(["pairs", "import", "store", "--model", "no model", "--from", *words.split()]) == 2
    assert why in capsys.readouterr().err


def test_a_row_without_a_noise_level_takes_that_of_the_setting_or_is_named(backbone, made, tmp_path):
    source = table(made, row("a"), row("b") | dict(noise_alpha=None))
    given = import_pairs(backbone, source, tmp_path / "given", ImportConfig(noise_alpha=0.8))
    assert [pair.noise_alpha for pair in given] == [0.85, 0.8]
    (fault,) = import_pairs(backbone, fitting(source, ImportConfig(), ["noise_alpha"]), tmp_path / "none").bad
    assert fault.name == "b" and "has no noise level" in fault.why and "--noise-alpha 0.85" in fault.then


def test_the_settings_of_an_import_or_of_masks_from_files_are_taken_from_their_store(
    backbone, made, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(backbones, "load", lambda name, device: backbone)
    words, model = ["pairs", "import", str(tmp_path / "store")], ["--model", "random"]
    store = import_pairs(backbone, table(made, row()), tmp_path / "first", ImportConfig(block=3))
    assert not cli.main(["pairs", "export", str(store.path), str(tmp_path / "out"), *model])
    export = ["--from", str(tmp_path / "out"), *model]
    assert not cli.main([*words, *export])
    again = ["--config", str(tmp_path / "store" / "store.json")]
    assert not cli.main(["pairs", "import", str(tmp_path / "again"), *export, *again])
    assert contents(tmp_path / "again") == contents(tmp_path / "store")
    (tmp_path / "build.json").write_text(json.dumps(dict(identity={}, blocks=[], masks="from files")))
    build = ["pairs", "build", str(tmp_path / "built"), "--world", "raw:1", *model]
    assert cli.main([*build, "--config", str(tmp_path / "build.json")]) == 2
    assert "whose masks came from files, and does not say where" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, why",
    [
        ([], "the pairs: are not named\n  -> give --winners DIR --losers DIR, or --from PATH"),
        (["--winners", "x"], "--winners: does not make pairs alone"),
        (["--from", "x", "--masks", "y"], "--masks y: does not go with --from x"),
        (["--winners", "x", "--losers", "y", "--root", "z"], "--root: is for tables"),
        (["--winners", "nowhere", "--losers", "nowhere"], "nowhere: is not a folder"),
        (["--from", "nowhere"], "nowhere: does not exist"),
        (["--from", ".", "--columns", "winner"], "--columns winner: lacks a name, or the = between the two"),
        (["--from", ".", "--noise-alpha", "2"], "noise_alpha 2.0: is not above 0 and at most 1"),
        (["--from", ".", "--method", "local-dpo"], "method 'local-dpo': does not exist\n  -> did you mean local_dpo?"),
    ],
)
def test_words_that_make_no_sense_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, words, why):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pairs", "import", "store", "--model", "no model", *words]) == 2
    assert why in capsys.readouterr().err
