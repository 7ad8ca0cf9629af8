"""Scorers of published models: every key finds its place, frames are cut as their authors cut them, nothing is guessed."""

import json
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from localdpo.ground.errors import Refused
from localdpo.scoring import scorer as core
from localdpo.scoring import weights
from localdpo.scoring.learned import clip, imagereward, musiq, pixels, videoalign
from localdpo.scoring.vbench import amt, dimensions, networks, raft, totals

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


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch, request):
    "Neither weights nor a network, but for the golden tests."
    if "golden" not in request.node.name:
        monkeypatch.setenv("LOCALDPO_WEIGHTS", str(tmp_path / "weights"))
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)


@pytest.fixture
def tokens(tmp_path):
    "A vocabulary of CLIP's kind: letters, a few words, and the two ends."
    pieces = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    merges = ["c a", "ca t</w>", "d o", "do g</w>"]
    pieces += [m.replace(" ", "") for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return tmp_path / "vocab.json", tmp_path / "merges.txt", len(pieces)


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


def test_open_clip_names_and_back_give_the_same_model():
    model = tiny_clip()[0]
    theirs = to_open_clip(model.state_dict())
    assert {k.split(".")[0] for k in theirs} >= {"visual", "transformer", "ln_final", "logit_scale"}
    ours = clip.from_open_clip(theirs)
    assert ours.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[k], v) for k, v in model.state_dict().items())


def test_the_published_size_takes_all_keys_of_open_clip():
    with torch.device("meta"):
        model = clip.build("H/14")
    state = to_open_clip(model.state_dict())
    assert len(state) == 12 * (32 + 24) + 8 + 6  # layers, ends, norms
    assert state["visual.transformer.resblocks.31.attn.in_proj_weight"].shape == (3840, 1280)
    assert sum(v.numel() for v in state.values()) == 986_109_441  # what open_clip says of ViT-H-14
    assert clip.from_open_clip(state).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda s: s.pop("ln_final.bias"), "lacks keys of the model: text_model.final_layer_norm.bias"),
        (lambda s: s.update({"visual.attn_pool.probe": torch.ones(1)}), "does not know: visual.attn_pool.probe"),
        (lambda s: s.update({"transformer.resblocks.0.mlp.c_new.bias": torch.ones(1)}), "resblocks.0.mlp.c_new.bias"),
        (lambda s: s.update({"ln_final.bias": torch.ones(3)}), "other shapes: text_model.final_layer_norm.bias"),
    ],
)
def test_a_key_out_of_place_is_named(tmp_path, tokens, monkeypatch, change, said):
    model, size = tiny_clip(vocabulary=tokens[2])
    state = to_open_clip(model.state_dict())
    change(state)
    torch.save({"state_dict": state}, tmp_path / "hps.pt")
    monkeypatch.setitem(clip.SIZES, "H/14", size)
    with pytest.raises(Refused, match=said):
        clip.HPSv20().load(tmp_path / "hps.pt", *tokens[:2])


def test_a_scorer_runs_from_its_files_and_gives_what_the_model_gives(tmp_path, tokens, monkeypatch):
    model, size = tiny_clip(vocabulary=tokens[2])
    monkeypatch.setitem(clip.SIZES, "H/14", size)
    for source in clip.HPSv20.sources:
        folder = weights.weights_folder(source.repository)
        folder.mkdir(parents=True)
        for name, file in zip(clip.TOKENS, tokens[:2], strict=True):
            (folder / name).write_bytes(file.read_bytes())
    torch.save(
        {"state_dict": to_open_clip(model.state_dict())}, weights.weights_folder("xswu/HPSv2") / "HPS_v2_compressed.pt"
    )
    scorer = core.get_scorer("hpsv2.0", device="cpu")
    parts = [f"{file} sha256 {sha256(path.read_bytes()).hexdigest()}" for file, path in zip(
        ("HPS_v2_compressed.pt", *clip.TOKENS), scorer.weights(), strict=True)]  # fmt: skip
    assert scorer.provenance()["revision"] == f"{parts[0]} (not pinned) + {parts[1]}, {parts[2]} (not pinned)"
    values = scorer.per_frame(FRAMES, "a cat runs", 8)["hpsv2_0"]
    ids = torch.tensor([scorer.parts[1]("a cat runs").input_ids])
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=clip.padded_pixels(FRAMES))
    torch.testing.assert_close(torch.tensor(values), (out.image_embeds @ out.text_embeds.T)[:, 0], atol=1e-6, rtol=1e-5)
    assert scorer.score(FRAMES, "a cat runs", 8) == dict(hpsv2_0=pytest.approx(values.mean()))
    scorer.batch = 2
    np.testing.assert_allclose(scorer.per_frame(FRAMES, "a cat runs", 8)["hpsv2_0"], values, atol=1e-6)


