"""The graph of notebooks: made once, resumed after failure and murder, made again when and only when something changed."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml
from conftest import PROGRAMS, alive, program, wait_for

from localdpo.cli import main as cli
from localdpo.engine import fingerprints
from localdpo.engine import graph as engine
from localdpo.engine.lint import lint
from localdpo.engine.profile import load_profile, profile_path, profiles, snakefile_of
from localdpo.ground import paths
from localdpo.ground.errors import Refused

SNAKEFILE = (PROGRAMS / "two_parts.smk").read_text()
PART = (
    "n: int = 0\nword: str = ''\nout: str = ''",
    "import os, pathlib, time",
    "open(f'started-{n}', 'w').write(str(os.getpid()))\nwhile os.path.exists(f'pause-{n}'): time.sleep(0.05)",
    "if os.path.exists(f'break-{n}'): raise RuntimeError('broken on purpose')",
    "pathlib.Path(out).write_text(f'{word} {n}\\n')",
)


@pytest.fixture
def graph(notebook, tmp_path, monkeypatch):
    "A folder with a graph of two parts and a whole; a function that runs it."
    notebook(*PART, name="part.ipynb")
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "graph.yaml").write_text(yaml.safe_dump({"about": "two parts", "parts": [0, 1], "word": "part"}))
    monkeypatch.chdir(tmp_path)

    def run(*words):
        done = subprocess.run(
            program("run_graph.py", ".", "cores=2", *words), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    run.folder = tmp_path
    return run


def dates(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.txt")}


@pytest.mark.slow(12)
def test_a_second_run_has_nothing_to_do(graph):
    status, said = graph()
    assert status == 0, said
    assert (graph.folder / "whole.txt").read_text() == "part 0\npart 1\n"
    before = dates(graph.folder)
    status, said = graph()
    assert status == 0 and "Nothing to be done" in said and dates(graph.folder) == before


@pytest.mark.slow(13)
def test_after_a_failure_the_same_command_makes_only_what_is_missing(graph):
    (graph.folder / "break-1").touch()
    status, said = graph()
    assert status == 1 and "RuntimeError: broken on purpose" in said
    assert "broken on purpose" in (graph.folder / "notebooks" / "part-1.ipynb").read_text()
    assert sorted(dates(graph.folder)) == ["part-0.txt"]  # what did not depend on it was made all the same
    before = dates(graph.folder)
    (graph.folder / "break-1").unlink()
    status, said = graph()
    assert status == 0, said
    after = dates(graph.folder)
    assert {name: after[name] for name in before} == before and "whole.txt" in after


@pytest.mark.slow(19)
@pytest.mark.parametrize("moment", ["building the graph", "a step at work", "a later step"])
def test_after_kill_9_the_same_command_goes_on(graph, moment):
    paused = {"building the graph": [], "a step at work": [0, 1], "a later step": [1]}[moment]
    for n in paused:
        (graph.folder / f"pause-{n}").touch()  # for ever, unless the step notices that its run is gone
    first = subprocess.Popen(
        program("run_graph.py", ".", "cores=2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for((graph.folder / ".run").exists)
    wait_for(lambda: all((graph.folder / f"started-{n}").exists() for n in paused))
    if moment == "a later step":  # the first one is finished, and Snakemake knows it
        wait_for(
            lambda: (
                (graph.folder / "part-0.txt").exists() and len(list(graph.folder.glob(".snakemake/incomplete/*"))) == 1
            )
        )
    first.kill()
    first.wait()
    orphans = [int((graph.folder / f"started-{n}").read_text()) for n in paused]
    finished = dates(graph.folder)
    status, said = graph("dry_run=True")
    assert status == 0, said  # a look is allowed at any time
    wait_for(lambda: not any(alive(pid) for pid in orphans))
    for n in paused:
        (graph.folder / f"pause-{n}").unlink()
    status, said = graph()
    assert status == 0, said
    assert not paused or "a killed run left its locks" in said
    assert (graph.folder / "whole.txt").read_text() == "part 0\npart 1\n"
    assert finished.items() <= dates(graph.folder).items() and bool(finished) == (moment == "a later step")


@pytest.mark.slow(19)
def test_a_dry_run_says_why_and_writes_nothing(graph):
    status, said = graph("dry_run=True")
    assert status == 0 and "reason: Missing output files: part-0.txt" in said
    assert not dates(graph.folder) and not (graph.folder / "notebooks").exists()
    subprocess.run(program("run_graph.py", "new", "dry_run=True"), check=True)
    assert not (graph.folder / "new").exists()
    graph()
    (graph.folder / "graph.yaml").write_text(yaml.safe_dump({"about": "other", "parts": [0, 1], "word": "other"}))
    status, said = graph("dry_run=True")
    assert status == 0 and "Params have changed since last execution" in said


@pytest.mark.slow(6)
def test_braces_in_what_a_profile_is_about_stay_as_they_are(graph):
    about = "a {part} of {0}, {{twice}}, {config[word]} and %s"
    (graph.folder / "graph.yaml").write_text(yaml.safe_dump(dict(about=about, parts=[0], word="part")))
    page = """
