"""Do what is named, which must not load torch: read the methods, a critic's columns, a graph, a help, a notebook's imports."""

import ast
import sys

import nbformat


def methods():
    from localdpo import methods

    assert all(methods.get(name).recipe.using() for name in methods.names())
    assert "numpy" not in sys.modules


def critic():
    from localdpo.scoring.scorer import get_scorer

    assert get_scorer("critic-b").columns


def graph():
    from localdpo.engine.lint import rules
    from localdpo.engine.profile import load_profile, profile_path, snakefile_of

    config = load_profile(profile_path("quick")) | dict(prompts=3)
    (rule,) = (rule for rule in rules(snakefile_of("quick"), config) if rule.name == "clips")
    assert sum(str(file).endswith(".mp4") for file in rule.output) == 3  # no more clips than prompts
    assert "count=3" in rule.params.words, rule.params.words


def help(*words):
    from localdpo.cli import main

    try:
        main.main([*words, "--help"])
    except SystemExit:
        pass


def notebook(path):
    cells = (cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    nodes = [node for cell in cells for node in ast.walk(ast.parse(cell))]
    lines = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(lines) >= 2
    exec("\n".join(lines), {})


globals()[sys.argv[1]](*sys.argv[2:])
assert "torch" not in sys.modules, "loads torch"
