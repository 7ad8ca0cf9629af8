"""A store that went out as videos or shards comes back as the same batches, or says that it is near them and not the same."""

import dataclasses
import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import edit, killed

from localdpo import backbones
from localdpo.backbones.identity import identity
from localdpo.cli import main as cli
from localdpo.clips.sources import from_world
from localdpo.ground.errors import Refused
from localdpo.ground.seals import tensor_sum
from localdpo.media import video
from localdpo.pairs import exports, imports
from localdpo.pairs.builder import PairConfig, build
from localdpo.pairs.exports import ExportConfig, export_pairs
from localdpo.pairs.imports import ImportConfig, import_pairs
from localdpo.pairs.releases import find
from localdpo.pairs.store import PairStore

FORMS = dict(folder=ExportConfig(), webdataset=ExportConfig(form="webdataset", shard=2))
WHOLE = "a red disc moving left on a plain blue background"


@pytest.fixture(scope="module", autouse=True)
def decoded_once(backbone):
    "The same latents are decoded once for all tests, which takes most of their time."
    plain, known = backbone.decode, {}

    def decode(latents):
        if (key := tensor_sum(latents)) not in known:
            known[key] = plain(latents)
        return known[key]

    backbone.decode = decode


@pytest.fixture(scope="module")
def stores(backbone, tmp_path_factory):
    "A store of local pairs, and one of judged samples with labels, weights and a caption that was cut."
    folder = tmp_path_factory.mktemp("stores")
    local = build(backbone, from_world(count=3), folder / "local", PairConfig(steps=4, block=2, alpha_range=(0.8, 0.9)))
    kept = {name: local.settings[name] for name in ("identity", "size", "dtype", "block", "long_captions")}
    kept |= dict(adapter="0" * 64)
    judged = dict(method="video_dpo", judge={"critic-a": dict(sha="0")}, weights=dict(bin=0.1, exponent=0.72))
    judged = PairStore(folder / "judged", kept | judged)
    for i, pair in enumerate(local):
        facts = dict(labels=[1, 0, -1], totals=[0.1, 0.3 + i], winner=1, loser=0)
        if i == 0:
            facts |= dict(caption=f"{WHOLE} slowly", caption_tokens=40)
        judged.append(dataclasses.replace(pair, mask=None, noise_alpha=None, facts=facts, seed=3))
    return dict(local=local, judged=judged)


@pytest.fixture(scope="module")
def exported(backbone, stores, tmp_path_factory):
    "The store of local pairs in both forms; not to be changed."
    folder = tmp_path_factory.mktemp("exported")
    for form, config in FORMS.items():
        assert export_pairs(backbone, stores["local"], folder / form, config)
    return folder


@pytest.fixture(params=FORMS)
def copy(request, exported, tmp_path):
    "A copy of an export to break."
    return Path(shutil.copytree(exported / request.param, tmp_path / request.param))


def tree(folder):
    return {file.relative_to(folder): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def equal(a, b):
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["local", "judged"])
def test_what_comes_back_are_the_same_pairs_and_batches(backbone, stores, tmp_path, kind, form):
    store = stores[kind]
    assert export_pairs(backbone, store, tmp_path / "out", FORMS[form])
    back = import_pairs(backbone, find(tmp_path / "out"), tmp_path / "back")
    assert back.ids == store.ids and back.bad == back.verify() == []
    assert equal(back.batch([2, 0, 1]), store.batch([2, 0, 1])) and all(map(equal, back, store))
    for name in ("method", "judges", "weights"):
        assert getattr(back, name) == getattr(store, name)
    assert back.settings["latents"] == back.settings["text"] == "carried"
    for name in ("masked", "alpha_range", "adapter"):  # which training asks for
        assert back.settings.get(name) == store.settings.get(name)


def test_a_level_that_was_edited_out_of_the_range_of_its_store_leaves_the_range_behind(
    backbone, stores, exported, tmp_path
):
    out = shutil.copytree(exported / "folder", tmp_path / "out")
    edit(out / "pairs.jsonl", f'"noise_alpha": {stores["local"][0].noise_alpha}', '"noise_alpha": 0.5')
    back = import_pairs(backbone, find(out), tmp_path / "back")
    assert back[0].noise_alpha == 0.5 and "alpha_range" not in back.settings


