"Samples of a prompt are ranked by a critic and paired; the stores are those of the builder, with all of its promises."

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import contents, killed

from localdpo import methods
from localdpo.cli.main import main
from localdpo.clips.sources import from_world
from localdpo.ground.errors import Refused
from localdpo.methods.hybrid import HybridConfig
from localdpo.methods.judge import Judge, judge
from localdpo.methods.ranked_samples import PAIRINGS, RankedConfig, draw
from localdpo.methods.video_dpo import VideoConfig
from localdpo.miniature import models
from localdpo.pairs.builder import PairConfig, build
from localdpo.scoring.vbench.totals import OMNI, omniscore
from localdpo.training.identity import _content

CONFIG = RankedConfig(steps=2, block=2)
STRANGE = "a red disc on a red disc"  # of words that the model knows, and no sentence of the world


@pytest.fixture(scope="module")
def clips():
    return from_world(count=5)


@pytest.fixture(scope="module")
def whole(backbone, clips, tmp_path_factory):
    "A store made in one go; not to be changed."
    return build(backbone, clips, tmp_path_factory.mktemp("whole") / "store", CONFIG)


def sums(store):
    return {store.entry(i)["id"]: store.entry(i)["sums"] for i in range(len(store))}


# -- the pairs ---------------------------------------------------------------------------------------------------------


def test_the_best_sample_wins_the_worst_loses_and_every_score_is_kept(whole, clips):
    assert whole.ids == sorted(clip.id for clip in clips) and whole.verify() == [] and whole.method == "dpo"
    for pair in whole:
        facts = pair.facts
        assert facts["totals"][facts["winner"]] == max(facts["totals"]) > min(facts["totals"])
        assert facts["totals"][facts["loser"]] == min(facts["totals"]) and len(facts["totals"]) == 3
        assert set(facts["scores"]) == set(judge("critic-a").scorers[0].columns)
        assert pair.mask is None and pair.noise_alpha is None


def test_what_was_scored_is_what_is_stored(backbone, whole):
    pair, ask = whole[0], judge("critic-a", "cpu")
    for name in ("winner", "loser"):
        frames = backbone.decode(getattr(pair, name)[None])[0].numpy()
        assert ask(frames, pair.prompt, 8)[1] == pair.facts["totals"][pair.facts[name]]


@pytest.mark.slow(2)
def test_the_noise_of_a_sample_depends_on_its_address_alone(backbone, clips):
    config = dataclasses.replace(CONFIG, size=backbone.native)
    ids, text = [clip.id for clip in clips[:3]], backbone.embed([clip.prompt for clip in clips[:3]])
    together, alone = draw(backbone, text, ids, config), draw(backbone, text[2:], ids[2:], config)
    assert torch.allclose(together[:, 2], alone[:, 0], atol=1e-4)
    others = draw(backbone, text[2:], ids[2:], dataclasses.replace(config, samples=5))
    assert torch.equal(others[:3], alone) and len({float(one.sum()) for one in others}) == 5


def test_each_pairing_lets_the_better_of_its_two_win():
    order, rng, seen = [4, 2, 0, 1, 3], np.random.default_rng(0), {}
    for name, choose in PAIRINGS.items():
        seen[name] = {choose(order, rng) for _ in range(300)}
        assert all(order.index(winner) < order.index(loser) for winner, loser in seen[name])
    assert seen["extremes"] == {(4, 3)} and seen["adjacent"] == {(4, 2), (2, 0), (0, 1), (1, 3)}
    assert len(seen["random"]) == 10


@pytest.mark.slow(2)
def test_a_margin_drops_whole_prompts_and_says_how_many(backbone, clips, whole, tmp_path, capsys):
    gaps = {pair.id: max(pair.facts["totals"]) - min(pair.facts["totals"]) for pair in whole}
    margin = sorted(gaps.values())[2]
    store = build(backbone, clips, tmp_path / "store", dataclasses.replace(CONFIG, margin=margin))
    assert {fault.name for fault in store.bad} == {id for id, gap in gaps.items() if gap < margin}
    assert len(store) == 3 and sums(store) == {id: sums(whole)[id] for id in store.ids}
    assert {fault.why for fault in store.bad} == {
        f"was dropped: its samples are closer than the margin of {margin:g} by critic-a"
    }
    assert not main(["pairs", "show", str(tmp_path / "store")])
    assert "for         dpo, judged by critic-a" in capsys.readouterr().out


