"""DINO and ViCLIP take every key, and consistencies hold frames against frames."""

import numpy as np
import pytest
import torch
from released import FRAMES, tiny_clip, to_open_clip

from localdpo.scoring import scorer as core
from localdpo.scoring import weights
from localdpo.scoring.learned import clip, imagereward
from localdpo.scoring.vbench import dimensions, networks

pytestmark = pytest.mark.usefixtures("nothing_here")


def random_dino():
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = networks.Dino(16, 2, 2, 112, 2).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model


def to_dino(state):
    "The inverse of `vbench_networks.from_dino`."
    made = {}
    for key, tensor in state.items():
        name = key.replace("layers.", "blocks.", 1) if key.startswith("layers.") else key
        for ours, theirs in [
            ("self_attn.in_proj_", "attn.qkv."),
            ("self_attn.out_proj.", "attn.proj."),
            ("linear1.", "mlp.fc1."),
            ("linear2.", "mlp.fc2."),
            ("embed.", "patch_embed.proj."),
        ]:
            name = name.replace(ours, theirs)
        single = {"first": "cls_token", "places": "pos_embed"}.get(name)
        made[single or name] = tensor.reshape(1, -1, tensor.shape[-1]) if single else tensor
    return made


def test_dino_is_the_network_that_blip_uses_too():
    from transformers import BlipVisionConfig, BlipVisionModel

    model = random_dino()
    state = to_dino(model.state_dict())
    ours = networks.from_dino(state)
    assert ours.keys() == model.state_dict().keys() and all(
        torch.equal(ours[k], v) for k, v in model.state_dict().items()
    )
    size = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, layer_norm_eps=1e-6)
    other = BlipVisionModel(BlipVisionConfig(**size, image_size=224, patch_size=112)).eval()
    renamed = imagereward.from_image_reward({f"blip.visual_encoder.{k}": v for k, v in state.items()})
    other.load_state_dict({k.removeprefix("vision."): v for k, v in renamed.items()})
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x).last_hidden_state[:, 0], atol=1e-4, rtol=1e-4)
        assert model(torch.randn(2, 3, 224, 336)).shape == (2, 16)


def test_dino_stretches_its_places_by_a_tenth_more_than_needed():
    model = random_dino()
    grid = model.places[1:].reshape(1, 2, 2, 16).permute(0, 3, 1, 2)
    exact = torch.nn.functional.interpolate(grid, size=(2, 3), mode="bicubic")[0].flatten(1).T
    ours = model._stretched(2, 3)[1:]
    assert ours.shape == exact.shape and not torch.allclose(ours, exact, atol=1e-3)
    scale = dict(scale_factor=(2.1 / 2, 3.1 / 2), mode="bicubic")
    theirs = torch.nn.functional.interpolate(grid, **scale).permute(0, 2, 3, 1).reshape(-1, 16)
    assert torch.equal(ours, theirs)


def test_published_sizes_of_dino_and_viclip():
    with torch.device("meta"):
        dino, viclip = networks.Dino(), networks.ViClip()
    assert sum(p.numel() for p in dino.parameters()) == 85_798_656  # ViT-B/16 without a head
    assert len(to_dino(dino.state_dict())) == 12 * 12 + 6
    assert viclip.places.shape == (257, 1024) and viclip.order.shape == (32, 768) and viclip.out.shape == (1024, 768)


def to_viclip(state):
    "The inverse of `vbench_networks.from_viclip`, with the temperature."
    made = {"temp": torch.tensor(0.01)}
    ends = sorted(networks._VICLIP.items(), key=lambda pair: -len(pair[1]))
    for key, tensor in state.items():
        tower, number, rest = (key.split(".", 2) + ["", ""])[:3]
        if tower in ("layers", "text"):
            for ours, theirs in [
                ("linear1.", "mlp.c_fc."),
                ("linear2.", "mlp.c_proj."),
                ("norm1.", "ln_1."),
                ("norm2.", "ln_2."),
            ]:
                rest = rest.replace(ours, theirs)
            side = "vision" if tower == "layers" else "text"
            made[f"{side}_encoder.transformer.resblocks.{number}.{rest.replace('self_attn.', 'attn.')}"] = tensor
        else:
            theirs, ours = next((a, b) for a, b in ends if key == b or (b.endswith(".") and key.startswith(b)))
            made[theirs + key[len(ours) :]] = tensor[None] if key == "times" else tensor
    return made


