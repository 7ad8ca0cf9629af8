"An exported adapter has the effect that it has here, or it is not written."

import json
from pathlib import Path

import pytest
import torch
from conftest import adapted
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from localdpo import backbones
from localdpo.backbones import adapters
from localdpo.backbones.tensor_files import SUM
from localdpo.cli import main as cli
from localdpo.cli.export import export, outline
from localdpo.clips import pools
from localdpo.ground.errors import Refused

MODELS = ("tiny-cogvideox-2b", "tiny-wan-1.3b")
PROMPT = pools.pool("curated", 1, "held out")[0].prompt()


def tuned(name):
    return adapted(backbones.load(name, "cpu"), 4, 12, std=0.2)  # alpha is not the rank, so that its loss would show


@pytest.fixture(scope="module", params=MODELS)
def run(request, tmp_path_factory):
    "The folder of a run of each model."
    folder = tmp_path_factory.mktemp(request.param)
    adapters.save(tuned(request.param), folder / "adapter")
    return folder


@pytest.fixture
def wan(tmp_path):
    adapters.save(tuned("tiny-wan-1.3b"), tmp_path / "run" / "adapter")
    return tmp_path / "run"


def base(run):
    return adapters.read(run / "adapter").facts["base"]


def clip(model):
    return model.generate([PROMPT], steps=2)


def changed(run, change, header=None):
    "The file of the adapter after `change` to its matrices, and with another header if one is given."
    file = run / "adapter" / adapters.FILE
    with safe_open(file, "pt") as opened:
        was = {key: value for key, value in opened.metadata().items() if key != SUM}
    matrices = load_file(file)
    change(matrices)
    save_file(matrices, file, was if header is None else header)


@pytest.mark.slow(1)
def test_plain_diffusers_draws_the_same_clip_with_the_exported_file(run, tmp_path):
    report = export(run, "diffusers", tmp_path / "out")
    assert report.file == tmp_path / "out" / adapters.FILE and report.matched == report.total > 0
    ours, plain, bare = (backbones.load(base(run), "cpu") for _ in range(3))
    adapters.load(ours, run / "adapter")
    plain.pipeline.load_lora_weights(str(tmp_path / "out"))
    assert list(plain.transformer.peft_config.values())[0].lora_alpha == 12
    assert torch.equal(clip(plain), clip(ours)) and not torch.equal(clip(plain), clip(bare))


def test_the_whole_pipeline_of_diffusers_shows_the_adapter(run, tmp_path):
    file = export(run, "diffusers", tmp_path / "own name.safetensors").file
    ours, plain = (backbones.load(base(run), "cpu") for _ in range(2))
    adapters.load(ours, run / "adapter")
    plain.pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    frames = []
    for pipeline in (ours.pipeline, plain.pipeline):
        pipeline.set_progress_bar_config(disable=True)
        settings = dict(num_frames=9, height=32, width=32, num_inference_steps=2, max_sequence_length=36)
        made = pipeline(PROMPT, generator=torch.Generator().manual_seed(0), output_type="latent", **settings)
        frames.append(made.frames)
    assert torch.equal(*frames)


def test_the_file_for_diffusers_is_the_one_that_training_wrote(run, tmp_path):
    file = export(run, "diffusers", tmp_path / "out").file
    assert file.read_bytes() == (run / "adapter" / adapters.FILE).read_bytes()


def test_the_file_for_comfyui_has_every_key_and_its_alpha(run, tmp_path):
    report = export(run / "adapter", "comfyui", tmp_path / "loras" / "mine.safetensors", base(run))
    tensors = load_file(report.file)
    family, layers = "wan" if "wan" in base(run) else "cogvideox", 6
    assert set(tensors) == adapters.comfyui_keys(family, layers) and report.matched == report.total == len(tensors)
    assert {value.item() for key, value in tensors.items() if key.endswith(".alpha")} == {12.0}


@pytest.mark.slow(1)
def test_diffusers_reads_the_wan_file_for_comfyui_to_the_same_clip(wan, tmp_path):
    file = export(wan, "comfyui", tmp_path / "mine.safetensors").file
    ours, plain = (backbones.load("tiny-wan-1.3b", "cpu") for _ in range(2))
    adapters.load(ours, wan / "adapter")
    plain.pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    bare = clip(backbones.load("tiny-wan-1.3b", "cpu"))
    assert not torch.equal(clip(ours), bare)
    # that reader multiplies alpha into the matrices, so sums round in another order
    assert (clip(plain).int() - clip(ours).int()).abs().max() <= 1


def test_what_is_there_already_is_kept(run, tmp_path):
    for form, name in (("diffusers", "out"), ("comfyui", "mine.safetensors")):
        file = export(run, form, tmp_path / name).file
        when = file.stat().st_mtime_ns
        assert export(run, form, tmp_path / name).file == file and file.stat().st_mtime_ns == when
        file.write_bytes(file.read_bytes()[:-1])
        before = file.read_bytes()
        with pytest.raises(Refused, match=f"{file.name}: is there, and is something else"):
            export(run, form, tmp_path / name)
        assert file.read_bytes() == before


def test_an_export_over_its_own_source_changes_nothing(run):
    before = (run / "adapter" / adapters.FILE).read_bytes()
    export(run, "diffusers", run / "adapter")
    assert (run / "adapter" / adapters.FILE).read_bytes() == before
    with pytest.raises(Refused, match="is something else"):
        export(run, "comfyui", run / "adapter" / adapters.FILE)
    assert (run / "adapter" / adapters.FILE).read_bytes() == before