def test_a_prompt_that_is_too_long_is_cut_and_keeps_its_end(tokens):
    model, words = tiny_clip(vocabulary=tokens[2])[0], clip.tokenizer(*tokens[:2])
    scorer = clip.HPSv20.made_of(model, words)
    cut = scorer.score(FRAMES, "cat " * 75 + "dog", 8)
    assert cut == scorer.score(FRAMES, "cat " * 75 + "a", 8) != scorer.score(FRAMES, "cat " * 74 + "dog", 8)


def test_scales(tokens):
    model, words = tiny_clip(vocabulary=tokens[2])[0], clip.tokenizer(*tokens[:2])
    plain = clip.HPSv20.made_of(model, words)
    plain.pixels = clip.processor_pixels
    cosine = plain.per_frame(FRAMES, "a dog", 8)["hpsv2_0"]
    pick = clip.PickScore.made_of(model, words).per_frame(FRAMES, "a dog", 8)["pickscore"]
    np.testing.assert_allclose(pick, cosine * model.logit_scale.exp().item(), rtol=1e-5)
    score = clip.CLIPScore.made_of(model, words).per_frame(FRAMES, "a dog", 8)["clipscore"]
    np.testing.assert_allclose(score, 100 * np.maximum(cosine, 0), rtol=1e-4, atol=1e-5)


def test_pillow_pixels_are_those_of_the_processor_of_transformers():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    for frames in (FRAMES, FRAMES.transpose(0, 2, 1, 3)[:, :97], FRAMES[:, :50, :50]):
        theirs = CLIPImageProcessorPil()(list(frames), return_tensors="pt").pixel_values
        torch.testing.assert_close(clip.processor_pixels(frames), theirs, atol=1e-5, rtol=0)


def test_vbench_pixels_are_neither_filtered_nor_rounded():
    x = torch.from_numpy(FRAMES).permute(0, 3, 1, 2).float()
    wide = torch.nn.functional.interpolate(x, size=(224, 323), mode="bicubic", align_corners=False, antialias=False)
    middle = wide[..., 50:274] / 255  # an odd margin of 99: round(49.5) is 50
    expected = (middle - torch.tensor(pixels.CLIP_MEAN)[:, None, None]) / torch.tensor(pixels.CLIP_STD)[:, None, None]
    torch.testing.assert_close(clip.vbench_pixels(FRAMES), expected)


def test_the_aesthetic_head_reads_unit_vectors_and_divides_by_ten():
    model, head = tiny_clip("quick_gelu")[0], torch.nn.Linear(6, 1)
    values = clip.AestheticQuality.made_of(model, head).per_frame(FRAMES, None, 8)["aesthetic_quality"]
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=clip.vbench_pixels(FRAMES)).pooler_output
        expected = head(seen / seen.norm(dim=-1, keepdim=True))[:, 0] / 10
    np.testing.assert_allclose(values, expected, atol=1e-6)


REAL = (
    *(
        "hpsv2.0",
        "hpsv2.1",
        "pickscore",
        "clipscore",
        "imagereward",
        "videoalign",
        "vbench-aesthetic",
        "vbench-imaging",
    ),
    *("vbench-subject", "vbench-background", "vbench-dynamic", "vbench-smoothness", "vbench-overall"),
)


@pytest.mark.parametrize("name", REAL)
def test_without_weights_a_scorer_says_which_and_how_they_come_here(name):
    scorer = core.get_scorer(name)
    with pytest.raises(weights.WeightsMissing) as missing:
        scorer.score(np.zeros((4, 130, 140, 3), np.uint8), "a cat", 8)
    assert [one.checkpoint for one in missing.value.each] == [source.repository for source in scorer.sources]
    for one, source in zip(missing.value.each, scorer.sources, strict=True):
        assert str(weights.weights_folder(one.checkpoint)) in one.then
        assert one.missing == ", ".join(name.split("|")[0] for name in source.files)
    facts = core.checked_provenance(scorer)
    assert facts["revision"] == "not on this machine" and all(facts.values())


