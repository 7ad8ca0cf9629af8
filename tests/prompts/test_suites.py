"Suites are the same for everyone, lists are whole or refused, and a language model is asked once."

import hashlib
import json
import sys
from collections import Counter

import pytest
from conftest import said

from localdpo import backbones
from localdpo.cli import main as cli
from localdpo.clips import world
from localdpo.ground.errors import Failed, Refused
from localdpo.ground.journal import Journal
from localdpo.prompts import expansion, suites
from localdpo.prompts.suites import Entry, as_prompts, expand, read, save, suite
from localdpo.sampling import records, videos

KINDS = ("quality", "motion")


def spec(entry):
    return world.Spec(**entry.about)


def spread(entries, name):
    "How often the least and the most frequent word appear."
    counts = Counter(entry.about[name] for entry in entries)
    numbers = [counts[word] for word in suites.WORDS[name]]
    return min(numbers), max(numbers)


# -- sprites ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, count, digest", [("quality", 165, "c0afd24fda1fa894"), ("motion", 128, "be434b0cc0e2cf6b")]
)
def test_a_sprite_suite_is_the_same_for_everyone(kind, count, digest):
    entries = suite(f"sprite-{kind}")
    assert len(entries) == count == len({entry.prompt for entry in entries})
    text = "\n".join(f"{entry.id} {entry.prompt}" for entry in entries)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("kind", KINDS)
def test_ids_mean_the_same_in_a_longer_suite(kind):
    long = suite(f"sprite-{kind}", count=300)
    for count in (1, 20, 128):
        assert suite(f"sprite-{kind}", count=count) == long[:count]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sprite_suite_has_held_out_specs_only_and_its_splits_share_none(kind):
    halves = [set(suites.sprite_specs(kind, split)) for split in suites.SPLITS]
    both = set.union(*halves)
    assert not set.intersection(*halves) and all(map(world.held_out, both))
    assert both == {s for s in world.specs() if world.held_out(s) and (kind == "motion" or s.camera == "still")}


def test_what_is_chosen_on_one_suite_was_not_seen_in_another():
    chosen = {spec(entry) for kind in KINDS for entry in suite(f"sprite-{kind}", split="validation")}
    reported = {spec(entry) for kind in KINDS for entry in suite(f"sprite-{kind}")}
    assert not chosen & reported


@pytest.mark.parametrize("split", suites.SPLITS)
def test_what_a_suite_is_about_is_spread_evenly(split):
    quality, motion = (suite(f"sprite-{kind}", split=split) for kind in KINDS)
    assert all(entry.about["camera"] == "still" for entry in quality)
    for entries, names in ((quality, ("shape", "colour", "texture")), (motion, ("motion", "shape", "colour"))):
        for name in names:
            least, most = spread(entries, name)
            assert most - least <= 2, (name, least, most)
            least, most = spread(entries[:48], name)
            assert most - least <= 3, (name, least, most)
    cameras = Counter(entry.about["camera"] for entry in motion)
    assert abs((cameras["pan"] + cameras["zoom"]) / len(motion) - 1 / 3) < 0.02
    assert abs(cameras["pan"] - cameras["zoom"]) <= 2


@pytest.mark.parametrize("model", ["tiny-cogvideox-2b", "tiny-wan-1.3b"])
def test_the_tiny_models_read_both_forms(model):
    tiny = backbones.load(model, "cpu")
    for entries in (suite("sprite-quality", count=60), suite("sprite-motion", count=60)):
        for form in ("short", "expanded"):
            ids, mask = tiny.tokens([prompt.prompt for prompt in as_prompts(entries, form)])
            assert ids.shape == (60, tiny.text_length) and len({tuple(row) for row in ids.tolist()}) == 60
            assert tiny.pipeline.tokenizer.unk_token_id not in ids and 3 < mask.sum(1).min() <= tiny.text_length
    one = as_prompts(suite("sprite-motion", count=1), "expanded")[0].prompt
    for broken, why in ((one + " zebra", "never saw: zebra"), (" ".join([one] * 3), "tokens, tiny-")):
        with pytest.raises(Refused, match=why):
            tiny.tokens([broken])


