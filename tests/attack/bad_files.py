"""Files that no command should take: captions, clips, prompts, manifests, profiles and notebooks as one finds them."""

import json
import random
import shutil

from attack.house import MODEL

BUILD = f"pairs build new --model {MODEL} --clips clips --captions {{}} --steps 2 --device cpu"
LINE = b'{"file": "a.mp4", "caption": "a red disc moving left on a plain blue background"}\n'
TEXTS = {
    "empty": b"",
    "a zero": b"\0",
    "white space": b" \n\t\n",
    "latin": b'{"file": "a.mp4", "caption": "caf\xe9"}\n',
    "utf-16": LINE.decode().encode("utf-16"),
    "a number": b"7",
    "a list": b"[1, 2]",
    "null": b"null",
    "nested": b"[" * 100_000,
    "an open object": b'{"file": "a.mp4"',
    "twice": LINE + LINE,
    "other keys": b'{"clip": 1, "words": 2}\n',
    "numbers for texts": b'{"file": 1, "caption": 2, "id": 3, "prompt": 4}\n',
    "a place outside": b'{"file": "../../etc/passwd", "caption": "x", "prompt": "x", "id": "../../x"}\n',
    "a name of a device": b'{"file": "/dev/zero", "caption": "x", "prompt": "x", "id": "/dev/zero"}\n',
    "a long line": b'{"file": "a.mp4", "caption": "' + b"a" * 300_000 + b'"}\n',
    "a comma too many": b"file,caption\na.mp4,a red disc, moving left\n",
    "bare returns": b"file,caption\ra.mp4,a red disc\r",
    "an open quote": b'file,caption\na.mp4,"a red disc\n',
    "a long field": b"file,caption\na.mp4," + b"b" * 200_000 + b"\n",
    "a formula": b"file,caption\na.mp4,=1+1\n",
    "yaml bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c,*%c]\n" % (c + 1, c + 1, *[c] * 9) for c in range(97, 106)),
    "yaml loop": b"a: &a [*a]\n",
    "yaml tag": b"about: !!python/object/apply:os.system ['touch taken']\n",
    "yaml depth": b"a: " + b"{a: " * 2000,
    "random bytes": random.Random(0).randbytes(2000),
}


def written(name, data):
    def make(folder):
        (folder / "clips").mkdir()
        shutil.copy(next((folder / "videos" / "videos").iterdir()), folder / "clips" / "a.mp4")
        (folder / name).write_bytes(data)

    return make


def clip(change):
    "A folder with one clip that is changed."

    def make(folder):
        written("captions.jsonl", LINE)(folder)
        file = folder / "clips" / "a.mp4"
        file.write_bytes(change(file.read_bytes()))

    return make


def manifest(change):
    def make(folder):
        file = folder / "videos" / "manifest.json"
        said = json.loads(file.read_text())
        file.write_text(json.dumps(change(said)))

    return make


CLIPS = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "a header alone": lambda data: data[:64],
    "text": lambda data: b"no film",
    "zeros": lambda data: bytes(len(data)),
    "zeros in the middle": lambda data: data[:300] + bytes(600) + data[900:],
    "twice": lambda data: data + data,
    "turned round": lambda data: data[::-1],
    "a large size": lambda data: data.replace(b"\0\x20\0\0\0\x20\0\0", b"\x7f\xff\0\0\x7f\xff\0\0"),
    **{f"noise {seed}": lambda data, seed=seed: noisy(data, seed) for seed in range(12)},
}


def noisy(data, seed):
    draw, data = random.Random(seed), bytearray(data)
    for _ in range(20):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def _first(**changes):
    def change(said):
        said["videos"][0].update(changes)
        return said

    return change


MANIFESTS = {
    "no videos": lambda said: {**said, "videos": []},
    "videos that are a number": lambda said: {**said, "videos": 7},
    "nothing": lambda said: {},
    "a list": lambda said: [],
    "a file outside": _first(file="../prompts.jsonl"),
    "a file from the root": _first(file="/etc/passwd"),
    "a file that is none": _first(file=None),
    "a prompt that is a number": _first(prompt=7),
    "another prompt": _first(prompt="a green star"),
    "a seed that is a text": _first(seed="x"),
    "an id that is a list": _first(id=[]),
    "another sum": _first(sha256="0" * 64),
    "a sum that is none": _first(sha256=None),
    "the same entry twice": lambda said: {**said, "videos": said["videos"] + said["videos"][:1]},
}

NOTEBOOK = '{"cells": [{"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "execution_count": null, "outputs": [], "source": %s}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
CELLS = (
    "n: int = 2 * 3",
    "n: int = ",
    "n: open('taken', 'w') = 1",
    "n: (lambda: 0)() = 1",
    "n = 1",
    "",
    "%magic",
    "n: int = 'x'",
    "\0",
    "n: int = 1\nn: int = 2",
)


def files():
    "(name, command, function that makes the file in a folder) of each."
    for name, data in TEXTS.items():
        yield f"captions.jsonl {name}", BUILD.format("captions.jsonl"), written("captions.jsonl", data)
        yield f"captions.csv {name}", BUILD.format("captions.csv"), written("captions.csv", data)
        for ending in ("jsonl", "json", "txt", "csv"):
            words = f"sample {MODEL} mine.{ending} --out new --steps 1 --device cpu"
            yield f"prompts.{ending} {name}", words, written(f"mine.{ending}", data)
        yield f"profile {name}", "paper --profile mine.yaml --out new --dry-run", written("mine.yaml", data)
        yield f"notebook {name}", "rerun mine.ipynb", written("mine.ipynb", data)
        words = "score clips --prompts mine.jsonl --scorers measures --out new.csv --device cpu"
        yield f"prompts of clips {name}", words, written("mine.jsonl", data)
    for name, change in CLIPS.items():
        yield f"clip {name}", BUILD.format("captions.jsonl"), clip(change)
        yield f"clip to score {name}", "score clips --scorers measures --out new.csv --device cpu", clip(change)
    for name, change in MANIFESTS.items():
        yield f"manifest {name}", "score videos --scorers measures --out new.csv --device cpu", manifest(change)
    for i, source in enumerate(CELLS):
        yield f"cell {i}", "rerun mine.ipynb", written("mine.ipynb", (NOTEBOOK % json.dumps(source)).encode())
