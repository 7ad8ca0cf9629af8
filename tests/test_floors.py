"The floors of the house: nothing imports a floor above its own, light modules stay light, and no face hides code from a fingerprint."

import ast
import importlib
import shutil

import pytest
from conftest import loaded_by

from localdpo.engine import fingerprints
from localdpo.ground import paths

FLOORS = [
    "cli",
    "engine",
    "methods",
    "study",
    "sampling",
    "paper",
    "training",
    "scoring",
    "pairs",
]  # the top floor first
FLOORS += ["corruption", "losses", "masks", "prompts", "miniature", "clips", "stats", "backbones", "media", "ground"]
BESIDE = ["__init__", "_modidx", "dev"]  # what keeps the house stands beside it
PACKAGE = fingerprints.PACKAGE


def arrows(package=PACKAGE):
    "For each module of ours, those it imports."
    found = {}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        found[path] = sorted(set(fingerprints.imports(tree, fingerprints._package(path))) - {path})
    return found


def floor(path):
    return path.relative_to(fingerprints.PACKAGE).with_suffix("").parts[0]


def upwards(found):
    "The arrows that lead to a higher floor, or out of the house to its keepers."
    for path, needs in found.items():
        for other in needs:
            below, above = floor(path), floor(other)
            if below in FLOORS and above in BESIDE and above != "__init__":
                yield f"{path} imports {other}"
            elif below in FLOORS and above in FLOORS and FLOORS.index(above) < FLOORS.index(below):
                yield f"{path} imports {other}, on a higher floor"


def circles(found):
    "Chains of modules that end where they began."
    done, chain = set(), []

    def follow(path):
        if path in chain:
            yield " -> ".join(map(str, [*chain[chain.index(path) :], path]))
        elif path not in done:
            chain.append(path)
            for other in found.get(path, ()):
                yield from follow(other)
            done.add(chain.pop())

    for path in found:
        yield from follow(path)


def test_every_room_has_a_floor():
    assert {floor(path) for path in arrows()} <= {*FLOORS, *BESIDE}


def test_nothing_imports_a_floor_above_its_own():
    assert list(upwards(arrows())) == []


def test_no_modules_need_each_other_in_a_circle():
    assert list(circles(arrows())) == []


@pytest.fixture
def toy(tmp_path, monkeypatch):
    "An empty package in place of ours; a function writes modules into it."
    monkeypatch.setattr(fingerprints, "PACKAGE", tmp_path / "localdpo")
    fingerprints._module.cache_clear()

    def write(**modules):
        for name, source in modules.items():
            path = tmp_path / "localdpo" / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
            if path.parent.name != "localdpo":
                (path.parent / "__init__.py").touch()
        fingerprints._module.cache_clear()
        return tmp_path / "localdpo"

    yield write
    fingerprints._module.cache_clear()


def test_an_arrow_upwards_is_found_also_inside_a_function(toy):
    package = toy(training__loop="", pairs__store="def f():\n    from localdpo.training import loop")
    (fault,) = upwards(arrows(package))
    assert fault.endswith("on a higher floor") and "pairs/store.py" in fault
    package = toy(pairs__store="from ..dev import checks", dev__checks="")
    assert len(list(upwards(arrows(package)))) == 1


def test_a_circle_is_found(toy):
    package = toy(pairs__a="from . import b", pairs__b="from .c import x", pairs__c="from localdpo.pairs import a")
    (fault,) = circles(arrows(package))
    assert fault.count("->") == 3


LIGHT = (
    "training.config engine.graph engine.profile engine.checks engine.steps engine.lint engine.fingerprints cli.main"
)


