"""What is attacked: one small store, run, folder of videos, table and adapter, each made by one word of the command line."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import warm

MODEL = "tiny-cogvideox-2b"
UNTIMED = {"seconds", "data_wait", "tflops"}  # what a line of metrics says of the machine
PROMPTS = ("a red disc moving left on a plain blue background", "a green star spinning on a striped red background")


class Stage(NamedTuple):
    "A word of the command line, the files it makes, and those of other stages that it reads."

    name: str
    words: str
    makes: tuple
    reads: tuple = ()


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "pairs", f"pairs build store --model {MODEL} --world curated:6 --steps 4 --block 2 --device cpu", ("store",)
        ),
        Stage(
            "train",
            f"train {MODEL} store --out run --steps 6 --batch 2 --micro-batch 2 --rank 2 --warmup 0 --save-every 1 "
            "--keep 2 --device cpu",
            ("run",),
            ("store",),
        ),
        Stage(
            "sample",
            f"sample {MODEL} prompts.jsonl --adapter run --out videos --steps 2 --seeds 2 --device cpu",
            ("videos",),
            ("run", "prompts.jsonl"),
        ),
        Stage(
            "score",
            "score videos --out scores.csv --scorers measures,attributes --device cpu",
            ("scores.csv", "scores.partial.jsonl", "scores.provenance.json"),
            ("videos",),
        ),
        Stage("export", "export run --format comfyui --out lora.safetensors", ("lora.safetensors",), ("run",)),
        Stage("graph", "paper --profile little.yaml --out out --cores 2", ("out",), ("little.yaml",)),
    )
}


LONGER = STAGES["train"].words.replace("--steps 6", "--steps 8")  # goes on with a run that is finished
LITTLE = dict(about="a little tour", graph="tour", seeds=[5], frames=5, size=32, noise_alpha=0.8)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(path):
    "All files of a folder, or the file itself; locks are empty and come and go, and seconds are never the same."
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [file for file in found if file.parent.name != "costs"]
    return [file for file in found if file.is_file() and "/." not in str(file.relative_to(path.parent.parent))]


def result(folder, stage):
    "What a stage made, without what its files say of the machine and the day; None where it is not done."
    made = folder / stage.makes[0]
    match stage.name:
        case "train":
            log, adapter = made / "metrics.jsonl", made / "adapter"
            if not log.exists() or not adapter.is_dir():
                return None
            try:
                lines = [json.loads(line) for line in log.read_bytes().splitlines()]
            except ValueError:
                return None
            said = [{name: value for name, value in line.items() if name not in UNTIMED} for line in lines]
            return said, {file.name: digest(file) for file in files(adapter)}
        case "sample":
            parts = [file for part in ("manifest.json", "videos", "records") for file in files(made / part)]
            return {str(file.relative_to(made)): digest(file) for file in parts if file.exists()}
        case "graph":
            parts = [file for part in ("tables", "figures", "media") for file in files(made / part)]
            page = made / "index.html"
            end = page.read_bytes()[-20:] if page.is_file() else b""
            return {str(file.relative_to(made)): digest(file) for file in parts if file.exists()} | dict(end=end)
        case _:
            return {str(file.relative_to(folder)): digest(file) for file in files(made) if file.exists()}


def command(folder, words, **options):
    "Run the command line in a folder; (status, what it said)."
    process = warm.run(*words.split(), cwd=folder, merged=True, **options)
    return process.returncode, process.stdout


class House:
    "The whole thing, made once in `folder`; what each stage made, and how many seconds it took."

    def __init__(self, folder):
        self.folder, facts = Path(folder), Path(folder) / "facts.json"
        if not facts.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            lines = (json.dumps(dict(id=f"p{i}", prompt=prompt)) for i, prompt in enumerate(PROMPTS))
            (self.folder / "prompts.jsonl").write_text("\n".join(lines))
            (self.folder / "little.yaml").write_text(json.dumps(LITTLE))  # which is yaml too
            warm.run("info")  # or the first stage would wait for torch
            seconds = {}
            for stage in STAGES.values():
                began = time.monotonic()
                status, said = command(self.folder, stage.words)
                assert status == 0, said
                seconds[stage.name] = time.monotonic() - began
            self.copy(["store", "run"], self.folder / "longer")
            status, said = command(self.folder / "longer", LONGER)
            assert status == 0, said
            facts.write_text(json.dumps(seconds))
        self.seconds = json.loads(facts.read_text())
        self.results = {name: result(self.folder, stage) for name, stage in STAGES.items()}
        self.results["longer"] = result(self.folder / "longer", STAGES["train"])

    def copy(self, names, into):
        "Copies of some of its parts in a folder of their own."
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(parents=True)
        for name in names:
            source = self.folder / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, into / name)
        return into
