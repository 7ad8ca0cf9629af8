"""Read a film again and again with ever more room for memory or file handles, and print how reading was refused."""

import gc
import resource
import sys

import av  # noqa: F401  all that reading needs is here before a limit is set
import numpy  # noqa: F401
import PIL.Image  # noqa: F401

from localdpo.ground.devices import free_memory  # noqa: F401
from localdpo.ground.errors import Refused
from localdpo.media import video

gc.disable()
path, kind = sys.argv[1:]
video.read(path)
which = dict(memory=resource.RLIMIT_AS, files=resource.RLIMIT_NOFILE)[kind]
usual = resource.getrlimit(which)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
held = [open(path, "rb") for _ in range(5)]
said = []
for room in (0, 2**20, 2**22, 2**23, 2**24, 2**25, 2**26):
    resource.setrlimit(which, (used + room if kind == "memory" else len(held) + 3, usual[1]))
    try:
        video.read(path)
    except Refused as refusal:
        said.append((type(refusal).__name__, refusal.why))
    finally:
        resource.setrlimit(which, usual)
video.read(path)
print(said)
