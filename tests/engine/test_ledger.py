"What steps hand on is believed only as long as it is what they wrote: every kind of damage to every kind of output."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import PROGRAMS, program

from localdpo.engine import ledger
from localdpo.engine.ledger import Step, seal
from localdpo.ground.errors import Refused

sys.path.insert(0, str(Path(__file__).parent))
import damage

CHAIN = {"a": (), "b": ("work/a.csv",), "c": ("work/b.csv",), "apart": ()}


@pytest.fixture
def run(tmp_path):
    "A run of three steps, each made from the one before, one beside them, and the page of all."
    for name, needs in CHAIN.items():
        for path in (f"notebooks/{name}.ipynb", f"work/{name}.csv", f"work/{name}-1/part.bin"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(f"{path} " * 20)
        seal(Step(f"notebooks/{name}.ipynb", (f"work/{name}.csv",), needs, f"work/{name}-1"), tmp_path)
    for name in ledger.PAGES:
        (tmp_path / name).write_text(f"{name} " * 20)
    seal(Step("index.html", ("manifest.json",), ("work/c.csv", "work/apart.csv")), tmp_path)
    return tmp_path


def there(run):
    return {path.stem for path in (run / "work").glob("*.csv")}


@pytest.mark.parametrize("kind", damage.KINDS)
@pytest.mark.parametrize("name", ["work/b.csv", "notebooks/b.ipynb", "work/b-1/part.bin"])
def test_what_is_damaged_goes_with_what_was_made_from_it_and_nothing_else(run, kind, name):
    kind(run / name)
    (line, *_) = ledger.mend(run, dry_run=True)
    assert line.startswith(f"{name} ") and there(run) | {"b"} == {"a", "b", "c", "apart"}  # a look changes nothing
    lines = ledger.mend(run)
    assert there(run) == {"a", "apart"} and not (run / "index.html").exists()
    assert (run / "work/a-1/part.bin").exists() and not (run / name).exists()
    assert kind is damage.deleted or (os.path.lexists(run / "damaged" / name) and "kept in damaged/" in lines[-1])
    assert ledger.mend(run) == []


@pytest.mark.parametrize("kind", damage.KINDS)
@pytest.mark.parametrize("name", ledger.PAGES)
def test_a_damaged_page_is_made_again_alone(run, kind, name):
    kind(run / name)
    ledger.mend(run)
    assert there(run) == {*CHAIN} and not any((run / page).exists() for page in ledger.PAGES)


@pytest.mark.parametrize("kind", damage.KINDS)
@pytest.mark.parametrize("name", ["notebooks/a.ipynb", "index.html"])
def test_a_seal_that_is_damaged_vouches_for_nothing(run, kind, name):
    kind(run / f".seals/{name}.json")
    ledger.mend(run)
    assert there(run) == ({"apart"} if name == "notebooks/a.ipynb" else {*CHAIN}) and not (run / "index.html").exists()


def test_a_folder_whose_file_is_damaged_is_made_afresh_where_that_was_asked_for(run):
    seal(Step("notebooks/a.ipynb", ("work/a.csv",), (), "work/a-1", afresh=True), run)
    (run / "work/a-1/more.bin").write_text("of this run")
    damage.flipped(run / "work/a-1/part.bin")
    ledger.mend(run)
    assert not (run / "work/a-1").exists() and (run / "work/b-1/part.bin").exists()


def test_sound_files_are_left_alone_also_when_only_their_dates_changed(run):
    os.utime(run / "work/a.csv", (1, 1))
    os.utime(run / "work/a-1/part.bin", (1, 1))
    (run / "work/a-1/added.txt").write_text("not of the step")
    assert ledger.mend(run) == [] and there(run) == {*CHAIN}


def test_a_run_without_seals_is_believed(tmp_path):
    (tmp_path / "index.html").write_text("of another graph")
    assert ledger.mend(tmp_path) == [] and (tmp_path / "index.html").exists()


def test_a_step_whose_input_was_damaged_meanwhile_does_not_begin(run):
    ledger.check(["work/a.csv", f"../{run.name}/work/a.csv"], run)
    damage.flipped(run / "work/a.csv")
    with pytest.raises(Refused, match="a.csv: is not what was written\n  -> give the same command again"):
        ledger.check(["work/a.csv"], run)


def test_what_was_never_written_is_not_sealed(run):
    with pytest.raises(Refused, match="d.csv: was not written by its step\n  -> look into notebooks/a.ipynb"):
        seal(Step("notebooks/a.ipynb", ("work/d.csv",)), run)


# -- through the engine --------------------------------------------------------------------------------------------------

WRITE = "import pathlib\npathlib.Path(out).write_text(f'part {n}\\n' * 20)"
JOIN = "import pathlib\nparts = sorted(pathlib.Path('work').glob('part-*.csv'))\npathlib.Path(out).write_text(''.join(p.read_text() for p in parts))"


def made(folder):
    words = program("run_graph.py", ".", "cores=2")
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.long(60)
def test_the_same_command_makes_whole_what_was_damaged_and_no_more(notebook, tmp_path):
    parts = list(range(len(damage.KINDS) + 1))
    notebook("n: int = 0\nout: str = ''", WRITE, name="part.ipynb")
    notebook("out: str = ''", JOIN, name="whole.ipynb")
    shutil.copy(PROGRAMS / "sealed_parts.smk", tmp_path / "Snakefile")
    (tmp_path / "graph.yaml").write_text(yaml.safe_dump(dict(about="parts", parts=parts)))
    made(tmp_path)
    results = lambda: {k: v for k, v in damage.states(tmp_path).items() if k.startswith(("work", "tables"))}  # noqa: E731
    before = results()
    for place in ("work/part-{}.csv", "notebooks/part-{}.ipynb"):
        untouched = (tmp_path / f"work/part-{parts[-1]}.csv").stat().st_mtime_ns
        for n, kind in enumerate(damage.KINDS):
            kind(tmp_path / place.format(n))
        said = made(tmp_path)
        assert results() == before and all(place.format(n) in said for n in parts[:-1])
        assert (tmp_path / f"work/part-{parts[-1]}.csv").stat().st_mtime_ns == untouched
        assert all((tmp_path / f"notebooks/part-{n}.ipynb").stat().st_size for n in parts)
    assert "Nothing to be done" in made(tmp_path)
