"""Score videos into a table whose disk is full, free it, and give the same command again; prints what was said."""

import shutil
import sys
from pathlib import Path

from filling import fill

from localdpo.cli import main as cli

home, videos = Path(sys.argv[1]), sys.argv[2]
words = ["score", videos, "--out", str(home / "scores.csv"), "--device", "cpu"]
taken = fill(home)
print("status", cli.main(words), file=sys.stderr)
taken.unlink()
print("status", cli.main(words), file=sys.stderr)
sys.stderr.write((home / "scores.csv").read_text())
shutil.rmtree(home, ignore_errors=True)
