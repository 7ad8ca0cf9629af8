"A process counts as free what its group may still take, also where the machine has more."

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from localdpo.ground import memory

MIB = 2**20


def machine(root, lines, mounts, **files):
    "The files in which a system tells of its groups."
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("\n".join(lines) + "\n")
    (root / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {64 * 1024 * 1024} kB\n")
    for name, text in files.items():
        path = root / name.replace("__", "/").lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


TWO = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
ONE = "35 24 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory"


def group(folder, **facts):
    return {
        f"sys/fs/cgroup/{folder}/{name.replace('_', '.', 1)}".replace("//", "/"): str(v) for name, v in facts.items()
    }


@pytest.mark.parametrize(
    "lines, mounts, files, free",
    [
        (["0::/job"], [TWO], group("job", memory_max=900 * MIB, memory_current=100 * MIB), 800 * MIB),
        (
            ["0::/job"],
            [TWO],
            group("job", memory_max=900 * MIB, memory_current=400 * MIB, memory_stat=f"anon 1\ninactive_file {300 * MIB}"),
            800 * MIB,
        ),
        (  # the limit of a group above counts too
            ["0::/slice/job"],
            [TWO],
            group("slice", memory_max=500 * MIB, memory_current=200 * MIB)
            | group("slice/job", memory_max="max", memory_current=9),
            300 * MIB,
        ),
        (["0::/job"], [TWO], group("job", memory_max="max", memory_current=9), None),
        (["0::/"], [TWO], {}, None),
        (["4:memory:/job"], [ONE], {
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(700 * MIB),
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(300 * MIB),
            "sys/fs/cgroup/memory/job/memory.stat": f"cache 1\ninactive_file 2\ntotal_inactive_file {100 * MIB}\n",
        }, 500 * MIB),
        (  # in a container the path begins where the mount does
            ["4:memory:/docker/abc"], [ONE.replace(" / /sys", " /docker/abc /sys")], {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(700 * MIB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(300 * MIB),
        }, 400 * MIB),
        (["4:memory:/job"], [ONE], {"sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(2**63 - 4096)}, None),
    ],
)  # fmt: skip
def test_the_limit_of_a_group_is_what_is_free(tmp_path, lines, mounts, files, free):
    root = machine(tmp_path, lines, mounts, **{name.replace("/", "__"): text for name, text in files.items()})
    assert memory.free(root) == (64 * 2**30 if free is None else free)


def test_without_any_of_these_files_nothing_is_said(tmp_path):
    assert memory.free(tmp_path) is None


@contextlib.contextmanager
def real_group(limit):
    "A group of this machine with a limit, and the file to which a process adds itself; None where it may not be made."
    made = None
    for parent, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        with contextlib.suppress(OSError):
            (parent / "localdpo-test").mkdir()
            made = parent / "localdpo-test"
            (made / name).write_text(str(limit))
            break
    try:
        yield made / "cgroup.procs" if made else None
    finally:
        if made:
            made.rmdir()


def test_a_process_in_a_small_group_has_little_memory():
    line = "import sys; from localdpo.ground.devices import free_memory; print(free_memory())"
    with real_group(300 * MIB) as door:
        if door is None:
            pytest.skip("no group may be made here")
        enter = f'echo $$ > {door} && exec "$0" -c "$1"'
        done = subprocess.run(["sh", "-c", enter, sys.executable, line], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 300 * MIB
