"""What tests of scoring share: clips, scorers that count, fail and lack things, and the command."""

import csv
import json

import numpy as np

from localdpo.cli import main as cli
from localdpo.clips import pools
from localdpo.ground.seals import sealed
from localdpo.media import video
from localdpo.scoring import scorer as core
from localdpo.scoring import table
from localdpo.scoring.scorer import Scorer
from localdpo.scoring.weights import WeightsMissing

ITEMS = pools.pool("curated", 6, "held out")
WORDS = dict(preprocessing="none", pooling="none", prompt="not used")


class Fake(Scorer):
    "Scores by the first pixel; `calls` counts, and `harm` says what goes wrong at which value of it."

    name, columns = "fake", ("corner", "fake_half")
    calls, harm, revision = [], {}, "1"

    def pooled(self, each, frames, prompt, fps):
        corner = int(frames[0, 0, 0, 0])
        self.calls.append(corner)
        if isinstance(harm := self.harm.get(corner, self.harm.get("all")), Exception):
            raise harm
        return dict(corner=corner, fake_half=corner / 2 if harm is None else harm)

    def per_frame(self, frames, prompt, fps):
        return dict(corner=frames[:, 0, 0, 0], fake_half=frames[1:, 0, 0, 0] / 2)

    def reason(self, column, frames, prompt, fps):
        return "divides by nothing"

    def provenance(self):
        return dict(scorer=self.name, checkpoint="none", revision=self.revision) | WORDS


class Reads(Fake):
    name, columns, needs_prompt = "reads", ("length",), True
    per_frame = Scorer.per_frame

    def pooled(self, each, frames, prompt, fps):
        self.calls.append(prompt)
        return dict(length=len(prompt))


class Absent(Fake):
    name, columns = "absent", ("beauty",)

    def weights(self):
        more = WeightsMissing("else/words", None, "vocab.json", "fetch the words")
        raise WeightsMissing("someone/judge", "0123", "judge.pt", "put it there", more)


class Blind(Absent):
    name, columns = "blind", ("ugliness",)


class Twin(Fake):
    name, columns = "twin", ("corner",)

    per_frame = Scorer.per_frame

    def pooled(self, each, frames, prompt, fps):
        return dict(corner=0.0)


def register(monkeypatch):
    "Let all scorers be asked for by name, for the length of a test."
    for kind in (Fake, Reads, Absent, Blind, Twin):
        monkeypatch.setitem(core.SCORERS, kind.name, f"{__name__}:{kind.__name__}")
    monkeypatch.setattr(Fake, "calls", [])
    monkeypatch.setattr(Reads, "calls", [])
    monkeypatch.setattr(Fake, "harm", {})


def four(folder):
    "Four videos with the values 10, 20, 30, 40 in the first pixel, and prompts for them."
    for i in range(1, 5):
        grey(folder / "clips" / f"{i}.mp4", 10 * i)
    rows = [dict(video=f"{i}.mp4", prompt="word " * i) for i in range(1, 5)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "clips"


def grey(path, value, frames=3, size=16, fps=8):
    video.write_lossless(path, np.full((frames, size, size, 3), value, np.uint8), fps)


def score(tmp_path, *words, out="scores.csv"):
    "The exit status of the command, and the rows of the table by video."
    status = cli.main(["score", "--device", "cpu", "--out", str(tmp_path / out), *map(str, words)])
    return status, rows_of(tmp_path / out)


def rows_of(path):
    if not path.exists():
        return None
    with open(path, newline="") as file:
        return {row["video"]: row for row in csv.DictReader(file)}


def manifest(folder, fps=8.0):
    "The clips in `folder` as `localdpo sample` lists them."
    files = sorted(folder.glob("*.mp4"))
    entries = [
        dict(id=f"p{f.stem}", prompt=f"prompt {f.stem}", seed=0, file=f.name, sha256=table.sum_of(f)) for f in files
    ]
    (folder / "manifest.json").write_text(sealed(dict(settings=dict(fps=fps), videos=entries)))


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0
