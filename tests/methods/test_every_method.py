"Each method on each tiny model, from the command line: killed, gone on with, split over workers, and trained."

import json
from pathlib import Path

import pytest
from conftest import contents, killed

from localdpo import methods
from localdpo.cli.main import main

MODELS = "tiny-cogvideox-2b", "tiny-cogvideox-5b", "tiny-wan-1.3b"
MADE = sorted({name for name in methods.names() if methods.get(name).made_by} - {"sft"})  # which learns from any


def make(folder, model, name, worker=(0, 1)):
    words = f"pairs build {folder} --model {model} --device cpu --method {name} --world curated:4 --steps 2 --block 1"
    assert not main([*words.split(), "--worker", "{}/{}".format(*worker)])


@pytest.mark.long(160)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", MADE)
def test_a_method_is_two_commands_and_neither_kills_nor_workers_change_a_byte(name, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("whole", model, name)
    assert killed(lambda: make("killed", model, name), ("half written", 5))
    make("killed", model, name)
    for n in (2, 4):
        for i in reversed(range(n)):
            make(f"{n}", model, name, (i, n))
    for other in ("killed", "2", "4"):
        assert contents(other) == contents("whole")
    train = f"train {model} whole --device cpu --out run --steps 2 --batch 2 --rank 2 --method {name}"
    assert not main(train.split())
    assert json.loads(Path("run/run.json").read_text())["identity"]["recipe"]["name"] == name