def test_what_lies_in_the_cache_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    folder = tmp_path / "snapshots" / "models--yuvalkirstain--PickScore_v1" / "snapshots" / "0a1b2c"
    folder.mkdir(parents=True)
    (folder / "pytorch_model.bin").write_bytes(b"weights")

    def cached(repository, name, revision=None):
        return str(folder / name) if (folder / name).exists() and "PickScore" in repository else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    for name in clip.TOKENS:
        file = weights.weights_folder("laion/CLIP-ViT-H-14-laion2B-s32B-b79K") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    facts = core.get_scorer("pickscore").provenance()
    assert facts["checkpoint"].startswith("yuvalkirstain/PickScore_v1/pytorch_model.bin + laion/")
    assert facts["revision"].startswith("yuvalkirstain/PickScore_v1 commit 0a1b2c (not pinned) + vocab.json sha256 ")
    assert sha256(b"merges.txt").hexdigest() in facts["revision"]


def test_a_checksum_is_computed_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "judge.pt").write_bytes(b"one")
    assert weights.checksum(tmp_path / "judge.pt") == sha256(b"one").hexdigest()
    with monkeypatch.context() as only:
        only.setattr("hashlib.file_digest", None)
        assert weights.checksum(tmp_path / "judge.pt") == sha256(b"one").hexdigest()
    (tmp_path / "judge.pt").write_bytes(b"two")
    assert weights.checksum(tmp_path / "judge.pt") == sha256(b"two").hexdigest()
    next(Path(tmp_path / "cache").rglob("*.json")).write_text("{")
    assert weights.checksum(tmp_path / "judge.pt") == sha256(b"two").hexdigest()


def test_a_file_that_is_not_the_published_one_is_refused_before_the_work(tmp_path):
    file = weights.weights_folder("chaofengc/IQA-PyTorch") / "musiq_spaq_ckpt-358bb6af.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"another")
    with pytest.raises(Refused, match="is not the published file"):
        core.get_scorer("vbench-imaging").weights()


def test_values_of_frames_are_of_the_frames_that_they_are_of():
    still = np.zeros((9, 4, 4, 3), np.uint8)
    assert list(dimensions.SubjectConsistency().numbers("subject_consistency", 8, still, 8)) == [*range(1, 9)]
    assert list(dimensions.DynamicDegree().numbers("dynamic_degree", 4, still, 16)) == [2, 4, 6, 8]
    assert list(dimensions.MotionSmoothness().numbers("motion_smoothness", 4, still, 8)) == [1, 3, 5, 7]
    assert list(clip.HPSv20().numbers("hpsv2_0", 9, still, 8)) == [*range(9)]


def test_no_scorer_imports_torchvision():
    assert "torchvision" not in sys.modules


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "judge.pt").write_bytes(b"not weights")
    with pytest.raises(Refused, match="judge.pt: cannot be read as weights"):
        weights.tensors(tmp_path / "judge.pt")
    torch.save({"model": {}}, tmp_path / "judge.pt")
    with pytest.raises(Refused, match="holds no 'state_dict'"):
        weights.tensors(tmp_path / "judge.pt", "state_dict")
    with pytest.raises(Refused, match="SHA-256 begins with [0-9a-f]{4}, not 358b"):
        weights.check_hash(tmp_path / "judge.pt", "358b")