@pytest.mark.parametrize(
    "words, said",
    [
        (dict(name="sprite-qualty"), "suite 'sprite-qualty': does not exist\n  -> did you mean sprite-quality"),
        (dict(name="sprite-motion", split="train"), "split 'train': does not exist"),
        (dict(name="sprite-motion", count=0), "count 0"),
        (dict(name="sprite-motion", count=True), "count True"),
        (dict(name="sprite-motion", count=2.0), "count 2.0"),
        (dict(name="sprite-quality", count=5000), "is more than sprite-quality has in its test split\n  -> use 6"),
        (dict(name="sprite-quality", file="a.json"), "file a.json: is not needed"),
        (dict(name="sprite-quality", dimensions=["color"]), "has no dimensions"),
        (dict(name="videojam", file="a.txt", augmented="b.txt"), "has no dimensions and no augmented"),
        (dict(name="vbench"), "does not come with this package\n  -> .*--file.*VBench_full_info"),
        (dict(name="videojam"), "128 prompts"),
        (dict(name="vbench", split="validation"), "split 'validation' of vbench: does not exist"),
    ],
)
def test_what_is_no_suite_is_refused(words, said):
    with pytest.raises(Refused, match=said):
        suite(**words)


# -- VBench ----------------------------------------------------------------------------------------------------------

OVERALL = ["aesthetic_quality", "imaging_quality", "overall_consistency"]


def vbench_rows():
    "A file like VBench's: other words, its numbers, and its two fantasy landscapes."
    rows = [dict(prompt_en=f"a vase of kind{i}, frozen", dimension=["temporal_flickering"]) for i in range(75)]
    rows += [
        dict(prompt_en=f"a person is busy{i}", dimension=["subject_consistency", "motion_smoothness"])
        for i in range(72)
    ]
    rows += [dict(prompt_en=f"A picture of thing{i} ", dimension=OVERALL) for i in range(91)]
    rows += [dict(prompt_en=text, dimension=OVERALL) for text in ("a fantasy landscape", "A fantasy landscape")]
    return rows + [dict(prompt_en="a red vase", dimension=["color"], auxiliary_info={"color": {"color": "red"}})]


@pytest.fixture
def vbench(tmp_path):
    def write(rows=None):
        file = tmp_path / "VBench_full_info.json"
        file.write_text(json.dumps(vbench_rows() if rows is None else rows, indent=0))
        return file

    return write


def test_vbench_gives_the_papers_number_of_prompts(vbench):
    entries = suite("vbench", vbench())
    assert len(entries) == 165 == len({entry.prompt for entry in entries})
    assert entries[0] == Entry(
        "vbench-076", "a person is busy0", None, dict(dimensions=["subject_consistency", "motion_smoothness"])
    )
    assert not any(entry.prompt != entry.prompt.strip() for entry in entries)


def test_prompts_that_differ_in_a_capital_letter_stay_two_with_files_of_their_own(vbench):
    twins = [entry for entry in suite("vbench", vbench()) if "fantasy" in entry.prompt]
    assert [entry.prompt for entry in twins] == ["a fantasy landscape", "A fantasy landscape"]
    names = [job.name.lower() for job in records.jobs_of(as_prompts(twins), 0, 1)]
    assert len(set(names)) == 2


def test_a_prompt_that_is_doubled_to_the_letter_is_named(vbench):
    rows = vbench_rows()
    rows[-3]["prompt_en"] = "A fantasy landscape"
    with pytest.raises(
        Refused, match="has 164 prompts for .*'A fantasy landscape' is there twice.*the paper's are 165"
    ):
        suite("vbench", vbench(rows))


@pytest.mark.parametrize(
    "change, found", [(lambda rows: rows.pop(80), 164), (lambda rows: rows[0].update(dimension=OVERALL), 166)]
)
def test_another_number_is_refused(vbench, change, found):
    change(rows := vbench_rows())
    with pytest.raises(Refused, match=f"VBench_full_info.json: has {found} prompts for aesthetic_quality"):
        suite("vbench", vbench(rows))


