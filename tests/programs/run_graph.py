"""Run the graph of this folder into the folder that is named, with further settings as name=value."""

import ast
import sys

from localdpo.engine import graph

out, *words = sys.argv[1:]
settings = {name: ast.literal_eval(value) for name, _, value in (word.partition("=") for word in words)}
sys.exit(graph.run("graph.yaml", out, snakefile="Snakefile", **settings))
