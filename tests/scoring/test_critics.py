import functools
import itertools
import math

import numpy as np
import pytest
import torch
from conftest import said
from safetensors.torch import load_file, save_file

from localdpo.clips import pools, world
from localdpo.ground.errors import Refused
from localdpo.ground.noise import generator
from localdpo.miniature.reader import interval
from localdpo.scoring.critics import critic as critics
from localdpo.scoring.critics import flaws
from localdpo.scoring.critics.networks import HEADS, NETWORKS, bradley_terry
from localdpo.scoring.scorer import checked_provenance, get_scorer, score_video
from localdpo.scoring.weights import WeightsMissing

NAMES = list(NETWORKS)
ITEMS = pools.pool("curated", 160, "held out", seed=5)
SPECS = [item.spec for item in ITEMS]
CLIPS = np.stack([item.clip().frames for item in ITEMS])
ELSEWHERE = np.stack([world.render(spec, 10_000 + i).frames for i, spec in enumerate(SPECS)])


@pytest.fixture(scope="module", params=NAMES)
def critic(request):
    return critics.load(request.param)


@pytest.fixture(scope="module")
def marks():
    "Marks of clean clips, and of clips with each flaw at any strength, computed once for each critic."
    known = {}

    def of(critic, flaw=None):
        if (critic.name, flaw) not in known:
            known[critic.name, flaw] = critic.marks(*(spoiled(flaw) if flaw else (CLIPS, SPECS)))
        return known[critic.name, flaw]

    return of


@functools.cache
def spoiled(flaw, strength=None, count=160):
    def any_strength(i):
        return generator(seed=5, id=i, purpose="strength").random()

    pairs = [
        flaws.flawed(item, flaw, any_strength(i) if strength is None else strength, seed=5, frames=CLIPS[i])
        for i, item in enumerate(ITEMS[:count])
    ]
    return np.stack([frames for frames, _ in pairs]), [spec for _, spec in pairs]


@pytest.mark.slow(1)
@pytest.mark.parametrize("flaw", flaws.SEEN_BY)
def test_each_head_prefers_the_clean_clip_to_its_own_flaws(critic, marks, flaw):
    head = flaws.SEEN_BY[flaw]
    share = flaws.preferred(marks(critic)[head], marks(critic, flaw)[head])
    assert interval(share, len(ITEMS))[1] >= 0.9, f"{head} prefers the clean clip to one with {flaw} in {share:.1%}"


@pytest.mark.slow(1)
def test_over_all_its_flaws_each_head_is_right_nine_times_in_ten(critic, marks):
    for head in HEADS:
        shares = [
            flaws.preferred(marks(critic)[head], marks(critic, flaw)[head])
            for flaw, seen_by in flaws.SEEN_BY.items()
            if seen_by == head
        ]
        assert interval(np.mean(shares), len(ITEMS) * len(shares))[0] >= 0.9, f"{head}: {shares}"


@pytest.mark.slow(1)
@pytest.mark.parametrize("flaw", flaws.SEEN_BY)
def test_what_is_not_its_business_moves_a_head_little(critic, marks, flaw):
    for head in HEADS:
        if flaws.SEEN_BY[flaw] != head:
            share = flaws.preferred(marks(critic)[head], marks(critic, flaw)[head])
            low, high = interval(share, len(ITEMS))
            assert low <= 0.65 and high >= 0.35, f"{head} sees {flaw}: clean preferred in {share:.1%}"
            gap = np.mean(marks(critic)[head] - marks(critic, flaw)[head])
            assert abs(gap) <= 0.15, f"{flaw} moves {head} by {gap:.2f}, an average flaw of its own by 1"


@pytest.mark.slow(3)
def test_other_accidents_are_no_excuse_for_a_flaw(critic, marks):
    clean = critic.marks(ELSEWHERE, SPECS)
    shares = {flaw: flaws.preferred(clean[h], marks(critic, flaw)[h]) for flaw, h in flaws.SEEN_BY.items()}
    assert np.mean([*shares.values()]) >= 0.9, shares
    assert min(shares.values()) >= 0.7, shares