def test_viclip_of_one_frame_is_clip():
    model, _ = tiny_clip("quick_gelu", vocabulary=20)
    video = networks.ViClip((8, 2, 2), (12, 3, 2), 6, 32, 224, 1, (20, 9)).eval()
    state = {k: v for k, v in to_open_clip(model.state_dict()).items() if k != "logit_scale"}
    state = {
        k.replace("visual.", "vision_encoder.") if k.startswith("visual.") else f"text_encoder.{k}": v
        for k, v in state.items()
    }
    state["vision_encoder.conv1.weight"] = state["vision_encoder.conv1.weight"][:, :, None]
    state["vision_encoder.temporal_positional_embedding"] = torch.zeros(1, 1, 8)
    state["text_encoder.positional_embedding"] = state["text_encoder.positional_embedding"][:9]
    for tower, width in (("vision", 8), ("text", 12)):  # the tiny CLIP is narrower inside than four times
        for key in [k for k in state if k.startswith(f"{tower}_encoder") and "mlp.c_" in k]:
            more = 4 * width - 16
            pad = {"c_fc.weight": (0, 0, 0, more), "c_fc.bias": (0, more), "c_proj.weight": (0, more)}
            end = key.rpartition("mlp.")[2]
            state[key] = torch.nn.functional.pad(state[key], pad[end]) if end in pad else state[key]
    weights.fill(video, networks.from_viclip(state | {"temp": torch.tensor(0.01)}), "viclip.pth")
    x, ids = torch.randn(1, 3, 224, 224), torch.tensor([18, 3, 5, 19])
    unit = lambda v: torch.nn.functional.normalize(v.pooler_output[0], dim=-1)  # noqa: E731
    with torch.no_grad():
        torch.testing.assert_close(video.video(x), unit(model.get_image_features(pixel_values=x)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            video.prompt(ids), unit(model.get_text_features(input_ids=ids[None])), atol=1e-5, rtol=1e-4
        )


def test_viclip_takes_every_key_and_sees_the_order_of_frames(tokens):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = networks.ViClip((8, 2, 2), (8, 1, 2), 6, 112, 224, 8, (tokens[2], 9)).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.5)
    ours = networks.from_viclip(to_viclip(model.state_dict()))
    assert ours.keys() == model.state_dict().keys() and all(
        torch.equal(ours[k], v) for k, v in model.state_dict().items()
    )
    scorer = dimensions.OverallConsistency.made_of(model, clip.tokenizer(*tokens[:2]))
    one, back, other = (
        scorer.score(frames, prompt, 8)["overall_consistency"]
        for frames, prompt in [(FRAMES, "a cat"), (FRAMES[::-1], "a cat"), (FRAMES, "a dog")]
    )
    assert -1 <= one <= 1 and len({one, back, other}) == 3


def test_consistencies_hold_each_frame_against_the_last_and_the_first():
    still = np.repeat(FRAMES[:1], 3, 0)
    for scorer in (
        dimensions.SubjectConsistency.made_of(random_dino()),
        dimensions.BackgroundConsistency.made_of(tiny_clip()[0]),
    ):
        (column,) = scorer.columns
        assert scorer.score(still, None, 8)[column] == pytest.approx(1, abs=1e-5)
        values = scorer.per_frame(FRAMES, None, 8)[column]
        assert len(values) == 4 and scorer.score(FRAMES, None, 8)[column] == pytest.approx(values.mean())
        assert "two frames" in core.score_video(scorer, FRAMES[:1], None, 8)[1][0]
        scorer.batch = 2
        np.testing.assert_allclose(scorer.per_frame(FRAMES, None, 8)[column], values, atol=1e-5)
