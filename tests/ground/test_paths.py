import os
import stat
from pathlib import Path

import pytest
from conftest import said

from localdpo.ground import paths
from localdpo.ground.errors import Refused


def test_the_checkout_is_found_from_any_folder_below_it(monkeypatch):
    checkout = paths.root()
    monkeypatch.chdir(checkout / "nbs" / "rerun")
    assert paths.root() == checkout


def test_the_checkout_is_found_from_elsewhere_by_an_editable_install(monkeypatch, tmp_path):
    checkout = paths.root()
    monkeypatch.chdir(tmp_path)
    assert paths.root() == checkout


def test_without_a_checkout_the_next_step_is_named(tmp_path):
    package = tmp_path / "site-packages" / "localdpo"
    package.mkdir(parents=True)
    for name in ("__init__.py", "ground/__init__.py", "ground/paths.py", "ground/errors.py"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text((paths.root() / "localdpo" / name).read_text())
    assert "clone the repository" in said("root.py", cwd=tmp_path, env={"PYTHONPATH": str(package.parent)})


def test_another_nbdev_project_is_not_taken_for_ours(monkeypatch, tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = other\n")
    monkeypatch.chdir(tmp_path)
    assert paths.root() != tmp_path


def test_an_error_of_the_work_is_not_blamed_on_the_disk(tmp_path):
    with pytest.raises(OSError, match="decoder broke") as caught, paths.atomic(tmp_path / "a.txt"):
        raise OSError("decoder broke")
    assert not isinstance(caught.value, Refused)


def test_the_cache_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path))
    assert paths.cache() == tmp_path


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    paths.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), paths.atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_no_folder_that_was_not_there(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError), paths.atomic(tmp_path / "mine" / "new" / "deep" / "a.txt"):
        raise RuntimeError
    with pytest.raises(Refused, match="cannot be written"):
        paths.write_text(tmp_path / "mine" / "new" / ("a" * 300) / "a.txt", "text")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with pytest.raises(RuntimeError), paths.atomic(tmp_path / "mine" / "new" / "a.txt"):
        (tmp_path / "mine" / "new" / "of another.txt").write_text("text")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "mine" / "new").iterdir()] == ["of another.txt"]


def test_a_disk_that_runs_full_is_reported_under_the_final_name(tmp_path):
    (tmp_path / "table.csv").write_text("old")
    answer = said("small_files.py", cwd=tmp_path)
    assert "table.csv: cannot be written" in answer and "as it was before" in answer
    assert (tmp_path / "table.csv").read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"file/a\.txt: cannot be written"):
        paths.write_text(tmp_path / "file" / "a.txt", "text")


def test_an_error_about_another_file_is_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), paths.atomic(tmp_path / "a.txt"):
        open(tmp_path / "elsewhere")


def test_a_result_is_as_readable_as_any_other_file(tmp_path):
    before = os.umask(0o022)
    try:
        paths.write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_json_holds_only_what_json_can_hold(tmp_path, value):
    with pytest.raises(Refused, match="a.json"):
        paths.write_json(tmp_path / "a.json", value)
    assert not os.listdir(tmp_path)


def test_what_stands_where_a_folder_belongs_is_called_what_it_is(tmp_path):
    (tmp_path / "file").touch(), (tmp_path / "dangling").symlink_to("nowhere"), (tmp_path / "loop").symlink_to("loop")
    reasons = dict(file="is a file", dangling="is a link that leads nowhere", loop="is a link that leads nowhere")
    for name, why in {
        **{tmp_path / name: why for name, why in reasons.items()},
        Path("/dev/null"): "is not a folder",
    }.items():
        with pytest.raises(Refused, match=f"{name}: {why}\n  -> choose a folder$"):
            paths.check_folder(name)
        with pytest.raises(Refused, match=f"{name}: {why}\n  -> choose a folder: .* cannot lie in this"):
            paths.check_folder(name / "run")
