"""Spread nine jobs over two processes; each writes the number of its process into a file of the folder, and sleeps."""

import os
import sys
import time
from pathlib import Path

from localdpo.ground.workers import spread


def sleepy(device):
    def call(path):
        Path(path).write_text(str(os.getpid()))
        time.sleep(1)

    return call


if __name__ == "__main__":
    list(spread(sleepy, [(f"{sys.argv[1]}/{i}",) for i in range(9)], ["a", "b"]))
