"""A journal: what is in it stays, what was cut or damaged is named, and one process writes it at a time."""

import resource
import subprocess

import pytest
from conftest import program

from localdpo.ground.errors import Refused
from localdpo.ground.journal import Journal, read


@pytest.mark.parametrize("rest", [b'{"a": 3', b"[3]", b"\0\0\0"])
def test_a_line_without_its_end_is_dropped_and_told(tmp_path, rest):
    (tmp_path / "j").write_bytes(b'{"a": 1}\n{"a": 2}\n' + rest)
    with Journal(tmp_path / "j") as journal:
        journal.add(dict(a=4))
    assert "half-written" in journal.told[0]
    with Journal(tmp_path / "j") as journal:
        assert [entry["a"] for entry in journal.entries] == [1, 2, 4] and not journal.told


def test_a_damaged_line_is_told_and_the_others_are_used(tmp_path):
    (tmp_path / "j").write_bytes(b'{"a": 1}\n{"a": \n[2]\n\xff\n{"a": 3}\n')
    with Journal(tmp_path / "j") as journal:
        assert [entry["a"] for entry in journal.entries] == [1, 3]
        assert [line.split(":")[0][-6:] for line in journal.told] == ["line 2", "line 3", "line 4"]


def test_a_last_line_that_lacks_only_its_end_is_kept(tmp_path):
    (tmp_path / "j").write_bytes(b'{"a": 1}\n{"a": 2}')
    assert read(tmp_path / "j") == [{"a": 1}, {"a": 2}]
    with Journal(tmp_path / "j") as journal:
        journal.add(dict(a=3))
        assert [entry["a"] for entry in journal.entries] == [1, 2, 3] and not journal.told
    assert (tmp_path / "j").read_bytes() == b'{"a": 1}\n{"a": 2}\n{"a": 3}\n'


def test_reading_alone_changes_nothing(tmp_path):
    was = b'{"a": 1}\nx\n{"a": '
    (tmp_path / "j").write_bytes(was)
    assert read(tmp_path / "j") == [{"a": 1}, None] and read(tmp_path / "none") == []
    assert (tmp_path / "j").read_bytes() == was and not (tmp_path / "none").exists()
    with pytest.raises(Refused, match="cannot be read"):
        read(tmp_path)


def test_a_second_writer_waits_for_the_first_and_sees_what_it_wrote(tmp_path):
    first = subprocess.Popen(program("holder.py", "journal", tmp_path / "j", 0.5), stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    with pytest.raises(Refused, match="in use by another process"):
        Journal(tmp_path / "j")
    with Journal(tmp_path / "j", wait=True) as journal:
        assert journal.entries == [{"written": "before the end"}]
    first.wait()


def test_a_full_disk_is_named_with_what_to_do(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(Refused, match=r"j: cannot be written \(File too large\)(.|\n)*free some space"):
        with Journal(tmp_path / "j", then="free some space") as journal:
            journal.add(dict(a=1))
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (12, hard))
                journal.add(dict(a=2))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Journal(tmp_path / "j") as journal:
        assert journal.entries == [dict(a=1)] and "half-written" in journal.told[0]
