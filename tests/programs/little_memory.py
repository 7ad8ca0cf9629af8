"""Load the model in the folder that is named with room for 11 MiB, and print why not."""

import resource
import sys
from pathlib import Path

import diffusers  # noqa: F401  all that loading needs is here before the limit is set
import transformers  # noqa: F401

import localdpo.backbones.wan  # noqa: F401
from localdpo import backbones
from localdpo.ground.errors import Refused

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 11 * 2**20, resource.RLIM_INFINITY))
try:
    backbones.load(sys.argv[1])
except Refused as refusal:
    print(refusal)
