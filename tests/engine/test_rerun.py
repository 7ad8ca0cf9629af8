"""Papermill's silent failures, each made loud; and what is kept of a run."""

import json
import os
import re
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import nbformat
import pytest
from conftest import alive, wait_for

from localdpo.dev import pages
from localdpo.engine import rerun
from localdpo.ground import paths
from localdpo.ground.errors import Failed, Refused


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


# -- the parameters cell -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tagged", [(), (0, 1)])
def test_exactly_one_parameters_cell(notebook, tagged):
    # papermill alone puts the values on top, where the notebook's own defaults override them, and exits with 0
    with pytest.raises(Refused, match=f"small.ipynb: has {len(tagged)} code cells tagged `parameters`"):
        rerun.parameters(notebook("n: int = 1", "m: int = 2", tagged=tagged))


def test_cleaning_keeps_the_tag(notebook, tmp_path):
    # nbdev_clean drops tags unless told otherwise, and the values would then be overridden
    path = notebook("n: int = 1", "print(n)")
    (tmp_path / "settings.ini").write_text((paths.root() / "settings.ini").read_text())
    subprocess.run([Path(sys.executable).with_name("nbdev_clean"), "--fname", path], cwd=tmp_path, check=True)
    assert list(rerun.parameters(path)) == ["n"]


@pytest.mark.parametrize(
    "source, reason",
    [
        ("n = 1", "declares no typed parameter"),
        ("n: int", "declares no typed parameter"),
        ("import os", "declares no typed parameter"),
        ("n: int = 2\ntwice: int = 2 * n", "is computed"),
        ("n: int = '2'", "is not of its own type"),
        ("n: Path = 'x'", "is not a type"),
        ("n: int = ", "is not Python"),
        ("n: int = " + "-" * 20_000 + "1", "is not Python|is computed"),
        ("n: int = 1\nn: int = 2", "declares `n` twice"),
    ],
)
def test_a_parameters_cell_that_leaves_doubt_is_refused(notebook, source, reason):
    with pytest.raises(Refused, match=reason):
        rerun.parameters(notebook(source))


STRANGE = [  # annotations that do something when they are evaluated
    "n: [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['touch', {!r}]) = 1",
    "n: (lambda: [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['touch', {!r}]))() = 1",
    "n: int[[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0](['touch', {!r}])] = 1",
    "n: __import__('pathlib').Path({!r}).touch() = 1",
    "n: \"__import__('pathlib').Path({!r}).touch()\" = 1",
    "n: list[\"__import__('pathlib').Path({!r}).touch()\"] = []",
]


@pytest.mark.parametrize("source", STRANGE)
def test_listing_parameters_runs_nothing_of_the_notebook(notebook, tmp_path, source):
    trace = tmp_path / "trace"
    path = notebook(source.format(str(trace)))
    with pytest.raises(Refused, match="is not a type that a parameter can have"):
        rerun.parameters(path)
    time.sleep(0.2)  # for a process that was started
    assert not trace.exists()


@pytest.mark.slow(2)
def test_a_second_run_into_the_same_file_is_refused_and_the_first_ends_well(notebook, tmp_path):
    begun, go, out = tmp_path / "begun", tmp_path / "go", tmp_path / "out.ipynb"
    work = (
        f"import os, time\nopen({str(begun)!r}, 'w').close()\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)"
    )
    path = notebook("n: int = 1", work, "7 * n")
    first = subprocess.Popen([sys.executable, "-m", "localdpo.cli", "rerun", path, out], stderr=subprocess.DEVNULL)
    while not begun.exists():
        assert first.poll() is None
        time.sleep(0.05)
    (growing,), ignored = tmp_path.glob(".*.ipynb"), (paths.root() / ".gitignore").read_text().split()
    assert any(fnmatch(growing.name, pattern) for pattern in ignored)
    with pytest.raises(Refused, match="out.ipynb: is being written by another process"):
        rerun.run(path, out)
    go.touch()
    assert first.wait() == 0 and nbformat.read(out, 4).cells[-1].outputs[0]["data"]["text/plain"] == "7"
    assert not list(tmp_path.glob(".*"))


def test_every_kind_of_parameter_is_seen(notebook):
    # papermill's own inspection loses annotations with | or quotes in them
    source = '"What this does."\na: int | None = None\nb: list[str] = ["x"]\nc: Optional[float] = 0.5  # share, 0 to 1\nd: dict[str, int] = {}  # é #2\ne: "int" = 3'
    found = rerun.parameters(notebook(source))
    assert {name: p.default for name, p in found.items()} == {"a": None, "b": ["x"], "c": 0.5, "d": {}, "e": 3}
    assert found["c"].help == "share, 0 to 1" and found["d"].help == "é #2"


