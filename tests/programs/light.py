"""Import the modules that are named, one after the other, and print what heavy package each of them loaded."""

import importlib
import json
import sys

HEAVY = {"torch", "torchvision", "diffusers", "transformers", "papermill", "snakemake", "numpy", "scipy"}
HEAVY |= {"matplotlib", "matplotlib.pyplot", "av", "PIL", "IPython"}

found, before = {}, set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = sorted(HEAVY & (set(sys.modules) - before))
    before = set(sys.modules)
print(json.dumps(found))