def test_faces_and_light_modules_load_no_torch():
    faces = [".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in sorted(PACKAGE.rglob("__init__.py"))]
    names = [*faces, *(f"localdpo.{name}" for name in LIGHT.split())]
    assert len(faces) > 15
    assert [name for name, heavy in loaded_by(*names).items() if "torch" in heavy] == []


# -- faces and fingerprints ----------------------------------------------------------------------------------------------


def offers(face):
    "What a lazy face hands out: name -> the module it comes from."
    for node in ast.walk(ast.parse(face.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "face":
            return {word.arg: word.value.value for word in node.keywords}
    return {}


def hidden(face):
    "The names of a face whose module a fingerprint would not find."
    package = fingerprints._package(face)
    for name, module in offers(face).items():
        if face.parent / f"{module}.py" not in fingerprints.modules(f"from {package} import {name}"):
            yield name


def test_no_face_hides_the_code_behind_it():
    faces = [face for face in sorted(PACKAGE.rglob("__init__.py")) if "__getattr__" in face.read_text()]
    assert len(faces) >= 5
    for face in faces:
        assert offers(face), f"{face} is lazy in a way that no fingerprint knows; use localdpo.ground.faces"
        assert list(hidden(face)) == [], f"{face} does not repeat these imports under TYPE_CHECKING"
        package = importlib.import_module(fingerprints._package(face))
        assert set(offers(face)) == set(package.__all__), f"{face}: __all__ says something else"


def test_a_face_without_its_imports_for_types_is_found(toy):
    lazy = "from localdpo.ground.faces import face\n__getattr__ = face(__name__, train='loop')\n"
    package = toy(training__loop="", ground__faces="")
    (package / "training/__init__.py").write_text(lazy)
    assert list(hidden(package / "training/__init__.py")) == ["train"]
    repeated = "if TYPE_CHECKING:\n    from localdpo.training.loop import train\n"
    (package / "training/__init__.py").write_text(repeated + lazy)
    assert list(hidden(package / "training/__init__.py")) == []


def test_who_passes_a_face_needs_what_runs_in_it_and_no_more(toy):
    package = toy(training__loop="", training__config="", training__plan="")
    face = "from localdpo.training import plan\nif TYPE_CHECKING:\n    from localdpo.training.loop import train\n"
    (package / "training/__init__.py").write_text(face)
    names = lambda source: {path.stem for path in fingerprints.modules(source)}  # noqa: E731
    assert names("from localdpo.training.config import x") == {"__init__", "config", "plan"}
    assert names("from localdpo.training import train") == {"__init__", "loop", "plan"}
    assert names("from localdpo import training") == {"__init__", "loop", "plan"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the package, whose modules a test may change."
    folder = tmp_path_factory.mktemp("copy") / "localdpo"
    return shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("weights", "__pycache__"))


@pytest.mark.parametrize(
    "module, step, others",
    [
        ("training/loop", "train", ["score", "sample", "pairs"]),
        ("losses", "train", ["score"]),
        ("training/checks", "train", ["score", "pairs"]),
        ("pairs/store", "train", ["score"]),
        ("pairs/builder", "pairs", ["score", "sample"]),
        ("corruption", "pairs", ["score", "sample"]),
        ("masks", "pairs", ["score", "sample"]),
        ("sampling/videos", "sample", ["train", "pairs"]),
        ("scoring/videos", "score", ["train", "sample", "pairs"]),
        ("backbones/backbone", "train", ["score"]),
    ],
)
def test_a_changed_module_changes_the_fingerprint_of_the_steps_that_use_it(copy, monkeypatch, module, step, others):
    monkeypatch.setattr(fingerprints, "PACKAGE", copy)
    fingerprints._module.cache_clear()
    notebooks = paths.notebooks() / "rerun/steps"
    before = {name: fingerprints.fingerprint(notebooks / f"{name}.ipynb") for name in [step, *others]}
    with open(copy / f"{module}.py", "a") as file:
        file.write("\nCHANGED = 1\n")
    after = {name: fingerprints.fingerprint(notebooks / f"{name}.ipynb") for name in before}
    fingerprints._module.cache_clear()
    assert {name for name in before if before[name] != after[name]} == {step}


@pytest.mark.parametrize(
    "source, module",
    [
        ("from localdpo.training import train", "training/loop"),
        ("from localdpo import training", "training/loop"),
        ("import localdpo.training as t", "training/loop"),
        ("def f():\n    from localdpo.sampling import sample", "sampling/videos"),
        ("from localdpo.scoring import get_scorer", "scoring/scorer"),
        ("from localdpo.pairs import PairStore", "pairs/store"),
        ("from localdpo import backbones", "backbones/backbone"),
    ],
)
def test_whoever_asks_a_face_is_made_again_with_the_code_behind_it(source, module):
    assert PACKAGE / f"{module}.py" in fingerprints.modules(source)
