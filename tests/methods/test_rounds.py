"A second round draws its pairs with what the first has learnt, starts from it, and goes on where it was stopped."

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import adapted, contents, random_model

from localdpo.backbones import adapters
from localdpo.backbones.identity import worn
from localdpo.cli.main import main
from localdpo.clips.sources import from_world
from localdpo.ground.errors import Refused
from localdpo.methods.ranked_samples import RankedConfig
from localdpo.miniature import models
from localdpo.pairs.builder import build

CONFIG = RankedConfig(steps=2, block=2, samples=2)


def test_a_sum_names_the_adapter_whatever_it_is_called_and_however_strong_it_is():
    model = adapted(random_model("tiny-cogvideox-2b"))
    first = worn(model)
    adapter = adapters.take(model)
    model.transformer.unload_lora()
    assert worn(model) == {}
    for alpha, same in ((adapter.alpha, True), (adapter.alpha * 2, False)):
        model = adapted(random_model("tiny-cogvideox-2b"), alpha=alpha, adapter="other")
        assert (worn(model) == first) == same


@pytest.mark.slow(2)
def test_a_store_that_an_adapter_drew_is_another_store(backbone, tmp_path):
    clips = from_world(count=2)
    plain = build(backbone, clips, tmp_path / "plain", CONFIG)
    model = adapted(random_model("tiny-cogvideox-2b"))
    tuned = build(model, clips, tmp_path / "tuned", CONFIG)
    assert tuned.settings["adapter"] == worn(model)["adapter"] and "adapter" not in plain.settings
    assert tuned.entry(0)["sums"] != plain.entry(0)["sums"]
    assert dataclasses.replace(CONFIG).settings() == CONFIG.settings()
    with pytest.raises(Refused, match="other settings: adapter was none, is "):
        build(model, clips, tmp_path / "plain", CONFIG)


@pytest.mark.slow(8)
def test_two_rounds_by_their_commands(backbone, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    models.release(backbone.pipeline, tmp_path / "model", {})
    make = "--model model --device cpu --method dpo --world curated:2 --steps 2 --samples 2".split()
    learn = "--device cpu --method dpo --steps 1 --batch 2 --rank 2 --lr 0.01".split()
    assert not main(["pairs", "build", "pairs-1", *make])
    assert not main(["train", "model", "pairs-1", *learn, "--out", "round-1"])
    assert main(["pairs", "build", "pairs-2", *make, "--adapter", "round-0"]) == 2
    assert "round-0: does not exist" in capsys.readouterr().err and not Path("pairs-2").exists()
    second = ["pairs", "build", "pairs-2", *make, "--adapter", "round-1"]
    assert not main(second)
    begun = contents(Path("pairs-2"))
    assert not main(second) and contents(Path("pairs-2")) == begun
    capsys.readouterr()
    assert not main(["train", "model", "pairs-2", *learn, "--out", "bare"])
    assert "--start-from ADAPTER begins with it" in capsys.readouterr().out
    assert not main(["train", "model", "pairs-2", *learn, "--out", "round-2", "--start-from", "round-1"])
    said = capsys.readouterr().out
    assert "begins with it" not in said and "on top of round-1/adapter" in said
    assert adapters.read("round-2/adapter").rank == 4
    assert json.loads(Path("round-2/run.json").read_text())["judges"] == ["critic-a"]
