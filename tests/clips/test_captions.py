"""A caption is used whole or named as a fault: nothing that a csv file can do shortens one without a word."""

import csv

import pytest

from localdpo.clips.captions import LONGEST, caption_fault, caption_rows
from localdpo.clips.sources import from_folder
from localdpo.ground.errors import Refused
from localdpo.media import sheets, video

LONG = "a red disc moving left, on a striped blue background, slowly"


def written(folder, data):
    (folder / "c.csv").write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder / "c.csv"


def test_a_caption_with_an_unquoted_comma_is_a_bad_clip_and_not_a_shorter_caption(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        video.write(tmp_path / "clips" / name, sheets.demo_clip(1, 4, 32, 32), 8)
    file = written(tmp_path, f'file,caption\na.mp4,{LONG}\nb.mp4,"{LONG}"\n')
    clips = {clip.id: clip for clip in from_folder(tmp_path / "clips", file)}
    assert clips["b.mp4"].prompt == LONG and clips["b.mp4"].fault is None
    assert "more cells than there are columns (4, 2)" in clips["c.csv row 1"].fault
    assert not any(clip.prompt == LONG.partition(",")[0] for clip in clips.values())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_system(tmp_path, end):
    rows = caption_rows(written(tmp_path, end.join(["file,caption", f'a.mp4,"{LONG}"', "b.mp4,a blue ring", ""])))
    assert [row["caption"] for _, row in rows] == [LONG, "a blue ring"]


def test_a_cell_of_any_length_is_read_and_the_limit_of_the_csv_module_stays(tmp_path):
    before = csv.field_size_limit()
    rows = caption_rows(written(tmp_path, f"file,caption\na.mp4,{'x' * 200_000}\nb.mp4,a blue ring\n"))
    assert [len(row["caption"]) for _, row in rows] == [200_000, 11] and csv.field_size_limit() == before
    assert "200000 characters" in caption_fault(rows[0][1]["caption"]) and caption_fault("x " * (LONGEST // 2)) is None


@pytest.mark.parametrize(
    "text, place",
    [
        ('file,caption\na.mp4,a disc\nb.mp4,"a ring\nc.mp4,a star\n', "row 2"),
        ('file,caption\na.mp4,"a disc\nb.mp4,"a ring"\n', "row 1"),
        ('file,caption\na.mp4,"a" disc\n', "row 1"),
    ],
)
def test_a_quote_that_is_not_closed_is_named_with_its_row(tmp_path, text, place):
    with pytest.raises(Refused, match=f"c.csv {place}: has a quote that is not closed"):
        caption_rows(written(tmp_path, text))


def test_two_columns_of_one_name_are_refused(tmp_path):
    with pytest.raises(Refused, match="has two columns 'caption'"):
        caption_rows(written(tmp_path, "file,caption,caption\na.mp4,a disc,a ring\n"))


@pytest.mark.parametrize("data", [b"", b"\n", b"\0\0\0", b"file,caption", b"\xff" * 40, b'"', b",,,,\n,,"])
def test_whatever_a_csv_holds_there_is_no_traceback(tmp_path, data):
    try:
        rows = caption_rows(written(tmp_path, data))
    except Refused as refusal:
        assert refusal.then
    else:
        assert all(isinstance(row, dict | str) for _, row in rows)
