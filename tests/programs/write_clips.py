"""Write clips of three sizes into the folder that is named."""

import sys

from localdpo.media.sheets import demo_clip
from localdpo.media.video import write

for size in (32, 64, 96):
    write(f"{sys.argv[1]}/{size}.mp4", demo_clip(3, 12, size, size), 8)
