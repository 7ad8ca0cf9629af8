"The files that Python opens while a model is loaded, as a line of JSON; with `and FILE`, torch reads that file too."

import json
import sys
from pathlib import Path

import torch

from localdpo import backbones

opened, (model, *more) = set(), sys.argv[1:]
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
backbones.load(Path(model), "cpu")
if more:
    torch.load(more[1])
    print("torch.load saw" if more[1] in opened else "torch.load was not seen")
print(json.dumps(sorted(opened)))
