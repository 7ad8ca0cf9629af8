"""What tests of published scorers share: frames, words, a tiny CLIP and the names of its keys as they were released."""

import numpy as np
import pytest
import torch

from localdpo.scoring import scorer as core
from localdpo.scoring import weights
from localdpo.scoring.learned import clip

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 70, 101, 3), np.uint8)
WORDS = ["a", "cat", "dog", "sits", "runs"]


def golden(name):
    "The scorer with its published weights, on machines that have them."
    scorer = core.get_scorer(name)
    try:
        scorer.weights()
    except weights.WeightsMissing as missing:
        pytest.skip(str(missing))
    return scorer


def tiny_clip(act="gelu", vocabulary=64, seed=0):
    size = clip._size(32, 6, act, (8, 2, 2, 16), (12, 3, 2, 16))
    size["text_config"] |= dict(vocab_size=vocabulary, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return clip.build(size), size


def to_open_clip(state):
    "The inverse of `clip.from_open_clip`, written the long way."
    made, packed = {}, {}
    ends = {ours: theirs for theirs, ours in (clip._ENDS | clip._NORMS).items()}
    layers = {ours: theirs for theirs, ours in clip._LAYERS.items()}
    for key, tensor in state.items():
        place, _, kind = key.rpartition(".")
        if key in ends:
            made[ends[key]] = tensor.T if key in ("visual_projection.weight", "text_projection.weight") else tensor
        elif place in ends:
            made[f"{ends[place]}.{kind}"] = tensor
        else:
            tower, _, _, number, rest = place.split(".", 4)
            side = "visual." if tower == "vision_model" else ""
            start = f"{side}transformer.resblocks.{number}."
            if rest.endswith(("q_proj", "k_proj", "v_proj")):
                packed.setdefault(f"{start}attn.in_proj_{kind}", {})[rest[-6]] = tensor
            else:
                made[f"{start}{layers[rest]}.{kind}"] = tensor
    return made | {key: torch.cat([parts[p] for p in "qkv"]) for key, parts in packed.items()}


# a Qwen2-VL that is small enough for a test, and the marks of its tokenizer
TINY_QWEN = dict(
    text_config=dict(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3]),
    ),
    vision_config=dict(depth=1, embed_dim=16, hidden_size=32, num_heads=2, patch_size=14),
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|video_pad|>", "<|vision_end|>"]