rule page:
    output: "page.txt"
    params: about=lambda w: config["about"]
    shell: "printf %s {params.about:q} > {output}"
"""
    (graph.folder / "Snakefile").write_text(SNAKEFILE.replace('"whole.txt"', '"page.txt"', 1) + page)
    status, said = graph()
    assert status == 0, said
    assert (graph.folder / "page.txt").read_text() == about


@pytest.mark.slow(6)
def test_a_dry_run_begins_with_what_is_to_be_done_and_may_be_left_early(graph):
    words = program("run_graph.py", "new/er", "dry_run=True")
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Job stats:") and not done.stderr and not (graph.folder / "new").exists()
    words = [sys.executable, "-m", "localdpo.cli", "paper", "--dry-run", "--profile", "tour", "--out", "new/er"]
    left = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    left.stdout.close()  # as `head` does
    assert (left.stderr.read(), left.wait()) == ("", 0) and not (graph.folder / "new").exists()


@pytest.mark.slow(19)
def test_prose_starts_nothing_and_code_starts_what_depends_on_it(graph):
    assert graph()[0] == 0
    before = dates(graph.folder)
    path = graph.folder / "part.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"].insert(1, {"cell_type": "markdown", "id": "prose", "metadata": {}, "source": "A better sentence."})
    path.write_text(json.dumps(nb))
    status, said = graph()
    assert "Nothing to be done" in said and dates(graph.folder) == before
    path.write_text(path.read_text().replace("{word} {n}", "{word}: {n}"))
    status, said = graph()
    assert status == 0 and (graph.folder / "whole.txt").read_text() == "part: 0\npart: 1\n"


def test_a_fingerprint_follows_imports_through_modules(notebook, tmp_path, monkeypatch):
    shutil.copytree(fingerprints.PACKAGE, tmp_path / "localdpo")
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path / "localdpo")
    fingerprints._module.cache_clear()
    draws = notebook(
        "n: int = 0", "%matplotlib inline\ndef f():\n    from localdpo.ground import noise", name="draws.ipynb"
    )
    reads = notebook("n: int = 0", "from localdpo.ground import paths", name="reads.ipynb")
    before = fingerprints.fingerprint(draws), fingerprints.fingerprint(reads)
    with open(tmp_path / "localdpo/ground/noise.py", "a") as module:
        module.write("\nCHANGED = 1\n")
    assert fingerprints.fingerprint(draws) != before[0] and fingerprints.fingerprint(reads) == before[1]
    with open(tmp_path / "localdpo/ground/errors.py", "a") as module:
        module.write("\nCHANGED = 1\n")  # both need it, through another module
    assert fingerprints.fingerprint(reads) != before[1]
    fingerprints._module.cache_clear()


def test_a_fingerprint_follows_relative_imports_of_a_subpackage(tmp_path, monkeypatch):
    part = tmp_path / "localdpo" / "part"
    part.mkdir(parents=True)
    for name, source in {
        "__init__": "",
        "a": "from .b import x",
        "b": "from ..c import y",
        "../c": "y = 1",
        "../d": "",
    }.items():
        (part / f"{name}.py").write_text(source)
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path / "localdpo")
    fingerprints._module.cache_clear()
    assert [path.stem for path in fingerprints.modules("import localdpo.part.a")] == ["c", "__init__", "a", "b"]
    fingerprints._module.cache_clear()


# -- the Snakefile -------------------------------------------------------------------------------------------------------


@pytest.mark.slow(2)
@pytest.mark.parametrize("profile", profiles())
def test_no_rule_of_ours_leaves_a_wildcard_out_of_its_params(profile):
    config = yaml.safe_load(profile_path(profile).read_text())
    assert lint(snakefile_of(profile), config) == []


def test_the_lint_finds_a_wildcard_that_was_left_out(tmp_path):
    careful = snakefile_of("tour").read_text()
    careless = careful.replace("params: seed=lambda w: w.seed, noise_alpha", "params: noise_alpha").replace(
        "-p seed={params.seed} -p noise_alpha", "-p seed={wildcards.seed} -p noise_alpha"
    )
    assert careless != careful
    (tmp_path / "Snakefile").write_text(careless)
    config = yaml.safe_load(profile_path("tour").read_text())
    assert lint(tmp_path / "Snakefile", config) == ["rule tour: wildcard `seed` is missing in params:"]


def test_the_lint_finds_the_shared_cache(tmp_path):
    (tmp_path / "Snakefile").write_text("rule a:\n    output: 'a'\n    cache: True\n    shell: 'touch {output}'\n")
    assert lint(tmp_path / "Snakefile") == ["rule a: `cache:` hands one result to many jobs"]


# -- profiles and options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({"seeds": None}, "`seeds` is None"),
        ({"sead": 3}, "`sead`"),
        ({"frames": 9.5}, "`frames` is 9.5"),
        ({"size": True}, "`size` is True"),
        ({"about": None}, "has no `about`"),
        ({"graph": "tuor"}, "`graph` is 'tuor'"),
    ],
)
def test_a_profile_with_a_mistake_is_refused_by_name(tmp_path, capsys, change, said):
    profile = {**yaml.safe_load(profile_path("tour").read_text()), **change}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(profile))
    assert cli.main(["paper", "--profile", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]) == 2
    answer = capsys.readouterr().err
    assert said in answer and "mine.yaml" in answer and "Traceback" not in answer
    assert not (tmp_path / "out").exists()


def test_a_profile_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("about: [")
    with pytest.raises(Refused, match="mine.yaml: is not readable yaml.*line 1"):
        engine.run(tmp_path / "mine.yaml", tmp_path / "out")


BOMB = "about: x\na0: &a0 [x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text, said",
    [
        (BOMB, "has more than 10 aliases"),
        ("about: x\nseeds: " + "[" * 20_000 + "]" * 20_000, "nests deeper than 10 levels"),
        ("about: x\nseeds: " + "{a: " * 50 + "1" + "}" * 50, "nests deeper than 10 levels"),
        ("about: x\nseeds: &s [*s]", "contains itself"),
        ("about: " + "x" * 200_000, "has 200007 bytes"),
        ("about: !!python/object/apply:os.system ['touch made']", "is not readable yaml.*python/object"),
        ("about: x\nseeds: 2026-13-45", "is not readable yaml.*month"),
    ],
)
def test_a_profile_that_would_blow_up_is_refused_at_once(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(Refused, match=said):
        load_profile(tmp_path / "mine.yaml")
    assert time.monotonic() - started < 5 and not (tmp_path / "made").exists()


def test_a_few_aliases_are_fine(tmp_path):
    (tmp_path / "mine.yaml").write_text("about: x\nbeta: &b [300, 1000]\nagain: *b\n")
    assert load_profile(tmp_path / "mine.yaml")["again"] == [300, 1000]


@pytest.mark.slow(1)
def test_a_home_that_cannot_be_written_is_no_hindrance(graph, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    status, said = graph("dry_run=True")
    assert status == 0 and "Traceback" not in said, said


def test_a_new_torch_changes_the_steps_that_use_it_and_no_others(monkeypatch, notebook):
    uses = notebook("n: int = 0", "from localdpo.backbones.backbone import Backbone", name="uses.ipynb")
    draws = notebook("n: int = 0", "from localdpo.ground import paths", name="draws.ipynb")
    before = fingerprints.fingerprint(uses), fingerprints.fingerprint(draws)
    known = fingerprints.versions
    monkeypatch.setattr(fingerprints, "versions", lambda names: known(names) | {n: "99" for n in names if n == "torch"})
    assert fingerprints.fingerprint(uses) != before[0] and fingerprints.fingerprint(draws) == before[1]
    assert [name.split()[0] for name in fingerprints.packages("import av.video", "from torch import nn")] == [
        "av",
        "torch",
    ]


def test_an_unknown_profile_is_refused_with_the_list():
    with pytest.raises(Refused, match="tours: is not a profile\n  -> choose one of quick, tour"):
        engine.run("tours")


def test_as_many_cores_are_used_as_may_be(monkeypatch):
    monkeypatch.setattr(engine.info, "processors", lambda: 3)  # of a machine that has more
    words = engine.arguments("tour", "out")
    assert words[words.index("--cores") + 1] == "3"
    words = engine.arguments("tour", "out", cores=5)
    assert words[words.index("--cores") + 1] == "5"


@pytest.fixture
def slurm(monkeypatch):
    monkeypatch.setattr(engine, "find_spec", lambda name: True)  # as if the extra `slurm` were installed


def test_slurm_without_its_plugin_is_refused_with_the_command():
    if engine.find_spec("snakemake_executor_plugin_slurm"):
        pytest.skip("the plugin is installed")
    with pytest.raises(Refused, match=r"needs Snakemake's plugin.*\n.*pip install"):
        engine.run("tour", slurm="partition=gpu", dry_run=True)


def test_slurm_words_become_resources(slurm):
    words = engine.arguments("tour", "out", slurm="partition=gpu,account=me,jobs=8,runtime=240")
    assert words[words.index("--executor") + 1] == "slurm" and words[words.index("--jobs") + 1] == "8"
    assert {"slurm_partition=gpu", "slurm_account=me", "runtime=240"} <= set(words) and "--cores" not in words


def test_a_misspelt_slurm_word_is_refused(slurm):
    with pytest.raises(Refused, match="does not know partitoin"):
        engine.arguments("tour", "out", slurm="partitoin=gpu")


@pytest.mark.slow(15)
def test_a_run_beside_a_run_is_refused(graph):
    (graph.folder / "pause-0").touch()
    first = subprocess.Popen(
        program("run_graph.py", ".", "cores=2"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for((graph.folder / "started-0").exists)
    status, said = graph()
    assert status == 1 and f"process {first.pid}" in said
    (graph.folder / "pause-0").unlink()
    assert first.wait(timeout=60) == 0


@pytest.mark.parametrize("words", ["jobs", "jobs=x", "partition=,jobs=2"])
def test_half_a_slurm_word_is_refused(slurm, words):
    with pytest.raises(Refused, match="is not a list of name=value"):
        engine.arguments("tour", "out", slurm=words)


# -- the tour itself -----------------------------------------------------------------------------------------------------


@pytest.mark.slow(37)
def test_the_tour_makes_a_page_that_stands_alone(tmp_path):
    (tmp_path / "little.yaml").write_text(
        yaml.safe_dump(
            {"about": "a little tour", "graph": "tour", "seeds": [5], "frames": 5, "size": 32, "noise_alpha": 0.8}
        )
    )
    words = [
        sys.executable,
        "-m",
        "localdpo.cli",
        "paper",
        "--profile",
        tmp_path / "little.yaml",
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    assert "a little tour" in page and "data:video/mp4" in page and "data:image/png" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (tmp_path / "out" / link).exists(), link
    (tmp_path / "out" / "notebooks" / "tour-a.ipynb").touch()  # as a refused step leaves it
    shutil.copy(
        tmp_path / "out" / "tables" / "tour-5.json", tmp_path / "out" / "tables" / "tour-4.json"
    )  # another profile's
    (tmp_path / "out" / "manifest.json").unlink()
    subprocess.run(words, check=True, capture_output=True)
    assert (tmp_path / "out" / "manifest.json").exists() and (tmp_path / "out" / "index.html").read_text().count(
        "<td>5</td>"
    ) == 1
    assert "tour-a" not in (tmp_path / "out" / "index.html").read_text()
    numbers = json.loads((tmp_path / "out" / "tables" / "tour-5.json").read_text())
    assert numbers["first_loss"] == pytest.approx(0.6931, abs=1e-4) and numbers["noise_alpha"] == 0.8
    for path in (tmp_path / "out").rglob("*.ipynb"):
        assert str(paths.root()) not in path.read_text() and os.path.expanduser("~") not in path.read_text()
