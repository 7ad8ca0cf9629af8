"Values that no command can use are refused at once, by name, and leave nothing behind."

import shlex

import pytest

from localdpo.cli import main as cli

TINY = "tiny-cogvideox-2b"
PAIRS = ["pairs", "build", "out", "--model", TINY, "--world", "curated:2", "--steps", "2"]
SAMPLE = ["sample", TINY, "--prompt", "a green disc moving up", "--out", "out", "--steps", "2"]
TRAIN = ["train", TINY, "st", "--out", "out", "--steps", "1", "--batch", "2"]
BIG = str(2**70)
LR = ("nan", "0", "-1", "inf", "1e300", "1e-320")


def test_a_mask_may_name_its_contour_plainly():
    from localdpo.cli import fields
    from localdpo.cli.main import parser
    from localdpo.pairs.builder import PairConfig

    args = parser("pairs").parse_args([*PAIRS, "--mask", "contour=paper", "static=0.2"])
    assert fields.settings(args, PairConfig)["mask"] == dict(contour="paper", static=0.2)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A folder with a store of two pairs."
    folder = tmp_path_factory.mktemp("home")
    assert not cli.main([*PAIRS[:2], str(folder / "st"), *PAIRS[3:], "--device", "cpu"])
    return folder


@pytest.mark.parametrize(
    "words, said",
    [
        ([*PAIRS, "--alpha-step", "1e-300"], "alpha_step 1e-300: is not a width of a grid"),
        ([*PAIRS, "--size", "9x3200000x3200000"], "size 9x3200000x3200000: has more than 2,147,483,648 pixels"),
        ([*PAIRS, "--size", "0x32x32"], "size 0x32x32: is not three whole numbers"),
        ([*PAIRS, "--seed", BIG], f"seed {BIG}: is out of range"),
        ([*PAIRS, "--steps", "5000"], "steps 5000: are more than the 1,000 noise levels"),
        ([*PAIRS, "--cfg-scale", "inf"], "cfg_scale inf: is not a strength of guidance"),
        ([*PAIRS[:5], "--world", f"curated:{BIG}"], f"--world curated:{BIG}: asks for more than 1,000,000 clips"),
        ([*PAIRS, "--device", "meta"], "device meta: holds shapes and no numbers"),
        ([*PAIRS, "--device", "xpu"], "device xpu: cannot be used here"),
        (["pairs", "verify", "s\0t"], "'s\\x00t': has a NUL character"),
        ([*SAMPLE, "--size", "9x3200000x3200000"], "size 9x3200000x3200000: has more than 2,147,483,648 pixels"),
        ([*SAMPLE, "--size", "1x32x32"], "size 1x32x32: is a picture"),
        ([*SAMPLE, "--seed", BIG], f"seed {BIG}: is out of range"),
        ([*SAMPLE, "--cfg-scale", "-1"], "cfg_scale -1.0: is out of range"),
        ([*SAMPLE, "--cfg-scale", "nan"], "cfg_scale nan: is out of range"),
        ([*SAMPLE, "--steps", "9" * 401], f"steps {'9' * 20}...999: is out of range"),
        ([*SAMPLE, "--steps", "9" * 5001], f"--steps {'9' * 20}...999: is not a whole number"),
        ([*SAMPLE, "--worker", "9" * 401], f"--worker {'9' * 20}...999: is not understood"),
        ([*SAMPLE, "--worker", "-1/2"], "--worker -1/2: has nothing to do\n  -> number workers from 0"),
        ([*SAMPLE, "--steps", "5000"], "steps 5000: is out of range"),
        ([*SAMPLE, "--adapter-alpha", "2"], "--adapter-alpha 2.0: has no adapter to go with"),
        ([*SAMPLE, "--device", "meta"], "device meta: holds shapes and no numbers"),
        ([*SAMPLE[:5], "o\0ut"], "'o\\x00ut': has a NUL character"),
        ([*TRAIN, "--seed", BIG], f"seed {BIG}: is out of range"),
        (
            [*TRAIN, "--steps", BIG],
            f"steps {BIG}: is out of range\n  -> use a whole number from 1 to {2**31}; optimiser",
        ),
        ([*TRAIN, "--rank", "100000"], "rank 100000: is out of range\n  -> use a whole number from 1 to 4096; rank of"),
        ([*TRAIN, "--lr", "fast"], "--lr fast: is not a number"),
        *(
            ([*TRAIN, "--lr", text], f"lr {value}: is out of range\n  -> use a number from 1e-12 to 10; learning rate")
            for text, value in dict(zip(LR, ("nan", "0.0", "-1.0", "inf", "1e+300", "1e-320"), strict=True)).items()
        ),
        ([*TRAIN, "--alpha", "1e-320"], "alpha 1e-320: is out of range\n  -> use a number from 0.001 to 1e+06; alpha"),
        ([*TRAIN, "--warmup", "-1"], f"warmup -1: is out of range\n  -> use a whole number from 0 to {2**31}; steps"),
        ([*TRAIN, "--clip", "1e-320"], "clip 1e-320: is out of range\n  -> use a number from 1e-09 to 1e+09; longest"),
        (
            [*TRAIN, "--save-every", BIG],
            f"save_every {BIG}: is out of range\n  -> use a whole number from 1 to {2**31}",
        ),
        ([*PAIRS, "--alpha", "1e-320", "0.9"], "alpha_range (1e-320, 0.9): begins so low"),
        ([*PAIRS, "--worker", f"0/{BIG}"], f"--worker 0/{BIG}: asks for more than 1,000,000 workers"),
        ([*PAIRS, "--worker", "2/2"], "--worker 2/2: has nothing to do\n  -> number workers from 0 to one below"),
        ([*PAIRS, "--worker", f"{BIG}/2"], f"--worker {BIG}/2: has nothing to do"),
        ([*SAMPLE, "--worker", f"0/{BIG}"], f"--worker 0/{BIG}: asks for more than 1,000,000 workers"),
        ([*TRAIN, "--batch", "4"], "batch 4: is more than the 2 pairs there are"),
        ([*TRAIN, "--device", "meta"], "device meta: holds shapes and no numbers"),
        ([*TRAIN, "--beta1", "nan"], "beta1 nan: is out of range\n  -> use a number from 0 to 0.999999; decay"),
        ([*TRAIN, "--beta1", "1"], "beta1 1.0: is out of range\n  -> use a number from 0 to 0.999999; decay"),
        ([*PAIRS, "--mask", "static=nan"], "static='nan': is not one number from 0 to 1"),
        ([*PAIRS, "--mask", "static"], "--mask static: lacks a name, a value, or the = between them"),
        ([*PAIRS[:5], "--clips", "st", "--captions", "no.jsonl"], "no.jsonl: does not exist\n  -> check the path"),
        ([*PAIRS[:5], "--clips", "st", "--captions", "no.parquet"], "no.parquet: does not exist\n  -> check the path"),
        (["sample", TINY, "no.jsonl", "--out", "out"], "no.jsonl: does not exist\n  -> check the path"),
        (["sample", TINY, "no.txt", "--out", "out"], "no.txt: does not exist\n  -> check the path"),
        (["sample", TINY, "--out", "out"], "sample: needs prompts\n  -> name a file of prompts after the model"),
        (["sample", TINY, "", "--out", "out"], "sample '': is empty\n  -> give it a value, or leave it out"),
        (["score", "st", "--out", ""], "--out '': is empty\n  -> give it a value, or leave it out"),
        (["score", "st", "--out="], "--out=: is empty\n  -> give it a value, or leave it out"),
        (["train", TINY, "st", ""], "train '': is empty\n  -> give it a value, or leave it out"),
        (["sample", TINY, "--out", "out", "--prompt", " "], '--prompt "": is empty\n  -> say in a few words'),
        (["score"], "score: needs videos\n  -> name a folder of videos"),
        (["rerun"], "rerun: needs NOTEBOOK"),
        (["sample", TINY, "st", "--out", "out"], "st: is a folder\n  -> name a file of prompts"),
        (["train", TINY, "st", "--config", "no.yaml"], "no.yaml: does not exist\n  -> check the path"),
        (["paper", "--profile", "no.yaml"], "no.yaml: does not exist\n  -> choose one of quick, tour"),
        (["score", "clips", "--batch", BIG], f"--batch {BIG}: is out of range"),
        (["prompts", "sprite-motion", "--count", "1", "--max-tokens", BIG], f"--max-tokens {BIG}: is out of range"),
        (["rerun", "x.ipynb", "out.ipynb", "--cell-timeout", "-1"], "--cell-timeout -1: is out of range"),
        (["paper", "--dry-run", "--cores", BIG], f"--cores {BIG}: is out of range"),
    ],
)
def test_a_value_that_cannot_work_is_refused_at_once(home, monkeypatch, capsys, words, said):
    monkeypatch.chdir(home)
    assert cli.main(words) == 2
    assert f"localdpo: {said}" in capsys.readouterr().err and [path.name for path in home.iterdir()] == ["st"]


