"""Write more than there is room for: a limit on file sizes is the nearest thing to a full disk that needs no second disk."""

import resource
import signal

from localdpo.ground import paths

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    paths.write_text("table.csv", "x" * 100_000)
except ValueError as error:
    print(error)