def test_other_dimensions_may_be_named_and_a_prompt_of_two_rows_is_one(vbench):
    rows = [*vbench_rows(), dict(prompt_en="a red vase", dimension=["scene"])]
    (entry,) = suite("vbench", vbench(rows), dimensions=["color", "scene"])
    assert (entry.prompt, entry.about) == ("a red vase", dict(dimensions=["color", "scene"]))
    assert suite("vbench", vbench(rows), dimensions="color")[0].id == entry.id
    with pytest.raises(Refused, match="dimension 'colour': is not in .*\n  -> did you mean color"):
        suite("vbench", vbench(rows), dimensions=["colour"])


def test_a_checkout_of_vbench_will_do(vbench, tmp_path):
    entries = suite("vbench", vbench())
    assert suite("vbench", tmp_path) == entries
    (tmp_path / "vbench").mkdir()
    vbench().rename(tmp_path / "vbench" / "VBench_full_info.json")
    assert suite("vbench", tmp_path) == entries
    with pytest.raises(Refused, match="vbench: holds no VBench_full_info.json|holds no VBench_full_info.json"):
        (tmp_path / "empty").mkdir()
        suite("vbench", tmp_path / "empty")


@pytest.mark.parametrize(
    "data, said",
    [
        (b'[{"prompt_en": "a",\n "dimension": [}]', "line 2: is not JSON"),
        (b'[{"prompt_en": "a", "dimension": ["color"]}', "line 1: is not JSON"),
        (b"", "line 1: is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"prompt_en": "a"}', "is not a list of prompts"),
        (b"[]", "is not a list of prompts"),
        (b'[{"prompt_en": "a", "dimension": "color"}]', "entry 1: has not both"),
        (b'[{"prompt_en": "a", "dimension": ["color"]}, {"dimension": ["color"]}]', "entry 2: has not both"),
        (b'[{"prompt_en": " ", "dimension": ["color"]}]', "entry 1: has no prompt"),
        ('[{"prompt_en": "a fa\u00e7ade", "dimension": ["color"]}]'.encode("latin-1"), "line 1: is not UTF-8"),
        ('[\n{"prompt_en": "a fa\u00e7ade"}]'.encode("latin-1"), "line 2: is not UTF-8"),
        ('[{"prompt_en": "a", "dimension": ["color"]}]'.encode("utf-16"), "is not UTF-8"),
        (
            '[{"prompt_en": "a fa\u00c3\u00a7ade", "dimension": ["color"]}]'.encode(),
            "entry 1: has a prompt in the wrong encoding",
        ),
    ],
)
def test_a_damaged_file_of_vbench_is_refused_with_the_place(tmp_path, data, said):
    file = tmp_path / "info.json"
    file.write_bytes(data)
    with pytest.raises(Refused, match=f"info.json.*{said}"):
        suite("vbench", file, dimensions=["color"])


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for name in ("vbench", "videojam"):
        with pytest.raises(Refused, match="nothing.*: cannot be read"):
            suite(name, tmp_path / "nothing")


def test_a_short_list_is_the_same_for_everyone_and_part_of_a_longer_one(vbench):
    file = vbench()
    few, more, all_of_them = (suite("vbench", file, count=count) for count in (10, 50, None))
    assert len(few) == 10 and len(more) == 50 and set(map(str, few)) < set(map(str, more)) < set(map(str, all_of_them))
    assert [entry for entry in all_of_them if entry in more] == more  # in the order of the list
    moved = [entry.prompt for entry in suite("vbench", vbench(vbench_rows()[::-1]), count=10)]
    assert sorted(moved) == sorted(entry.prompt for entry in few)
    with pytest.raises(Refused, match="count 166: is more than vbench has\n  -> use 165"):
        suite("vbench", file, count=166)


@pytest.fixture
def augmented(tmp_path):
    def write(lines=None):
        file = tmp_path / "longer.txt"
        file.write_text("\n".join(lines) + "\n")
        return file

    return write


def longer(rows):
    return [f"In warm light, {row['prompt_en'].strip()}, seen by a calm camera." for row in rows]


def test_augmented_prompts_belong_to_the_row_of_their_number(vbench, augmented):
    entries = suite("vbench", vbench(), augmented=augmented(longer(vbench_rows())))
    assert all(entry.expanded == f"In warm light, {entry.prompt}, seen by a calm camera." for entry in entries)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda lines: lines[:-1], "has 240 lines, VBench_full_info.json has 241 prompts"),
        (lambda lines: [*lines, "one more"], "has 242 lines"),
        (lambda lines: lines[1:] + lines[:1], "in another order"),
        (lambda lines: lines[-1:] + lines[:-1], "in another order"),
        (lambda lines: [*lines[:6], "", *lines[7:]], "line 7: has no prompt"),
    ],
)
def test_augmented_prompts_that_are_off_are_refused(vbench, augmented, change, said):
    with pytest.raises(Refused, match=said):
        suite("vbench", vbench(), augmented=augmented(change(longer(vbench_rows()))))


