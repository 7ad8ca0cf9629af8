import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROGRAMS, loaded_by

from localdpo.cli import main as cli
from localdpo.ground import info


def localdpo(*words, **options):
    return subprocess.run(
        [Path(sys.executable).with_name("localdpo"), *words], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture
def said(capsys):
    "What the command line says to some words, in this process: its status, and what it printed."

    def say(*words):
        try:
            status = cli.main(list(words))
        except SystemExit as end:
            status = end.code
        return status or 0, *capsys.readouterr()

    return say


def test_help_describes_every_word(said):
    status, out, _ = said("--help")
    assert status == 0
    for word, purpose in cli.WORDS.items():
        assert word in out and purpose.split()[0] in out


@pytest.mark.parametrize("word", cli.WORDS)
def test_each_word_explains_itself(said, word):
    status, out, _ = said(word, "--help")
    assert status == 0 and out.startswith(f"usage: localdpo {word}") and len(out.splitlines()) > 5


def test_the_command_line_is_read_in_one_place():
    package = Path(info.__file__).parents[1]
    read = {
        path.parent.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and "argparse" in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    assert read == {"cli"}


def test_an_unknown_word_is_refused_with_the_list(said):
    status, _, err = said("papr")
    assert status == 2 and "papr: is an unknown word\n  -> did you mean paper? there are info, " in err


@pytest.mark.parametrize(
    "words, answer",
    [
        ("train --stepz 3", "train, --stepz: is an unknown option\n  -> did you mean --steps? `localdpo train --help`"),
        ("train --foo 3", "train, --foo: is an unknown option\n  -> `localdpo train --help` lists all"),
        ("pairs build --clisp d", "pairs build, --clisp: is an unknown option\n  -> did you mean --clips?"),
        ("--verison", "the command line, --verison: is an unknown option\n  -> did you mean --version?"),
        ("pairs verify st more", "more: is more than `localdpo pairs verify` takes"),
        (
            "pairs biuld st",
            "pairs: 'biuld' is an unknown word; there are 'build', 'import', 'export', 'verify', 'show'",
        ),
        ("train", "train: needs MODEL, PAIRS\n  -> `localdpo train --help`"),
        ("", "the command line: needs WORD"),
        ("train m p --beta high", "train: --beta 'high' is not a number"),
        ("train m p --beta", "train: --beta needs a value"),
        ("train m p --precision fp8", "train: --precision 'fp8' is unknown; there are 'auto', 'bf16', 'fp32'"),
        ("pairs build st --model m --alpha 0.2 --seed 1", "pairs build: --alpha needs 2 values"),
    ],
)
def test_a_mistake_in_the_words_is_answered_in_two_lines(said, words, answer):
    status, out, err = said(*words.split())
    assert status == 2 and not out and err.startswith(f"localdpo: {answer}") and len(err.splitlines()) == 2


def test_an_option_may_be_shortened_and_its_value_may_follow_an_equals_sign(said, tmp_path):
    words = ("prompts", "sprite-motion", "--coun=1", "--form", "short", "--out")
    assert said(*words, str(tmp_path / "a.jsonl"))[0] == 0 and (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize("word", cli.WORDS)
def test_help_says_of_each_value_what_it_is(said, word):
    for words in (["pairs", "build"],) if word == "pairs" else ([word],):
        assert "VALUE" not in said(*words, "--help")[1].replace("NAME=VALUE", "")


SWALLOWS = (PROGRAMS / "interrupted.py").read_text()


@pytest.mark.parametrize("text", [SWALLOWS, SWALLOWS.partition("except")[0].replace("try:", "if True:")])
def test_an_interrupt_before_the_first_step_is_one_line_also_where_an_import_makes_an_error_of_it(
    said, method_file, text
):
    method_file("stopped", text)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        answer = said("train", "tiny-wan-1.3b", "pairs")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert answer == (130, "", "localdpo: stopped; the same command goes on from here\n")


def test_info_is_for_people_and_for_programs(said, tmp_path, monkeypatch):
    assert "python" in said("info")[1]
    monkeypatch.chdir(tmp_path)
    facts = json.loads(said("info", "--json")[1])
    assert facts["packages"]["torch"].startswith("2.13.0") and "checkout" in facts


QUOTAS = [  # files of a group, and the processors that they leave of three
    ("0::/job\n", {"job/cpu.max": "max 100000"}, 3),
    ("0::/job\n", {"job/cpu.max": "200000 100000"}, 2),
    ("0::/job\n", {"job/cpu.max": "150000 100000"}, 1),
    ("0::/job\n", {"job/cpu.max": "20000 100000"}, 1),
    ("0::/job\n", {"job/cpu.max": "900000 100000"}, 3),
    ("0::/all/job\n", {"all/job/cpu.max": "max 100000", "all/cpu.max": "100000 100000"}, 1),
    ("0::/a/name/of/the/host\n", {"cpu.max": "100000 100000"}, 1),
    ("0::/job\n", {"unified/job/cpu.max": "100000 100000"}, 1),
    ("3:cpu,cpuacct:/job\n", {"cpu,cpuacct/job/cpu.cfs_quota_us": "200000"}, 2),
    ("3:cpuacct,cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_quota_us": "100000"}, 1),
    ("3:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "100000"}, 1),
    ("3:cpuset:/job\n", {"cpuset/job/cpu.cfs_quota_us": "100000"}, 3),
    ("0::/job\n", {"job/cpu.max": "damaged"}, 3),
    ("damaged", {}, 3),
    ("", {}, 3),
    (None, {}, 3),
]


@pytest.mark.parametrize("own, files, found", QUOTAS)
def test_a_quota_of_the_group_is_found_where_it_is(tmp_path, monkeypatch, own, files, found):
    monkeypatch.setattr(info.os, "sched_getaffinity", lambda pid: {0, 1, 5}, raising=False)
    if own is not None:
        (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
        if file.name == "cpu.cfs_quota_us":
            file.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert info.processors(tmp_path / "groups", tmp_path / "own") == found


@pytest.mark.parametrize(
    "said, shown, threads, waiting",
    [
        ({}, 1, "1", "PASSIVE"),
        ({}, 3, None, "PASSIVE"),
        (dict(OMP_NUM_THREADS="2"), 1, "2", "PASSIVE"),
        (dict(MKL_NUM_THREADS="2"), 1, None, "PASSIVE"),
        (dict(OMP_WAIT_POLICY="ACTIVE"), 3, None, "ACTIVE"),
        (dict(GOMP_SPINCOUNT="100"), 3, None, None),
    ],
)
def test_threads_are_as_many_as_may_run_unless_the_user_said_something(monkeypatch, said, shown, threads, waiting):
    environment = dict(said)
    monkeypatch.setattr(info.os, "environ", environment)
    monkeypatch.setattr(info, "processors", lambda: shown)
    monkeypatch.setattr(info, "_visible", lambda: 3)
    monkeypatch.setitem(sys.modules, "torch", None)
    info.give_way()
    assert environment.get("OMP_NUM_THREADS") == threads and environment.get("OMP_WAIT_POLICY") == waiting


@pytest.mark.slow(3)
def test_the_command_line_gives_way_and_info_says_so():
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_", "GOMP_"))}
    for more, said in ((dict(), "waiting passively"), (dict(OMP_NUM_THREADS="1"), "1 thread for torch")):
        facts = json.loads(localdpo("info", "--json", env=plain | more).stdout)
        assert said in facts["processors"] and "for this process" in facts["processors"]


def test_a_refusal_is_one_message_without_a_traceback():
    done = localdpo("paper", "--profile", "tuor")
    assert (
        done.returncode == 2
        and done.stderr.startswith("localdpo: tuor: is not a profile")
        and "Traceback" not in done.stderr
    )


def test_profiles_are_listed(said):
    _, listed, _ = said("paper", "--list")
    assert "tour " in listed and listed.startswith("quick ")


@pytest.mark.parametrize("cores", ["0", "-1", "two"])
def test_a_senseless_number_of_cores_is_refused(said, cores):
    status, _, err = said("paper", "--cores", cores)
    assert status == 2 and "--cores" in err


@pytest.mark.slow(4)
def test_words_behind_two_dashes_reach_snakemake(tmp_path):
    done = localdpo("paper", "--profile", "tour", "--out", tmp_path, "--dry-run", "--", "--omit-from", "tour")
    assert done.returncode == 0, done.stderr
    assert "rule clip" in done.stdout + done.stderr and "rule page" not in done.stdout + done.stderr


HEAVY = {"torch", "torchvision", "diffusers", "transformers", "papermill", "snakemake", "matplotlib.pyplot"}
LIGHT = """
    ground.errors ground.paths ground.noise ground.progress ground.leases ground.info media.video media.sheets
    media.figures clips.world clips.pools clips.sources prompts.suites prompts.lists prompts.expansion
    backbones backbones.files pairs.store pairs.builder training training.config sampling.videos scoring
    engine.graph engine.report engine.rerun cli.main cli.train cli.sample cli.export
""".split()


@pytest.fixture(scope="module")
def loaded():
    return loaded_by(*(f"localdpo.{module}" for module in LIGHT))


@pytest.mark.parametrize("module", LIGHT)
def test_importing_a_module_is_light(loaded, module):
    assert not loaded[f"localdpo.{module}"] & HEAVY


@pytest.mark.slow(6)
def test_torchvision_is_not_needed(tmp_path):
    # next to a CPU build of torch it does not even import
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    package = Path(info.__file__).parents[1]
    files = [path.relative_to(package).with_suffix("") for path in package.rglob("[a-z]*.py")]
    here = os.environ | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    loaded = loaded_by(*(".".join(["localdpo", *file.parts]) for file in files), env=here)
    assert len(loaded) > 100 and "torch" in set.union(*loaded.values())
