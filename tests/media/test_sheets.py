"""What the eye is given: the demo clip, contact sheets and players."""

import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from localdpo.ground.errors import Refused
from localdpo.media.sheets import contact_sheet, demo_clip, play, show
from localdpo.media.video import Clip, read, write

CLIP = demo_clip(seed=3, frames=24)


# the demo clip


def test_the_demo_clip_is_the_same_everywhere():
    known = "5299ee16cdea674540f24ab66c2634d9055cc9b18bf03e8a64d8fc9be14b9870"
    assert hashlib.sha256(demo_clip(seed=0).tobytes()).hexdigest() == known


def test_seeds_make_different_clips_and_the_face_moves():
    clips = [demo_clip(seed) for seed in range(20)]
    assert len({clip.tobytes() for clip in clips}) == 20
    for clip in clips:
        assert all(not np.array_equal(a, b) for a, b in zip(clip, clip[1:], strict=False))


def test_a_longer_demo_clip_begins_like_the_shorter_one():
    assert np.array_equal(demo_clip(5, frames=20)[:9], demo_clip(5, frames=9))


@pytest.mark.parametrize("seed", range(8))
def test_the_face_stays_in_the_picture(seed):
    clip = demo_clip(seed, frames=60, height=48, width=80).astype(int)
    edge = np.concatenate([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]], axis=1)
    assert (edge == edge[:1]).all()


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 0.5}, {"frames": 0}, {"height": 4}, {"width": "64"}])
def test_a_senseless_demo_clip_is_refused(bad):
    with pytest.raises(Refused, match=f"{next(iter(bad))}="):
        demo_clip(**bad)


# pictures


def test_every_frame_of_a_sheet_is_where_it_belongs():
    other = demo_clip(4, frames=24)
    sheet = contact_sheet([CLIP, other], n=4, gap=3)
    assert sheet.shape == (2 * 64 + 3, 4 * 64 + 3 * 3, 3) and sheet.dtype == np.uint8
    seen = np.zeros(sheet.shape[:2], bool)
    for i, clip in enumerate((CLIP, other)):
        for j, pick in enumerate((0, 8, 15, 23)):
            place = (slice(i * 67, i * 67 + 64), slice(j * 67, j * 67 + 64))
            assert np.array_equal(sheet[place], clip[pick])
            seen[place] = True
    assert (sheet[~seen] == 255).all()


def test_names_stand_left_of_their_rows():
    plain = contact_sheet([CLIP, CLIP])
    named = contact_sheet({"winner": CLIP, "loser": CLIP})
    margin = named.shape[1] - plain.shape[1]
    assert np.array_equal(named[:, margin:], plain)
    assert (
        (named[:64, :margin] < 128).any() and (named[66:, :margin] < 128).any() and (named[64:66, :margin] == 255).all()
    )


def test_a_short_clip_is_shown_whole_and_once():
    assert np.array_equal(contact_sheet(CLIP[:3], n=8, gap=0), np.concatenate(CLIP[:3], axis=1))
    assert contact_sheet(Clip(CLIP, 8.0), n=1).shape == contact_sheet([Clip(CLIP, 8.0)], n=1).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "clips", [[], {}, CLIP[0], CLIP / 255, [CLIP, CLIP[:5]], {"a": CLIP, "b": CLIP[:, :32]}, [None], CLIP[:0]]
)
def test_what_makes_no_sheet_is_refused(clips):
    with pytest.raises(Refused, match="contact sheet"):
        contact_sheet(clips)


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_a_senseless_number_of_pictures_is_refused(n):
    with pytest.raises(Refused, match=f"n={n}"):
        contact_sheet(CLIP, n)


@pytest.mark.slow(1)
def test_shown_pictures_stay_small(tmp_path):
    noisy = np.random.default_rng(0).integers(0, 256, (9, 480, 832, 3), dtype=np.uint8)
    assert Image.open(io.BytesIO(show(noisy).data)).width <= 1000 and len(show(noisy).data) <= 14_000
    rows = {f"seed {i}": demo_clip(i) for i in range(3)}
    assert len(show(rows).data) <= 14_000
    write(tmp_path / "a.mp4", CLIP, 8)
    assert show(tmp_path / "a.mp4").data.startswith(b"\x89PNG")


def test_a_small_film_plays_and_a_large_one_is_linked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a & b.mp4", CLIP, 8)
    assert "<video controls loop muted playsinline" in play("a & b.mp4").data
    large = play(tmp_path / "a & b.mp4", limit=100).data
    assert 'href="a%20%26%20b.mp4"' in large and "a &amp; b.mp4" in large and "data:video" not in large
    assert "<video" in play(CLIP).data and "<video" in play(read("a & b.mp4")).data
    assert "<video" not in play(CLIP, limit=100).data and len(os.listdir()) == 1


def test_a_missing_file_cannot_be_played(tmp_path):
    with pytest.raises(Refused, match="gone.mp4"):
        play(tmp_path / "gone.mp4")


def test_zoom_draws_each_pixel_larger():
    clip = demo_clip(0, frames=2, height=16, width=24)
    large = contact_sheet(clip, n=2, gap=0, zoom=3)
    assert large.shape == (48, 144, 3)
    assert np.array_equal(large[::3, ::3], contact_sheet(clip, n=2, gap=0))
    with pytest.raises(Refused, match="zoom=0"):
        contact_sheet(clip, zoom=0)


def test_small_clips_are_shown_larger():
    shown = Image.open(io.BytesIO(show(demo_clip(0, frames=2, height=16, width=24)).data))
    assert shown.height == 64
