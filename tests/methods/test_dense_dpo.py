"Two samples of one noised clip are compared window by window; what the loss is told is what the judge said, in both orders."

from dataclasses import replace

import pytest
import torch
from conftest import contents, random_model

from localdpo import methods
from localdpo.clips.sources import from_world
from localdpo.ground.errors import Refused
from localdpo.methods.dense_dpo import DenseConfig, heard, windows
from localdpo.methods.judge import Judge, better, judge
from localdpo.pairs.builder import build
from localdpo.training import TrainConfig, train

CONFIG = DenseConfig(steps=4, block=2)


@pytest.fixture(scope="module")
def clips():
    return from_world(count=4)


@pytest.fixture(scope="module")
def whole(backbone, clips, tmp_path_factory):
    "A store made in one go; not to be changed."
    return build(backbone, clips, tmp_path_factory.mktemp("whole") / "store", CONFIG)


def judged(monkeypatch, *scores):
    "Let the judge give `scores`, one list of windows after the other."
    said = iter(scores)
    monkeypatch.setattr(Judge, "windows", lambda *_: next(said))


@pytest.mark.parametrize(
    "count, temporal, length", [(13, 4, 2), (13, 4, 1), (13, 4, 5), (3, 4, 2), (3, 4, 9), (2, 8, 1)]
)
def test_every_frame_is_in_one_window_and_lies_under_its_latent_frames(count, temporal, length):
    found = windows(count, temporal, length)
    assert [i for latents, _ in found for i in latents] == list(range(count))
    assert [i for _, frames in found for i in frames] == list(range((count - 1) * temporal + 1))
    assert all(len(latents) <= length for latents, _ in found[1:]) and len(found[0][0]) <= length + 1


def test_what_is_close_or_disputed_is_a_tie():
    assert better([1.0, 1.0, 0.0, 0.5], [0.0, 1.0, 1.0, 0.4], margin=0.2) == [1, 0, -1, 0]


@pytest.mark.slow(2)
def test_two_samples_begin_at_one_level_of_one_clip_from_two_noises(backbone, clips, whole, tmp_path):
    assert whole.method == "dense_dpo" and whole.verify() == []
    for pair in whole:
        assert 0.65 <= pair.noise_alpha <= 0.8 and pair.mask is None
        assert ((pair.winner != pair.loser).float().mean() > 0.9) and pair.noise_alpha == CONFIG.eta(pair.id)
    again = build(backbone, clips[::-1], tmp_path, CONFIG, worker=(1, 2)) or build(backbone, clips, tmp_path, CONFIG)
    assert contents(again.path) == contents(whole.path)


@pytest.mark.slow(2)
def test_the_winner_of_more_frames_is_the_winner_and_labels_are_told_from_its_side(
    backbone, clips, tmp_path, monkeypatch
):
    plain = {}
    for name, scores in dict(first=([1, 0], [0, 1]), second=([0, 1], [1, 0])).items():
        judged(monkeypatch, *scores)
        (pair,) = build(backbone, clips[:1], tmp_path / name, CONFIG)
        assert pair.facts["labels"] == [1, 1, -1] and pair.facts["scores"] == [[1, 0], [0, 1]]
        plain[name] = pair
    assert torch.equal(plain["first"].winner, plain["second"].loser)
    assert torch.equal(plain["first"].loser, plain["second"].winner)


@pytest.mark.slow(2)
def test_pairs_that_are_ties_nearly_everywhere_are_left_out(backbone, clips, tmp_path, monkeypatch):
    judged(monkeypatch, [1, 1], [1, 1], [1, 0], [1, 0.5])
    store = build(backbone, clips[:2], tmp_path, CONFIG)
    assert store.ids == [sorted(clip.id for clip in clips[:2])[1]] and store[0].facts["labels"] == [0, 0, 1]
    assert store.bad[0].why == "was dropped: critic-a finds its two samples alike in most windows"


