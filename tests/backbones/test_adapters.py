"""An adapter comes off exactly, survives its file bit for bit, is read by diffusers, and goes only where it fits."""

import itertools
import json
import os

import pytest
import torch
from conftest import adapted, random_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from localdpo.backbones import adapters
from localdpo.backbones.tensor_files import SUM
from localdpo.ground.errors import Refused

NAMES = ("tiny-cogvideox-2b", "tiny-cogvideox-5b", "tiny-wan-1.3b")


def fresh(name, dtype=torch.float32, **size):
    model = random_model(name, **size)
    model.transformer.to(dtype)
    return model


def inputs(batch=1):
    draw = torch.Generator().manual_seed(2)
    t = torch.tensor([500, 250][:batch])
    return torch.randn(batch, 16, 3, 8, 8, generator=draw), t, torch.randn(batch, 36, 64, generator=draw)


@torch.no_grad()
def said(model):
    return model.predict(*inputs())


def trained(name, rank=4, alpha=12, dtype=torch.float32, adapter="policy", seed=3, **size):
    "A model whose adapter has something to say; alpha is not the rank, so that its loss would show."
    return adapted(fresh(name, dtype, **size), rank, alpha, seed=seed, adapter=adapter)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def saved(name, tmp_path):
    "A model with its adapter, and the folder in which that is, for each of the models."
    model = trained(name)
    adapters.save(model, tmp_path)
    return model, tmp_path


@pytest.fixture
def one(tmp_path):
    "The same for one model, where the model makes no difference."
    model = trained("tiny-wan-1.3b")
    adapters.save(model, tmp_path)
    return model, tmp_path


@pytest.fixture
def deep(tmp_path):
    "The folder of an adapter for a model with all of its layers."
    adapters.save(trained("tiny-wan-1.3b", layers=None), tmp_path)
    return tmp_path