def test_a_loser_of_an_export_is_its_winner_outside_the_mask_if_that_is_asked_for(backbone, stores, tmp_path):
    kept = {name: one for name, one in stores["local"].settings.items() if name in ("identity", "size")}
    store = PairStore(tmp_path / "apart", kept)
    for pair in stores["local"]:
        store.append(dataclasses.replace(pair, loser=pair.loser + 1))
    export_pairs(backbone, store, tmp_path / "out")
    source = find(tmp_path / "out")
    back = import_pairs(backbone, source, tmp_path / "back", ImportConfig.of(source, outside="winner"))
    assert back.ids == store.ids and back.verify() == [] and back.settings["masked"]
    for pair, was in zip(back, store, strict=True):
        assert torch.equal(pair.loser, was.winner.where(~was.mask, was.loser))


@pytest.mark.parametrize("other", ["vae", "text_encoder"])
def test_what_the_model_reads_otherwise_is_made_anew_and_the_store_says_so(
    backbone, stores, exported, tmp_path, monkeypatch, other
):
    monkeypatch.setattr(imports, "identity", lambda model: identity(model) | {other: "another"})
    back = import_pairs(backbone, find(exported / "folder"), tmp_path / "back")
    assert back.ids == stores["local"].ids and back.verify() == []
    said = back.settings["latents"], back.settings["text"]
    assert said == (("encoded", "embedded") if other == "vae" else ("carried", "embedded"))
    for pair, was in zip(back, stores["local"], strict=True):
        assert torch.equal(pair.winner, was.winner) == (other != "vae") and torch.equal(pair.mask, was.mask)
        torch.testing.assert_close(pair.text, was.text)


def test_videos_without_loss_come_back_as_their_very_pixels(backbone, stores, tmp_path):
    export_pairs(backbone, stores["local"], tmp_path / "out", ExportConfig(lossless=True))
    pair, (file, *_) = stores["local"][0], sorted((tmp_path / "out" / "winners").iterdir())
    assert (video.read(file).frames == backbone.decode(pair.winner[None])[0].numpy()).all()
    source = find(tmp_path / "out")
    back = import_pairs(backbone, source, tmp_path / "back", ImportConfig.of(source, latents="encode"))
    pixels = backbone.decode(pair.winner[None])
    assert torch.equal(back[0].winner, backbone.encode(pixels)[0]) and back.settings["latents"] == "encoded"


def test_an_edited_caption_is_embedded_anew(backbone, stores, exported, tmp_path):
    out = shutil.copytree(exported / "folder", tmp_path / "out")
    edit(out / "pairs.jsonl", json.dumps(stores["local"][0].prompt), json.dumps(WHOLE))
    back = import_pairs(backbone, find(out), tmp_path / "back")
    assert back[0].prompt == WHOLE and torch.equal(back[0].loser, stores["local"][0].loser)
    torch.testing.assert_close(back[0].text, backbone.embed([WHOLE])[0])


def test_an_edited_caption_wins_over_the_whole_of_one_that_was_cut(backbone, stores, tmp_path):
    export_pairs(backbone, stores["judged"], tmp_path / "out")
    edit(tmp_path / "out" / "pairs.jsonl", json.dumps(stores["judged"][0].prompt), json.dumps(WHOLE))
    back = import_pairs(backbone, find(tmp_path / "out"), tmp_path / "back")
    assert back[0].prompt == WHOLE and back.ids == stores["judged"].ids and "caption" not in back[0].facts


# -- work that stops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_workers_and_an_export_that_goes_on_leave_the_same_bytes(backbone, stores, tmp_path, monkeypatch, form):
    config = dataclasses.replace(FORMS[form], shard=1)
    assert export_pairs(backbone, stores["local"], tmp_path / "one", config)
    assert not export_pairs(backbone, stores["local"], tmp_path / "two", config, (1, 2))
    assert export_pairs(backbone, stores["local"], tmp_path / "two", config, (0, 2))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    lost = "losers/000001.mp4" if form == "folder" else "pairs-00001.tar"
    (tmp_path / "two" / lost).unlink()
    made, plain = [], exports.files_of
    monkeypatch.setattr(exports, "files_of", lambda model, pair, *how: made.append(pair.id) or plain(model, pair, *how))
    assert export_pairs(backbone, stores["local"], tmp_path / "two", config)
    assert made == [stores["local"].ids[1]] and tree(tmp_path / "one") == tree(tmp_path / "two")