# -- VideoJAM-bench --------------------------------------------------------------------------------------------------

JAM = [f"somebody jumps over {i} ropes" for i in range(128)]


@pytest.mark.parametrize("data", ["\n".join(JAM), "\n".join(JAM) + "\n\n", "\ufeff" + "\r\n".join(JAM) + "\r\n"])
def test_videojam_is_a_text_with_128_lines(tmp_path, data):
    file = tmp_path / "jam.txt"
    file.write_bytes(data.encode())
    entries = suite("videojam", file)
    assert [entry.prompt for entry in entries] == JAM and entries[127] == Entry("videojam-128", JAM[127], None, {})


@pytest.mark.parametrize(
    "data, said",
    [
        ("\n".join(JAM[1:]).encode(), "jam.txt: has 127 prompts, VideoJAM-bench has 128"),
        ("\n".join([*JAM, "another"]).encode(), "has 129 prompts"),
        ("\n".join([*JAM[:-1], JAM[3]]).encode(), "line 128: is line 4 again: 'somebody jumps over 3 ropes'"),
        ("\n".join([*JAM[:9], " ", *JAM[9:]]).encode(), "line 10: has no prompt"),
        ("\n".join([*JAM[:-1], "a caf\u00e9"]).encode("latin-1"), "line 128: is not UTF-8"),
        ("\n".join(JAM).encode("utf-16"), "line 1: is not UTF-8"),
        (b"", "line 1: has no prompt"),
    ],
)
def test_another_text_is_refused(tmp_path, data, said):
    file = tmp_path / "jam.txt"
    file.write_bytes(data)
    with pytest.raises(Refused, match=said):
        suite("videojam", file)


# -- for the sampler, and on disk --------------------------------------------------------------------------------------


def test_both_forms_have_the_same_ids():
    entries = suite("sprite-motion", count=5)
    short, long = as_prompts(entries), as_prompts((entry for entry in entries), "expanded")
    assert [prompt.id for prompt in short] == [prompt.id for prompt in long] == [entry.id for entry in entries]
    assert [prompt.prompt for prompt in long] == [world.prompt(spec(entry), long=True) for entry in entries]
    with pytest.raises(Refused, match="form 'long': does not exist"):
        as_prompts(entries, "long")


def test_the_first_prompt_without_an_expanded_form_is_named():
    entries = suite("sprite-motion", count=3)
    entries[1] = entries[1]._replace(expanded=None)
    with pytest.raises(Refused, match=f"{entries[1].id}, '.*': has no expanded prompt\n  -> .*--expand Qwen"):
        as_prompts(entries, "expanded")


