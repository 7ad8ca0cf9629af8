"""What several tests share: a checkout to break, small notebooks to run, a terminal, and random models."""

import copy
import fcntl
import functools
import importlib
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from unittest import mock

import nbformat
import pytest

from localdpo.ground import paths

pytest_plugins = ["order"]
# Before torch is loaded: results are compared bit for bit across processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")


PROGRAMS = Path(__file__).parent / "programs"


def program(name, *words):
    "The command that runs a program of tests/programs with `words`."
    return [sys.executable, str(PROGRAMS / name), *map(str, words)]


def said(name, *words, **options):
    "What a program of tests/programs prints, which must end well."
    done = subprocess.run(program(name, *words), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def loaded_by(*modules, **options):
    "The heavy packages that each of `modules` loads, when they are imported one after the other."
    return {name: set(heavy) for name, heavy in json.loads(said("light.py", *modules, **options)).items()}


def alive(process):
    "Whether the process of this number is at work: a zombie is not."
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=120):
    "Wait until `condition()` holds, and return what it gave."
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def contents(folder):
    "The bytes of each file in a folder; of a store, not what it cost."
    return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}


def killed(work, moment):
    "Run `work` in a process that is killed: after some seconds, or at a place within a save."
    if (child := os.fork()) == 0:
        try:
            import torch

            torch.set_num_threads(1)
            if isinstance(moment, tuple):
                die_within_a_save(*moment)
            work()
        finally:
            os._exit(0)
    if isinstance(moment, float):
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def die_within_a_save(place, after):
    "Let the save number `after` end in a kill at its `place`."
    calls, plain = [0], dict(write=Path.write_bytes, replace=os.replace)

    def write(self, data):
        calls[0] += 1
        if place == "half written" and calls[0] == after:
            plain["write"](self, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return plain["write"](self, data)

    def replace(source, target):
        if place == "before the name" and calls[0] == after:
            os.kill(os.getpid(), signal.SIGKILL)
        plain["replace"](source, target)
        if place == "after the name" and calls[0] == after:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.write_bytes, os.replace = write, replace


@functools.cache
def _random_model(name, layers):
    from localdpo.miniature import models
    from localdpo.pairs import toys

    size = models.SIZES[name] | (dict(num_layers=layers) if layers else {})
    with mock.patch.dict(models.SIZES, {name: size}):
        return toys.random_model(name, seed=1)


def random_model(name, layers=2):
    "A copy of one tiny model with random weights of which none is zero; with few `layers`, as it is faster."
    made = _random_model(name, layers)
    pipeline = copy.copy(made.pipeline)  # what no test changes is shared: tokenizer, text encoder and autoencoder
    pipeline.register_modules(
        transformer=copy.deepcopy(made.transformer), scheduler=copy.deepcopy(made.pipeline.scheduler)
    )
    return type(made)(pipeline, name)


@pytest.fixture(scope="module")
def backbone():
    "A random model of two layers; tests that need another one have a fixture of their own."
    import torch

    torch.set_num_threads(1)  # forked children cannot use the threads of their parent
    return random_model("tiny-cogvideox-2b")


def adapted(model, rank=4, alpha=8, std=1.0, seed=3, adapter="policy"):
    "`model` with an adapter that has something to say."
    import torch

    from localdpo.backbones import adapters

    adapters.add(model, rank, alpha, adapter)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in adapters.weights(model, adapter).items():
            if ".lora_B." in key:
                p.normal_(std=std, generator=draw)
    return model


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk():
    "What the tests write in their own process need not survive a power cut."
    with mock.patch("os.fsync", lambda handle: None):
        yield


@pytest.fixture
def notebook(tmp_path):
    "Write a notebook: the first source is its parameters cell unless `tagged` says otherwise."

    def write(*sources, name="small.ipynb", tagged=(0,)):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        for i in tagged:
            nb.cells[i].metadata["tags"] = ["parameters"]
        path = tmp_path / name
        nbformat.write(nb, path)
        return path

    return write


@pytest.fixture
def method_file(tmp_path, monkeypatch):
    "Put a file beside those of the methods, for the length of the test."
    import localdpo.methods

    monkeypatch.setattr(localdpo.methods, "__path__", [*localdpo.methods.__path__, str(tmp_path)])
    names = []

    def put(name, text):
        names.append(name)
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    yield put
    for name in names:
        sys.modules.pop(f"localdpo.methods.{name}", None)


@pytest.fixture
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


@pytest.fixture
def fakes(monkeypatch):
    "The scorers of `scorers` can be asked for by name."
    import scorers

    scorers.register(monkeypatch)


@pytest.fixture
def clips(tmp_path):
    "Four grey videos, and prompts for them."
    import scorers

    return scorers.four(tmp_path)


@pytest.fixture
def terminal():
    "Both ends of a terminal of 80 columns: what we read, and what a process writes to."
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return ours, theirs


def edit(path, old, new):
    "Replace text in a file that has it."
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new, 1))


@pytest.fixture
def checkout(tmp_path):
    "A copy of the checkout to break things in."
    heavy = dict(ignore=shutil.ignore_patterns("weights", "__pycache__"))
    root, files = paths.root(), "settings.ini pyproject.toml environment.yml constraints.txt README.md LICENSE"
    for name in [
        *"nbs localdpo .github reports/README.md THIRD_PARTY.md CITATION.cff tests/test_floors.py".split(),
        *files.split(),
    ]:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy(root / name, tmp_path / name, **heavy if copy is shutil.copytree else {})
    return tmp_path
