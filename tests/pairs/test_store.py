"""A store is what was made, byte for byte, however the work was split or killed; anything else is found by name."""

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import contents, killed

from localdpo.cli import main as cli
from localdpo.clips.captions import caption_fault
from localdpo.clips.sources import Clip, fitted, from_folder, from_world
from localdpo.ground.errors import Refused, Starved
from localdpo.ground.seals import changes
from localdpo.media import sheets, video
from localdpo.miniature import models
from localdpo.pairs import store as pairs
from localdpo.pairs.builder import PairConfig, build, draw_alpha

CONFIG = PairConfig(steps=4, block=2)
PROMPT = "a red disc spinning on a plain blue background"


@pytest.fixture(scope="module")
def clips():
    return from_world(count=6)


@pytest.fixture(scope="module")
def whole(backbone, clips, tmp_path_factory):
    "A store made in one go; not to be changed."
    folder = tmp_path_factory.mktemp("whole") / "store"
    build(backbone, clips, folder, CONFIG)
    return folder


@pytest.fixture
def store(whole, tmp_path):
    "A copy of it to break."
    return Path(shutil.copytree(whole, tmp_path / "store"))


def same(a, b):
    return all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def faults(folder):
    return [str(fault) for fault in pairs.verify(folder)]


# -- what a store holds ------------------------------------------------------------------------------------------------


def test_outside_the_mask_a_stored_loser_is_its_winner_bit_for_bit(whole):
    for pair in pairs.PairStore(whole):
        changed = (pair.winner != pair.loser).any(0)
        assert pair.winner.dtype == torch.float32 and torch.equal(changed, pair.mask)


def test_in_16_bits_it_is_too(backbone, clips, tmp_path):
    store = build(backbone, clips[:2], tmp_path, dataclasses.replace(CONFIG, dtype="bfloat16"))
    for pair in store:
        assert pair.winner.dtype == pair.loser.dtype == torch.bfloat16
        assert not (pair.winner != pair.loser).any(0)[~pair.mask].any()
    assert store.verify() == []


def test_winner_text_and_prompt_are_those_of_the_clip(backbone, clips, whole):
    store = pairs.PairStore(whole)
    by_id = {clip.id: clip for clip in clips}
    assert sorted(store.ids) == sorted(by_id)
    for pair in store:
        assert pair.prompt == by_id[pair.id].prompt
        frames = torch.from_numpy(by_id[pair.id].read(9, 32, 32))
        assert torch.equal(pair.winner, backbone.encode(frames)[0])
        torch.testing.assert_close(pair.text, backbone.embed([pair.prompt])[0])


def test_text_is_stored_once_for_each_prompt(backbone, clips, tmp_path):
    from safetensors import safe_open

    twins = [clip._replace(prompt=PROMPT) for clip in clips[:2]]
    store = build(backbone, twins, tmp_path, CONFIG)
    with safe_open(tmp_path / "block-00000.safetensors", "pt") as block:
        assert block.get_slice("text").get_shape()[0] == 1
    assert torch.equal(store[0].text, store[1].text)


def test_a_store_says_its_name_and_how_much_it_holds(whole):
    assert repr(pairs.PairStore(whole)) == f"PairStore {whole.name}: 6 pairs in 3 blocks"


def test_a_pair_that_is_not_there_is_named_with_the_count(whole):
    store = pairs.PairStore(whole)
    for i in (6, -7):
        for call in (store.__getitem__, store.entry, lambda i: store.batch([0, i])):
            with pytest.raises(IndexError, match=f"no pair {i}: .*{whole.name} has 6 pairs, numbered from 0"):
                call(i)
    assert store[-1].id == store[5].id == list(store)[5].id


@pytest.mark.parametrize("wrong", ["an id", slice(0, 2), None, 1.5])
def test_a_pair_is_asked_for_by_its_number(whole, wrong):
    store = pairs.PairStore(whole)
    for call in (store.__getitem__, store.entry, lambda i: store.batch([i])):
        with pytest.raises(Refused, match=re.escape(f"pair {wrong!r}: is not a whole number\n  -> ")):
            call(wrong)


@pytest.mark.parametrize("wrong", [[], 0, None])
def test_a_batch_of_nothing_is_refused(whole, wrong):
    with pytest.raises(Refused, match=re.escape(f"a batch of {wrong!r}: names no pairs\n  -> give their numbers")):
        pairs.PairStore(whole).batch(wrong)


def test_a_batch_is_what_the_losses_take(whole):
    store = pairs.PairStore(whole)
    batch = store.batch([3, 0])
    assert batch.ids == [store[3].id, store[0].id] and torch.equal(batch.loser[1], store[0].loser)
    assert batch.noise_alpha.tolist() == pytest.approx([store[3].noise_alpha, store[0].noise_alpha])


@pytest.mark.parametrize("step, few", [(None, False), (0.05, True)])
def test_noise_levels_cover_their_range(step, few):
    config = PairConfig(alpha_step=step)
    drawn = [draw_alpha(f"clip {i}", config) for i in range(400)]
    assert 0.75 <= min(drawn) < 0.76 and 0.94 < max(drawn) <= 0.95 and (len(set(drawn)) == 5) == few


# -- the same bytes, always --------------------------------------------------------------------------------------------


@pytest.mark.slow(3)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_any_number_of_workers_in_any_order_makes_the_same_bytes(backbone, clips, whole, tmp_path, n):
    shuffled = random.Random(n).sample(clips, len(clips))
    for i in reversed(range(n)):
        build(backbone, shuffled, tmp_path, CONFIG, worker=(i, n))
    assert contents(tmp_path) == contents(whole)