def test_an_export_given_again_makes_damaged_files_anew_and_each_worker_its_own(backbone, stores, copy):
    form = "folder" if (copy / "pairs.jsonl").exists() else "webdataset"
    whole, config = tree(copy), FORMS[form]
    file = copy / ("winners/000001.mp4" if form == "folder" else "pairs-00000.tar")
    file.write_bytes(b"garbage")
    export_pairs(backbone, stores["local"], copy, config, (1, 2))
    assert tree(copy) == whole | {file.relative_to(copy): b"garbage"}  # no sum of it is written
    assert export_pairs(backbone, stores["local"], copy, config) and tree(copy) == whole


@pytest.mark.parametrize("edited", ["a prompt", "a row that is gone"])
def test_an_export_given_again_never_writes_over_an_edited_table(backbone, stores, exported, tmp_path, edited):
    out = Path(shutil.copytree(exported / "folder", tmp_path / "out"))
    lines = (out / "pairs.jsonl").read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace('"prompt": "', '"prompt": "my ') if edited == "a prompt" else ""
    (out / "pairs.jsonl").write_text("".join(lines))
    before = tree(out)
    with pytest.raises(Refused, match="pairs.jsonl: was edited: line 2 is not what was written\n  -> to keep what"):
        export_pairs(backbone, stores["local"], out)
    assert tree(out) == before


def test_a_place_that_is_not_this_export_is_refused_and_left_alone(backbone, stores, exported, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").touch()
    with pytest.raises(Refused, match="is not an export of pairs: it holds dear.txt"):
        export_pairs(backbone, stores["local"], tmp_path / "letters")
    before = tree(exported)
    for store, config in (("judged", ExportConfig()), ("local", ExportConfig(lossless=True))):
        with pytest.raises(Refused, match="is an export of other pairs or settings"):
            export_pairs(backbone, stores[store], exported / "folder", config)
    assert tree(exported) == before


# -- exports that were damaged -----------------------------------------------------------------------------------------


def members(path, change):
    "Write a tar anew, with what `change` makes of {name: bytes}."
    with tarfile.open(path) as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar}
    with tarfile.open(path, "w") as tar:
        for name, data in change(held).items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


def spoil(out, part, data):
    "Replace a part of pair 0, or take it out where there is no `data`."
    if (out / "pairs.jsonl").exists():
        file = exports.place(out, 0, part)
        file.unlink() if data is None else file.write_bytes(data)
        return
    name = f"000000.{part}{exports.PARTS[part]}"
    rest = {} if data is None else {name: data}
    members(out / "pairs-00000.tar", lambda held: {key: one for key, one in held.items() if key != name} | rest)


@pytest.mark.parametrize(
    "part, data, why",
    [
        ("loser", None, "loser"),
        ("mask", None, "mask"),
        ("loser", b"another film", "has another loser than when it was exported"),
        ("latents", b"no tensors", "its latents"),
    ],
)
def test_a_part_that_is_missing_or_changed_costs_its_pair_and_is_named(
    backbone, stores, copy, tmp_path, part, data, why
):
    spoil(copy, part, data)
    store = import_pairs(backbone, find(copy), tmp_path / "back")
    assert store.ids == stores["local"].ids[1:] and store.verify() == []
    (fault,) = store.bad
    assert fault.name.startswith(stores["local"].ids[0]) and why in fault.why and fault.then
    if data is None:
        assert "000000" in fault.why and ("does not exist in" in fault.why or "is not in pairs-00000.tar" in fault.why)


def test_a_shard_that_is_cut_or_lacks_a_row_is_named_and_a_missing_one_is_waited_for(exported, tmp_path):
    out = Path(shutil.copytree(exported / "webdataset", tmp_path / "out"))
    first = out / "pairs-00000.tar"
    members(first, lambda held: {name: data for name, data in held.items() if name != "000001.json"})
    found = {pair.id: pair.fault for pair in find(out).pairs if pair.fault}
    assert found == {"pairs-00000.tar 000001": "has no row: pairs-00000.tar has no 000001.json"}
    first.write_bytes(first.read_bytes()[:-20000])
    found = {pair.id: pair.fault for pair in find(out).pairs if pair.fault}
    assert "is cut short or damaged" in found["pairs-00000.tar"]
    first.unlink()
    with pytest.raises(Refused, match="lacks pairs-00000.tar: 1 of 2 shards are missing\n  -> give its"):
        find(out)


