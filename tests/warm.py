"""Commands in processes of their own, forked from one that has imported torch: a start costs milliseconds, not seconds.

`start(*words)` is what `python -m localdpo.cli WORDS` is: a process with its own folder, environment and signals, that can
be killed and says how it ended. What is tested about the start of a process itself is tested with a plain subprocess.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

LOADED = """
    torch numpy safetensors.torch accelerate peft tqdm yaml av matplotlib.figure
    diffusers.pipelines.cogvideo.pipeline_cogvideox diffusers.pipelines.wan.pipeline_wan
    diffusers.models.autoencoders.autoencoder_kl_wan transformers.models.t5.modeling_t5
    transformers.models.umt5.modeling_umt5 transformers.tokenization_utils_fast
    localdpo.cli.main localdpo.backbones.backbone localdpo.training.loop localdpo.pairs.builder
    localdpo.sampling.videos localdpo.scoring.videos localdpo.miniature.reader
""".split()
ROOT = Path(__file__).parents[1]
LIMIT = 600  # seconds that a command of a test may take


class Process:
    "A process that was started: its number, its end, and what it said."

    def __init__(self, line, said):
        self.line, self.said, self.returncode = line, said, None
        self.pid = int(line.recv(64))

    def poll(self):
        if self.returncode is None and select.select([self.line], [], [], 0)[0]:
            self.returncode = int(self.line.recv(64))
            self.line.close()
        return self.returncode

    def wait(self, timeout=LIMIT):
        if self.returncode is None and not select.select([self.line], [], [], timeout)[0]:
            self.kill()
            raise subprocess.TimeoutExpired(f"process {self.pid}: {self.stderr[-2000:]}", timeout)
        return self.poll()

    def kill(self, number=signal.SIGKILL):
        "Send a signal to the process and those it started; a kill is over when this returns."
        if self.poll() is None:
            os.killpg(self.pid, number)
            if number == signal.SIGKILL:
                self.wait()

    def text(self, number):
        self.said[number].seek(0)
        return self.said[number].read().decode(errors="replace")

    stdout = property(lambda self: self.text(0))
    stderr = property(lambda self: self.text(1))


_starting = threading.Lock()


@functools.cache
def _server_of(process):
    "Our end of the line to the process that forks; it ends when this end is closed."
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    places = [str(ROOT), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    environment = os.environ | threads | dict(PYTHONPATH=os.pathsep.join(places))
    words = [sys.executable, __file__, str(theirs.fileno())]
    server = subprocess.Popen(words, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
    theirs.close()
    atexit.register(lambda: (ours.close(), server.wait(10)))
    return ours


def _server():
    with _starting:
        return _server_of(os.getpid())


def start(*words, call="localdpo.cli.main:main", cwd=None, env=None, merged=False):
    "Begin `call(words)` in a process of its own; `merged` puts what it says on stderr among what it says on stdout."
    said = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    job = dict(call=call, words=[str(word) for word in words], cwd=str(cwd or Path.cwd()))
    job["env"] = {**os.environ, **(env or {})}
    handles = [theirs.fileno(), said[0].fileno(), said[not merged].fileno()]
    socket.send_fds(_server(), [json.dumps(job).encode()], handles)
    theirs.close()
    return Process(ours, said)


def run(*words, timeout=LIMIT, check=False, **options):
    "`start` it and wait for its end."
    process = start(*words, **options)
    process.wait(timeout)
    assert not check or process.returncode == 0, process.stdout + process.stderr
    return process


# -- the process that forks ----------------------------------------------------------------------------------------------


def _become(job, handles):
    "In the child: take over folder, environment and outputs, do the work, and end as Python ends."
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, handle in zip((1, 2), handles[1:], strict=True):
        os.dup2(handle, number)
    os.closerange(3, max(handles) + 1)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    random.seed()
    sys.argv[:] = ["localdpo", *job["words"]]
    module, _, name = job["call"].partition(":")
    try:
        status = getattr(importlib.import_module(module), name)(job["words"])
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else bool(status))


def _serve(door):
    "Fork for each job that comes, and tell how each child ended."
    for name in LOADED:
        importlib.import_module(name)
    lines, (wake, alarm) = {}, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this process
    while True:
        ready = select.select([door, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 4096)
            while lines and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with lines.pop(ended[0]) as line:
                    line.send(str(os.waitstatus_to_exitcode(ended[1])).encode())
        if door in ready:
            message, handles, *_ = socket.recv_fds(door, 1 << 20, 3)
            if not message:
                break
            if (child := os.fork()) == 0:
                _become(json.loads(message), handles)
            with contextlib.suppress(OSError):  # the child does it too: whoever comes first
                os.setpgid(child, child)
            lines[child] = socket.socket(fileno=handles[0])
            lines[child].send(str(child).encode())
            for handle in handles[1:]:
                os.close(handle)
    for child in lines:
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