@pytest.mark.parametrize(
    "cell", ["#| eval: false\nx = 1", "# | eval: false\nx = 1", "#| gpu\nx = 1", "import nbdev; nbdev.nbdev_export()"]
)
def test_nbdev_directives_are_refused(notebook, cell):
    # nbdev skips such cells, papermill runs them
    with pytest.raises(Refused, match="means nothing to papermill"):
        rerun.parameters(notebook("n: int = 1", cell))


@pytest.mark.parametrize(
    "page",
    [path for path in pages.notebooks(paths.root()) if '"parameters"' in path.read_text()],
    ids=lambda path: path.stem,
)
def test_every_page_with_parameters_can_be_rerun(page):
    assert rerun.parameters(page)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"cells": 3}'])
def test_a_broken_notebook_file_is_named(tmp_path, content):
    (tmp_path / "broken.ipynb").write_text(content)
    with pytest.raises(Refused, match="broken.ipynb"):
        rerun.parameters(tmp_path / "broken.ipynb")


# -- values --------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_the_list(notebook):
    # papermill drops it and runs the default
    with pytest.raises(Refused, match=r"(?s)no parameter `setps`.*steps: int = 2"):
        rerun.check(notebook("steps: int = 2"), {"setps": 3})


@pytest.mark.parametrize(
    "declared, value",
    [
        ("int", "3"),
        ("int", True),
        ("int", 2.0),
        ("bool", 1),
        ("str", 7),
        ("float", "5e-4"),
        ("list[int]", ["1"]),
        ("int", None),
    ],
)
def test_a_wrong_type_is_refused(notebook, declared, value):
    default = {"int": 0, "bool": False, "str": "", "float": 0.0, "list[int]": []}[declared]
    with pytest.raises(Refused, match=re.escape(f"parameter `x` is {declared}, and {value!r} is not")):
        rerun.check(notebook(f"x: {declared} = {default!r}"), {"x": value})


@pytest.mark.parametrize(
    "declared, default, text, value",
    [
        ("float", 0.0, "5e-4", 5e-4),
        ("float", 0.0, "3", 3.0),
        ("str", "", "007", "007"),
        ("str", "", "a=b", "a=b"),
        ("str", "", "", ""),
        ("str", "", "true", "true"),
        ("bool", False, "true", True),
        ("list[int]", [], "[1, 2]", [1, 2]),
        ("int | None", 1, "null", None),
        ("dict[str, float]", {}, '{"a": 1}', {"a": 1.0}),
    ],
)
def test_text_is_read_as_the_declared_type(notebook, declared, default, text, value):
    # papermill's -p guesses: 007 becomes 7
    read = rerun.parse(notebook(f"x: {declared} = {default!r}"), [f"x={text}"])["x"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "words, reason",
    [
        (["x"], "is not an assignment"),
        (["x=1", "x=2"], "a second value"),
        (["x=2.5"], "does not read as one"),
        (["y=1"], "no parameter `y`"),
    ],
)
def test_a_wrong_assignment_is_refused(notebook, words, reason):
    with pytest.raises(Refused, match=reason):
        rerun.parse(notebook("x: int = 0"), words)


# -- the run -------------------------------------------------------------------------------------------------------------


def test_values_reach_the_notebook_and_the_copy_holds_no_path_of_this_machine(notebook, tmp_path):
    path = notebook(
        "n: int = 1\nword: str = 'x'",
        "print(n * 2, word)",
        f"import os, sys; print(os.getcwd(), sys.executable, os.path.expanduser('~/x'), {str(paths.root())!r} + '/nbs')",
    )
    done = rerun.run(path, tmp_path / "deep" / "done.ipynb", {"n": 21, "word": "007"})
    assert outputs(done).startswith("42 007\n")
    text = done.read_text()
    for place in (paths.root(), Path.home(), sys.prefix, sys.base_prefix, Path.cwd(), tmp_path):
        assert str(place) not in text
    assert json.loads(text)["metadata"]["papermill"]["parameters"] == {"n": 21, "word": "007"}


def test_a_failed_notebook_is_kept_and_says_where(notebook, tmp_path):
    path = notebook("n: int = 1", "print('so far')", "import json; json.loads('{')", "print('never')")
    with pytest.raises(Failed, match=r"(?s)small.ipynb, cell 3: JSONDecodeError.*failed.ipynb"):
        rerun.run(path, tmp_path / "failed.ipynb")
    kept = (tmp_path / "failed.ipynb").read_text()
    assert "so far" in outputs(tmp_path / "failed.ipynb") and "JSONDecodeError" in kept
    assert sys.base_prefix not in kept and str(tmp_path) not in kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["failed.ipynb", "small.ipynb"]