def test_of_a_shard_that_is_cut_within_latents_the_pairs_before_the_cut_are_whole(backbone, stores, exported, tmp_path):
    out = Path(shutil.copytree(exported / "webdataset", tmp_path / "out"))
    with tarfile.open(out / "pairs-00000.tar") as tar:
        cut = tar.getmember("000001.latents.safetensors").offset_data + 1000
    (out / "pairs-00000.tar").write_bytes((out / "pairs-00000.tar").read_bytes()[:cut])
    store = import_pairs(backbone, find(out), tmp_path / "back")
    assert store.ids == stores["local"].ids[::2] and store.verify() == []
    assert any("its latents 000001.latents.safetensors is not in pairs-00000.tar" in fault.why for fault in store.bad)


def test_shards_of_others_are_read_by_their_videos(backbone, stores, exported, tmp_path):
    shutil.copytree(exported / "webdataset", tmp_path / "out")
    (tmp_path / "out" / "export.json").unlink()
    back = import_pairs(backbone, find(tmp_path / "out"), tmp_path / "back")
    assert back.ids == stores["local"].ids and "latents" not in back.settings and back.method == "local_dpo"
    assert all(torch.equal(pair.mask, was.mask) for pair, was in zip(back, stores["local"], strict=True))


def test_an_export_that_is_not_finished_is_not_imported(exported, tmp_path):
    out = shutil.copytree(exported / "folder", tmp_path / "out")
    (out / "pairs.jsonl").unlink()
    with pytest.raises(Refused, match="is not finished: it has no pairs.jsonl\n  -> give its `localdpo pairs export`"):
        find(out)


@pytest.mark.slow(3)
@pytest.mark.parametrize("form", FORMS)
def test_none_of_thirty_damages_of_an_export_changes_a_pair_in_silence(backbone, stores, exported, tmp_path, form):
    was, count = {pair.id: pair for pair in stores["local"]}, 0
    for seed in range(30):
        draw, out = random.Random(f"{form} {seed}"), Path(shutil.copytree(exported / form, tmp_path / f"out {seed}"))
        file = draw.choice([one for one in sorted(out.rglob("*.*")) if one.is_file() and one.name != "pairs.jsonl"])
        data, at = bytearray(file.read_bytes()), draw.randrange(file.stat().st_size)
        data[at] ^= 1 << draw.randrange(8)
        file.write_bytes(data[: at if seed % 3 == 0 else None])
        try:
            store = import_pairs(backbone, find(out), tmp_path / f"back {seed}")
        except Refused:
            count += 1
            continue
        assert all(equal(pair, was[pair.id]) for pair in store), file
        count += len(store) < len(was)
        assert len(store) == len(was) or store.bad
    assert count >= 25  # the others hit the filling between the members of a tar


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["half written", "before the name", "after the name"])
def test_an_export_that_is_killed_within_a_save_goes_on_to_the_same_bytes(
    backbone, stores, tmp_path, monkeypatch, form, place
):
    config = dataclasses.replace(FORMS[form], shard=1)

    def work(out="killed"):
        export_pairs(backbone, stores["local"], tmp_path / out, config)

    parts = dict.fromkeys(exports.PARTS, b"some bytes")
    monkeypatch.setattr(exports, "files_of", lambda model, pair, *how: parts)
    work("whole")
    kills = sum(killed(work, (place, after)) for after in (1, 2, 3))
    work()
    assert kills >= 2 and tree(tmp_path / "killed") == tree(tmp_path / "whole")


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_exports_and_says_which_of_the_two_comes_back(backbone, stores, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(backbones, "load", lambda name, device: backbone)
    model = ["--model", "random"]
    words = ["pairs", "export", str(stores["local"].path), str(tmp_path / "out"), "--as", "webdataset", *model]
    assert not cli.main(words)
    assert "out: 3 pairs with their latents, as webdataset\n" in capsys.readouterr().out
    for kind, says in dict(carry="carried: the very ones", encode="encoded: read from the videos").items():
        words = ["pairs", "import", str(tmp_path / kind), "--from", str(tmp_path / "out"), *model]
        assert not cli.main([*words, "--latents", kind])
        said = capsys.readouterr().out
        assert "read as     tar shards: 3 pairs\n" in said and f"latents     {says}" in said


def test_pairs_of_another_model_are_not_exported(backbone, stores, tmp_path):
    store = PairStore(tmp_path / "store", dict(identity=dict(vae="another"), masked=True))
    store.append(stores["local"][0])
    with pytest.raises(Refused, match="was made with another model than"):
        export_pairs(backbone, store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