NONE = "no-such-model"


@pytest.mark.parametrize(
    "words",
    [
        f"sample {NONE} --prompt disc --out note",
        f"sample {NONE} --prompt disc --out note/x",
        f"pairs build note --model {NONE} --world curated:2",
        f"pairs build note/x/y --model {NONE} --world curated:2",
        f"train {NONE} st --out note",
        f"train {NONE} st --out note/x",
        "score a.mp4 --out note/x.csv",
        "score a.mp4 --out x.csv --per-frame note/x.csv",
        "prompts sprite-motion --count 1 --out note/x.jsonl",
        "export no-such-run --format diffusers --out note/x",
        "export no-such-run --format comfyui --out note/x.safetensors",
        "rerun nb.ipynb note/x.ipynb",
        "paper --profile tour --out note",
        "paper --profile tour --out note/x --dry-run",
    ],
)
def test_a_file_where_a_folder_belongs_is_named_before_any_work(home, notebook, tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "st").symlink_to(home / "st"), (tmp_path / "note").touch(), (tmp_path / "a.mp4").touch()
    notebook("seed: int = 1", name="nb.ipynb")
    before = sorted(tmp_path.iterdir())
    assert cli.main(words.split()) == 2
    assert "note: is a file\n  -> choose a folder" in capsys.readouterr().err and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "words, said",
    [
        ("rerun nb.ipynb nb", "nb: does not end in .ipynb\n  -> name another file, one that ends in .ipynb"),
        ("rerun nb.ipynb folder", "folder: is a folder\n  -> name another file, one that ends in .ipynb"),
        ("rerun nb.ipynb nb.ipynb", "nb.ipynb: is the notebook itself\n  -> name another file"),
        (
            "rerun nb.ipynb -p seed=2",
            "-p seed=2: has no run to go with\n  -> name the file of the executed copy, as in",
        ),
        ("rerun nb.ipynb ''", "rerun '': is empty\n  -> give it a value, or leave it out"),
        ("rerun folder", "folder: is a folder\n  -> name a notebook in it"),
        ("rerun nb.ipynb x.ipynb --needs nope --hands-on x", "nope: is missing, and the step needs it\n  -> check"),
        ("rerun nb.ipynb x.ipynb --needs nope", "nope: is missing, and the step needs it\n  -> check"),
        ("rerun nb.ipynb -p seed 2", "rerun: argument -p/--parameter: seed is no NAME=VALUE, such as seed=7"),
        ("rerun nb.ipynb x.ipynb -p seed 2", "rerun: argument -p/--parameter: seed is no NAME=VALUE, such as seed=7"),
    ],
)
def test_a_rerun_that_cannot_begin_says_why(notebook, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    notebook("seed: int = 1", name="nb.ipynb"), (tmp_path / "folder").mkdir()
    assert cli.main(shlex.split(words)) == 2
    assert f"localdpo: {said}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "nb.ipynb"]


@pytest.mark.slow(2)
def test_a_negative_seed_is_a_seed_of_its_own(home, tmp_path):
    found = {}
    for seed in ("-3", "3"):
        store, run = str(tmp_path / f"st{seed}"), str(tmp_path / f"run{seed}")
        words = ["--batch", "2", "--steps", "1", "--rank", "2", "--seed", seed, "--device", "cpu"]
        assert not cli.main([*PAIRS[:2], store, *PAIRS[3:], "--seed", seed, "--device", "cpu"])
        assert not cli.main(["train", TINY, str(home / "st"), "--out", run, *words])
        parts = (tmp_path / f"st{seed}/block-00000.safetensors", tmp_path / f"run{seed}/adapter/SHA256SUMS")
        found[seed] = [part.read_bytes() for part in parts]
    assert all(a != b for a, b in zip(*found.values(), strict=True))