def test_what_is_there_is_not_made_again(backbone, clips, store, monkeypatch):
    def made(*words):
        raise AssertionError("a block was made again")

    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in store.glob("*.*")}
    monkeypatch.setattr("localdpo.pairs.builder.make_block", made)
    assert len(build(backbone, clips, store, CONFIG)) == 6
    after = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in store.glob("block-*")}
    assert after == {name: facts for name, facts in before.items() if name.startswith("block-")}


PLACES = ("half written", "before the name", "after the name")


def survive(backbone, clips, whole, tmp_path, kills, seed):
    "Kill that many builders, about half of them within a save, and count the stores that end as they would have."
    draw = random.Random(seed)
    began = time.monotonic()
    assert not killed(lambda: build(backbone, clips, tmp_path / "timed", CONFIG), None)
    lasts = time.monotonic() - began
    died = fine = tries = 0
    while died < kills:
        tries += 1
        folder = tmp_path / str(tries)
        # store.json, three files for each of three blocks (the first says what it cost), and the list of bad clips
        moment = draw.uniform(0, lasts) if tries % 2 else (draw.choice(PLACES), draw.randint(1, 11))
        if not killed(lambda folder=folder: build(backbone, clips, folder, CONFIG), moment):
            continue  # it was done before its time
        died += 1
        assert not killed(lambda folder=folder: build(backbone, clips, folder, CONFIG), None)
        fine += contents(folder) == contents(whole)
    return fine


@pytest.mark.slow(12)
def test_a_killed_builder_goes_on_to_the_same_bytes(backbone, clips, whole, tmp_path):
    assert survive(backbone, clips, whole, tmp_path, kills=2, seed=1) == 2


@pytest.mark.long(88)
def test_thirty_killed_builders_go_on_to_the_same_bytes(backbone, clips, whole, tmp_path):
    assert survive(backbone, clips, whole, tmp_path, kills=30, seed=2) == 30