@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
@pytest.mark.parametrize(
    "change, why",
    [
        (lambda m: m.pop(max(m)), "1 missing, such as"),
        (lambda m: m.update({"transformer.proj_out.lora_A.weight": torch.zeros(4, 8)}), "1 unknown, such as transf"),
        (lambda m: m.update({"unet." + max(m): m.pop(max(m))}), "1 missing.*; 1 unknown, such as unet"),
        (lambda m: [m.pop(key) for key in list(m) if ".4." in key], "missing, such as"),
    ],
)
def test_unknown_and_missing_keys_are_refused_and_nothing_is_written(wan, tmp_path, form, change, why):
    changed(wan, change)
    with pytest.raises(Refused, match=why) as refusal:
        export(wan, form, tmp_path / "out.safetensors")
    assert adapters.FILE in refusal.value.what and not (tmp_path / "out.safetensors").exists()


def test_what_is_no_adapter_is_refused(tmp_path):
    (tmp_path / "note.txt").write_text("not an adapter")
    model = backbones.WEIGHTS / "tiny-wan-1.3b" / "transformer" / "diffusion_pytorch_model.safetensors"
    faults = {tmp_path / "note.txt": "damaged, or holds no tensors", model: "must hold an adapter of one rank"}
    faults |= {tmp_path / "gone": "does not exist", tmp_path: "holds no adapter"}
    for source, why in faults.items():
        with pytest.raises(Refused, match=why):
            export(source, "diffusers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_for_comfyui_is_not_read_back_and_is_called_what_it_is(wan, tmp_path):
    file = export(wan, "comfyui", tmp_path / "mine.safetensors").file
    for form in ("diffusers", "comfyui"):
        with pytest.raises(Refused, match="mine.safetensors: has the names of ComfyUI.*\n.*name the run"):
            export(file, form, tmp_path / "out.safetensors")


def test_an_adapter_without_its_alpha_needs_to_be_told_and_then_keeps_it(run, tmp_path):
    bare = tmp_path / "bare"
    (bare / "adapter").mkdir(parents=True)
    (bare / "adapter" / adapters.FILE).write_bytes((run / "adapter" / adapters.FILE).read_bytes())
    changed(bare, lambda m: None, header={"format": "pt"})
    with pytest.raises(Refused, match="does not say its alpha"):
        export(bare, "diffusers", tmp_path / "out")
    export(bare, "diffusers", tmp_path / "out", alpha=12)
    ours, plain = (backbones.load(base(run), "cpu") for _ in range(2))
    adapters.load(ours, run / "adapter")
    plain.pipeline.load_lora_weights(str(tmp_path / "out"))
    assert torch.equal(clip(plain), clip(ours))


@pytest.mark.parametrize("model", ["cogvideox-5b", "wan2.1-1.3b", *MODELS])
def test_only_an_adapter_that_fits_the_model_is_written_if_one_is_named(run, tmp_path, model):
    if model == base(run):
        assert export(run, "diffusers", tmp_path / "out", model).matched
        return
    with pytest.raises(Refused, match=f"does not fit {model}.*made for {base(run)}"):
        export(run, "diffusers", tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


def test_a_model_is_outlined_without_its_weights(tmp_path):
    for name in (*MODELS, str(backbones.WEIGHTS / MODELS[0]), "wan2.1-1.3b"):
        assert {p.device.type for p in outline(name).parameters()} == {"meta"}
    (tmp_path / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", "Nothing"]}))
    with pytest.raises(Refused, match="holds no model"):
        outline(str(tmp_path))
    with pytest.raises(Refused, match="'cogvideo': is neither a known name"):
        outline("cogvideo")


def test_on_the_command_line(wan, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "export run --format comfyui --out mine.safetensors --model tiny-wan-1.3b".split()
    assert cli.main(words) is None
    assert capsys.readouterr().out == "mine.safetensors: 144 of 144 keys match those of ComfyUI\n"
    assert cli.main("export run --format diffusers --out exported".split()) is None
    assert f"{Path('exported', adapters.FILE)}: 96 of 96 keys match those of diffusers" in capsys.readouterr().out
    assert cli.main("export run --format diffusers --out mine.safetensors".split()) == 2
    assert capsys.readouterr().err.startswith("localdpo: mine.safetensors: is there, and is something else\n  -> ")
    assert cli.main("export run --format comfyui --out mine".split()) == 2
    assert "name it mine.safetensors" in capsys.readouterr().err
    assert cli.main("export run --format gguf --out mine".split()) == 2
    assert "--format 'gguf' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["new/mine.safetensor", "new/mine.safetensros", "new/mine.pt", "new/mine.bin"])
def test_a_mistyped_ending_is_no_name_of_a_folder(wan, tmp_path, name):
    with pytest.raises(
        Refused, match="mine[.].*: looks like a file, and only those that end in .safetensors"
    ) as refused:
        export(wan, "diffusers", tmp_path / name)
    assert "new/mine.safetensors" in refused.value.then and not (tmp_path / "new").exists()
    (tmp_path / name).mkdir(parents=True)
    assert export(wan, "diffusers", tmp_path / name).file.parent == tmp_path / name


@pytest.mark.parametrize(("form", "name"), [("comfyui", "folder"), ("comfyui", "lora.txt"), ("diffusers", "note.txt")])
def test_a_name_that_will_not_do_is_refused_as_it_was_given(wan, tmp_path, form, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(Refused) as refused:
        export(wan, form, tmp_path / name)
    assert refused.value.what == str(tmp_path / name) and (tmp_path / "note.txt").read_text() == "mine"