@pytest.mark.slow(1)
@pytest.mark.parametrize("flaw", flaws.SEEN_BY)
def test_the_stronger_a_flaw_the_lower_the_mark(critic, flaw):
    "No step up is more than noise, and the whole way is down; the mild half of banding is nearly level."
    head = flaws.SEEN_BY[flaw]
    marks = [critic.marks(*spoiled(flaw, strength, 64))[head] for strength in (0.0, 0.33, 0.67, 1.0)]
    for weak, strong in itertools.pairwise(marks):
        rise = strong - weak
        assert rise.mean() <= 2 * rise.std() / len(rise) ** 0.5, [mark.mean() for mark in marks]
    fall = marks[0] - marks[-1]
    assert fall.mean() > 3 * fall.std() / len(fall) ** 0.5, [mark.mean() for mark in marks]


def test_short_and_long_prompts_mean_the_same():
    for spec in SPECS:
        for long in (False, True):
            prompt = world.prompt(spec, long)
            assert critics.meant(prompt) == critics.meant(f" {prompt.upper().rstrip('.')}") == spec


@pytest.mark.parametrize("prompt", ["", "a red cat on a sofa", "a red star spinning on a plain red background"])
def test_a_prompt_that_is_no_sentence_of_the_world_is_refused(prompt):
    with pytest.raises(Refused) as refused:
        critics.meant(prompt)
    assert repr(prompt) in refused.value.what and "localdpo.clips.world.prompt" in refused.value.then


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt, problem", [("a red cat", "'a red cat' is not one"), (None, "there is no prompt")])
def test_without_a_prompt_it_knows_a_scorer_still_marks_picture_and_motion(name, prompt, problem):
    scorer = get_scorer(name)
    scores, problems, _ = score_video(scorer, CLIPS[0], prompt, 8)
    vq, mq, ta, overall = (scores[column] for column in scorer.columns)
    assert math.isfinite(vq) and math.isfinite(mq) and math.isnan(ta) and math.isnan(overall)
    columns, said = ", ".join(scorer.columns[2:]), "needs a sentence of the sprite world"
    assert problems == [f"{name}: {columns} {said}, and {problem}"]
    assert (vq, mq) == tuple(score_video(scorer, CLIPS[0], world.prompt(SPECS[0]), 8)[0].values())[:2]


@pytest.mark.parametrize("name", NAMES)
def test_a_scorer_says_what_its_critic_says(name):
    scorer, marks = get_scorer(name), critics.load(name).marks(CLIPS[:1], SPECS[:1])
    scores, problems, _ = score_video(scorer, CLIPS[0], world.prompt(SPECS[0], long=True), 8)
    assert problems == [] and list(scores.values()) == pytest.approx([float(mark[0]) for mark in marks.values()])
    assert scores[scorer.columns[3]] == pytest.approx(sum(list(scores.values())[:3]), abs=1e-5)
    each = scorer.per_frame(CLIPS[0], None, 8)
    assert {column: scores[column] for column in each} == pytest.approx({c: v.mean() for c, v in each.items()})


def test_the_two_critics_share_no_column_and_no_weights():
    a, b = map(get_scorer, NAMES)
    assert not set(a.columns) & set(b.columns)
    assert checked_provenance(a)["revision"] != checked_provenance(b)["revision"]
    assert a.weights() == [critics.WEIGHTS / "critic-a.safetensors"]


@pytest.mark.slow(1)
def test_the_columns_are_known_without_torch():
    "The graph of the paper asks for them, in a process for each of its steps."
    said("without_torch.py", "critic")


def test_marks_do_not_depend_on_the_company_or_the_day(critic):
    together, alone = critic.marks(CLIPS[:8], SPECS[:8]), critic.marks(CLIPS[3:4], SPECS[3:4])
    again = critics.load(critic.name).marks(CLIPS[:8], SPECS[:8])
    for head, mark in together.items():
        assert np.allclose(mark[3], alone[head][0], atol=1e-4) and np.array_equal(mark, again[head])


def test_a_flaw_that_passes_is_found_in_the_frames_that_have_it(critic):
    before, clips = CLIPS[:40], CLIPS[:40].copy()
    for i, item in enumerate(ITEMS[:40]):
        clips[i, 3:6] = flaws.flawed(item, "noise", 0.5, frames=CLIPS[i])[0][3:6]
    drop = critic.judge(before, SPECS[:40])["VQ"] - critic.judge(clips, SPECS[:40])["VQ"]
    found = drop[:, 3:6].mean(1) > np.delete(drop, [3, 4, 5], 1).max(1)
    assert interval(found.mean(), len(found))[1] >= 0.95