def test_a_window_has_the_marks_of_its_frames_and_a_judge_without_marks_sees_a_piece(backbone, whole):
    critic, frames = judge("critic-a", "cpu"), backbone.decode(whole[0].winner[None])[0].numpy()
    seen = critic.scorers[0].per_frame(frames, whole[0].prompt, 8)
    expected = sum(marks[5:9].mean() for marks in seen.values())
    assert critic.windows(frames, whole[0].prompt, 8, [range(5), range(5, 9)])[1] == pytest.approx(expected, abs=1e-5)

    class Length:
        columns, ranges, needs_prompt = ("length",), {}, False
        per_frame = staticmethod(lambda *_: {})
        pooled = staticmethod(lambda each, frames, *_: dict(length=float(len(frames))))

    whole_pieces = Judge("length", (Length(),), lambda scores: scores["length"])
    assert whole_pieces.windows(frames, "", 8, [range(5), range(5, 9)]) == [5, 4]


@pytest.mark.slow(2)
def test_what_the_judge_said_is_what_the_loss_is_told(whole, tmp_path):
    batch = whole.batch([1, 0])
    assert batch.labels.tolist() == [whole[i].facts["labels"] for i in (1, 0)]
    config = TrainConfig(out=str(tmp_path / "run"), steps=1, batch=2, micro_batch=2, rank=2)
    train(random_model("tiny-cogvideox-2b"), whole, methods.recipe("dense_dpo"), config)
    for other in ("video_dpo", "local_dpo"):
        with pytest.raises(Refused, match=f"have no (weight|mask), and {other} "):
            train(random_model("tiny-cogvideox-2b"), whole, methods.recipe(other), config)


@pytest.mark.parametrize(
    "wrong, why",
    [
        (dict(guidance_eta=(0.8, 0.6)), "guidance_eta .*: begins with the larger number"),
        (dict(guidance_eta=(0.0, 0.6)), "guidance_eta .*: is not between 0"),
        (dict(window=0), "window 0: is out of range"),
        (dict(margin=float("nan")), "margin nan: is not a difference of scores"),
    ],
)
def test_settings_that_make_no_pairs_are_refused(wrong, why):
    with pytest.raises(Refused, match=why):
        DenseConfig(**wrong)


def test_votes_and_flips_are_of_the_paper_and_others_are_refused():
    for wrong in (dict(vote="loudest"), dict(flips=1.5), dict(flips=-0.1)):
        with pytest.raises(Refused, match=next(iter(wrong))):
            DenseConfig(**wrong)
    said = [1, 1, -1, 0, 1]
    assert heard(said, "a", CONFIG) == said
    assert heard(said, "a", replace(CONFIG, flips=1.0)) == [-1, -1, 1, 0, -1]
    assert heard(said, "a", replace(CONFIG, flips=0.4)) == heard(said, "a", replace(CONFIG, flips=0.4))
    assert heard(said, "a", replace(CONFIG, vote="majority", flips=1.0)) == [-1] * 5


def test_unguided_pairs_have_nothing_of_the_clip(backbone, clips):
    config = replace(CONFIG, guidance_eta=(1.0, 1.0), size=backbone.native)
    drawn = []
    for real in (
        torch.zeros(backbone.latent_shape(*backbone.native)),
        torch.ones(backbone.latent_shape(*backbone.native)),
    ):
        drawn.append(config.draw(backbone, backbone.embed(["a star"]), ["a"], [real]))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("name", ["tiny-wan-1.3b", "tiny-cogvideox-2b"])
def test_the_walk_of_a_network_that_is_right_ends_at_the_clip(name):
    "Algorithms 1 and 2 of the paper add where they must subtract; a walk that did would move away."
    model = random_model(name)
    clip, noise = (torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    sampler = model.single_steps(10)
    walked = sampler.renoise(clip, noise, 3)
    for i in range(3, 10):
        target = model.target(clip, noise, sampler.timesteps[i].expand(1))
        walked = sampler.step(target, i, walked)
    assert (walked - clip).abs().max() < 1e-4 < (sampler.renoise(clip, noise, 3) - clip).abs().max()


def test_windows_that_are_won_by_both_alike_have_no_majority(backbone, clips, tmp_path, monkeypatch):
    judged(monkeypatch, *[[1.0, 0.0], [0.0, 1.0]] * 4)
    store = build(backbone, clips, tmp_path, replace(CONFIG, vote="majority"))
    assert len(store) == 0 and {"as many of its windows" in bad.why for bad in store.bad} == {True}
