import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localdpo import cli


def localdpo(*words, **options):
    return subprocess.run(
        [Path(sys.executable).with_name("localdpo"), *words], capture_output=True, text=True, check=False, **options
    )


def test_help_describes_every_word():
    done = localdpo("--help")
    assert done.returncode == 0
    for word, (_, purpose) in cli.WORDS.items():
        assert word in done.stdout and purpose.split()[0] in done.stdout


@pytest.mark.parametrize("word", cli.WORDS)
def test_each_word_explains_itself(word):
    done = localdpo(word, "--help")
    assert (
        done.returncode == 0 and done.stdout.startswith(f"usage: localdpo {word}") and len(done.stdout.splitlines()) > 5
    )


def test_an_unknown_word_is_refused_with_the_list():
    done = localdpo("papr")
    assert done.returncode == 2 and "invalid choice: 'papr'" in done.stderr and "paper" in done.stderr


def test_info_is_for_people_and_for_programs(tmp_path):
    assert "python" in localdpo("info").stdout
    facts = json.loads(localdpo("info", "--json", cwd=tmp_path).stdout)
    assert facts["packages"]["torch"].startswith("2.13.0") and "checkout" in facts


def test_a_refusal_is_one_message_without_a_traceback():
    done = localdpo("paper", "--profile", "tuor")
    assert (
        done.returncode == 2
        and done.stderr.startswith("localdpo: tuor: is no profile")
        and "Traceback" not in done.stderr
    )


def test_profiles_are_listed():
    listed = localdpo("paper", "--list").stdout
    assert "tour " in listed and listed.startswith("quick ")


@pytest.mark.parametrize("cores", ["0", "-1", "two"])
def test_a_senseless_number_of_cores_is_refused(cores):
    done = localdpo("paper", "--cores", cores)
    assert done.returncode == 2 and "--cores" in done.stderr


def test_words_behind_two_dashes_reach_snakemake(tmp_path):
    done = localdpo("paper", "--profile", "tour", "--out", tmp_path, "--dry-run", "--", "--omit-from", "tour")
    assert done.returncode == 0, done.stderr
    assert "rule clip" in done.stdout + done.stderr and "rule page" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "errors",
        "paths",
        "noise",
        "video",
        "sheets",
        "figures",
        "progress",
        "leases",
        "report",
        "engine",
        "rerun",
        "info",
        "cli",
        "world",
        "pools",
        "pairs",
        "clip_sources",
        "pair_builder",
        "train_config",
        "train_command",
        "sampling",
        "sample_command",
        "prompts",
        "prompt_lists",
        "prompt_expansion",
        "export_command",
    ],
)
def test_importing_a_module_is_light(module):
    heavy = ["torch", "torchvision", "diffusers", "transformers", "papermill", "snakemake", "matplotlib.pyplot"]
    code = f"import sys, localdpo.{module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_torchvision_is_not_needed(tmp_path):
    # next to a CPU build of torch it does not even import
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    modules = ", ".join(f"localdpo.{path.stem}" for path in Path(cli.__file__).parent.glob("[a-z]*.py"))
    subprocess.run(
        [sys.executable, "-c", f"import {modules}"], env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True
    )
