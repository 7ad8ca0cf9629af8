import hashlib
import json
import re

import nbformat
import pytest

from localdpo.engine import report
from localdpo.ground import paths
from localdpo.ground.errors import Refused
from localdpo.media import figures, sheets, video


@pytest.fixture
def run(tmp_path):
    "A folder as a run leaves it: a figure, a clip, numbers, one notebook that ended well and one that did not."
    chart, _ = figures.new(2, 1)
    figures.save(chart, tmp_path / "figures" / "good.png")
    (tmp_path / "media").mkdir()
    video.write(tmp_path / "media" / "good.mp4", sheets.demo_clip(0), fps=8)
    paths.write_json(tmp_path / "tables" / "good.json", {"seed": 3, "loss": 0.123456789, "note": "<b>bold</b>"})
    (tmp_path / "notebooks").mkdir()
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# Good\n> Well made"), nbformat.v4.new_code_cell("1 + 1")]
    )
    nb.metadata["papermill"] = {"parameters": {"seed": 3, "figure": "figures/good.png"}, "duration": 1.5}
    nbformat.write(nb, tmp_path / "notebooks" / "good.ipynb")
    error = nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="division by zero", traceback=[])
    nb.cells[1].outputs = [error]
    nbformat.write(nb, tmp_path / "notebooks" / "bad.ipynb")
    return tmp_path


def test_braces_in_what_a_run_is_about_stay_as_they_are(run):
    assert "a {try} of {0} and {{two}}, 100%s" in report.build(run, "a {try} of {0} and {{two}}, 100%s").read_text()


def test_each_result_names_the_notebook_and_parameters_that_made_it(run):
    page = report.build(run, "a try").read_text()
    made = '<b><a href="notebooks/good.html">Good</a></b><br>Well made<details><summary>made with</summary>seed 3</details>'
    assert page.count(made) == 2  # the figure and the clip
    assert "a try" in page and "0.1235" in page


def test_a_failed_step_is_shown_as_failed(run):
    page = report.build(run).read_text()
    assert re.search(r'bad</a></td><td><span class="failed">ZeroDivisionError: division by zero', page)


def test_text_of_results_cannot_become_markup(run):
    assert "<b>bold" not in report.build(run).read_text()


def test_the_manifest_has_the_hash_of_every_file(run):
    report.build(run)
    manifest = json.loads((run / "manifest.json").read_text())
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == digest
    assert {"figures/good.png", "media/good.mp4", "tables/good.json", "notebooks/good.ipynb"} <= set(manifest["sha256"])
    assert manifest["commit"] is None or re.match(r"[0-9a-f]{12}(\+edits)?$", manifest["commit"])


def test_steps_of_different_origin_are_told_apart(run):
    for name, commit in {"good": "aaaa", "bad": "bbbb"}.items():
        path = run / "notebooks" / f"{name}.ipynb"
        nb = nbformat.read(path, as_version=4)
        nb.metadata["localdpo"] = {"commit": commit, "host": "h", "date": "2026", "packages": {"torch": "2"}}
        nbformat.write(nb, path)
    page = report.build(run).read_text()
    assert "commit aaaa" in page and "commit bbbb" in page and "[good]" in page
    assert "commit bbbb" not in report.build(run, names=["good"]).read_text()


def test_large_media_are_linked_and_small_ones_are_inside(run):
    (run / "media" / "large.mp4").write_bytes(b"x" * (report.EMBEDDED + 1))
    page = report.build(run).read_text()
    assert 'src="media/large.mp4"' in page and page.count("data:video/mp4") == 1


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(Refused, match="holds no run"):
        report.build(tmp_path)
