"""A mask in a file is the region that was painted, or is refused by the name of the file."""

import re

import numpy as np
import pytest
from PIL import Image

from localdpo.ground.errors import Refused
from localdpo.media import video
from localdpo.pairs.mask_files import MaskFolder, read_mask

SIZE = 5, 16, 24
SQUARE = np.zeros(SIZE, bool)
SQUARE[:, 4:12, 6:18] = True


def palette(values):
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 20, 0, 0, 0, 20, 0])
    return image


FORMS = {
    "white.png": lambda file: Image.fromarray(SQUARE[0].astype(np.uint8) * 255).save(file),
    "ones.png": lambda file: Image.fromarray(SQUARE[0].astype(np.uint8)).save(file),
    "bits.png": lambda file: Image.fromarray(SQUARE[0]).save(file),
    "red.png": lambda file: Image.fromarray(SQUARE[0][..., None] * np.uint8([255, 0, 0])).save(file),
    "labels.png": lambda file: palette(SQUARE[0] * 2).save(file),
    "bool.npy": lambda file: np.save(file, SQUARE),
    "still.npy": lambda file: np.save(file, SQUARE[0]),
    "soft.npy": lambda file: np.save(file, SQUARE * np.float32(0.9)),
    "bytes.NPY": lambda file: np.save(file.open("wb"), SQUARE * np.int64(255)),
    "film.mp4": lambda file: video.write_lossless(file, SQUARE[..., None].repeat(3, -1) * np.uint8(255), 8),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_mask_is_the_region_that_was_painted(tmp_path, name):
    FORMS[name](tmp_path / name)
    assert np.array_equal(read_mask(tmp_path / name, SIZE), SQUARE)


def test_a_mask_of_the_clips_own_size_is_cut_as_the_clip_is(tmp_path):
    wide = np.zeros((9, 32, 64), bool)
    wide[:, 8:24, 20:44] = True  # of which the middle 32 x 48 is kept, and halved
    np.save(tmp_path / "wide.npy", wide)
    assert np.array_equal(read_mask(tmp_path / "wide.npy", SIZE, source=(9, 32, 64)), SQUARE)


def saved(values):
    return lambda file: np.save(file, values)


WRONG = {
    "gone.png": (lambda file: None, "does not exist"),
    "nothing.png": (lambda file: file.touch(), "is empty (0 bytes)"),
    "folder.png": (lambda file: file.mkdir(), "cannot be read (Is a directory)"),
    "text.png": (lambda file: file.write_text("not a picture"), "cannot be read as a png"),
    "text.npy": (lambda file: file.write_text("not an array"), "cannot be read as an array"),
    "object.npy": (saved(np.array([None])), "cannot be read as an array"),
    "complex.npy": (saved(SQUARE * 1j), "holds complex128 of shape [5, 16, 24], which is no mask"),
    "flat.npy": (saved(SQUARE[0, 0]), "holds bool of shape [24], which is no mask"),
    "labels.npy": (saved(SQUARE * 7), "has values up to 7, which are neither 0 and 1 nor 0 and 255"),
    "holes.npy": (saved(np.where(SQUARE, np.nan, 0)), "has values up to nan"),
    "black.npy": (saved(~SQUARE & SQUARE), "is empty: no pixel of it is inside the mask"),
    "small.npy": (saved(SQUARE[:, :8]), "is 8x24 pixels, not 16x24 or 32x64"),
    "short.npy": (saved(SQUARE[:4]), "has 4 frames, not 5 or 9"),
    "long.npy": (saved(SQUARE.repeat(2, 0)), "has 10 frames, not 5 or 9"),
    "note.txt": (lambda file: file.write_text("here"), "is no mask by its name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mask_that_cannot_be_used_is_refused_by_its_name(tmp_path, name):
    make, why = WRONG[name]
    make(tmp_path / name)
    with pytest.raises(Refused, match=rf"{name}: {re.escape(why)}.*\n  -> ."):
        read_mask(tmp_path / name, SIZE, source=(9, 32, 64))


def test_a_picture_that_is_cut_short_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (16, 24), np.uint8)
    Image.fromarray(noise).save(file := tmp_path / "cut.png")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(Refused, match="cut.png: cannot be read as a png"):
        read_mask(file, SIZE)


def test_each_clip_has_the_mask_of_its_name(tmp_path):
    (tmp_path / "walks").mkdir()
    for name in ("walks/dog.v2.png", "cat.npy", "cat.png", "notes.txt"):
        (tmp_path / name).touch()
    masks = MaskFolder(tmp_path)
    assert masks.file("walks/dog.v2.mp4") == masks.file("walks/dog.v2") == tmp_path / "walks/dog.v2.png"
    with pytest.raises(Refused, match="cat.mp4: has two masks: cat.npy and cat.png\n  -> keep one"):
        masks.file("cat.mp4")
    with pytest.raises(Refused, match="notes.mp4: has no mask\n  -> add notes.png to "):
        masks.file("notes.mp4")
    with pytest.raises(Refused, match="cat.png: is not a folder"):
        MaskFolder(tmp_path / "cat.png")