@pytest.mark.slow(1)
@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_each_place_of_each_save_leaves_nothing_behind(backbone, clips, whole, tmp_path, place, monkeypatch):
    # blocks are copied instead of made: this is about files
    made = {number: [pairs.PairStore(whole)[2 * number + j] for j in (0, 1)] for number in range(3)}
    ordered = sorted(clip.id for clip in clips)
    monkeypatch.setattr(
        "localdpo.pairs.builder.make_block", lambda b, clips, c: (made[ordered.index(clips[0].id) // 2], [])
    )
    for after in range(1, 12):
        folder = tmp_path / str(after)
        assert killed(lambda folder=folder: build(backbone, clips, folder, CONFIG), (place, after))
        build(backbone, clips, folder, CONFIG)
        assert contents(folder) == contents(whole)


# -- damage ------------------------------------------------------------------------------------------------------------


def damage(file, draw):
    "Change a file as disks, cables and people do."
    data = bytearray(file.read_bytes())
    place, kind = draw.randrange(len(data)), draw.choice(["bit", "byte", "cut", "zeros", "longer", "empty", "swap"])
    match kind:
        case "bit":
            data[place] ^= 1 << draw.randrange(8)
        case "byte":
            data[place] = (data[place] + draw.randrange(1, 256)) % 256
        case "cut":
            del data[place:]
        case "zeros":
            data[place : place + 64] = bytes(len(data[place : place + 64]))
        case "longer":
            data += b"\0" * draw.randrange(1, 100)
        case "empty":
            data.clear()
        case "swap":
            half = len(data) // 2
            data[:half], data[half : 2 * half] = data[half : 2 * half], data[:half]
    changed = bytes(data) != file.read_bytes()
    file.write_bytes(data)
    return kind, changed


@pytest.mark.slow(1)
def test_none_of_a_hundred_corruptions_is_accepted_silently(whole, tmp_path):
    draw, good = random.Random(3), list(pairs.PairStore(whole))
    files = sorted(file.name for file in whole.glob("*.*") if file.suffix != ".csv")
    tried = 0
    while tried < 100:
        folder = Path(shutil.copytree(whole, tmp_path / "store", dirs_exist_ok=True))
        name = draw.choice(files)
        kind, changed = damage(folder / name, draw)
        if not changed:
            continue
        tried += 1
        found = faults(folder)
        assert found, f"{kind} in {name}: verify finds nothing"
        assert any(name.partition(".")[0] in fault for fault in found), f"{kind} in {name} is not named: {found}"
        try:
            read = list(pairs.PairStore(folder))
        except Refused:
            continue
        assert all(map(same, read, good)), f"{kind} in {name} gives other pairs"


def test_a_damaged_pair_is_named_and_the_others_can_be_read(store):
    file = store / "block-00001.safetensors"
    data, third = bytearray(file.read_bytes()), pairs.PairStore(store).ids[2]
    from safetensors import safe_open

    with safe_open(file, "pt") as block:
        first_winner = block.get_slice("winner")[0]
    place = data.index(first_winner.numpy().tobytes())
    data[place + 100] ^= 4
    file.write_bytes(data)
    assert [fault.name for fault in pairs.verify(store)] == [third, "block-00001.safetensors"]
    opened = pairs.PairStore(store)
    with pytest.raises(Refused, match="its winner is damaged"):
        opened[2]
    assert opened[3].id


def test_the_same_command_again_mends_what_is_damaged(backbone, clips, store, whole):
    (store / "block-00001.safetensors").write_bytes(b"rubbish")
    (store / "block-00002.json").write_text("{}")
    build(backbone, clips, store, CONFIG)
    assert contents(store) == contents(whole)


def replant(store, change, number=0):
    "Write block `number` anew, sums and all, with its first pair changed."
    old = pairs.PairStore(store)
    both = [old[2 * number], old[2 * number + 1]]
    pairs.write_block(store, number, change(both), inputs=old.blocks[number]["inputs"])
    return both[0].id


def first(**parts):
    return lambda both: [dataclasses.replace(both[0], **{k: f(both[0]) for k, f in parts.items()}), both[1]]


def spotted(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[7] = value
    return tensor


PLANTED = {
    "winner has values that are not finite": first(winner=lambda p: spotted(p.winner, float("nan"))),
    "loser has values that are not finite": first(loser=lambda p: spotted(p.loser, float("inf"))),
    "text has values that are not finite": first(text=lambda p: spotted(p.text, float("nan"))),
    "mask is empty": first(mask=lambda p: torch.zeros_like(p.mask), loser=lambda p: p.winner),
    "loser is its winner": first(loser=lambda p: p.winner),
    "loser differs from its winner outside the mask": first(mask=lambda p: p.mask & (torch.rand(p.mask.shape) < 0.5)),
    "noise_alpha is 1.5": first(noise_alpha=lambda p: 1.5),
    "caption is empty": first(prompt=lambda p: " "),
}


@pytest.mark.parametrize("why", PLANTED)
def test_a_pair_that_is_useless_though_its_sums_are_right_is_named(store, why):
    id = replant(store, PLANTED[why])
    assert f"{id}: {why} (block-00000.safetensors)" in faults(store)


def test_latents_of_another_size_are_named(store):
    crop = dict(winner=lambda p: p.winner[..., :6], loser=lambda p: p.loser[..., :6], mask=lambda p: p.mask[..., :6])
    ids = replant(store, lambda both: [first(**crop)([pair, None])[0] for pair in both])
    assert any(ids in fault and "not that of a clip of size [9, 32, 32]" in fault for fault in faults(store))


def test_a_pair_that_is_there_twice_is_named_and_the_store_does_not_open(store):
    old = pairs.PairStore(store)
    pairs.write_block(store, 2, [old[0], old[5]], inputs=old.blocks[2]["inputs"])
    assert f"{old.ids[0]}: is in block-00000 and again in block-00002" in faults(store)
    with pytest.raises(Refused, match="twice"):
        pairs.PairStore(store)


@pytest.mark.parametrize("name", ["block-00001.json", "block-00001.safetensors", "store.json"])
def test_a_file_that_is_missing_is_named(store, name):
    (store / name).unlink()
    (fault,) = faults(store)
    assert fault.startswith(f"{name}: ") and "missing" in fault


def test_a_block_that_is_missing_is_named_and_training_waits_for_it(store, backbone):
    for file in store.glob("block-00001.*"):
        file.unlink()
    assert faults(store) == ["block-00001: is missing"]
    with pytest.raises(Refused, match="not finished: 1 block of 3 missing"):
        pairs.PairStore(store).check(backbone)


@pytest.mark.parametrize("name", ["block-00000.json", "store.json"])
def test_an_edited_word_is_found(store, name):
    text = (store / name).read_text()
    (store / name).write_text(text.replace("0.", "1.", 1) if name == "store.json" else text.replace(" a ", " the ", 1))
    if (store / name).read_text() == text:
        (store / name).write_text(text.replace('"prompt": "a', '"prompt": "the', 1))
    assert faults(store)[0].startswith(f"{name}: is damaged")
    with pytest.raises(Refused, match="not what was written"):
        pairs.PairStore(store)


# -- stale -------------------------------------------------------------------------------------------------------------


def test_a_store_fits_its_model_however_it_is_loaded(whole, backbone, clips):
    import copy

    from peft import LoraConfig

    store = pairs.PairStore(whole)
    captions = {clip.id: clip.prompt for clip in clips}
    store.check(backbone, size=(9, 32, 32), captions=captions)
    other = copy.copy(backbone)
    other.transformer = copy.deepcopy(backbone.transformer).to(torch.bfloat16)
    other.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"]))
    store.check(other)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "transformer"])
def test_one_other_weight_makes_a_store_stale(whole, backbone, part):
    store, weight = pairs.PairStore(whole), next(getattr(backbone, part).parameters())
    value = weight.data.view(-1)[3].item()
    try:
        weight.data.view(-1)[3] = value + 1
        with pytest.raises(Refused, match=f"another model than .*: {part}$|: {part}\n"):
            store.check(backbone)
    finally:
        weight.data.view(-1)[3] = value


def test_latents_of_another_scale_size_or_caption_are_stale(whole, backbone, clips, monkeypatch):
    store = pairs.PairStore(whole)
    with pytest.raises(Refused, match=r"size \[9, 32, 32\], not \[17, 32, 32\]"):
        store.check(backbone, size=(17, 32, 32))
    captions = {clip.id: clip.prompt for clip in clips} | {clips[0].id: "another"}
    with pytest.raises(Refused, match=f"1 pair in .*, {clips[0].id} first: have another caption"):
        store.check(backbone, captions=captions)
    monkeypatch.setattr(backbone, "scale", lambda latents: 2 * latents)
    with pytest.raises(Refused, match="latents.scale"):
        store.check(backbone)


def test_other_settings_are_refused_with_old_and_new_values_before_anything_is_written(backbone, clips, store, whole):
    with pytest.raises(Refused) as refusal:
        build(backbone, clips, store, dataclasses.replace(CONFIG, steps=6, mask=dict(static=0)))
    usual = pairs.PairStore(whole).settings["mask"]["static"]
    assert refusal.value.why == f"was begun with other settings: steps was 4, is 6; mask.static was {usual}, is 0.0"
    with pytest.raises(Refused, match=r"other settings: clips was 6, is 5\n"):
        build(backbone, clips[1:], store, CONFIG)
    with pytest.raises(Refused, match=r"other settings: its clips or captions changed \(block 0\)\n"):
        build(backbone, [*clips[1:], clips[0]._replace(prompt=PROMPT)], store, CONFIG)
    monster = "2" + "1" * 63
    assert changes(dict(a=1 / 3, b=[0.1 + 0.2]), dict(a=1, b=[1])) == ["a was 0.333333, is 1", "b was [0.3], is [1]"]
    assert changes(dict(a=0.3), dict(a=0.1 + 0.2)) == ["a was 0.3, is 0.30000000000000004"]
    assert changes(dict(a=dict(b=None), c=1), dict(a=dict(b=monster))) == [
        "a.b was none, is 2111111111...",
        "c was 1, is none",
    ]
    assert contents(store) == contents(whole)


def test_renewing_makes_only_what_changed_and_ends_like_a_fresh_store(backbone, clips, store, tmp_path, monkeypatch):
    from localdpo.pairs import builder

    ordered, made, plain = sorted(clips, key=lambda clip: clip.id), [], builder.make_block
    changed = [*ordered[:3], ordered[3]._replace(prompt=PROMPT)]  # two clips fewer, one other caption
    monkeypatch.setattr(builder, "make_block", lambda *a: made.append(a[1][0].id) or plain(*a))
    build(backbone, changed, store, CONFIG, renew=True)
    assert made == [ordered[2].id]
    build(backbone, changed, tmp_path / "fresh", CONFIG)
    assert contents(store) == contents(tmp_path / "fresh")


def test_a_store_that_is_renewed_in_part_is_not_complete(backbone, clips, store):
    changed = [clip._replace(prompt=PROMPT) for clip in clips]
    assert build(backbone, changed, store, CONFIG, worker=(0, 2), renew=True) is None
    assert faults(store) == ["block-00001.json: is stale: it was made from other clips or settings"]
    with pytest.raises(Refused, match="not finished: 1 block of 3 missing or stale"):
        pairs.PairStore(store).check(backbone)


def test_renewing_with_another_seed_makes_everything_again(backbone, clips, tmp_path):
    one = dataclasses.replace(CONFIG, seed=1)
    build(backbone, clips[:2], tmp_path / "a", CONFIG)
    build(backbone, clips[:2], tmp_path / "a", one, renew=True)
    build(backbone, clips[:2], tmp_path / "b", one)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# -- pairs that a recipe makes -----------------------------------------------------------------------------------------


def made(id, channels=16, **changes):
    draw = torch.Generator().manual_seed(sum(map(ord, id)))
    winner, loser = torch.randn(2, channels, 3, 8, 8, generator=draw)
    parts = dict(noise_alpha=None, seed=0, winner=winner, loser=loser, mask=None, text=torch.ones(36, 64))
    return pairs.Pair(id, PROMPT, **parts | changes)


def test_a_recipe_that_runs_again_changes_nothing(tmp_path):
    for _ in range(2):
        store = pairs.PairStore(tmp_path, dict(recipe="two samples"))
        store.append([made("a"), made("b", facts=dict(labels=[1, 0, -1]))])
        store.append([made("c")])
    assert store.ids == ["a", "b", "c"] and len(store.blocks) == 2 and store.verify() == []
    assert store[1].facts == dict(labels=[1, 0, -1])
    assert store.batch([0, 2]).mask is None and store.batch([0, 2]).noise_alpha is None


@pytest.mark.parametrize(
    "pair, why",
    [
        (made("new", winner=torch.full((16, 3, 8, 8), torch.nan)), "not finite"),
        (made("new", loser=torch.zeros(16, 3, 8, 4)), "does not fit"),
        (made("new", mask=torch.zeros(3, 8, 8, dtype=torch.bool)), "mask is empty"),
        (made("a", loser=torch.zeros(16, 3, 8, 8)), "with another sums"),
    ],
)
def test_a_pair_that_is_wrong_is_not_taken(tmp_path, pair, why):
    store = pairs.PairStore(tmp_path, {})
    store.append([made("a")])
    before = contents(tmp_path)
    with pytest.raises(Refused, match=why):
        store.append([made("b"), pair])
    assert contents(tmp_path) == before


# -- clips as one finds them -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    "A folder of clips, two of which are good."
    clips = tmp_path / "clips"
    video.write(clips / "good.mp4", sheets.demo_clip(1, 10, 64, 48), 8)
    video.write(clips / "längst & fertig.mp4", sheets.demo_clip(2, 9, 32, 32), 8)
    video.write(clips / "short.mp4", sheets.demo_clip(1, 4, 64, 48), 8)
    video.write(clips / "small.mp4", sheets.demo_clip(1, 10, 64, 24), 8)
    video.write(clips / "silent.mp4", sheets.demo_clip(1, 10, 64, 48), 8)
    data = (clips / "good.mp4").read_bytes()
    for name in ("latin.mp4", "odd words.mp4", "twice.mp4", "empty caption.mp4"):
        (clips / name).write_bytes(data)
    (clips / "cut.mp4").write_bytes(data[: len(data) // 2])
    (clips / "empty.mp4").write_bytes(b"")
    names = [
        "good",
        unicodedata.normalize("NFD", "längst & fertig"),
        "short",
        "small",
        "twice",
        "twice",
        "cut",
        "empty",
    ]
    lines = [json.dumps(dict(file=f"{name}.mp4", caption=PROMPT)).encode() for name in [*names, "gone"]]
    lines += [json.dumps(dict(file="odd words.mp4", caption="a quantum sprite")).encode(), b"{not json", b"[1]"]
    lines += [json.dumps(dict(file="empty caption.mp4", caption="")).encode()]
    lines += [b'{"file": "latin.mp4", "caption": "a caf\xe9"}']
    (tmp_path / "captions.jsonl").write_bytes(b"\n".join(lines))
    return tmp_path


REASONS = {
    "captions.jsonl line 11": "is not JSON",
    "captions.jsonl line 12": "is not a JSON object",
    "cut.mp4": "is cut short or damaged",
    "empty caption.mp4": "has no caption",
    "empty.mp4": "is empty",
    "gone.mp4 (captions.jsonl line 9)": "does not exist in the folder",
    "latin.mp4": "not UTF-8",
    "odd words.mp4": "never saw: quantum",
    "short.mp4": "fewer than the 9",
    "silent.mp4": "has no caption",
    "small.mp4": "is smaller than 32x32",
    "twice.mp4 (captions.jsonl line 6)": "is named twice",
}


def test_bad_clips_are_listed_with_reasons_and_stop_nothing(backbone, folder):
    store = build(backbone, from_folder(folder / "clips", folder / "captions.jsonl"), folder / "store", CONFIG)
    assert store.ids == ["good.mp4", "längst & fertig.mp4", "twice.mp4"] and store.verify() == []
    said = {fault.name: fault.why for fault in store.bad}
    assert sorted(said) == sorted(REASONS)
    for name, why in REASONS.items():
        assert why in said[name], (name, said[name])
    assert len((folder / "store" / "bad_clips.csv").read_text().splitlines()) == 1 + len(REASONS)


def test_a_reader_that_breaks_or_a_model_that_gives_nan_costs_one_clip(backbone, clips, tmp_path):
    def breaks(*size):
        raise ZeroDivisionError

    odd = clips[0]._replace(id="odd", read=breaks)
    twice = clips[1]._replace(read=breaks)
    assert [fault[:2] for fault in build(backbone, [*clips[:2], odd, twice], tmp_path, CONFIG).bad] == [
        ("curated-train-0-1 (again, place 2)", "has the id of another clip"),
        ("odd", "cannot be read (ZeroDivisionError)"),
    ]


def test_a_store_of_bad_clips_alone_says_that_it_has_no_pairs_and_which_clips_are_bad(
    backbone, clips, tmp_path, capsys
):
    build(backbone, [clips[0]._replace(fault="has no caption")], tmp_path / "st", CONFIG)
    assert cli.main(["pairs", "verify", str(tmp_path / "st")]) == 1
    said = capsys.readouterr().err
    assert f"st: holds no pairs: all its clips are bad\n1 clip ({clips[0].id}): has no caption\n  -> mend" in said


@pytest.mark.parametrize("quote", ['"', ""])
def test_csv_captions_are_read_row_by_row(folder, quote):
    text = f"path,text\ngood.mp4,{quote}{PROMPT}{quote}\nsmall.mp4,a caf\xe9\n"
    (folder / "c.csv").write_bytes(b"\xef\xbb\xbf" + text.encode("latin-1"))
    found = {clip.id: clip for clip in from_folder(folder / "clips", folder / "c.csv")}
    assert found["good.mp4"].prompt == PROMPT and "not UTF-8" in found["small.mp4"].fault


@pytest.mark.parametrize(
    "name, data, why",
    [
        ("c.jsonl", json.dumps(dict(file="a", caption="b")).encode("utf-16"), "UTF-16"),
        ("c.txt", b"good.mp4 a disc", "no form that is read"),
        ("c.jsonl", b'{"clip": "a", "words": "b"}', "no column file .* its columns are clip, words"),
        ("c.jsonl", b"", "no column"),
        ("c.parquet", b"PAR1", "pyarrow"),
    ],
)
def test_captions_that_cannot_be_read_at_all_are_refused(folder, name, data, why):
    if name == "c.parquet" and __import__("importlib.util").util.find_spec("pyarrow"):
        pytest.skip("pyarrow is installed")
    (folder / name).write_bytes(data)
    with pytest.raises(Refused, match=why):
        from_folder(folder / "clips", folder / name)


@pytest.mark.parametrize(
    "text, fine",
    [("a naïve café", True), ("Ã la carte at dawn", True), ("cafÃ©", False), ("itâ€™s", False), ("a\0b", False)],
)
def test_captions_in_the_wrong_encoding_are_found(text, fine):
    assert (caption_fault(text) is None) == fine


def test_clips_are_cut_from_the_middle_and_never_made_larger():
    frames = torch.zeros(2, 40, 120, 3, dtype=torch.uint8).numpy()
    frames[:, :, 40:80] = 200
    assert (fitted(frames, 20, 20) == 200).all()
    with pytest.raises(Refused, match="smaller"):
        fitted(frames, 48, 48)


# -- settings and the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        dict(alpha_range=(0.9, 0.8)),
        dict(alpha_range=(0.01, 0.1)),
        dict(dtype="int8"),
        dict(block=0),
        dict(alpha_step=-1),
        dict(cfg_scale=float("nan")),
    ],
)
def test_settings_that_make_no_pairs_are_refused(wrong):
    with pytest.raises(Refused, match=next(iter(wrong))):
        PairConfig(**wrong)


@pytest.mark.parametrize("step", [0.05, 0.12, 0.13, 0.3])
def test_no_level_of_a_grid_is_above_the_range(step):
    assert max(draw_alpha(f"clip {i}", PairConfig(alpha_step=step)) for i in range(100)) <= 0.95


def test_a_size_that_the_model_cannot_take_is_refused_before_anything_is_written(backbone, clips, tmp_path):
    with pytest.raises(Refused, match="height 30"):
        build(backbone, clips, tmp_path / "store", dataclasses.replace(CONFIG, size=(9, 30, 32)))
    with pytest.raises(Refused, match=r"worker \(2, 2\): has nothing"):
        build(backbone, clips, tmp_path / "store", CONFIG, worker=(2, 2))
    assert not (tmp_path / "store").exists()


def test_the_command_builds_shows_and_verifies(backbone, folder, capsys):
    models.release(backbone.pipeline, folder / "model", {})
    words = [
        "pairs",
        "build",
        str(folder / "store"),
        "--model",
        str(folder / "model"),
        "--steps",
        "4",
        "--device",
        "cpu",
    ]
    words += ["--clips", str(folder / "clips"), "--captions", str(folder / "captions.jsonl"), "--mask", "static=0.2"]
    assert not cli.main([*words, "--block", "8", "--worker", "0/2"])
    assert "others are not" in capsys.readouterr().out
    assert not cli.main([*words, "--block", "8", "--worker", "1/2"])
    assert "3 pairs, 12 bad clips (see bad_clips.csv)" in capsys.readouterr().out
    assert not cli.main(["pairs", "show", str(folder / "store")])
    said = capsys.readouterr().out
    assert (
        "noise_alpha 0." in said
        and "mask area" in said
        and "bad         2 clips (empty caption.mp4, silent.mp4): has no caption" in said
    )
    assert not cli.main(["pairs", "verify", str(folder / "store")]) and "no faults" in capsys.readouterr().out
    data = bytearray((folder / "store" / "block-00000.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "store" / "block-00000.safetensors").write_bytes(data)
    assert not cli.main(["pairs", "show", str(folder / "store")])
    assert "were not read; `localdpo pairs verify" in capsys.readouterr().out
    (folder / "store" / "block-00000.safetensors").write_bytes(b"")
    assert cli.main(["pairs", "verify", str(folder / "store")]) == 1
    said = capsys.readouterr()
    assert "good.mp4: its winner is damaged" in said.out and "make" in said.err


def test_one_fault_is_called_one_fault(store, capsys):
    for file in store.glob("block-00001.*"):
        file.unlink()
    assert cli.main(["pairs", "verify", str(store)]) == 1
    assert "localdpo: 1 fault in" in capsys.readouterr().err
    assert not cli.main(["pairs", "show", str(store)]) and "1 block missing" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["verify", "show"])
def test_where_there_is_no_store_it_is_said(tmp_path, capsys, what):
    (tmp_path / "letters").mkdir()
    (tmp_path / "note").touch()
    reasons = dict(stoer="there is no such folder", letters="no store of pairs was begun in it", note="it is a file")
    for name, why in reasons.items():
        assert cli.main(["pairs", what, str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert f"{name}: is not a store of pairs: {why}" in said and "check the path" in said


@pytest.mark.parametrize(
    "words, why",
    [
        ([], "are not named"),
        (["--clips", "x"], "--clips x: has no captions with it"),
        (["--captions", "y"], "--captions y: has no clips with it"),
        (["--world", "raw:4", "--clips", "x", "--captions", "y"], "--clips x: does not go with --world raw:4"),
        (["--world", "raw:4", "--caption-column", "y"], "--caption-column y: does not go with --world"),
        (["--world", "raw:many"], "--world raw:many: says no number of clips"),
        (["--world", "raw"], "--world raw: says no number of clips"),
        (["--world", "rew:4"], "names a pool 'rew', which does not exist"),
        (["--world", "raw:0"], "--world raw:0: asks for no clip"),
        (["--world", "raw:-3"], "--world raw:-3: asks for no clip"),
        (["--world", "raw:4", "--steps", "0"], "steps 0: walks nowhere"),
        (["--world", "raw:4", "--block", "0"], "block 0: is not a number of clips"),
        (["--world", "raw:4", "--alpha", "0.9", "0.8"], "begins with the larger number\n  -> turn it around: 0.8 0.9"),
        (["--world", "raw:4", "--alpha", "0.5", "1.8"], "is not between 0 (keep the clip) and 1"),
        (["--world", "raw:4", "--alpha", "nan", "0.9"], "is not between 0 (keep the clip) and 1"),
        (["--world", "raw:4", "--alpha", "0.01", "0.9", "--steps", "4"], "none of 4 steps is walked"),
        (["--world", "raw:4", "--mask", "statik=0.2"], "mask setting statik: is not known"),
        (["--world", "raw:4", "--worker", "1"], "--worker 1"),
        (["--world", "raw:4", "--mask", "static"], "--mask static"),
        (["--world", "raw:4", "--size", "9x32"], "--size 9x32"),
    ],
)
def test_words_that_make_no_sense_are_refused_before_a_model_is_loaded(tmp_path, capsys, words, why):
    assert cli.main(["pairs", "build", str(tmp_path / "store"), "--model", "no model", *words]) == 2
    assert why in capsys.readouterr().err


def test_clips_of_the_world_and_clips_of_files_are_the_same_kind_of_thing():
    assert isinstance(from_world(count=1)[0], Clip) and from_world("raw", 1)[0].read(9, 32, 32).shape == (9, 32, 32, 3)


# -- clips that change, and machines that lack something ----------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    "Two clips of the same size in bytes, with their captions."
    for name, seed in (("a.mp4", 1), ("b.mp4", 2)):
        video.write(tmp_path / "clips" / name, sheets.demo_clip(seed, 9, 32, 32), 8)
    files = [tmp_path / "clips" / name for name in ("a.mp4", "b.mp4")]
    size = max(file.stat().st_size for file in files) + 16
    for file in files:  # an mp4 may end in a box of nothing
        room = size - file.stat().st_size
        file.write_bytes(file.read_bytes() + room.to_bytes(4, "big") + b"free" + bytes(room - 8))
    rows = [json.dumps(dict(file=file.name, caption=PROMPT)) for file in files]
    (tmp_path / "c.jsonl").write_text("\n".join(rows))
    return tmp_path


def found(folder):
    return from_folder(folder / "clips", folder / "c.jsonl")


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_clip_that_was_replaced_by_one_of_the_same_size_is_noticed(backbone, two, keep_time):
    before = build(backbone, found(two), two / "store", CONFIG)[0].winner
    old = (two / "clips" / "a.mp4").stat()
    (two / "clips" / "a.mp4").write_bytes((two / "clips" / "b.mp4").read_bytes())
    assert (two / "clips" / "a.mp4").stat().st_size == old.st_size
    if keep_time:
        os.utime(two / "clips" / "a.mp4", ns=(old.st_atime_ns, old.st_mtime_ns))
    with pytest.raises(Refused, match="a.mp4 in .*: has other content than when its pair was made"):
        build(backbone, found(two), two / "store", CONFIG)
    store = build(backbone, found(two), two / "store", CONFIG, renew=True)
    assert not torch.equal(store[0].winner, before) and torch.equal(store[0].winner, store[1].winner)


def test_a_clip_that_was_only_touched_costs_no_pair(backbone, two, monkeypatch):
    from localdpo.pairs import builder

    build(backbone, found(two), two / "store", CONFIG)
    os.utime(two / "clips" / "a.mp4")
    monkeypatch.setattr(builder, "make_block", lambda *_: pytest.fail("a block was made again"))
    build(backbone, found(two), two / "store", CONFIG)


@pytest.mark.slow(1)
def test_a_machine_that_lacks_something_stops_and_holds_nothing_against_a_clip(backbone, clips, tmp_path, monkeypatch):
    from localdpo.ground import errors

    monkeypatch.setattr(errors.time, "sleep", lambda seconds: None)
    tries = []

    def poor(*size):
        tries.append(size)
        raise OSError(24, "Too many open files")

    starved = clips[0]._replace(read=poor)
    with pytest.raises(Starved, match="for want of file handles\n.*same command again"):
        build(backbone, [starved, clips[1]], tmp_path, CONFIG)
    assert len(tries) == 4 and not list(tmp_path.glob("block-*"))
    assert build(backbone, clips[:2], tmp_path, CONFIG).bad == []


def test_want_that_passes_costs_nothing(backbone, clips, whole, tmp_path, monkeypatch):
    from localdpo.ground import errors

    monkeypatch.setattr(errors.time, "sleep", lambda seconds: None)
    once = iter([MemoryError()])

    def read(*size):
        for error in once:
            raise error
        return clips[0].read(*size)

    build(backbone, [clips[0]._replace(read=read), *clips[1:]], tmp_path / "store", CONFIG)
    assert contents(tmp_path / "store") == contents(whole)


def test_renewing_tries_again_what_could_not_be_read(backbone, two):
    whole = (two / "clips" / "a.mp4").read_bytes()
    (two / "clips" / "a.mp4").write_bytes(b"\0" * len(whole))
    store = build(backbone, found(two), two / "store", CONFIG)
    assert [fault.name for fault in store.bad] == ["a.mp4"] and store.bad[0].then
    assert (two / "store" / "bad_clips.csv").read_text().startswith("clip,why,what to do\n")
    (two / "clips" / "a.mp4").write_bytes(whole)
    assert build(backbone, found(two), two / "store", CONFIG, renew=True).ids == ["a.mp4", "b.mp4"]


def test_long_captions_are_cut_and_counted_or_refused(backbone, clips, tmp_path, capsys):
    long = clips[0]._replace(prompt=" ".join([PROMPT] * 9))
    store = build(backbone, [long, clips[1]], tmp_path / "cut", CONFIG)
    (i,) = [i for i, id in enumerate(store.ids) if id == long.id]
    assert long.prompt.startswith(store[i].prompt) and len(store[i].prompt) < len(long.prompt)
    assert store[i].facts["caption"] == long.prompt and store.settings["long_captions"] == "cut"
    store.check(backbone, captions={clip.id: clip.prompt for clip in (long, clips[1])})
    assert not cli.main(["pairs", "show", str(tmp_path / "cut")]) and "1 caption cut to the" in capsys.readouterr().out
    refused = build(backbone, [long, clips[1]], tmp_path / "no", dataclasses.replace(CONFIG, long_captions="refuse"))
    assert refused.ids == [clips[1].id] and "tokens" in refused.bad[0].why


# -- damage that the same command heals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"{", b'{"seal": 1}'])
def test_a_damaged_store_json_is_written_anew_if_all_blocks_agree(backbone, clips, store, whole, capsys, damage):
    (store / "store.json").write_bytes(damage)
    with pytest.raises(Refused, match="store.json: is damaged"):
        build(backbone, clips, store, dataclasses.replace(CONFIG, seed=1))
    build(backbone, clips, store, CONFIG)
    assert contents(store) == contents(whole) and "is written anew" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["store.json", "block-00001.json", "block-00001.safetensors", "bad_clips.csv"])
def test_a_folder_in_the_place_of_a_file_is_named(backbone, clips, store, name, capsys):
    (store / name).unlink()
    (store / name).mkdir()
    said = r": is a folder where a file belongs\n.*move it elsewhere"
    with pytest.raises(Refused, match=name + said):
        build(backbone, clips, store, CONFIG)
    assert [fault.name for fault in pairs.verify(store)] == [name]
    assert cli.main(["pairs", "verify", str(store)]) == 1
    assert "  -> move it elsewhere, and give the command again" in capsys.readouterr().err
    if name != "bad_clips.csv":
        with pytest.raises(Refused, match=name + said):
            pairs.PairStore(store)


@pytest.mark.parametrize(
    "damage, why", [(None, "is missing"), (b"clip,why\n", "is damaged: it is not what was written")]
)
def test_a_table_of_bad_clips_that_is_lost_or_damaged_is_a_fault_and_is_written_anew(
    backbone, clips, store, whole, damage, why
):
    (store / "bad_clips.csv").write_bytes(damage) if damage else (store / "bad_clips.csv").unlink()
    assert list(map(str, pairs.verify(store))) == [f"bad_clips.csv: {why}"]
    build(backbone, clips, store, CONFIG)
    assert pairs.verify(store) == [] and contents(store) == contents(whole)


def test_a_reader_of_the_output_that_has_enough_is_no_error(store):
    command = f"{sys.executable} -m localdpo.cli pairs show {store} | head -c 1; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.split()[-1][-1] == "0" and "Traceback" not in run.stderr and "Broken" not in run.stderr


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(step=3), "setting 'step': is not known to PairConfig\n  -> did you mean steps?"),
        (dict(steps=None), "steps None: is not a whole number"),
        (dict(steps="2"), "steps '2': is not a whole number"),
        (dict(steps=1.5), "steps 1.5: is not a whole number"),
        (dict(steps=True), "steps True: is not a whole number"),
        (dict(cfg_scale="6"), "cfg_scale '6': is not a number"),
        (dict(block=2.5), "block 2.5: is not a whole number"),
        (dict(size=9), "size 9: is not three whole numbers"),
        (dict(alpha_range=0.75), "alpha_range 0.75: is not two numbers"),
        (dict(alpha_range=("a", "b")), "alpha_range 'a': is not a number"),
        (dict(alpha_step="x"), "alpha_step 'x': is not a number"),
    ],
)
def test_settings_of_pairs_that_cannot_be_are_refused_where_they_are_given(settings, said):
    with pytest.raises(Refused) as refusal:
        PairConfig(**settings)
    assert str(refusal.value).startswith(said)


