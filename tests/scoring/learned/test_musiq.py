"""MUSIQ is the published network, and its checkpoint the published one."""

import numpy as np
import pytest
import torch
from released import FRAMES

from localdpo.ground.errors import Refused
from localdpo.scoring import scorer as core
from localdpo.scoring import weights
from localdpo.scoring.learned import musiq

pytestmark = pytest.mark.usefixtures("nothing_here")


def to_pyiqa(state, width):
    "The inverse of `quality.from_pyiqa`, written the long way."
    names = {ours: theirs for theirs, ours in musiq._MUSIQ.items()}
    layers = {ours: theirs for theirs, ours in musiq._LAYER.items()}
    made = {}
    for key, tensor in state.items():
        place, _, kind = key.rpartition(".")
        if key in ("places", "scales", "first"):
            theirs = {"places": "posembed_input.position_emb", "scales": "scaleembed_input.scale_emb", "first": "cls"}
            shape = {"places": (1, -1, width), "scales": (3, width), "first": (1, 1, width)}[key]
            made[f"transformer_encoder.{theirs[key]}"] = tensor.reshape(shape)
        elif place in names:
            made[f"{names[place]}.{kind}"] = tensor
        else:
            _, number, rest = place.split(".", 2)
            start = f"transformer_encoder.transformer.encoderblock_{number}"
            if kind.startswith("in_proj"):
                for name, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    made[f"{start}.attention.{name}.{kind[8:]}"] = part
            else:
                made[f"{start}.{layers[rest]}.{kind}"] = tensor
    return made


def random_musiq(width=12, channels=32):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = musiq.Musiq(width, 24, 2, 2, channels=channels).eval()
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model


def musiq_as_published(state, x, fill=4):
    "MUSIQ from the published keys, with `fill` patches of filling that are masked, as the published program has them."
    cut, places, scales = musiq.patches((x - 0.5) * 2)
    cut = torch.cat([cut, torch.zeros(len(x), fill, *cut.shape[2:])], 1)
    places, scales = (torch.cat([v, torch.zeros(fill, dtype=v.dtype)]) for v in (places, scales))
    mask = torch.ones(1 + cut.shape[1])
    mask[-fill:] = 0

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        pad = {7: (2, 3, 2, 3), 3: (1, 1, 1, 1), 1: (0, 0, 0, 0)}[weight.shape[-1]]
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, pad), weight, stride=stride)

    def norm(x, name, eps):
        return torch.nn.functional.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def layer_norm(x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    seen = norm(conv(cut.flatten(0, 1), "conv_root", 2), "gn_root", 1e-6).relu()
    seen = torch.nn.functional.max_pool2d(torch.nn.functional.pad(seen, (0, 1, 0, 1)), 3, 2)
    inner = norm(conv(seen, "block1.conv1"), "block1.gn1", 1e-4).relu()
    inner = norm(conv(inner, "block1.conv2"), "block1.gn2", 1e-4).relu()
    inner = norm(conv(inner, "block1.conv3"), "block1.gn3", 1e-4)
    seen = (inner + norm(conv(seen, "block1.conv_proj"), "block1.gn_proj", 1e-4)).relu()
    tokens = linear(seen.permute(0, 2, 3, 1).reshape(*cut.shape[:2], -1), "embedding")
    start = "transformer_encoder"
    tokens = tokens + state[f"{start}.posembed_input.position_emb"][0][places]
    tokens = tokens + state[f"{start}.scaleembed_input.scale_emb"][scales]
    tokens = torch.cat([state[f"{start}.cls"].expand(len(x), 1, -1), tokens], 1)
    for i in range(2):
        block = f"{start}.transformer.encoderblock_{i}"
        y = layer_norm(tokens, f"{block}.norm1")
        q, k, v = (
            linear(y, f"{block}.attention.{name}").unflatten(2, (2, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        weights = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        weights = weights.masked_fill((mask[:, None] * mask) == 0, -1e3).softmax(-1)
        tokens = tokens + linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attention.out")
        y = torch.nn.functional.gelu(linear(layer_norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1"))
        tokens = tokens + linear(y, f"{block}.mlp.fc2")
    return linear(layer_norm(tokens, f"{start}.encoder_norm")[:, 0], "head")[:, 0]


def test_musiq_is_the_published_network_and_needs_no_masked_filling():
    model = random_musiq()
    state = to_pyiqa(model.state_dict(), 12)
    ours = musiq.from_pyiqa(state)
    assert ours.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[k], v) for k, v in model.state_dict().items())
    x = torch.from_numpy(FRAMES[:2]).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        torch.testing.assert_close(model(x), musiq_as_published(state, x), rtol=1e-3, atol=1e-3)


def test_musiq_has_the_published_size_and_a_missing_key_is_named(tmp_path):
    with torch.device("meta"):
        model = musiq.Musiq()
    state = to_pyiqa(model.state_dict(), 384)
    assert state["embedding.weight"].shape == (384, 16384)
    assert len([k for k in state if "encoderblock_" in k]) == 14 * 16
    small = to_pyiqa(random_musiq().state_dict(), 12)
    lost = "transformer_encoder.transformer.encoderblock_1.attention.key.weight"
    del small[lost]
    with pytest.raises(Refused, match=r"encoderblock_1\.attention\.query\.weight"):
        weights.fill(random_musiq(), musiq.from_pyiqa(small), "musiq.pth")


def test_a_twin_of_the_musiq_checkpoint_is_refused(tmp_path):
    file = weights.weights_folder("chaofengc/IQA-PyTorch") / "musiq_spaq_ckpt-358bb6af.pth"
    file.parent.mkdir(parents=True)
    torch.save(to_pyiqa(musiq.Musiq().state_dict(), 384), file)
    with pytest.raises(Refused, match="is not the published file: its SHA-256 begins with"):
        core.get_scorer("vbench-imaging").score(FRAMES, None, 8)


def test_imaging_quality_is_a_hundredth_of_the_mean_opinion():
    scorer = musiq.ImagingQuality.made_of(random_musiq())
    large = np.random.default_rng(1).integers(0, 256, (2, 30, 700, 3), np.uint8)
    pixels = musiq.imaging_pixels(large)
    assert pixels.shape[-2:] == (21, 512) and musiq.imaging_pixels(FRAMES).shape[-2:] == FRAMES.shape[1:3]
    with torch.no_grad():
        expected = scorer.parts[0](pixels) / 100
    np.testing.assert_allclose(scorer.per_frame(large, None, 8)["imaging_quality"], expected, rtol=1e-4, atol=1e-6)