# -- on the model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_nothing(name, dtype):
    model = fresh(name, dtype)
    before = said(model)
    adapters.add(model)
    assert torch.equal(said(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_the_adapter_off_it_is_the_base_model(name, dtype):
    model, before = trained(name, dtype=dtype), said(fresh(name, dtype))
    assert (said(model) - before).abs().max() > 0.01
    with model.reference():
        assert torch.equal(said(model), before)


def test_all_of_the_attention_is_tuned_and_nothing_else(name):
    model = fresh(name)
    linear = {p for p, m in model.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    base = dict(model.transformer.named_parameters())
    parameters = adapters.add(model)
    attentions = {p for p in linear if ".attn" in p}
    assert len(attentions) == (8 if "wan" in name else 4) * model.transformer.config.num_layers
    assert {key.removeprefix("transformer.").split(".lora_")[0] for key in adapters.weights(model)} == attentions
    training = [p for p in model.transformer.parameters() if p.requires_grad]
    assert {id(p) for p in training} == {id(p) for p in parameters} and len(training) == 2 * len(attentions)
    assert not any(p.requires_grad for p in base.values())


def test_rank_and_alpha_are_those_of_the_release_by_default(name):
    model = fresh(name)
    adapters.add(model)
    config = model.transformer.peft_config["policy"]
    assert (config.r, config.lora_alpha) == (64, 128)
    ranks = {p.shape[0] for key, p in adapters.weights(model).items() if ".lora_A." in key}
    assert ranks == {64}


def test_adapters_train_in_32_bits_on_a_model_in_16(name):
    model = fresh(name, torch.bfloat16)
    parameters = adapters.add(model)
    assert {p.dtype for p in parameters} == {torch.float32} and model.dtype == torch.bfloat16
    model.predict(*inputs()).square().mean().backward()
    assert {p.grad.dtype for p in parameters} == {torch.float32}


def test_the_same_seed_makes_the_same_adapter_and_moves_no_other_draw(name):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    made = [adapters.take(m) for m in (fresh(name), fresh(name)) if adapters.add(m)]
    other = fresh(name)
    adapters.add(other, seed=1)
    assert torch.equal(torch.randn(3), expected)
    assert all(torch.equal(made[0].matrices[key], matrix) for key, matrix in made[1].matrices.items())
    assert not torch.equal(*(next(iter(a.matrices.values())) for a in (made[0], adapters.take(other))))


def test_a_second_adapter_trains_alone(name):
    model = trained(name)
    one = adapters.take(model)
    second = adapters.add(model, 2, 4, "second")
    assert {id(p) for p in model.transformer.parameters() if p.requires_grad} == {id(p) for p in second}
    assert adapters.names(model) == ("policy", "second")
    assert all(torch.equal(one.matrices[key], p) for key, p in adapters.weights(model).items())


@pytest.mark.parametrize(
    "bad, what",
    [
        (dict(rank=0), "rank 0"),
        (dict(rank=-4), "rank -4"),
        (dict(rank=1.5), "rank 1.5"),
        (dict(rank=True), "rank True"),
        (dict(alpha=0), "alpha 0"),
        (dict(alpha=float("nan")), "alpha nan"),
        (dict(name="a.b"), "adapter name 'a.b'"),
        (dict(name=""), "adapter name ''"),
        (dict(name="policy"), "'policy': is already on"),
    ],
)
def test_what_makes_no_adapter_is_refused_and_leaves_the_model_alone(bad, what):
    model = trained("tiny-wan-1.3b")
    before = said(model)
    with pytest.raises(Refused, match=what):
        adapters.add(model, **{"name": "another"} | bad)
    assert adapters.names(model) == ("policy",) and torch.equal(said(model), before)


def test_an_adapter_that_is_not_there_is_named(tmp_path):
    model = trained("tiny-wan-1.3b")
    for call in (adapters.weights, adapters.take, lambda m, n: adapters.save(m, tmp_path, n)):
        with pytest.raises(Refused, match="adapter 'poilcy': is not on tiny-wan-1.3b\n.*there are: policy"):
            call(model, "poilcy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_three_steps_of_training_move_the_adapter_and_nothing_else(name, checkpointing):
    model = fresh(name)
    if checkpointing:
        model.transformer.enable_gradient_checkpointing()
    base = {key: p.detach().clone() for key, p in model.transformer.named_parameters()}
    parameters = adapters.add(model, 4, 8)
    before, reference = said(fresh(name)), None
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    noisy, t, text = inputs(2)
    target, losses = torch.zeros_like(noisy), []
    for _ in range(3):
        with model.reference(), torch.no_grad():
            reference = model.predict(noisy, t, text)
        loss = (model.predict(noisy, t, text) - target).square().mean() + 0 * reference.mean()
        loss.backward()
        assert all(p.grad is not None for p in parameters)
        moved = sum(p.grad.abs().max() > 0 for p in parameters)
        losses.append(loss.item())
        optimiser.step(), optimiser.zero_grad()
    assert moved == len(parameters) and losses[2] < losses[0]
    for key, p in model.transformer.named_parameters():
        if ".lora_" not in key:
            assert p.grad is None and torch.equal(p, base[key.replace(".base_layer", "")]), key
    assert not torch.equal(said(model), before)
    with model.reference():
        assert torch.equal(said(model), before)


# -- as a file -------------------------------------------------------------------------------------------------------


def test_a_loaded_adapter_says_the_same(saved):
    model, folder = saved
    for path in (folder, folder / adapters.FILE, str(folder)):
        other = fresh(model.name)
        adapters.load(other, path)
        assert torch.equal(said(other), said(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_adapter_keeps_all_of_its_bits(name, dtype, tmp_path):
    model, other = trained(name, dtype=dtype), fresh(name, dtype)
    adapters.save(model, tmp_path)
    adapters.load(other, tmp_path, "again")
    assert torch.equal(said(other), said(model))
    assert all(torch.equal(p, adapters.weights(model)[key]) for key, p in adapters.weights(other, "again").items())


def test_equal_adapters_are_equal_files_whatever_they_are_written_as(one, tmp_path):
    model, folder = one
    written = {adapters.save(model, tmp_path / str(i)).read_bytes() for i in range(8)}
    assert written == {(folder / adapters.FILE).read_bytes()}
    adapters.load(other := fresh(model.name), folder)
    assert adapters.save(other, tmp_path / "again").read_bytes() in written
    exports = [adapters.export_comfyui(folder, tmp_path / f"{i}.safetensors").file.read_bytes() for i in range(8)]
    assert len(set(exports)) == 1
    with torch.no_grad():
        next(p for key, p in adapters.weights(other).items() if ".lora_B." in key)[0, 0] += 1e-6
    assert adapters.save(other, tmp_path / "changed").read_bytes() not in written


def test_the_sorted_header_says_all_that_it_said_and_stays_aligned(one):
    _, folder = one
    with safe_open(folder / adapters.FILE, "pt") as opened:
        assert set(opened.metadata()) == {"format", "localdpo", "lora_adapter_metadata", SUM}
        assert json.loads(opened.metadata()["localdpo"])["base"] == "tiny-wan-1.3b"
    data = (folder / adapters.FILE).read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0  # what follows can be mapped into memory


def test_training_can_go_on_from_a_loaded_adapter(one):
    model, folder = one
    other = fresh(model.name)
    parameters = adapters.load(other, folder)
    assert {id(p) for p in other.transformer.parameters() if p.requires_grad} == {id(p) for p in parameters}
    assert other.transformer.peft_config["policy"].lora_alpha == 12


@pytest.mark.slow(1)
@pytest.mark.parametrize("rank, alpha", [(4, 12), (8, 2), (5, 5.5)])
def test_plain_diffusers_reads_the_file_as_it_was_meant(name, rank, alpha, tmp_path):
    from diffusers import DiffusionPipeline

    model = trained(name, rank, alpha)
    fresh(name).pipeline.save_pretrained(tmp_path / "model")
    file = adapters.save(model, tmp_path / "adapter")
    pipelines = [DiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True) for _ in range(2)]
    ours, plain = (type(model)(pipeline, "from disk") for pipeline in pipelines)
    assert torch.equal(said(ours), said(plain))
    adapters.load(ours, file)
    plain.pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    assert torch.equal(said(plain), said(ours))
    # weights read from a file lie elsewhere in memory, and some sums round in another order there
    assert torch.allclose(said(plain), said(model), atol=1e-4)


@pytest.mark.slow(2)
def test_in_16_bits_plain_diffusers_differs_by_its_rounding_only(name, tmp_path):
    model, plain, halved = (f(name, dtype=torch.bfloat16) for f in (trained, fresh, fresh))
    file = adapters.save(model, tmp_path)
    plain.pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    for p in adapters.load(halved, file):
        p.data = p.data.bfloat16()
    assert torch.equal(said(plain), said(halved)) and torch.allclose(said(plain), said(model), atol=0.06)


def test_plain_diffusers_finds_the_file_in_its_folder(saved):
    model, folder = saved
    plain = fresh(model.name)
    plain.pipeline.load_lora_weights(str(folder))
    assert torch.equal(said(plain), said(model))


def test_a_clip_sampled_by_plain_diffusers_shows_the_adapter(saved):
    model, folder = saved
    plain, prompt = fresh(model.name), "a red disc"
    settings = dict(
        num_frames=9, height=32, width=32, num_inference_steps=2, output_type="latent", max_sequence_length=36
    )
    clips = []
    for pipeline in (model.pipeline, plain.pipeline, plain.pipeline):
        pipeline.set_progress_bar_config(disable=True)
        if len(clips) == 2:
            pipeline.load_lora_weights(str(folder))
        clips.append(pipeline(prompt, generator=torch.Generator().manual_seed(0), **settings).frames)
    assert torch.equal(clips[0], clips[2]) and not torch.equal(clips[0], clips[1])


def test_a_write_that_fails_leaves_the_old_file(one, monkeypatch):
    model, folder = one
    before = (folder / adapters.FILE).read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Refused, match="No space left"):
        adapters.save(model, folder)
    assert (folder / adapters.FILE).read_bytes() == before and len(list(folder.iterdir())) == 1


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("a note")
    with pytest.raises(Refused, match="cannot be written"):
        adapters.save(trained("tiny-wan-1.3b"), tmp_path / "taken")


def test_a_missing_file_is_refused_by_name(tmp_path):
    model = fresh("tiny-wan-1.3b")
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.safetensors"):
        with pytest.raises(Refused, match="does not exist") as refusal:
            adapters.load(model, path)
        assert str(path) in refusal.value.what and adapters.FILE in refusal.value.then
    assert adapters.names(model) == ()


def broken(file, how):
    data = file.read_bytes()
    file.write_bytes(
        {"cut": data[:-9], "cut in the header": data[:40], "empty": b"", "text": b"not an adapter\n" * 9}[how]
    )


@pytest.mark.parametrize("how", ["cut", "cut in the header", "empty", "text"])
def test_a_damaged_file_is_refused_by_name(one, how):
    model, folder = one
    broken(folder / adapters.FILE, how)
    other = fresh(model.name)
    with pytest.raises(Refused, match=f"{adapters.FILE}: is damaged") as refusal:
        adapters.load(other, folder)
    assert refusal.value.then and adapters.names(other) == ()


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_file_in_which_one_bit_changed_is_neither_loaded_nor_exported(one, tmp_path, place):
    model, folder = one
    file = tmp_path / "bare.safetensors"
    data = bytearray((folder / adapters.FILE).read_bytes())
    data[min(len(data) * place // 100 + 9, len(data) - 1)] ^= 1
    file.write_bytes(data)
    for use in (lambda: adapters.load(fresh(model.name), file),
                lambda: adapters.export_diffusers(file, tmp_path / "out.safetensors")):  # fmt: skip
        with pytest.raises(Refused, match="is damaged"):
            use()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused_in_files_without_a_checksum(one, number):
    model, folder = one
    rewritten(folder, lambda matrices: next(iter(matrices.values())).view(-1)[3:4].fill_(number))
    with pytest.raises(Refused, match="is damaged: transformer.* has infinite or undefined numbers"):
        adapters.load(fresh(model.name), folder)


def rewritten(folder, change, header=None):
    "The adapter's file after `change` to its matrices, and with another header if one is given."
    file = folder / adapters.FILE
    with safe_open(file, "pt") as opened:
        was = {key: value for key, value in opened.metadata().items() if key != SUM}
    matrices = load_file(file)
    change(matrices)
    save_file(matrices, file, was if header is None else header)


@pytest.mark.parametrize("name, other", [*itertools.permutations(NAMES, 2)])
def test_an_adapter_for_another_model_is_refused(name, other, tmp_path):
    adapters.save(trained(name, layers=None), tmp_path)
    target = fresh(other, layers=None)
    with pytest.raises(Refused, match=f"does not fit {other}.*made for {name}") as refusal:
        adapters.load(target, tmp_path)
    assert adapters.FILE in refusal.value.what and adapters.names(target) == ()
    deeper = (name, other) == ("tiny-cogvideox-5b", "tiny-cogvideox-2b")  # of one family, with layers too many
    assert ("unknown" if deeper else "missing") in refusal.value.why


def last(matrices):
    return sorted(matrices)[-1]


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda m: m.pop(last(m)), "1 missing, such as transformer."),
        (
            lambda m: m.update({"transformer.proj_out.lora_A.weight": torch.zeros(4, 8)}),
            "1 unknown, such as transformer.proj_out",
        ),
        (lambda m: m.update({last(m): m[last(m)][:-1].clone()}), "1 of another shape"),
        (lambda m: m.update({"unet" + last(m): m.pop(last(m))}), "1 missing.*; 1 unknown, such as unet"),
    ],
)
def test_every_matrix_must_have_its_place(one, change, why):
    model, folder = one
    rewritten(folder, change)
    with pytest.raises(Refused, match=why):
        adapters.load(fresh(model.name), folder)


def test_a_file_without_its_alpha_needs_to_be_told(saved):
    model, folder = saved
    rewritten(folder, lambda m: None, header={"format": "pt"})
    other = fresh(model.name)
    with pytest.raises(Refused, match="does not say its alpha"):
        adapters.load(other, folder)
    adapters.load(other, folder, alpha=12)
    assert torch.equal(said(other), said(model))


def test_an_alpha_that_contradicts_the_file_is_refused(one):
    model, folder = one
    with pytest.raises(Refused, match="alpha 4: is not the 12"):
        adapters.load(fresh(model.name), folder, alpha=4)


@pytest.mark.parametrize("setting", ["use_rslora", "use_dora", "alpha_pattern"])
def test_settings_that_would_change_its_strength_are_not_ignored(one, setting):
    model, folder = one
    config = {"transformer.r": 4, "transformer.lora_alpha": 12, f"transformer.{setting}": {"to_q": 2}}
    rewritten(folder, lambda m: None, header={"lora_adapter_metadata": json.dumps(config)})
    with pytest.raises(Refused, match=setting):
        adapters.load(fresh(model.name), folder)


def test_a_rank_that_contradicts_the_matrices_is_refused(one):
    model, folder = one
    config = {"transformer.r": 8, "transformer.lora_alpha": 12}
    rewritten(folder, lambda m: None, header={"lora_adapter_metadata": json.dumps(config)})
    with pytest.raises(Refused, match="must hold an adapter of one rank"):
        adapters.load(fresh(model.name), folder)


# -- for ComfyUI -----------------------------------------------------------------------------------------------------

# What each layer of a diffusers model is called in ComfyUI's: written down here once more, from the other side.
IN_COMFYUI = {
    "blocks.{}.attn1.to_q": "blocks.{}.self_attn.q",
    "blocks.{}.attn1.to_k": "blocks.{}.self_attn.k",
    "blocks.{}.attn1.to_v": "blocks.{}.self_attn.v",
    "blocks.{}.attn1.to_out.0": "blocks.{}.self_attn.o",
    "blocks.{}.attn2.to_q": "blocks.{}.cross_attn.q",
    "blocks.{}.attn2.to_k": "blocks.{}.cross_attn.k",
    "blocks.{}.attn2.to_v": "blocks.{}.cross_attn.v",
    "blocks.{}.attn2.to_out.0": "blocks.{}.cross_attn.o",
    "transformer_blocks.{}.attn1.to_q": "blocks.{}.q",
    "transformer_blocks.{}.attn1.to_k": "blocks.{}.k",
    "transformer_blocks.{}.attn1.to_v": "blocks.{}.v",
    "transformer_blocks.{}.attn1.to_out.0": "blocks.{}.attn_out",
}


def merged_as_comfyui_does(model, file):
    "Add `alpha / rank * up @ down` to each weight whose name is in the file; return how many keys found no weight."
    tensors = load_file(file)
    with torch.no_grad():
        for ours, theirs in IN_COMFYUI.items():
            for i in range(model.transformer.config.num_layers):
                key = "diffusion_model." + theirs.format(i)
                layer = dict(model.transformer.named_modules()).get(ours.format(i))
                if layer is not None and f"{key}.lora_up.weight" in tensors:
                    up, down = tensors.pop(f"{key}.lora_up.weight"), tensors.pop(f"{key}.lora_down.weight")
                    layer.weight += tensors.pop(f"{key}.alpha").item() / down.shape[0] * up @ down
    return len(tensors)


def test_the_file_for_comfyui_has_every_key_and_the_same_effect(saved, tmp_path):
    model, folder = saved
    for source in (model, folder):
        report = adapters.export_comfyui(source, tmp_path / "out" / "comfyui.safetensors")
        layers = model.transformer.config.num_layers
        assert report.matched == report.total == (24 if "wan" in model.name else 12) * layers
        assert f"{report.matched} of {report.total} keys match" in str(report)
        other = fresh(model.name)
        assert merged_as_comfyui_does(other, report.file) == 0
        # merged into the weights, sums round in another order: hence not bit for bit
        assert torch.allclose(said(other), said(model), atol=1e-4) and not torch.allclose(
            said(fresh(model.name)), said(model), atol=1e-2
        )


def test_diffusers_reads_the_wan_file_for_comfyui_to_the_same_effect(tmp_path):
    model, plain = trained("tiny-wan-1.3b", 4, 8), fresh("tiny-wan-1.3b")
    report = adapters.export_comfyui(model, tmp_path / "comfyui.safetensors")
    plain.pipeline.load_lora_weights(str(tmp_path), weight_name=report.file.name)
    assert torch.equal(said(plain), said(model))


def test_the_names_for_wan_are_those_of_its_original_code():
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    keys = adapters.comfyui_keys("wan", 30)
    places = {key.rsplit(".lora_up", 1)[0].removeprefix("diffusion_model.") for key in keys if "lora_up" in key}
    original = {f"model.diffusion_model.{place}.weight": torch.zeros(1) for place in places}
    ours = {f"blocks.{i}.attn{a}.{m}.weight" for i in range(30) for a in (1, 2) for m in adapters.ATTENTION}
    assert len(places) == 240 and set(convert_wan_transformer_to_diffusers(original)) == ours


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda m: [m.pop(key) for key in list(m) if ".4." in key], "missing, such as diffusion_model.blocks.4"),
        (lambda m: m.pop(last(m)), "1 missing"),
        (
            lambda m: m.update({"transformer.proj_out.lora_A.weight": torch.zeros(4, 8)}),
            "1 unknown, such as transformer.proj_out",
        ),
    ],
)
def test_a_file_whose_keys_do_not_all_match_is_not_written(deep, tmp_path, change, why):
    rewritten(deep, change)
    with pytest.raises(Refused, match=why):
        adapters.export_comfyui(deep, tmp_path / "comfyui.safetensors")
    assert not (tmp_path / "comfyui.safetensors").exists()


def test_layers_that_a_foreign_file_lacks_in_the_middle_are_noticed(deep, tmp_path):
    config = {"transformer.r": 4, "transformer.lora_alpha": 12}
    header = {"lora_adapter_metadata": json.dumps(config)}
    rewritten(deep, lambda m: [m.pop(key) for key in list(m) if ".2." in key], header)
    with pytest.raises(Refused, match="blocks.2"):
        adapters.export_comfyui(deep, tmp_path / "comfyui.safetensors")


def test_comfyui_lists_no_file_of_another_kind(tmp_path):
    with pytest.raises(Refused, match=r"name it adapter\.safetensors"):
        adapters.export_comfyui(trained("tiny-wan-1.3b"), tmp_path / "adapter.pt")
