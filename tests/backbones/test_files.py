"What a model needs is known from the names of its files, before anything is fetched, and nothing but safetensors is read."

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import sentencepiece
import torch
from conftest import program, said

from localdpo import backbones
from localdpo.backbones import files
from localdpo.backbones.captions import read_caption
from localdpo.clips.world import prompt, specs
from localdpo.ground.errors import Refused

TINY = files.WEIGHTS / "tiny-cogvideox-2b"


@pytest.fixture
def model(tmp_path):
    "A copy of a tiny model, as somebody might keep it: without our list of checksums."
    copy = shutil.copytree(TINY, tmp_path / "model")
    for name in ("checksums.json", "run.json"):
        (copy / name).unlink()
    return copy


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def published(model):
    "A model whose tokenizer is what that of CogVideoX is: a vocabulary of sentencepiece, and settings."
    captions = [prompt(spec, long) for spec in list(specs())[:200] for long in (False, True)]
    special = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    size = json.loads((model / "text_encoder" / "config.json").read_text())["vocab_size"]
    with open(model / "tokenizer" / "spiece.model", "wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions), model_writer=out, vocab_size=size, minloglevel=2, **special
        )
    (model / "tokenizer" / "tokenizer.json").unlink()
    settings = dict(tokenizer_class="T5Tokenizer", model_max_length=226, extra_ids=0, pad_token="<pad>")
    settings |= dict(eos_token="</s>", unk_token="<unk>")
    (model / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    index = json.loads((model / "model_index.json").read_text()) | dict(tokenizer=["transformers", "T5Tokenizer"])
    (model / "model_index.json").write_text(json.dumps(index))
    return model


def test_a_vocabulary_of_sentencepiece_alone_is_read_as_sentencepiece_reads_it(published):
    model = backbones.load(published, "cpu")
    theirs = sentencepiece.SentencePieceProcessor(str(published / "tokenizer" / "spiece.model"))
    for spec in list(specs())[:20]:
        text = " ".join(prompt(spec).split()[:5])
        expected = [*theirs.encode(text), 1]
        ids, mask = (row[0].tolist() for row in model.tokens([text]))
        assert ids[: len(expected)] == expected and sum(mask) == len(expected) and {*ids[len(expected) :]} <= {0}
    assert model.embed(["a red disc moving left"]).shape == (1, model.text_length, 64)
    word = "red" * 80  # a word that no space divides is cut all the same
    read = read_caption(model, word, "cut")
    assert read.cut and word.startswith(read.text) and len(read.text) > 20


@pytest.mark.parametrize("module, package", [("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")])
def test_packages_that_read_the_vocabulary_are_asked_for_before_anything_is_fetched(
    published, monkeypatch, module, package
):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    said = f"(?s)tokenizer: is a sentencepiece vocabulary, and {package} .*pip install {package}; .*no second download"
    with pytest.raises(Refused, match=said):
        backbones.load(published, "cpu")
    with pytest.raises(Refused, match="zai-org/CogVideoX-2b/tokenizer"):
        files.check_names("zai-org/CogVideoX-2b", names(published), "")
    files.check_names("any", names(TINY), "")  # a tokenizer.json needs neither


def as_pickle(model, part, name):
    file = next((model / part).glob("*.safetensors"))
    torch.save({"weight": torch.zeros(2)}, model / part / name)
    return file


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("decoy", [False, True])
def test_pickled_weights_are_refused_by_name(model, part, decoy):
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    file = as_pickle(model, part, name)
    file.rename(file.with_name("other.safetensors")) if decoy else file.unlink()
    with pytest.raises(Refused, match=f"(?s){part}/{name}: is a pickle.*safetensors"):
        backbones.load(model, "cpu")


@pytest.mark.slow(12)
def test_beside_safetensors_a_pickle_is_never_opened(model):
    pickles = [
        "transformer/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
    ]
    for name in pickles:
        torch.save({"weight": torch.zeros(2)}, model / name)
    opened = json.loads(said("opened_files.py", model).splitlines()[-1])
    assert not {name for name in pickles if str(model / name) in opened}
    assert str(model / "model_index.json") in opened and str(model / "transformer/config.json") in opened
    assert "torch.load saw" in said("opened_files.py", model, "and", model / pickles[0])


def test_classes_from_elsewhere_are_refused(model):
    index = json.loads((model / "model_index.json").read_text())
    (model / "transformer" / "mine.py").write_text("open('/tmp/never', 'w')\nclass Mine: pass")
    (model / "model_index.json").write_text(json.dumps(index | dict(transformer=["mine", "Mine"])))
    with pytest.raises(Refused, match=r"(?s)model_index.json: takes its transformer from \['mine', 'Mine'\]"):
        backbones.load(model, "cpu")


def test_a_shard_that_is_missing_is_named(model):
    file = model / "transformer" / "diffusion_pytorch_model.safetensors"
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    file.rename(file.with_name(shards[0]))
    index = file.with_name(f"{file.name}.index.json")
    index.write_text(json.dumps(dict(weight_map=dict(a=shards[0], b=shards[1]))))
    with pytest.raises(Refused, match=f"transformer/{shards[1]}: is missing"):
        backbones.load(model, "cpu")
    index.write_text("{}")
    with pytest.raises(Refused, match="index.json: is damaged: it has no weight_map"):
        backbones.load(model, "cpu")


@pytest.mark.parametrize("name", files.TINY)
def test_a_copy_without_its_checksums_is_noticed(tmp_path, name):
    copy = shutil.copytree(files.WEIGHTS / name, tmp_path / name)
    assert files.inspect(copy)
    (copy / "checksums.json").unlink()
    with pytest.raises(Refused, match="checksums.json: is missing, so that nobody can tell"):
        files.inspect(copy)


class Hub(http.server.BaseHTTPRequestHandler):
    "As much of a hub as lists the files of one repository."

    listing, asked = (), []

    def do_GET(self):
        self.asked.append(self.path)
        found = self.path.startswith("/api/models/owner/name")
        body = dict(id="owner/name", sha="0" * 40, siblings=[dict(rfilename=name) for name in self.listing])
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body if found else {}).encode())

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


@pytest.mark.slow(8)
def test_a_repository_of_pickles_is_refused_before_anything_is_fetched(tmp_path):
    Hub.listing = names(TINY) - {"vae/diffusion_pytorch_model.safetensors"} | {"vae/diffusion_pytorch_model.bin"}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = dict(HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HOME=str(tmp_path))
    try:
        done = subprocess.run(
            program("find_model.py", "owner/name"), capture_output=True, text=True, check=False,
            env={**os.environ, **here, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        )  # fmt: skip
    finally:
        server.shutdown()
    assert "Refused: owner/name/vae/diffusion_pytorch_model.bin: is a pickle" in done.stderr
    assert Hub.asked and not any("/resolve/" in path for path in Hub.asked)
    assert not list(tmp_path.rglob("*.json"))
