"""Scorers of published models: every key finds its place, frames are cut as their authors cut them, nothing is guessed."""

import json
import sys

import numpy as np
import pytest
import torch

from localdpo.errors import Refused
from localdpo.scoring import clip, core, published

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 70, 101, 3), np.uint8)
WORDS = ["a", "cat", "dog", "sits", "runs"]


def golden(name):
    "The scorer with its published weights, on machines that have them."
    scorer = core.get_scorer(name)
    try:
        scorer.weights()
    except core.WeightsMissing as missing:
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
            start = f"{'visual.' * (tower == 'vision_model')}transformer.resblocks.{number}."
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
        folder = core.weights_folder(source.repository)
        folder.mkdir(parents=True)
        for name, file in zip(clip.TOKENS, tokens[:2], strict=True):
            (folder / name).write_bytes(file.read_bytes())
    torch.save(
        {"state_dict": to_open_clip(model.state_dict())}, core.weights_folder("xswu/HPSv2") / "HPS_v2_compressed.pt"
    )
    scorer = core.get_scorer("hpsv2.0", device="cpu")
    assert scorer.provenance()["revision"].startswith("HPS_v2_compressed.pt placed by hand")
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
    expected = (middle - torch.tensor(published.CLIP_MEAN)[:, None, None]) / torch.tensor(published.CLIP_STD)[
        :, None, None
    ]
    torch.testing.assert_close(clip.vbench_pixels(FRAMES), expected)


def test_the_aesthetic_head_reads_unit_vectors_and_divides_by_ten():
    model, head = tiny_clip("quick_gelu")[0], torch.nn.Linear(6, 1)
    values = clip.AestheticQuality.made_of(model, head).per_frame(FRAMES, None, 8)["aesthetic_quality"]
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=clip.vbench_pixels(FRAMES)).pooler_output
        expected = head(seen / seen.norm(dim=-1, keepdim=True))[:, 0] / 10
    np.testing.assert_allclose(values, expected, atol=1e-6)


REAL = ("hpsv2.0", "hpsv2.1", "pickscore", "clipscore", "vbench-aesthetic")


@pytest.mark.parametrize("name", REAL)
def test_without_weights_a_scorer_says_which_and_how_they_come_here(name):
    scorer = core.get_scorer(name)
    with pytest.raises(core.WeightsMissing) as missing:
        scorer.score(FRAMES, "a cat", 8)
    assert any(missing.value.checkpoint == source.repository for source in scorer.sources)
    assert str(core.weights_folder(missing.value.checkpoint)) in missing.value.then
    facts = core.checked_provenance(scorer)
    assert facts["revision"] == "not on this machine" and all(facts.values())


def test_no_scorer_imports_torchvision():
    assert "torchvision" not in sys.modules


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "judge.pt").write_bytes(b"not weights")
    with pytest.raises(Refused, match="judge.pt: cannot be read as weights"):
        published.tensors(tmp_path / "judge.pt")
    torch.save({"model": {}}, tmp_path / "judge.pt")
    with pytest.raises(Refused, match="holds no 'state_dict'"):
        published.tensors(tmp_path / "judge.pt", "state_dict")
    with pytest.raises(Refused, match="SHA-256 begins with [0-9a-f]{4}, not 358b"):
        published.check_hash(tmp_path / "judge.pt", "358b")


# The published ranges, wide enough for any real clip: a wrong head, scale or cut falls outside.
GOLDEN = {
    "hpsv2.0": (0.15, 0.35),
    "hpsv2.1": (0.1, 0.4),
    "pickscore": (14, 26),
    "clipscore": (12, 45),
    "vbench-aesthetic": (0.2, 0.8),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    from localdpo import world

    scorer, spec = golden(name), next(iter(world.specs()))
    frames = np.asarray(world.render(spec, frames=9, size=64).frames)
    for column, value in scorer.score(frames, world.prompt(spec), 8).items():
        low, high = GOLDEN[name]
        assert low < value < high, column
