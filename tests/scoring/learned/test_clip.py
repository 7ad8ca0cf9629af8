"""Scorers that look at single frames with CLIP: keys, cut prompts, and the scales on which they were published."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from released import FRAMES, tiny_clip, to_open_clip

from localdpo.ground.errors import Refused
from localdpo.scoring import scorer as core
from localdpo.scoring import weights
from localdpo.scoring.learned import clip
from localdpo.scoring.vbench import dimensions

pytestmark = pytest.mark.usefixtures("nothing_here")


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


def test_the_aesthetic_head_reads_unit_vectors_and_divides_by_ten():
    model, head = tiny_clip("quick_gelu")[0], torch.nn.Linear(6, 1)
    values = clip.AestheticQuality.made_of(model, head).per_frame(FRAMES, None, 8)["aesthetic_quality"]
    with torch.no_grad():
        seen = model.get_image_features(pixel_values=clip.vbench_pixels(FRAMES)).pooler_output
        expected = head(seen / seen.norm(dim=-1, keepdim=True))[:, 0] / 10
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_values_of_frames_are_of_the_frames_that_they_are_of():
    still = np.zeros((9, 4, 4, 3), np.uint8)
    assert list(dimensions.SubjectConsistency().numbers("subject_consistency", 8, still, 8)) == [*range(1, 9)]
    assert list(dimensions.DynamicDegree().numbers("dynamic_degree", 4, still, 16)) == [2, 4, 6, 8]
    assert list(dimensions.MotionSmoothness().numbers("motion_smoothness", 4, still, 8)) == [1, 3, 5, 7]
    assert list(clip.HPSv20().numbers("hpsv2_0", 9, still, 8)) == [*range(9)]