def test_samples_that_are_tied_make_no_pair(backbone, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(Judge, "__call__", lambda *_: ({}, 1.0))
    store = build(backbone, clips[:2], tmp_path, CONFIG)
    assert (
        not len(store) and [fault.why for fault in store.bad] == ["was dropped: its samples are tied by critic-a"] * 2
    )


@pytest.mark.slow(2)
def test_a_prompt_that_cannot_be_scored_is_left_out_and_so_is_a_judge_that_can_score_none(backbone, clips, tmp_path):
    odd = clips[0]._replace(prompt=STRANGE)
    store = build(backbone, [odd, *clips[1:3]], tmp_path / "some", CONFIG)
    assert len(store) == 2 and "needs a sentence of the sprite world" in store.bad[0].why
    with pytest.raises(Refused, match="a sample: has no score: critic-a"):
        build(backbone, [odd], tmp_path / "none", CONFIG)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow(3)
def test_a_real_winner_is_that_of_local_pairs_and_its_loser_that_of_vanilla_ones(backbone, clips, whole, tmp_path):
    hybrid = build(backbone, clips, tmp_path / "hybrid", HybridConfig(steps=2, block=2))
    local = build(backbone, clips, tmp_path / "local", PairConfig(steps=2, block=2))
    assert hybrid.method == "hybrid" and hybrid[0].facts["winner"] == "clip" and hybrid.verify() == []
    for id, found in sums(hybrid).items():
        assert found["winner"] == sums(local)[id]["winner"] and found["loser"] == sums(whole)[id]["loser"]


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weighed(backbone, clips, tmp_path_factory):
    "A store of pairs for VideoDPO; not to be changed."
    return build(backbone, clips, tmp_path_factory.mktemp("weighed") / "store", VideoConfig(steps=2, block=2, bin=0.2))


def test_a_weight_is_how_rare_the_scores_of_a_pair_are_among_all(weighed):
    totals = np.array([pair.facts["totals"] for pair in weighed])
    assert totals.shape == (5, 4)
    places, counts = np.unique(np.floor(totals / 0.2), return_counts=True)
    share = dict(zip(places, counts / 20, strict=True))
    for pair in weighed:
        best, worst = (share[np.floor(s / 0.2)] for s in (max(pair.facts["totals"]), min(pair.facts["totals"])))
        expected = (max(share.values()) / np.sqrt(best * worst)) ** 0.72
        assert weighed.weights[pair.id] == pytest.approx(expected)
    assert weighed.batch([3, 1]).weight.tolist() == pytest.approx([weighed.weights[weighed.ids[i]] for i in (3, 1)])


@pytest.mark.slow(3)
def test_another_exponent_is_refused_until_it_is_renewed_and_then_makes_no_pair_anew(
    backbone, clips, weighed, tmp_path, monkeypatch
):
    store, even = (
        shutil.copytree(weighed.path, tmp_path / "store"),
        VideoConfig(steps=2, block=2, bin=0.2, exponent=0.0),
    )
    with pytest.raises(Refused, match="other settings: weights.exponent was 0.72, is 0"):
        build(backbone, clips, store, even)
    monkeypatch.setattr(VideoConfig, "make", lambda *_: pytest.fail("a block was made again"))
    renewed = build(backbone, clips, store, even, renew=True)
    assert set(renewed.weights.values()) == {1.0} and set(weighed.weights.values()) != {1.0}
    assert _content(renewed) != _content(weighed)  # so a run does not go on with other weights


def test_omniscore_asks_for_all_that_it_is_made_of():
    made = judge("omniscore")
    columns = [column for scorer in made.scorers for column in scorer.columns]
    assert {*OMNI, "overall_consistency"} <= set(columns) and len(columns) == len(set(columns))
    assert made.total(dict.fromkeys(columns, 0.5)) == omniscore(dict.fromkeys(columns, 0.5))


# -- the same bytes, always --------------------------------------------------------------------------------------------


@pytest.mark.slow(3)
@pytest.mark.parametrize("n", [2, 4])
def test_any_number_of_workers_makes_the_same_bytes(backbone, clips, whole, tmp_path, n):
    for i in reversed(range(n)):
        build(backbone, clips[::-1], tmp_path, CONFIG, worker=(i, n))
    assert contents(tmp_path) == contents(whole.path)


@pytest.mark.slow(3)
@pytest.mark.parametrize("moment", [("half written", 4), ("after the name", 2), ("before the name", 5)])
def test_a_killed_builder_goes_on_to_the_same_bytes(backbone, clips, whole, tmp_path, moment):
    assert killed(lambda: build(backbone, clips, tmp_path / "store", CONFIG), moment)
    build(backbone, clips, tmp_path / "store", CONFIG)
    assert contents(tmp_path / "store") == contents(whole.path)


@pytest.mark.slow(2)
def test_a_clip_that_only_gave_its_prompt_may_change(backbone, clips, whole, tmp_path):
    file = tmp_path / "other.mp4"
    file.write_bytes(b"another clip")
    build(backbone, [clip._replace(file=file, bytes=12) for clip in clips], tmp_path / "store", CONFIG)
    assert contents(tmp_path / "store") == contents(whole.path)


def test_pairs_that_another_critic_ranked_are_other_pairs(backbone, clips, whole, monkeypatch):
    facts = whole.settings["judge"]["critic-a"]
    monkeypatch.setattr(Judge, "provenance", lambda self: {"critic-a": facts | dict(revision="of tomorrow")})
    with pytest.raises(Refused, match="other settings: judge.critic-a.revision was"):
        build(backbone, clips, whole.path, CONFIG)


def test_the_settings_of_local_pairs_keep_their_order_since_sums_are_made_of_it():
    found = list(PairConfig(size=(9, 32, 32)).settings())
    assert found == "size steps cfg_scale alpha_range alpha_step seed dtype block mask long_captions masked".split()


# -- the command -------------------------------------------------------------------------------------------------------


BUILD = "pairs build store --model no-such-model"


@pytest.mark.parametrize(
    "words, said",
    [
        ("--method dop --world raw:2", "method 'dop': does not exist\n  -> did you mean dpo?"),
        ("--method huvi_dpo --world raw:2", "method huvi_dpo: has no pairs to learn from"),
        ("--method dpo --world raw:2 --samples 1", "samples 1: is out of range\n  -> use a whole number from 2"),
        ("--method dpo --world raw:2 --margin nan", "margin nan: is not a difference of scores"),
        ("--method dpo --world raw:2 --margin -1", "margin -1.0: is not a difference of scores"),
        (
            "--method dpo --world raw:2 --scorer critic-z",
            "scorer 'critic-z': does not exist\n  -> did you mean critic-",
        ),
        ("--method dpo --world raw:2 --scorer measures", "scorer 'measures': cannot rank: it has 7 columns"),
        ("--method dpo --world raw:2 --scorer videoalign", "KwaiVGI/VideoReward: weights are missing"),
        ("--method dpo --world raw:2 --pairing best", "pairs build: --pairing 'best' is unknown"),
        ("--method dpo --world raw:2 --alpha 0.8 0.9", "--alpha: does not go with --method dpo\n  -> leave it out"),
        (
            "--world raw:2 --samples 3",
            "--samples: does not go with --method local_dpo\n  -> leave it out: it is for dpo",
        ),
        ("--method video_dpo --world raw:2 --bin 0", "bin 0.0: is not the width of a bin"),
        ("--method video_dpo --world raw:2 --exponent nan", "exponent nan: is out of range"),
        (
            "--method dpo --world raw:2 --bin 0.1",
            "--bin: does not go with --method dpo\n  -> leave it out: it is for video_dpo",
        ),
        ("--method video_dpo --world raw:2 --scorer omniscore", "weights are missing"),
        ("--method dense_dpo --world raw:2 --scorer omniscore", "scorer omniscore: adds up whole videos"),
        ("--prompts p.txt", "--prompts p.txt: has no clips, and pairs for local_dpo are made from clips"),
        ("--method hybrid --prompts p.txt", "--prompts p.txt: has no clips, and pairs for hybrid are made from clips"),
        ("--method dpo --prompts p.txt --world raw:2", "--prompts p.txt: does not go with --world"),
        ("--method dpo --prompts p.txt --caption-column c", "--prompts p.txt: does not go with --caption-column"),
    ],
)
def test_words_that_make_no_sense_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main([*BUILD.split(), *words.split()]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.slow(5)
def test_one_command_makes_the_pairs_and_another_trains_on_them(backbone, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models.release(backbone.pipeline, tmp_path / "model", {})
    Path("p.csv").write_text("id,prompt\na,a red disc moving left on a striped blue background\n"
                             f"b,a green star moving up on a plain red background\nc,{STRANGE}\n")  # fmt: skip
    make = "pairs build store --model model --device cpu --method dpo --prompts p.csv --steps 2 --samples 2"
    assert not main(make.split())
    said = capsys.readouterr().out
    assert "store: 2 pairs, 1 prompt without one (see bad_clips.csv)\nwithout     1 prompt (c): has no score" in said
    assert not main([*make.split()[:9], "--prompts", "p.csv", "--config", "store/store.json"])  # says the rest
    train = "train model store --device cpu --out run --steps 1 --batch 2 --rank 2 --method".split()
    for other in ("local_dpo", "hybrid", "video_dpo"):
        assert main([*train, other]) == 2
        error = capsys.readouterr().err
        assert f"store: holds pairs for dpo, and {other} needs " in error and methods.get(other).made_by in error
    assert not main([*train, "dpo"])
    said = capsys.readouterr().out
    assert "learns from pairs for" not in said and "critic-a judged these pairs, so critic_a_vq, critic_a_mq" in said
    assert json.loads(Path("run/run.json").read_text())["judges"] == ["critic-a"]
    draw = "sample model --device cpu --adapter run --steps 1 --out drawn --prompt".split()
    assert not main([*draw, "a red disc moving left on a striped blue background"])
    assert main("score drawn --scorers critic-a --out s.csv".split()) == 2
    assert (
        "scorer critic-a: judged the pairs that the model of " in capsys.readouterr().err and not Path("s.csv").exists()
    )
    assert not main("score drawn --scorers measures --out s.csv".split())
    capsys.readouterr()
    train[train.index("run")] = "other"
    assert (
        not main([*train, "sft"]) and "sft learns from pairs for dpo: the best and the worst" in capsys.readouterr().out
    )


def test_settings_that_are_none_are_refused_by_name(backbone, clips, tmp_path):
    with pytest.raises(Refused, match="settings of type dict"):
        build(backbone, clips, tmp_path / "store", dict(steps=2))
    with pytest.raises(Refused, match=r"scorer \['critic-a'\]: is not a name"):
        RankedConfig(scorer=["critic-a"])