# The published ranges, wide enough for any real clip: a wrong head, scale or cut falls outside.
GOLDEN = {
    "hpsv2.0": (0.15, 0.35),
    "hpsv2.1": (0.1, 0.4),
    "pickscore": (14, 26),
    "clipscore": (12, 45),
    "vbench-aesthetic": (0.2, 0.8),
    "vbench-imaging": (0.02, 0.95),
    "imagereward": (-3, 3),
    "videoalign": (-25, 25),
    "vbench-subject": (0.1, 1.001),
    "vbench-background": (0.2, 1.001),
    "vbench-dynamic": (-0.1, 1.1),
    "vbench-smoothness": (0.5, 1.0),
    "vbench-overall": (0.0, 0.4),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    from localdpo.clips import world

    scorer, spec = golden(name), next(iter(world.specs()))
    frames = np.asarray(world.render(spec, frames=9, size=128).frames)
    for column, value in scorer.score(frames, world.prompt(spec), 8).items():
        low, high = GOLDEN[name]
        assert low < value < high, column


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


def to_raft(state):
    "The inverse of `raft.from_raft`: the published names, with the norm that is stored twice."
    made = {}
    for key, tensor in state.items():
        name = key
        for ours, theirs in [
            ("motion.", "update_block.encoder."),
            ("memory.", "update_block.gru."),
            ("flow.0.", "update_block.flow_head.conv1."),
            ("flow.2.", "update_block.flow_head.conv2."),
            ("mask.", "update_block.mask."),
        ]:
            name = theirs + name[len(ours) :] if name.startswith(ours) else name
        for i in range(3):
            name = name.replace(f"net.layers.{i}.", f"net.layer{i + 1}.")
        name = name.replace(".beside.", ".downsample.")
        made[f"module.{name}"] = tensor
        if ".downsample.1." in name:
            made[f"module.{name.replace('.downsample.1.', '.norm3.')}"] = tensor
    return made


def test_raft_takes_every_key_and_has_the_published_size():
    with torch.device("meta"):
        model = raft.Raft()
    state = to_raft(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == 5_257_536  # as its authors count
    assert "module.cnet.layer2.0.norm3.running_mean" in state and "module.update_block.gru.convq2.bias" in state
    assert raft.from_raft(state).keys() == model.state_dict().keys()
    with pytest.raises(Refused, match="update_block.extra.weight"):
        weights.fill(
            raft.Raft(), raft.from_raft(state | {"module.update_block.extra.weight": torch.ones(1)}), "raft.pth"
        )


def test_raft_looks_up_the_fit_between_points_the_first_index_along_x():
    torch.manual_seed(0)
    first, second = torch.randn(2, 1, 5, 16, 18).unbind(0)
    pyramid = raft.all_pairs(first, second)
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(16, 18), (8, 9), (4, 4), (2, 2)]
    where = torch.zeros(1, 2, 16, 18)
    where[:, 0], where[:, 1] = 7.25, 4.0
    found = raft.look_up(pyramid, where, 1)
    assert found.shape == (1, 4 * 9, 16, 18)
    fit = lambda x, y: (first[0, :, 2, 3] @ second[0, :, y, x]) / 5**0.5  # noqa: E731
    for i, dx in enumerate((-1, 0, 1)):
        for j, dy in enumerate((-1, 0, 1)):
            expected = 0.75 * fit(7 + dx, 4 + dy) + 0.25 * fit(8 + dx, 4 + dy)
            torch.testing.assert_close(found[0, 3 * i + j, 2, 3], expected)


class Shift(torch.nn.Module):
    "A flow that the test chooses, in place of RAFT's."

    def __init__(self, *pixels):
        super().__init__()
        self.pixels = iter(pixels)

    def forward(self, first, second):
        return torch.full((1, 2, *first.shape[-2:]), next(self.pixels) / 2**0.5)


@pytest.mark.parametrize(
    "pixels, fps, dynamic",
    [((9, 9, 9, 9), 8, 1), ((9, 0, 0, 0), 8, 1), ((5,) * 4, 8, 0), ((9, 9), 16, 1), ((7, 5), 16, 1)],
)
def test_dynamic_degree_counts_pairs_that_move(pixels, fps, dynamic):
    frames = np.zeros((5, 260, 256, 3), np.uint8)
    assert dimensions.DynamicDegree.made_of(Shift(*pixels)).score(frames, None, fps) == dict(dynamic_degree=dynamic)


def test_dynamic_degree_says_why_there_is_none():
    for frames, fps, why in [(FRAMES, 8, "128 pixels"), (FRAMES, 0, "a second"), (FRAMES[:2], 8, "three frames")]:
        scores, problems, _ = core.score_video(dimensions.DynamicDegree.made_of(), frames, None, fps)
        assert np.isnan(scores["dynamic_degree"]) and why in problems[0]


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


def test_totals_are_vbenchs_and_refuse_gaps_and_other_scales():
    # VBench's own numbers for its quality half, worked out by hand from its table of ranges and weights
    values = dict(
        subject_consistency=0.95,
        background_consistency=0.96,
        temporal_flickering=0.98,
        motion_smoothness=0.97,
        aesthetic_quality=0.6,
        imaging_quality=0.65,
        dynamic_degree=0.4,
        overall_consistency=0.26,
    )
    parts = [(0.95 - 0.1462) / 0.8538, (0.96 - 0.2615) / 0.7385, (0.98 - 0.6293) / 0.3707, (0.97 - 0.706) / 0.2915]
    assert totals.quality(values) == pytest.approx((sum(parts) + 0.6 + 0.65 + 0.5 * 0.4) / 6.5)
    omni = (parts[0] + parts[2] + parts[3] + 0.6 + 0.65 + 0.2) / 5.5
    assert totals.omniscore(values) == pytest.approx((4 * omni + 0.26 / 0.364) / 5)
    with pytest.raises(Refused, match="needs object_class, multiple_objects, .*temporal_style, which are not measured"):
        totals.total(values)
    for gap in (float("nan"), None):
        less = {k: v for k, v in values.items() if k != "dynamic_degree"} | (
            {} if gap is None else {"dynamic_degree": gap}
        )
        with pytest.raises(Refused, match="OmniScore: needs dynamic_degree, which is not measured"):
            totals.omniscore(less)
    with pytest.raises(Refused, match="imaging_quality 65: is not between 0 and 1"):
        totals.quality(values | dict(imaging_quality=65.0))


def test_amt_takes_every_key_and_has_the_published_size():
    with torch.device("meta"):
        model = amt.Amt()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.0e6, rel=0.005)
    made = {}
    for key, tensor in model.state_dict().items():
        part, number, rest = key.split(".", 2)
        if part == "compared":
            name = key.replace("compared.layers.", "compared.layer").replace("compared.", "feat_encoder.")
            for i in (2, 1, 0):
                name = name.replace(f"layer{i}.", f"layer{i + 1}.")
            name = name.replace(".beside.", ".downsample.")
        elif part == "blend":
            name = key.replace("blend.", "comb_block.")
        else:
            start = {"encoder": f"encoder.pyramid{int(number) + 1}", "decoders": f"decoder{4 - int(number)}"}
            name = f"{start.get(part, f'update{4 - int(number)}')}.{rest}"
        made[name] = tensor
    assert {"feat_encoder.layer2.0.downsample.0.weight", "encoder.pyramid4.1.1.weight"} < made.keys()
    assert {"decoder1.convblock.2.bias", "decoder4.convblock.1.prelu.weight", "update2.flow_head.2.bias"} < made.keys()
    assert made["decoder4.convblock.0.0.weight"].shape[:2] == (112, 113)
    assert made["update4.convc1.weight"].shape[:2] == (64, 392) and made["comb_block.0.weight"].shape[:2] == (18, 9)
    assert amt.from_amt(made).keys() == model.state_dict().keys()