def test_whole_numbers_of_numpy_are_settings_of_pairs():
    config = PairConfig(steps=np.int64(2), block=np.uint8(4), size=(9, 32, np.int64(32)))
    assert json.dumps(config.settings()) == json.dumps(PairConfig(steps=2, block=4, size=(9, 32, 32)).settings())


@pytest.mark.parametrize("path", [None, "", 3])
def test_a_store_without_a_name_is_refused(path):
    for call in (pairs.PairStore, lambda path: pairs.PairStore(path, {}), pairs.verify, pairs.start):
        with pytest.raises(Refused, match=f"the store {path!r}: names nothing"):
            call(path, {}) if call is pairs.start else call(path)


def test_what_is_not_a_pair_is_not_appended(tmp_path):
    store = pairs.PairStore(tmp_path / "store", {})
    for wrong in ([1], 1, [None], "ab"):
        with pytest.raises(Refused, match="pair .*: is not a pair\n.*give a list of localdpo.pairs.store.Pair"):
            store.append(wrong)
    assert not list(store.path.glob("block*"))


def test_settings_of_something_else_are_told_in_one_sentence(store):
    with pytest.raises(Refused, match="other settings: .*identity") as refusal:
        pairs.PairStore(store, dict(kind="mine"))
    assert refusal.value.why.count("none") <= 1 and re.search(", and [0-9]+ more are not given now", refusal.value.why)


@pytest.mark.parametrize("name", ["", "file", "videos"])
def test_a_place_that_cannot_be_a_store_is_refused_before_a_model_is_loaded(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch(), (tmp_path / "videos").mkdir(), (tmp_path / "videos/a.mp4").touch()
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["pairs", "build", name, "--model", "no-such-model", "--world", "curated:1"]) == 2
    reasons = {"": "'': is empty", "file": "file: is a file", "videos": "is not a store of pairs: it holds a.mp4"}
    assert reasons[name] in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before
