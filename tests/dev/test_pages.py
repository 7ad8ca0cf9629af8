"""What a page may hold: each fault is found when it is planted, and its mended form is welcome."""

import nbformat
import pytest

from localdpo.dev import pages


def with_output(tmp_path, output=None, source="x", metadata=None):
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source, outputs=[output] if output else [])], metadata=metadata or {}
    )
    nbformat.write(nb, tmp_path / "a.ipynb")
    return pages.output_faults(tmp_path / "a.ipynb")


def shown(**data):
    return nbformat.v4.new_output("display_data", data)


@pytest.mark.parametrize(
    "output, said",
    [
        (shown(**{"text/plain": "x" * 50_001}), "its outputs take 50 kB"),
        (shown(**{"text/html": "<video src='data:video/mp4;base64,AAAA'>"}), "an embedded video"),
        (shown(**{"video/mp4": "AAAA"}), "an embedded video"),
        (shown(**{"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}), "state of a widget"),
        (nbformat.v4.new_output("stream", name="stderr", text="Warning"), "written to stderr"),
        (nbformat.v4.new_output("error", ename="KeyError", evalue="x", traceback=[]), "an error (KeyError)"),
    ],
)
def test_outputs_that_do_not_belong_in_a_notebook_are_found(tmp_path, output, said):
    (fault,) = with_output(tmp_path, output)
    assert said in fault and fault.startswith("a.ipynb")


def test_a_small_picture_is_welcome(tmp_path):
    assert with_output(tmp_path, shown(**{"image/png": "A" * 20_000})) == []


def test_widget_state_of_the_whole_notebook_is_found(tmp_path):
    assert "state of widgets" in with_output(tmp_path, metadata={"widgets": {}})[0]


@pytest.mark.parametrize("source", ["<<<<<<< HEAD\nx = 1", "x = 1\n=======\nx = 2", ">>>>>>> theirs", "`<<<<<<< HEAD`"])
def test_merge_markers_are_found(tmp_path, source):
    # nbdev's merge driver leaves them as markdown cells between two variants that would both be exported
    assert "merge marker" in with_output(tmp_path, source=source)[0]


def test_a_notebook_without_a_title_is_found(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), tmp_path / "a.ipynb")
    assert "`# title`" in pages.opening_faults(tmp_path / "a.ipynb")[0]


# -- title, cells, picture ------------------------------------------------------------------------------------------------


def write(folder, name, *cells, title="# A\n> B."):
    "A page below `folder`, which stands for a checkout."
    path = folder / "nbs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(title), *cells]), path)
    return path


def code(source, *outputs):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs))


PICTURE = shown(**{"image/png": "AAAA"})
APPENDIX = "# A\n> B.\n\n*Appendix*"


def kinds(folder, *found):
    return sorted(pages.page_faults(folder, sorted(found)))


@pytest.mark.parametrize("lines, fine", [(40, True), (41, False)])
def test_an_exported_cell_has_at_most_40_lines(tmp_path, lines, fine):
    body = "x = 1\n" * lines
    page = write(tmp_path, "1.ipynb", code("#| export\n" + body), code("y = 2\n" * 99), title=APPENDIX)
    assert kinds(tmp_path, page) == ([] if fine else ["nbs/1.ipynb cells"])


def test_a_page_shows_its_picture_by_the_second_cell(tmp_path):
    assert kinds(tmp_path, write(tmp_path, "1.ipynb", code("x", PICTURE))) == []
    assert kinds(tmp_path, write(tmp_path, "1.ipynb", code("x"), code("x", PICTURE))) == ["nbs/1.ipynb picture"]
    assert kinds(tmp_path, write(tmp_path, "1.ipynb", code("x"), title=APPENDIX)) == []
    assert kinds(tmp_path, write(tmp_path, "rerun/1.ipynb", code("x"))) == []


def test_a_link_to_an_image_counts_when_the_image_is_there(tmp_path):
    page = write(tmp_path, "a/1.ipynb", title="# A\n> B.\n\n![C](../images/c.png)")
    assert kinds(tmp_path, page) == ["nbs/a/1.ipynb picture"]
    (tmp_path / "nbs/images").mkdir()
    (tmp_path / "nbs/images/c.png").write_bytes(b"c")
    assert kinds(tmp_path, page) == []


def test_appendices_stand_at_the_end_of_their_folder(tmp_path):
    seen = [write(tmp_path, f"a/{i}_a.ipynb", code("x", PICTURE)) for i in (1, 3)]
    last = write(tmp_path, "a/4_a.ipynb", title=APPENDIX)
    assert kinds(tmp_path, *seen, last, write(tmp_path, "b/0_a.ipynb", title=APPENDIX)) == []
    between = write(tmp_path, "a/2_a.ipynb", title=APPENDIX)
    faults = pages.page_faults(tmp_path, sorted([*seen, last, between]))
    assert list(faults) == ["nbs/a/2_a.ipynb place"] and "before 3_a.ipynb" in faults["nbs/a/2_a.ipynb place"]