def test_entries_come_back_from_disk_and_the_sampler_reads_them(tmp_path):
    entries = [
        *suite("sprite-quality", count=3),
        Entry("caf\u00e9", 'a "quoted" prompt, caf\u00e9\u2028', None, {"n": [1]}),
    ]
    save(iter(entries), tmp_path / "a.jsonl")
    assert read(tmp_path / "a.jsonl") == entries
    assert videos.read_prompts(tmp_path / "a.jsonl") == as_prompts(entries)


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: is not a JSON object"),
        ('{"id": "b", "prompt": "b"}', "line 2: has no expanded; it has id, prompt"),
        ('{"id": "b", "prompt": "b", "expanded": null, "about": {}, "seed": 1}', "line 2: has the unknown key 'seed'"),
        ('{"id": "b", "prompt": "", "expanded": null, "about": {}}', "line 2: has no prompt"),
        ('{"id": "b", "prompt": "b", "expanded": "", "about": {}}', "line 2: has no expanded prompt"),
        ('{"id": "b", "prompt": "b", "expanded": 3, "about": {}}', "line 2: has no expanded prompt"),
        ('{"id": "b", "prompt": "b", "expanded": null, "about": []}', "line 2: has an about"),
        ('{"id": "a", "prompt": "b", "expanded": null, "about": {}}', "line 2: has the id 'a', as .*line 1 has"),
        ('{"id": null, "prompt": "b", "expanded": null, "about": {}}', "line 2: has the id None"),
    ],
)
def test_a_line_that_is_no_entry_is_named(tmp_path, line, said):
    save([Entry("a", "a", None, {})], tmp_path / "a.jsonl")
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(Refused, match=f"a.jsonl {said}"):
        read(tmp_path / "a.jsonl")


def test_what_cannot_be_kept_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.jsonl"
    save([Entry("a", "a", None, {})], file)
    before = file.read_bytes()
    for bad in (dict(n=float("nan")), dict(n={1, 2})):
        with pytest.raises(Refused, match="a.jsonl: cannot hold these entries"):
            save([Entry("a", "a", None, bad)], file)
    with pytest.raises(Refused, match="has the id 'a'"):
        save([Entry("a", "a", None, {}), Entry("a", "b", None, {})], file)
    assert file.read_bytes() == before
    for use in (lambda path: save([], path), lambda path: save([Entry("a", "a", None, {})], path), read):
        with pytest.raises(Refused, match="are an empty list|is not called .jsonl"):
            use(tmp_path / "a.txt")
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(Refused, match="b.jsonl: holds no entries"):
        read(tmp_path / "b.jsonl")


# -- expansion -------------------------------------------------------------------------------------------------------


def test_the_grammar_expands_sprites_and_refuses_all_else(vbench):
    entries = suite("sprite-motion", count=4)
    assert expand([entry._replace(expanded=None) for entry in entries]) == entries
    with pytest.raises(Refused, match="vbench-076, 'a person is busy0': is not a prompt of the sprite world"):
        expand(suite("vbench", vbench()))


HUB = "some/model"
ENTRIES = [Entry(f"p{i}", f"idea {i}", None, {}) for i in range(4)]


class Asked(list):
    "What a stand-in for the model was asked, and how it behaves."

    revision, loaded = "r1", 0

    def __init__(self, folder):
        self.faults, self.folder = {}, folder

    def fetch(self, name, revision, path):
        if self.revision is None:
            return FETCH(name, revision, path)
        return self.folder, revision or self.revision

    def load(self, folder, device=None):
        self.loaded += 1
        return self, None

    def answer(self, model, tokenizer, prompt, max_tokens=256):
        if isinstance(fault := self.faults.get(prompt), BaseException):
            raise fault
        self.append(prompt)
        return f"{prompt}, at length", fault


FETCH = expansion._fetch


@pytest.fixture
def asked(monkeypatch, tmp_path):
    "A model of the hub that answers at once."
    stand_in = Asked(tmp_path)
    monkeypatch.setattr(expansion, "_fetch", stand_in.fetch)
    monkeypatch.setattr(expansion, "load", stand_in.load)
    monkeypatch.setattr(expansion, "generate", stand_in.answer)
    return stand_in


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "kept" / "answers.jsonl"


