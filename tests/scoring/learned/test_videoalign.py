"""VideoAlign: all keys, its LoRA, its positions and pixels, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from released import FRAMES, SPECIAL, TINY_QWEN

from localdpo.ground.errors import Refused
from localdpo.scoring import scorer as core
from localdpo.scoring.learned import videoalign

pytestmark = pytest.mark.usefixtures("nothing_here")


VOCABULARY = 151_660  # Qwen's tokens and three marks


def to_videoalign(state, rank=0):
    "The inverse of `videoalign.from_videoalign`: the names of transformers 4.45 in peft, with a LoRA of zeros."
    made = {"base_model.model.lm_head.weight": state["body.language_model.embed_tokens.weight"]}
    for key, tensor in state.items():
        name = key.replace("head.", "rm_head.") if key.startswith("head.") else key.removeprefix("body.")
        name = f"base_model.model.{name.replace('language_model.', 'model.', 1)}"
        place, _, kind = name.rpartition(".")
        if not place.endswith("_proj"):
            made[name] = tensor
            continue
        made[f"{place}.base_layer.{kind}"] = tensor
        if kind == "weight":
            made[f"{place}.lora_A.default.weight"] = tensor.new_empty(rank, tensor.shape[1]).normal_()
            made[f"{place}.lora_B.default.weight"] = tensor.new_empty(tensor.shape[0], rank).normal_()
    return made


def test_videoalign_accounts_for_all_1123_keys():
    with torch.device("meta"):
        model = videoalign.RewardModel(**videoalign.QWEN2_VL_2B, vocabulary=VOCABULARY)
        state = to_videoalign(model.state_dict(), 64)
    assert len(state) == 1123
    assert "base_model.model.visual.blocks.31.attn.qkv.weight" in state
    assert "base_model.model.model.layers.27.mlp.down_proj.lora_B.default.weight" in state
    ours = videoalign.from_videoalign(state, 2.0)
    assert ours.keys() == model.state_dict().keys()
    assert all(ours[k].shape == v.shape for k, v in model.state_dict().items())


@pytest.fixture
def qwen(tmp_path):
    "The files of a small VideoReward with random weights, as they are published."
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate("?abcdefghijklmnopqrstuvwxyz .")}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.add_special_tokens(SPECIAL)
    words.save(str(tmp_path / "tokenizer.json"))
    text = "looks {} moves {} shows {{text_prompt}} {}".format(*videoalign.MARKS)
    (tmp_path / "prompt_template.py").write_text(f"import os\nDETAILED_PROMPT_WITH_SPECIAL_TOKEN = {text!r}\n")
    told = dict(
        data_config={
            k: videoalign.EXPECTED[k] for k in ("fps", "max_frame_pixels", "sample_type", "prompt_template_type")
        },
        model_config=dict(output_dim=1, use_special_tokens=True),
        peft_lora_config=dict(lora_r=4, lora_alpha=8, use_rslora=False),
        inference_config=dict(VQ_mean=1.0, VQ_std=2.0),
    )
    (tmp_path / "model_config.json").write_text(json.dumps(told))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = videoalign.RewardModel(**TINY_QWEN, vocabulary=words.get_vocab_size() + 3).eval()
        torch.save(to_videoalign(model.state_dict(), 4), tmp_path / "model.pth")
    return [tmp_path / name for name in ("model_config.json", "model.pth", "tokenizer.json", "prompt_template.py")]


def test_videoalign_adds_its_lora_to_the_weights(qwen, monkeypatch):
    monkeypatch.setattr(videoalign, "QWEN2_VL_2B", TINY_QWEN)
    model, *_, norms = videoalign.VideoAlign().load(*qwen)
    assert norms["VQ"] == (1.0, 2.0) and norms["MQ"] == videoalign.NORMS["MQ"]
    state = torch.load(qwen[1])
    place = "base_model.model.model.layers.1.mlp.up_proj"
    base, down, up = (state[f"{place}.{k}.weight"] for k in ("base_layer", "lora_A.default", "lora_B.default"))
    x = torch.randn(3, 32)
    expected = x @ base.T + (x @ down.T @ up.T) * 8 / 4
    torch.testing.assert_close(model.body.language_model.layers[1].mlp.up_proj(x), expected)


@pytest.mark.parametrize("lost", ["lora_A.default.weight", "lora_B.default.weight", "base_layer.weight"])
def test_half_a_lora_is_named(qwen, monkeypatch, lost):
    monkeypatch.setattr(videoalign, "QWEN2_VL_2B", TINY_QWEN)
    state = torch.load(qwen[1])
    del state[f"base_model.model.model.layers.0.self_attn.q_proj.{lost}"]
    torch.save(state, qwen[1])
    with pytest.raises(Refused, match=r"layers\.0\.self_attn\.q_proj\.(lora|base_layer)"):
        videoalign.VideoAlign().load(*qwen)


def test_videoalign_keeps_positions_one_after_another_and_the_prompt_out_of_vq_and_mq(qwen, monkeypatch):
    monkeypatch.setattr(videoalign, "QWEN2_VL_2B", TINY_QWEN)
    scorer = videoalign.VideoAlign.made_of(*videoalign.VideoAlign().load(*qwen))
    one, two = (scorer.score(FRAMES, prompt, 2) for prompt in ("a cat", "no dog at all"))
    same = {c for c in one if one[c] == pytest.approx(two[c], abs=1e-6)}
    assert same == {f"videoalign_{d}_{kind}" for d in ("vq", "mq") for kind in ("raw", "norm")}
    for kind in ("raw", "norm"):
        assert one[f"videoalign_overall_{kind}"] == pytest.approx(
            sum(one[f"videoalign_{d}_{kind}"] for d in ("vq", "mq", "ta"))
        )
    assert one["videoalign_vq_norm"] == pytest.approx((one["videoalign_vq_raw"] - 1) / 2)

    model, words, text, _ = scorer.parts  # the same by way of the whole model, told the positions
    pixels, grid = videoalign.patches(FRAMES[videoalign.sampled(5, 2)], videoalign.sides(70, 101))
    said = videoalign.conversation(text.replace("{text_prompt}", "a cat"), len(pixels) // 4)
    ids = torch.tensor([words.encode(said, add_special_tokens=False).ids])
    model.body.config.video_token_id = words.token_to_id("<|video_pad|>")
    flat = torch.arange(ids.shape[1]).expand(3, 1, -1)
    with torch.no_grad():
        known = model.body(input_ids=ids, pixel_values_videos=pixels, video_grid_thw=grid, position_ids=flat)
        placed = model.body(
            input_ids=ids, pixel_values_videos=pixels, video_grid_thw=grid, mm_token_type_ids=2 * (ids == 32).int()
        )
    at = [int((ids[0] == words.token_to_id(mark)).nonzero()) for mark in videoalign.MARKS]
    ours = [one[f"videoalign_{d}_raw"] for d in ("vq", "mq", "ta")]
    theirs = model.head(known.last_hidden_state[0, at])[:, 0].tolist()
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours != pytest.approx(model.head(placed.last_hidden_state[0, at])[:, 0].tolist(), abs=1e-5)


def test_videoalign_patches_are_those_of_the_processor_of_transformers():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    still = np.repeat(np.random.default_rng(5).integers(0, 256, (1, 56, 84, 3), np.uint8), 3, 0)
    pixels, grid = videoalign.patches(still, (56, 84))
    theirs = Qwen2VLImageProcessorPil()(still[0], return_tensors="pt", size=dict(shortest_edge=1, longest_edge=10**6))
    assert grid.tolist() == [[2, 4, 6]] and theirs.image_grid_thw.tolist() == [[1, 4, 6]]
    torch.testing.assert_close(pixels, theirs.pixel_values.repeat(2, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "file, change, said",
    [
        (
            0,
            lambda t: t.replace('"uniform"', '"multi_pts"'),
            "says sample_type 'multi_pts'; this scorer is for 'uniform'",
        ),
        (
            0,
            lambda t: t.replace("lora_alpha", "alpha"),
            "model_config.json: is not a configuration of VideoReward .KeyError: .lora_alpha",
        ),
        (3, lambda t: t.replace("<|MQ_reward|>", ""), "has not once each, in this order"),
        (3, lambda t: "x = 1", "holds no rubric"),
    ],
)
def test_another_videoalign_is_refused(qwen, file, change, said):
    qwen[file].write_text(change(qwen[file].read_text()))
    with pytest.raises(Refused, match=said):
        videoalign.VideoAlign().load(*qwen)


def test_videoalign_says_why_a_video_has_no_score():
    scorer = videoalign.VideoAlign.made_of()
    for frames, fps, why in [(FRAMES, 0, "frames a second"), (FRAMES[:1], 8, "two frames at least")]:
        scores, problems, _ = core.score_video(scorer, frames, "a cat", fps)
        assert all(np.isnan(v) for v in scores.values()) and problems and all(why in p for p in problems)
