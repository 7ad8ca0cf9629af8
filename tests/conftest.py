"""What several tests share: small notebooks to run."""

import fcntl
import pty
import struct
import termios

import nbformat
import pytest


@pytest.fixture
def notebook(tmp_path):
    "Write a notebook: the first source is its parameters cell unless `tagged` says otherwise."

    def write(*sources, name="small.ipynb", tagged=(0,)):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
        for i in tagged:
            nb.cells[i].metadata["tags"] = ["parameters"]
        path = tmp_path / name
        nbformat.write(nb, path)
        return path

    return write


@pytest.fixture
def terminal():
    "Both ends of a terminal of 80 columns: what we read, and what a process writes to."
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return ours, theirs
