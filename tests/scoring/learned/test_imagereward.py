"""ImageReward takes every key of its checkpoint and looks at the frame."""

import numpy as np
import pytest
import torch
from released import FRAMES, WORDS

from localdpo.ground.errors import Refused
from localdpo.scoring import weights
from localdpo.scoring.learned import imagereward

pytestmark = pytest.mark.usefixtures("nothing_here")


TINY_BLIP = dict(
    vision_config=dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=112
    ),
    text_config=dict(
        hidden_size=12,
        num_attention_heads=2,
        encoder_hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=20,
        vocab_size=10,
        max_position_embeddings=40,
    ),
)


def random_reward():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = imagereward.ImageRewardModel(**TINY_BLIP, sizes=(6, 5, 4, 3, 1)).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model


def to_image_reward(state):
    "The inverse of `quality.from_image_reward`, with what the score does not use."
    made = {
        "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "blip.vision_proj.weight": torch.ones(4, 16),
        "blip.text_proj.bias": torch.ones(4),
    }
    ends = {ours: theirs for theirs, ours in imagereward._VISION.items()}
    blocks = {ours: theirs for theirs, ours in imagereward._BLOCK.items()}
    for key, tensor in state.items():
        part, _, rest = key.partition(".")
        place, _, kind = rest.rpartition(".")
        if part == "text":
            made[f"blip.text_encoder.{rest}"] = tensor
        elif part == "head":
            made[f"mlp.layers.{(0, 2, 4, 6, 7)[int(place)]}.{kind}"] = tensor
        elif rest in ends:
            made[f"blip.visual_encoder.{ends[rest]}"] = tensor
        elif place in ends:
            made[f"blip.visual_encoder.{ends[place]}.{kind}"] = tensor
        else:
            _, _, number, inner = place.split(".", 3)
            made[f"blip.visual_encoder.blocks.{number}.{blocks[inner]}.{kind}"] = tensor
    return made


def test_image_reward_takes_every_key_and_fills_every_place():
    model = random_reward()
    ours = imagereward.from_image_reward(to_image_reward(model.state_dict()))
    assert ours.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[k], v) for k, v in model.state_dict().items())
    odd = to_image_reward(model.state_dict()) | {"blip.visual_encoder.blocks.0.attn.q_norm.weight": torch.ones(2)}
    with pytest.raises(Refused, match="blip.visual_encoder.blocks.0.attn.q_norm.weight"):
        weights.fill(model, imagereward.from_image_reward(odd), "ImageReward.pt")


def test_image_reward_of_the_published_size_has_its_keys():
    with torch.device("meta"):
        model = imagereward.ImageRewardModel(**imagereward.BLIP)
    state = to_image_reward(model.state_dict())
    assert state["blip.visual_encoder.blocks.23.attn.qkv.weight"].shape == (3072, 1024)
    assert state["blip.text_encoder.encoder.layer.11.crossattention.self.key.weight"].shape == (768, 1024)
    assert state["mlp.layers.7.weight"].shape == (1, 16) and state["blip.visual_encoder.pos_embed"].shape == (
        1,
        197,
        1024,
    )


def test_image_reward_reads_35_tokens_and_looks_at_the_frame(tmp_path):
    from transformers import BertTokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    words = BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    scorer = imagereward.ImageReward.made_of(random_reward(), words)
    values = scorer.per_frame(FRAMES, "a cat sits", 8)["imagereward"]
    assert values.shape == (5,) and len(np.unique(values)) == 5
    assert not np.allclose(values, scorer.per_frame(FRAMES, "a dog sits", 8)["imagereward"])
    seen = lambda text: scorer.score(FRAMES, text, 8)["imagereward"]  # noqa: E731
    assert seen("cat " * 33 + "dog") == seen("cat " * 33) != seen("cat " * 32 + "dog")  # with [CLS] and [SEP]