def test_zero_is_a_clean_clip_and_minus_one_an_average_flaw(critic, marks):
    for head in HEADS:
        own = np.mean([marks(critic, flaw)[head].mean() for flaw, by in flaws.SEEN_BY.items() if by == head])
        assert abs(marks(critic)[head].mean()) < 0.2 and -1.4 < own < -0.6


@pytest.mark.parametrize("shape", [(9, 64, 64, 3), (13, 32, 32, 3)])
def test_a_clip_of_another_size_has_no_marks_and_a_reason(shape):
    scorer, size = get_scorer("critic-b"), "x".join(map(str, shape[:3]))
    scores, problems, _ = score_video(scorer, np.zeros(shape, np.uint8), world.prompt(SPECS[0]), 8)
    assert all(map(math.isnan, scores.values()))
    assert problems == [f"critic-b: knows clips of 9x32x32, this one has {size}"]
    assert scorer.per_frame(np.zeros(shape, np.uint8), None, 8) == {}
    with pytest.raises(Refused, match=r"\[B,9,32,32,3\]"):
        critics.load("critic-b").marks(np.zeros((1, *shape), np.uint8), SPECS[:1])


def test_missing_weights_are_named_with_the_way_to_make_them(tmp_path):
    with pytest.raises(WeightsMissing, match="(?s)critic-a.*nbs/miniature/06_critics.ipynb"):
        critics.load("critic-a", tmp_path / "critic-a.safetensors")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 5, 3000, 200_000])
def test_weights_cut_short_are_refused(tmp_path, name, size):
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(critics.weights_file(name).read_bytes()[:size])
    with pytest.raises(Refused) as refused:
        critics.load(name, path)
    assert f"holds no weights of {name}" in refused.value.why and refused.value.what == str(path)


def test_one_wrong_bit_in_the_weights_is_noticed(tmp_path):
    path = tmp_path / "critic-a.safetensors"
    data = bytearray(critics.weights_file("critic-a").read_bytes())
    data[-5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refused, match="holds no weights of critic-a .their checksum"):
        critics.load("critic-a", path)


def test_weights_of_the_other_critic_or_of_something_else_are_refused(tmp_path):
    with pytest.raises(Refused, match="they are of critic-b"):
        critics.load("critic-a", critics.weights_file("critic-b"))
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(critics.weights_file("critic-a")), bare)
    with pytest.raises(Refused, match="checksum"):
        critics.load("critic-a", bare)
    with pytest.raises(Refused, match="there are critic-a, critic-b"):
        critics.load("critic-c")


def test_the_weights_are_small_and_say_how_they_were_made(critic):
    assert critics.weights_file(critic.name).stat().st_size <= 450_000
    assert {"steps", "seed", "date", "machine", "clean_preferred"} <= critic.facts.keys()
    assert critic.facts["clean_preferred"].keys() == flaws.SEEN_BY.keys()


@pytest.mark.parametrize("way", flaws.BROKEN)
def test_a_broken_region_is_broken_inside_and_untouched_outside(way):
    for i in range(20):
        after, mask = flaws.break_region(CLIPS[i], way, 0.5, np.random.default_rng(i))
        assert after.dtype == np.uint8 and (after[~mask] == CLIPS[i][~mask]).all()
        assert (after[mask] != CLIPS[i][mask]).any()
        same, mask_again = flaws.break_region(CLIPS[i], way, 1.0, np.random.default_rng(i))
        assert (mask == mask_again).all() and not np.array_equal(same, after)


def test_a_way_to_break_that_nobody_knows_is_refused():
    with pytest.raises(Refused, match="smeared, shuffled, bent, coarse"):
        flaws.break_region(CLIPS[0], "melted", 0.5, np.random.default_rng(0))


def test_an_even_pair_costs_least_where_the_marks_are_equal():
    marks = torch.tensor([0.0, 1.0, -2.0])
    even = [float(bradley_terry(marks + gap, marks, 0.5)) for gap in (-1.0, 0.0, 1.0)]
    assert even[1] == pytest.approx(math.log(2)) and even[0] == pytest.approx(even[2]) and even[0] > even[1]
    assert bradley_terry(marks + 9, marks) < 0.001