def test_amt_fetches_a_picture_from_where_the_flow_points():
    picture = torch.arange(35.0).reshape(1, 1, 5, 7)
    flow = torch.zeros(1, 2, 5, 7)
    flow[:, 0], flow[:, 1] = 1, -1
    found = amt.fetched(picture, flow)
    torch.testing.assert_close(found[..., 1:, :-1], picture[..., :-1, 1:])
    torch.testing.assert_close(found[0, 0, 0, :-1], picture[0, 0, 0, 1:])  # above the rim is the rim


class Middle(torch.nn.Module):
    "Draws the mean of two frames, in place of AMT."

    def forward(self, first, second):
        assert all(side % 16 == 0 for side in first.shape[-2:])
        return (first + second) / 2


def test_motion_smoothness_is_how_well_a_frame_is_drawn_from_its_neighbours():
    rising = np.zeros((6, 130, 140, 3), np.uint8) + np.array([0, 10, 20, 30, 40, 255], np.uint8)[:, None, None, None]
    scorer = dimensions.MotionSmoothness.made_of(Middle())
    assert scorer.score(rising, None, 8)["motion_smoothness"] == pytest.approx(
        1, abs=1 / 250
    )  # the sixth has no neighbour
    jumps = rising[[0, 3, 0, 1, 2]]
    near = scorer.per_frame(jumps, None, 8)["motion_smoothness"]
    np.testing.assert_allclose(near, [1 - 30 / 255, 1], atol=1 / 250)
    for frames, why in [(rising[:2], "three frames"), (FRAMES, "128 pixels")]:
        assert why in core.score_video(scorer, frames, None, 8)[1][0]
