"""Notebooks, package, README and pins agree; and each way of falling out of step is found when it is planted."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import edit

from localdpo.dev import checks, pages, readme
from localdpo.ground import paths

ROOT = paths.root()


def test_everything_agrees():
    assert checks.faults(ROOT) == []


def test_help_names_the_words_and_a_wrong_one_is_answered_with_them(capsys):
    assert not checks.main("--help")
    said = capsys.readouterr().out
    assert said.startswith("usage: python -m localdpo.dev [WORD]") and all(word in said for word in checks.WORDS)
    for words in (["pinz"], ["readme", "pins"]):
        with pytest.raises(SystemExit, match="say one of faults, readme, pins, hooks"):
            checks.main(*words)


@pytest.mark.slow(2)
def test_a_module_edited_by_hand_is_named_with_the_way_out(checkout):
    edit(checkout / "localdpo/ground/noise.py", "digest_size=16", "digest_size=32")
    (fault,) = checks.export_faults(checkout)
    assert (
        "localdpo/ground/noise.py is not what nbs/90_ground/03_noise.ipynb exports" in fault
        and "`.venv/bin/nbdev_update --fname localdpo/ground/noise.py`" in fault
    )


@pytest.mark.slow(2)
def test_nbdev_update_brings_the_edit_home(checkout):
    edit(
        checkout / "localdpo/ground/errors.py",
        "Work that began and did not end well",
        "Work that began and ended badly",
    )
    subprocess.run(
        [Path(sys.executable).with_name("nbdev_update"), "--fname", "localdpo/ground/errors.py"],
        cwd=checkout,
        check=True,
    )
    assert checks.export_faults(checkout) == []
    assert "ended badly" in (checkout / "nbs/90_ground/01_errors.ipynb").read_text()


@pytest.mark.slow(2)
def test_a_notebook_that_was_not_exported_is_found(checkout):
    edit(checkout / "nbs/90_ground/03_noise.ipynb", "digest_size=16", "digest_size=32")
    (fault,) = checks.export_faults(checkout)
    assert "localdpo/ground/noise.py" in fault and "`make export`" in fault


@pytest.mark.slow(2)
def test_a_module_without_its_notebook_is_found(checkout):
    (checkout / "nbs/90_ground/03_noise.ipynb").unlink()
    assert any("localdpo/ground/noise.py has no notebook any more" in fault for fault in checks.export_faults(checkout))


def test_a_notebook_that_cannot_be_exported_is_a_fault(checkout):
    (checkout / "nbs/90_ground/03_noise.ipynb").write_text("<<<<<<< HEAD")
    (fault,) = checks.export_faults(checkout)
    assert "do not export" in fault


def test_a_readme_behind_its_notebook_is_found(checkout):
    edit(checkout / "nbs" / "index.ipynb", "Use it", "Make use of it")
    (fault,) = readme.readme_faults(checkout)
    assert "README.md is not what nbs/index.ipynb says" in fault


def test_a_picture_that_the_tour_no_longer_shows_is_found(checkout):
    (checkout / "nbs/images/tour.png").write_bytes(b"another picture")
    assert readme.readme_faults(checkout) == [
        "nbs/images/tour.png is not what nbs/00_tour.ipynb shows: run `make export`"
    ]


def test_a_page_that_opens_with_a_link_to_its_own_picture_has_the_present_one(checkout):
    page = checkout / "nbs/91_media/02_sheets.ipynb"
    edit(page, "# ", "# ![A sheet](../images/sheet.png) ")
    assert (
        "nbs/images/sheet.png is not what nbs/91_media/02_sheets.ipynb shows: run `make export`"
        in readme.readme_faults(checkout)
    )
    (checkout / "nbs/images/sheet.png").write_bytes(readme.picture(page))
    assert not [fault for fault in readme.readme_faults(checkout) if "sheet" in fault]


def test_a_marked_cell_draws_the_opening_picture(tmp_path):
    nb = nbformat.v4.new_notebook()
    for data, tags in (("AAAA", []), ("BBBB", ["opening"]), ("CCCC", [])):
        shown = nbformat.v4.new_output("display_data", {"image/png": data})
        nb.cells.append(nbformat.v4.new_code_cell("x", outputs=[shown], metadata={"tags": tags}))
    nbformat.write(nb, tmp_path / "a.ipynb")
    assert readme.picture(tmp_path / "a.ipynb") == base64.b64decode("BBBB")


def test_a_new_folder_needs_a_line_in_the_map(checkout):
    (checkout / "nbs/92_sound").mkdir(), (checkout / "localdpo/sound").mkdir()
    shutil.copy(checkout / "nbs/99_dev/02_pins.ipynb", checkout / "nbs/92_sound/01_sound.ipynb")
    (checkout / "localdpo/sound/__init__.py").write_text("")
    assert any(
        "localdpo/sound/__init__.py does not say what the folder is for" in f for f in readme.readme_faults(checkout)
    )
    (checkout / "localdpo/sound/__init__.py").write_text('"Sound for videos."\n')
    assert readme.readme_faults(checkout) == ["the map in nbs/index.ipynb is behind the folders: run `make export`"]
    readme.write_readme(checkout)
    assert readme.readme_faults(checkout) == []
    assert "| [92_sound](nbs/92_sound/01_sound.ipynb) | Sound for videos. |" in (checkout / "README.md").read_text()


def test_a_link_that_leads_nowhere_is_found(checkout):
    (checkout / "nbs/70_stats/05_comparison.ipynb").rename(checkout / "nbs/70_stats/05_best.ipynb")
    assert "README.md links to nbs/70_stats/05_comparison.ipynb, which does not exist" in readme.readme_faults(checkout)


def test_every_notebook_has_a_number_of_its_own():
    for folder in {path.parent for path in pages.notebooks(ROOT)}:
        numbers = [re.match(r"\d\d_", path.name)[0] for path in folder.glob("[0-9]*")]
        assert len(numbers) == len(set(numbers)), folder


def test_each_trap_is_decided_and_its_test_is_there():
    text = "".join(cell.source for cell in nbformat.read(ROOT / "nbs" / "01_traps.ipynb", 4).cells)
    assert sorted(map(int, re.findall(r"^\| (\d+) \|", text, re.M))) == list(range(1, 32))
    named = set(re.findall(r"`(test_\w+)`", text))
    there = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 20 and not {name for name in named if f"def {name}(" not in there}


def test_slow_and_gpu_cells_are_flagged_so_that_they_are_skipped():
    flags = re.search(r"^tst_flags = (.*)$", (ROOT / "settings.ini").read_text(), re.M)[1].split()
    assert {"slow", "gpu"} <= set(flags)
    for path in pages.notebooks(ROOT):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and 'device="cuda"' in cell.source:
                assert cell.source.startswith(("#| gpu", "#| export")), (
                    f"{path.name}: a cell needs a GPU and does not say so"
                )


# -- style, make and CI --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["check"], ["format", "--check", "nbs", "tests"]])
def test_ruff_has_nothing_to_say(words):
    done = subprocess.run(
        [Path(sys.executable).with_name("ruff"), *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_make_help_has_a_line_for_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (
        set(re.findall(r"^  make (\w+) +\S", said, re.M)) == targets == set(re.findall(r"^([a-z]+):", makefile, re.M))
    )


@pytest.mark.parametrize("python", ["", "no-such-python", "false"])
def test_without_a_python_that_is_new_enough_make_says_so(checkout, python):
    shutil.copy(ROOT / "Makefile", checkout)
    words = ["make", "setup", f"PYTHON={python}"]
    done = subprocess.run(words, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no Python 3.11 or newer was found" in done.stdout
    assert not (checkout / ".venv").exists()


def test_an_environment_that_was_moved_is_made_anew(checkout):
    shutil.copy(ROOT / "Makefile", checkout)
    (checkout / ".venv").mkdir()
    for place, kept in ((checkout, True), ("/where/it/was/before", False)):
        (checkout / ".venv" / ".ready").write_text(f"{place}\n")
        subprocess.run(["make", "help"], cwd=checkout, capture_output=True, check=True)
        assert (checkout / ".venv").exists() == kept


@pytest.mark.slow(1)
@pytest.mark.filterwarnings("ignore:Cell is missing an id", "ignore:Non-unique cell id")
def test_git_merges_notebooks_cell_by_cell_after_the_hooks(checkout):
    def git(*words):
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )

    shutil.copy(ROOT / ".gitattributes", checkout)
    git("init", "-q", "-b", "main"), git("add", "-A"), git("commit", "-qm", "base")
    checks.install_hooks(checkout)
    path = checkout / "nbs/90_ground/03_noise.ipynb"
    for branch, word in {"ours": "an address of its own", "theirs": "one address"}.items():
        git("checkout", "-q", "-b", branch, "main")
        edit(path, "gets an address", f"gets {word}")
        git("commit", "-qam", branch)
    git("merge", "ours")
    text = path.read_text()
    nbformat.reads(text, as_version=4)  # plain git would have put its markers into the JSON
    assert "an address of its own" in text and "one address" in text
    assert any("merge marker" in fault for fault in pages.output_faults(path))


def answering(server, folder, seconds=120):
    "The address of a Jupyter server; it writes that down, in `folder`, before it listens there."
    deadline = time.monotonic() + seconds
    while True:
        assert server.poll() is None, "the server ended"
        try:
            url = json.loads(next(folder.glob("jpserver-*.json")).read_text())["url"]
            urllib.request.urlopen(f"{url}api", timeout=30).close()
            return url
        except (StopIteration, ValueError, OSError):
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.1)


@pytest.mark.slow(7)
def test_jupyterlab_cleans_a_notebook_when_it_saves_it(checkout):
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    checks.install_hooks(checkout)
    words = [
        "lab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.port=0",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=t",
        "nbs",
    ]
    environment = {**os.environ, "HOME": str(checkout), "JUPYTER_RUNTIME_DIR": str(checkout / "runtime")}
    server = subprocess.Popen(
        [Path(sys.executable).with_name("jupyter"), *words], cwd=checkout, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        url = answering(server, checkout / "runtime") + "api/contents/90_ground/01_errors.ipynb?token=t"
        nb = json.loads((checkout / "nbs/90_ground/01_errors.ipynb").read_text())
        code = next(cell for cell in nb["cells"] if cell["cell_type"] == "code")
        code.update(execution_count=7, metadata={"tags": ["parameters"], "collapsed": True})
        body = json.dumps({"type": "notebook", "format": "json", "content": nb}).encode()
        urllib.request.urlopen(
            urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT"), timeout=30
        ).close()
    finally:
        server.terminate()
        server.wait()
    saved = json.loads((checkout / "nbs/90_ground/01_errors.ipynb").read_text())
    code = next(cell for cell in saved["cells"] if cell["cell_type"] == "code")
    assert code["execution_count"] is None and code["metadata"] == {"tags": ["parameters"]}


def test_ci_and_users_run_the_same_thing():
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "test.yml").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    assert {"setup", "paper", "docs", "check", "test", "long"} <= set(
        re.findall(r"make --no-print-directory (\w+)", script)
    )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs git's list of files")
def test_the_project_speaks_of_no_machine():
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    texts = {
        name: (ROOT / name).read_text()
        for name in tracked
        if Path(name).suffix in {".py", ".md", ".toml", ".ini", ".yml", ".yaml", ".cff", ".ipynb"}
    }
    places = [f"{place}/" for place in (Path.home(), ROOT) if len(str(place)) > 1]
    found = [name for name, text in texts.items() if any(place in text for place in places)]
    assert found == []