def test_a_model_is_asked_once_for_each_prompt(asked, cache):
    found = expand([*ENTRIES, ENTRIES[0]._replace(id="again")], HUB, cache)
    assert [entry.expanded for entry in found] == [f"{entry.prompt}, at length" for entry in (*ENTRIES, ENTRIES[0])]
    assert asked == [entry.prompt for entry in ENTRIES]
    assert expand(ENTRIES, HUB, cache) == found[:4] and len(asked) == 4 and asked.loaded == 1


def test_a_job_that_was_killed_goes_on(asked, cache):
    asked.faults["idea 2"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        expand(ENTRIES, HUB, cache)
    with open(cache, "a") as file:
        file.write('{"prompt": "idea 2", "model": "some')  # the line that was being written
    asked.faults.clear()
    found = expand(ENTRIES, HUB, cache)
    assert asked == [entry.prompt for entry in ENTRIES] and all(entry.expanded for entry in found)
    assert len(cache.read_text().splitlines()) == 4


def test_an_answer_is_on_disk_before_the_next_prompt_is_asked(asked, cache):
    asked.faults["idea 1"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        expand(ENTRIES, HUB, cache)
    (row,) = map(json.loads, cache.read_text().splitlines())
    assert (row["prompt"], row["model"], row["revision"]) == ("idea 0", HUB, "r1")


def test_an_answer_that_is_no_caption_is_named_and_not_kept(asked, cache):
    asked.faults |= {"idea 1": "the answer is empty", "idea 3": "the answer was cut off after 256 tokens"}
    with pytest.raises(
        Failed, match="2 of 4 prompts.*'idea 1': the answer is empty; 'idea 3': .*cut off(.|\n)*--max-tokens"
    ):
        expand(ENTRIES, HUB, cache)
    assert [json.loads(line)["prompt"] for line in cache.read_text().splitlines()] == ["idea 0", "idea 2"]
    asked.faults.clear()
    expand(ENTRIES, HUB, cache)
    assert asked[4:] == ["idea 1", "idea 3"]


def test_revisions_and_questions_are_not_mixed(asked, cache):
    expand(ENTRIES[:2], HUB, cache)
    asked.revision = "r2"
    expand(ENTRIES[:2], HUB, cache)  # all are there, so the hub is not asked
    assert len(asked) == 2
    expand(ENTRIES, HUB, cache)
    assert asked[2:] == [entry.prompt for entry in ENTRIES]
    expand(ENTRIES, HUB, cache, max_tokens=300)
    assert len(asked) == 10
    expand(ENTRIES, "other/model", cache)
    assert len(asked) == 14
    expand(ENTRIES[:2], HUB, cache, revision="r1")
    assert len(asked) == 14
    expand(ENTRIES, HUB, cache, revision="r1")
    assert asked[14:] == ["idea 2", "idea 3"]


def test_the_question_is_part_of_what_an_answer_is_known_by(asked, cache, monkeypatch):
    expand(ENTRIES, HUB, cache)
    monkeypatch.setattr(expansion, "INSTRUCTION", "Say it in verse.")
    expand(ENTRIES, HUB, cache)
    assert len(asked) == 8


def test_a_model_out_of_reach_is_refused_and_a_whole_file_of_answers_needs_none(asked, cache, monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    found = expand(ENTRIES[:2], HUB, cache)
    asked.revision = None
    with pytest.raises(
        Refused, match="model some/model: is not on this machine.*\n  -> .*hf download some/model.*answers.jsonl"
    ):
        expand(ENTRIES, HUB, cache)
    assert expand(ENTRIES[:2], HUB, cache) == found


def test_a_name_that_is_no_model_is_refused(cache):
    for name in ("gramar", "a/b/c", "./here"):
        with pytest.raises(Refused, match="is neither a folder nor owner/name"):
            expand(ENTRIES, name, cache)
    with pytest.raises(Refused, match="max_tokens 0"):
        expand(ENTRIES, HUB, cache, max_tokens=0)


@pytest.mark.parametrize("line", ["{", "", '{"prompt": "a"}', '{"a": "b", "c": 1}'])
def test_a_strange_line_among_the_answers_is_named(asked, cache, line):
    expand(ENTRIES[:1], HUB, cache)
    cache.write_text(f"{line}\n{cache.read_text()}")
    with pytest.raises(Refused, match="answers.jsonl line 1: is not an answer"):
        expand(ENTRIES[:1], HUB, cache)


def test_a_last_line_that_lacks_only_its_end_is_kept(asked, cache):
    expand(ENTRIES[:2], HUB, cache)
    cache.write_text(cache.read_text().rstrip("\n"))
    expand(ENTRIES[:3], HUB, cache)
    assert len(asked) == 3 and len(cache.read_text().splitlines()) == 3


def test_answers_that_are_there_are_read_while_another_job_writes_its_own(asked, cache):
    found = expand(ENTRIES[:2], HUB, cache)
    with Journal(cache), open(cache, "a") as other:
        other.write('{"prompt": "idea 7", "mod')  # the rest is on its way
        other.flush()
        assert expand(ENTRIES[:2], HUB, cache) == found
        assert cache.read_text().endswith('"idea 7", "mod')


# -- a model of random weights ---------------------------------------------------------------------------------------

WORDS = "a boat cat drifts on the still lake under soft light while camera moves closer".split()
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<unk>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant{% endif %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "The folder of a tiny Qwen2.5-VL that answers in plain words and knows no end."
    import tokenizers
    import torch
    import transformers as tf

    vocabulary = {word: i for i, word in enumerate(MARKS + WORDS)}
    spoken = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    spoken.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    spoken.add_special_tokens(MARKS)
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=spoken, eos_token=MARKS[2], pad_token=MARKS[0])
    tokenizer.chat_template = TEMPLATE
    text = dict(vocab_size=len(vocabulary), hidden_size=32, intermediate_size=37, num_hidden_layers=2)
    text |= dict(num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5, bos_token_id=0, eos_token_id=2)
    text |= dict(rope_parameters=dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=1e4))
    vision = dict(
        depth=1, hidden_size=16, intermediate_size=16, num_heads=2, out_hidden_size=32, fullatt_block_indexes=[0]
    )
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=3, video_token_id=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight[: len(MARKS)] = 0  # so that another word is always more likely
    model.generation_config = tf.GenerationConfig(
        eos_token_id=[2], do_sample=True, temperature=0.1, repetition_penalty=1.3
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(tiny):
    return expansion.load(tiny, "cpu")


def test_the_model_is_asked_by_text_alone(loaded):
    model, tokenizer = loaded
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration" and "torchvision" not in sys.modules
    text, fault = expansion.generate(model, tokenizer, "a boat", 12)
    assert fault == "the answer was cut off after 12 tokens" and set(text.split()) <= set(WORDS) | {"<unk>"}
    assert expansion.generate(model, tokenizer, "a boat", 12) == (text, fault)
    assert expansion.generate(model, tokenizer, "the cat drifts under soft light", 12)[0] != text


def test_an_answer_ends_where_the_model_ends_it(loaded, monkeypatch):
    model, tokenizer = loaded
    words = expansion.generate(model, tokenizer, "a boat", 12)[0].split()
    last = next(i for i in range(1, len(words)) if words[i] not in words[:i])
    monkeypatch.setattr(model.generation_config, "eos_token_id", tokenizer.convert_tokens_to_ids(words[last]))
    text, fault = expansion.generate(model, tokenizer, "a boat", 12)
    assert fault is None and text.split()[:last] == words[:last]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.convert_tokens_to_ids(words[0])])
    monkeypatch.setattr(tokenizer, "decode", lambda *_, **__: '" "')
    assert expansion.generate(model, tokenizer, "a boat", 12) == ("", "the answer is empty")


def test_a_folder_is_known_by_what_is_in_it(tiny, cache, monkeypatch):
    monkeypatch.setattr(expansion, "generate", lambda model, tokenizer, prompt, tokens: (f"{prompt}, at length", None))
    before = expand(ENTRIES[:1], str(tiny), cache, "cpu")[0].expanded
    assert before == "idea 0, at length"
    monkeypatch.setattr(expansion, "load", None)  # no second time
    expand(ENTRIES[:1], tiny, cache)
    assert json.loads(cache.read_text())["model"] == "tiny-qwen"
    file, was = tiny / "generation_config.json", expansion._sum(tiny)
    text = file.read_text()
    file.write_text(text.replace("0.1", "0.2"))
    assert expansion._sum(tiny) != was
    file.write_text(text)
    assert expansion._sum(tiny) == was


def test_a_chat_template_may_lie_beside_the_tokenizer(tiny, tmp_path):
    folder = tmp_path / "older"
    folder.mkdir()
    for file in tiny.iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(Refused, match="older: cannot be loaded"):
        expansion.load(folder, "cpu")
    (folder / "chat_template.json").write_text(json.dumps(dict(chat_template=TEMPLATE)))
    assert expansion.load(folder, "cpu")[1].chat_template == TEMPLATE


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_what_sample_reads(tmp_path, capsys):
    file = tmp_path / "motion.jsonl"
    assert cli.main(["prompts", "sprite-motion", "--count", "2", "--split", "validation", "--out", str(file)]) is None
    assert read(file) == suite("sprite-motion", count=2, split="validation")
    assert "2 prompts of sprite-motion, 2 of them with an expanded form" in capsys.readouterr().out
    words = [
        "sample",
        "tiny-cogvideox-2b",
        str(file),
        "--out",
        str(tmp_path / "videos"),
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    assert not cli.main(words)
    manifest = json.loads((tmp_path / "videos" / "manifest.json").read_text())
    assert [entry["id"] for entry in manifest["videos"]] == [entry.id for entry in read(file)]


def test_the_command_writes_expanded_prompts_to_sample_from(tmp_path):
    file = tmp_path / "motion.jsonl"
    assert not cli.main(["prompts", "sprite-motion", "--count", "3", "--form", "expanded", "--out", str(file)])
    assert videos.read_prompts(file) == as_prompts(suite("sprite-motion", count=3), "expanded")
    entries = suite("sprite-motion", count=3)
    assert [prompt.short for prompt in videos.read_prompts(file)] == [entry.prompt for entry in entries]


def test_the_command_shows_prompts_without_a_file(capsys):
    assert not cli.main(["prompts", "sprite-quality", "--count", "2"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Entry(**row) for row in rows] == suite("sprite-quality", count=2)


def test_the_command_asks_a_model(vbench, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / "kept"))
    words = ["prompts", "vbench", "--file", str(vbench()), "--count", "3", "--out", str(tmp_path / "v.jsonl")]
    assert not cli.main([*words, "--expand", HUB])
    assert [entry.expanded for entry in read(tmp_path / "v.jsonl")] == [f"{prompt}, at length" for prompt in asked]
    assert (tmp_path / "kept" / "expansions.jsonl").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["sprite-quality", "--out", "a.txt"], "is not called .jsonl"),
        (["sprite"], "did you mean sprite-"),
        (["vbench", "--expand", "grammar", "--augmented", "a.txt"], "would both give expanded prompts"),
        (["sprite-quality", "--count", "9999"], "use 6"),
        (["vbench"], "--file"),
    ],
)
def test_the_command_refuses_in_words(capsys, words, said):
    assert cli.main(["prompts", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow(1)
def test_help_is_light():
    answer = said("without_torch.py", "help", "prompts")
    assert "sprite-quality, sprite-motion, vbench, videojam" in answer and "Example: localdpo prompts" in answer


def test_a_file_of_other_prompts_is_not_written_over(tmp_path):
    file = tmp_path / "own.jsonl"
    suites.write(file, [dict(id="a", prompt="one")])
    suites.write(file, [dict(id="a", prompt="one")])  # the same again is no loss
    before = file.read_bytes()
    with pytest.raises(Refused, match="own.jsonl: is there already, and holds something else"):
        suites.write(file, [dict(id="b", prompt="two")])
    assert file.read_bytes() == before
