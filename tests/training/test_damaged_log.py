"The log of a run is never changed or shortened without a word."

import shutil
import warnings

import pytest
from test_loop import alarms, checkpoints, run

from localdpo.ground.errors import Refused


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run(tmp_path_factory.mktemp("four") / "run", steps=4)


@pytest.fixture
def begun(four, tmp_path):
    "A run of four steps, and its log."
    return shutil.copytree(four, tmp_path / "run"), tmp_path / "run/metrics.jsonl"


def damaged(log, change):
    "The bytes of the log after `change`."
    log.write_bytes(change(log.read_bytes()))
    return log.read_bytes()


def flipped(data):
    "A digit of the second line is another one."
    at = data.index(b'"loss": ', data.index(b"\n")) + len('"loss": ')
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


CHANGES = {
    "a digit changed": flipped,
    "a line in the middle lost its end": lambda data: data.replace(b"}\n", b"\n", 1),
    "a byte that is not text": lambda data: data[:40] + b"\xff" + data[41:],
    "a line gone": lambda data: data.partition(b"\n")[2],
    "zeros": lambda data: data[:300] + bytes(100) + data[400:],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_log_that_was_damaged_is_said_kept_aside_and_whole_again(begun, change):
    folder, log = begun
    before = log.read_bytes()
    bytes_then = damaged(log, change)
    with pytest.warns(UserWarning, match=r"metrics.jsonl was damaged or changed: .* kept as metrics.damaged.jsonl"):
        run(folder, steps=6)
    assert log.read_bytes().startswith(before) and len(alarms.read(log)) == 6
    assert (folder / "metrics.damaged.jsonl").read_bytes() == bytes_then


def test_a_second_damage_leaves_the_first_where_it_is(begun):
    folder, log = begun
    for steps in (5, 6):
        damaged(log, flipped)
        with pytest.warns(UserWarning, match="metrics.jsonl was damaged"):
            run(folder, steps=steps)
    assert (folder / "metrics.damaged.jsonl").exists() and (folder / "metrics.damaged-2.jsonl").exists()


@pytest.mark.parametrize("change", [lambda data: data[:200], lambda data: b""], ids=["cut", "emptied"])
def test_a_log_that_ends_early_is_completed(begun, change):
    folder, log = begun
    before = log.read_bytes()
    damaged(log, change)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run(folder, steps=5)
    assert log.read_bytes().startswith(before) and len(alarms.read(log)) == 5


def test_of_a_checkpoint_without_a_log_the_lost_steps_are_named(begun):
    folder, log = begun
    for step in checkpoints.steps(folder / "checkpoints"):
        path = folder / f"checkpoints/step-{step:06d}"
        (path / "metrics.jsonl").unlink()
        checkpoints.seal(path)
    damaged(log, CHANGES["a line in the middle lost its end"])
    with pytest.warns(UserWarning, match=r"kept as metrics.damaged.jsonl; it has lost step 1"):
        run(folder, steps=5)
    assert [line["step"] for line in alarms.read(log)] == [2, 3, 4, 5]


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "checkpoints", "adapter"])
def test_a_folder_in_the_place_of_a_file_or_a_file_for_a_folder_is_refused_before_the_first_step(begun, tmp_path, name):
    folder, _ = begun
    place = folder / name
    place.rename(tmp_path / "moved away")
    place.mkdir() if "." in name else place.write_text("a letter")
    before = sorted(folder.rglob("*"))
    with pytest.raises(Refused, match=rf"{name}: is a {'folder' if '.' in name else 'file'}.*\n.*move it away"):
        run(folder, steps=6)
    assert sorted(folder.rglob("*")) == before
