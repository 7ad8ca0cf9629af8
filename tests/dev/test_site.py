"""The documentation: one real build of the checkout, opened as a reader without a network would."""

import contextlib
import io
import re
import shutil
from html.parser import HTMLParser

import pytest

from localdpo.dev import site
from localdpo.ground import paths
from localdpo.ground.errors import Refused

pytestmark = pytest.mark.filterwarnings(
    "ignore::sphinx.deprecation.RemovedInSphinx11Warning"
)  # myst-parser's, not ours

FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "link": "href",
    "object": "data",
}


class Page(HTMLParser):
    "The addresses a page would fetch, and the links and headings of its side bar."

    def __init__(self, html):
        super().__init__()
        self.fetched, self.links, self.headings, self.depth, self.caption = [], [], [], 0, False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if address := attributes.get(FETCHED.get(tag, "")):
            self.fetched.append(address)
        self.fetched += re.findall(r"url\(([^)]+)\)", attributes.get("style") or "")
        if tag == "div" and (self.depth or "sidebar-tree" in (attributes.get("class") or "")):
            self.depth += 1
        if self.depth and tag == "a":
            self.links.append(attributes["href"])
        self.caption = self.depth and "caption-text" in (attributes.get("class") or "")

    def handle_endtag(self, tag):
        self.depth -= tag == "div" and self.depth > 0
        self.caption = False

    def handle_data(self, text):
        if self.caption:
            self.headings.append(text)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        out = site.build(tmp_path_factory.mktemp("site") / "html")
    return out, said.getvalue()


@pytest.fixture(scope="module")
def html(built):
    return {p.relative_to(built[0]).as_posix(): p.read_text(encoding="utf-8") for p in built[0].rglob("*.html")}


def notebooks():
    return [n for chapter in site.chapters(paths.notebooks()).values() for n in chapter]


def modules():
    sources = [(paths.notebooks() / n).read_text(encoding="utf-8") for n in notebooks()]
    return ["localdpo." + m[1] for s in sources if (m := re.search(r'"#\s*\|\s*default_exp ([\w.]+)', s))]


@pytest.mark.slow(31)
def test_every_notebook_and_every_module_has_a_page(html):
    assert {n.replace(".ipynb", ".html") for n in notebooks()} <= set(html)
    assert {f"api/{m}.html" for m in modules()} <= set(html)
    assert {"index.html", "contributing.html", "third_party.html"} <= set(html)
    assert "localdpo.ground.paths" in modules() and "90_ground/01_errors.ipynb" in notebooks()


@pytest.mark.slow(1)
def test_the_side_bar_is_in_reading_order(html):
    index = Page(html["index.html"])
    own = [link for link in index.links if re.match(r"\d\d_\w+/(\w+/)?\d\d_\w+\.html$", link)]
    assert own == sorted(own) and len(own) == len([n for n in notebooks() if re.match(r"\d\d_.*/", n)])
    assert index.headings[0] == "Start" and index.headings[-2:] == ["Reference", "Project"]
    assert index.links[-2:] == ["contributing.html", "third_party.html"]


@pytest.mark.slow(1)
def test_the_reference_shows_signatures_in_the_order_of_the_source(html):
    page = html["api/localdpo.ground.paths.html"]
    places = [
        page.index(f'id="localdpo.ground.paths.{name}"')
        for name in ("root", "reports", "atomic", "write_text", "write_json")
    ]
    assert places == sorted(places) and '<span class="n"><span class="pre">profile</span></span>' in page


@pytest.mark.slow(1)
def test_nbdev_directives_are_not_shown(html):
    assert [name for name, text in html.items() if re.search(r'<span class="c1">#\s*\|', text)] == []


@pytest.mark.slow(1)
def test_nothing_is_loaded_from_the_network(built, html):
    fetched = {(name, address) for name, text in html.items() for address in Page(text).fetched}
    for style in built[0].rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        fetched |= {
            (style.name, address)
            for address in re.findall(r"url\(([^)]+)\)|@import\s+[\"']([^\"']+)", text)
            for address in address
            if address
        }
    assert [f for f in fetched if re.match(r"[\"']?\s*(\w+:)?//", f[1])] == []
    assert any("furo.css" in address for _, address in fetched)  # the check has eyes


@pytest.mark.slow(1)
def test_equations_are_drawn_by_the_mathjax_of_the_site(built, html):
    with_equations = {name for name, text in html.items() if '<div class="math' in text or '<span class="math' in text}
    assert "90_ground/03_noise.html" in with_equations
    for name in with_equations:
        scripts = [address for address in Page(html[name]).fetched if "mathjax" in address]
        assert len(scripts) == 1 and (built[0] / name).parent.joinpath(scripts[0].split("?")[0]).is_file()
    assert list(built[0].glob("_static/mathjax/output/chtml/fonts/**/*.woff"))


@pytest.mark.slow(1)
def test_sphinx_finds_nothing_odd(built):
    assert built[1] == ""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A small checkout that the site is built from instead."
    for name in ("settings.ini", "THIRD_PARTY.md", ".github/CONTRIBUTING.md", "nbs/index.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(paths.root() / name, tmp_path / name)
    monkeypatch.setenv("LOCALDPO_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        '{"cells": [',
        "<<<<<<< ours",
        '{"cells": [{"cell_type": "code"}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
        "",
    ],
)
def test_a_broken_notebook_is_named_and_the_old_site_stays(checkout, text):
    old = checkout / "_docs/html/index.html"
    paths.write_text(old, "old")
    paths.write_text(old.parent / ".buildinfo", "")
    (checkout / "nbs/40_broken.ipynb").write_text(text)
    with pytest.raises(Refused, match=r"nbs/40_broken\.ipynb: is not a valid notebook"):
        site.build()
    assert old.read_text() == "old" and [p.name for p in (checkout / "_docs").iterdir()] == ["html"]


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(Refused, match="not replaced"):
        site.build(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