@pytest.mark.slow(2)
def test_a_kernel_that_dies_is_an_error_and_not_a_wait(notebook, tmp_path):
    path = notebook("n: int = 1", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(Failed, match="small.ipynb.*died"):
        rerun.run(path, tmp_path / "out.ipynb")


@pytest.mark.slow(2)
def test_a_cell_that_takes_too_long_is_stopped(notebook, tmp_path, capfd):
    with pytest.raises(Failed, match="(?i)timed out|timeout"):
        rerun.run(notebook("n: int = 1", "import time; time.sleep(60)"), tmp_path / "out.ipynb", cell_timeout=1)
    assert capfd.readouterr() == ("", "")


def test_an_out_that_cannot_be_written_is_refused_before_the_run(notebook, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="file: is a file\n.*choose a folder"):
        rerun.run(notebook("n: int = 1", "import time; time.sleep(60)"), tmp_path / "file" / "out.ipynb")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(notebook, value):
    with pytest.raises(Refused, match="no result can depend on"):
        rerun.check(notebook("x: float = 0.5"), {"x": value})


def test_the_copy_says_what_ran_it(notebook, tmp_path):
    done = rerun.run(notebook("n: int = 1"), tmp_path / "out.ipynb")
    assert {"commit", "date", "host", "packages"} <= set(json.loads(done.read_text())["metadata"]["localdpo"])


def test_the_source_is_never_overwritten(notebook):
    path = notebook("n: int = 1")
    before = path.read_bytes()
    with pytest.raises(Refused, match="is the notebook itself\n.*name another file"):
        rerun.run(path, path)
    assert path.read_bytes() == before


def test_another_kernel_under_the_same_name_is_not_used(notebook, tmp_path, monkeypatch):
    impostor = tmp_path / "data" / "kernels" / "python3"
    impostor.mkdir(parents=True)
    (impostor / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "python3", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    done = rerun.run(
        notebook("n: int = 1", "import sys; print(sys.executable == " + repr(sys.executable) + ")"),
        tmp_path / "out.ipynb",
    )
    assert outputs(done) == "True\n"


@pytest.mark.slow(8)
def test_many_at_once_in_one_folder_keep_to_their_own_kernels(notebook, tmp_path):
    # TCP ports can be lost between choosing and binding them, and sockets in the working folder get mixed up
    path = notebook("n: int = 0", "print('number', n)")
    words = [sys.executable, "-m", "localdpo.cli", "rerun", path]
    runs = [
        subprocess.Popen([*words, f"out-{n}.ipynb", "-p", f"n={n}"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for n in range(6)
    ]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 6, said
    assert [outputs(tmp_path / f"out-{n}.ipynb") for n in range(6)] == [f"number {n}\n" for n in range(6)]
    assert not any("TCP" in text for text in said)
    assert all(p.suffix == ".ipynb" for p in tmp_path.iterdir())


def test_a_long_working_folder_does_not_matter(notebook, tmp_path, monkeypatch):
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    monkeypatch.setenv("TMPDIR", str(deep))
    assert outputs(rerun.run(notebook("n: int = 1", "print('fine')"), deep / "out.ipynb")) == "fine\n"


@pytest.mark.slow(2)
def test_a_killed_run_takes_its_kernel_with_it(notebook, tmp_path):
    path = notebook(
        "n: int = 1",
        f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))",
        "import time; time.sleep(120)",
    )
    run = subprocess.Popen(
        [sys.executable, "-m", "localdpo.cli", "rerun", path, tmp_path / "out.ipynb"], stderr=subprocess.DEVNULL
    )
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    run.kill()
    run.wait()
    assert wait_for(lambda: not alive(pid))


# -- the command line ----------------------------------------------------------------------------------------------------


@pytest.mark.slow(3)
@pytest.mark.parametrize(
    "words, status, said",
    [(["-p", "n=2"], 0, "done in"), (["-p", "m=2"], 2, "no parameter `m`"), (["-p", "n=0"], 1, "ZeroDivisionError")],
)
def test_the_exit_status_tells(notebook, tmp_path, words, status, said):
    path = notebook("n: int = 1", "1 / n")
    done = subprocess.run(
        [sys.executable, "-m", "localdpo.cli", "rerun", path, tmp_path / "out.ipynb", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out.ipynb").exists() == (status != 2)


def test_a_wrong_name_is_refused_even_when_only_listing(notebook):
    words = [sys.executable, "-m", "localdpo.cli", "rerun", notebook("n: int = 1"), "-p", "typo=1"]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 2


def test_without_an_out_the_parameters_are_listed(notebook):
    done = subprocess.run(
        [sys.executable, "-m", "localdpo.cli", "rerun", notebook("n: int = 1  # how many")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "n: int = 1  # how many\n"


@pytest.mark.slow(4)
def test_progress_is_shown_on_a_terminal(notebook, terminal, tmp_path):
    ours, theirs = terminal
    subprocess.run(
        [sys.executable, "-m", "localdpo.cli", "rerun", notebook("n: int = 1", "n"), tmp_path / "out.ipynb"],
        stderr=theirs,
        check=True,
    )
    os.close(theirs)
    assert re.search(r"small: +\d+%", os.read(ours, 100_000).decode())
