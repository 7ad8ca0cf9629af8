"""Video files as they come: every broken one here is a real file, and every refusal names it and its own reason."""

import ast
import gc
import os
import struct
import sys
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import loaded_by, said
from PIL import Image

from localdpo.ground.errors import Refused, Starved
from localdpo.media import forms
from localdpo.media.sheets import demo_clip
from localdpo.media.video import read, write, write_lossless

CLIP = demo_clip(seed=3, frames=24)


SWIFT = {"deadline": "good", "cpu-used": "5"}  # swift, and the same bytes however busy the machine is


def film(
    path,
    frames=CLIP,
    codec="libx264",
    layout="yuv420p",
    rate=24,
    stamps=None,
    options=(),
    setup=None,
    **container_options,
):
    "A video made by the library alone, so that it can have the faults that `write` would not let through."
    options = dict(options)
    if codec == "libx264":  # its macroblock tree reads memory that it never wrote: other bytes in each run
        options["x264-params"] = ":".join(filter(None, [options.get("x264-params"), "mbtree=0"]))
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], layout
        if setup:
            setup(stream)
        for i, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if stamps is not None:
                picture.pts, picture.time_base = stamps[i], Fraction(1, rate)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def sound(container, seconds=1):
    stream = container.add_stream("aac", rate=16000)
    for start in range(0, 16000 * seconds, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def refusal(path, **kwargs):
    with pytest.raises(Refused) as caught:
        read(path, **kwargs)
    error = caught.value
    assert os.path.basename(path) in error.what and error.then, str(error)
    return error.why


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


# what is no video at all


def test_a_missing_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "gone.mp4")


def test_a_directory_is_refused(tmp_path):
    assert "cannot be read (Is a directory)" in refusal(tmp_path)


def test_a_name_below_a_file_is_refused(tmp_path):
    write(tmp_path / "a.mp4", CLIP, 8)
    assert "cannot be read (Not a directory)" in refusal(tmp_path / "a.mp4" / "b.mp4")


def test_a_link_in_a_circle_is_refused(tmp_path):
    (tmp_path / "round.mp4").symlink_to(tmp_path / "round.mp4")
    assert "cannot be read" in refusal(tmp_path / "round.mp4")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert "empty" in refusal(tmp_path / "empty.mp4")


@pytest.mark.parametrize(
    "content",
    [b"not a film\n" * 500, b"x", bytes(4000), bytes(range(256)) * 40],
    ids=["text", "byte", "zeros", "pattern"],
)
def test_bytes_that_are_no_video_are_refused(tmp_path, content):
    (tmp_path / "notes.mp4").write_bytes(content)
    assert "is not a video" in refusal(tmp_path / "notes.mp4")


@pytest.mark.parametrize("name", ["notes.txt", "notes.srt", "list.m3u8"])
def test_text_that_libav_would_play_is_refused(tmp_path, name):
    good = film(tmp_path / "good.ts")
    text = {
        "notes.txt": "hello\n" * 100,
        "notes.srt": "1\n00:00:00,000 --> 00:00:01,000\nhello\n\n" * 3,
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{good.name}\n#EXT-X-ENDLIST\n",
    }[name]
    (tmp_path / name).write_text(text)
    why = refusal(tmp_path / name)
    assert "is not a video" in why or "no video track" in why


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
@pytest.mark.parametrize("named", ["as it is", "mp4"])
def test_an_image_is_refused(tmp_path, suffix, named):
    Image.fromarray(CLIP[0]).save(tmp_path / f"image.{suffix}")
    path = tmp_path / f"image.{suffix}"
    if named == "mp4":
        path = path.rename(tmp_path / "image.mp4")
    assert "is not a video" in refusal(path)


def test_a_moving_gif_is_refused(tmp_path):
    images = [Image.fromarray(image) for image in CLIP[:4]]
    images[0].save(tmp_path / "moving.gif", save_all=True, append_images=images[1:])
    assert "GIF" in refusal(tmp_path / "moving.gif")


def test_sound_alone_is_refused(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        sound(container)
    assert "no video track, only audio" in refusal(tmp_path / "song.mp4")


def test_a_wav_named_mp4_is_refused(tmp_path):
    with wave.open(str(tmp_path / "song.mp4"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(bytes(8000))
    assert "no video track, only audio" in refusal(tmp_path / "song.mp4")


def test_the_cover_of_a_song_is_no_video(tmp_path):
    from av.stream import Disposition

    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(CLIP[0], format="rgb24")
        packets = [*cover.encode(picture), *cover.encode()]
        sound(container)
        container.mux(packets)
    assert "no video track, only audio" in refusal(path)


# files that lost a part


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {
        "faststart": film(folder / "a.mp4", movflags="+faststart").read_bytes(),
        "moov-at-end": film(folder / "b.mp4").read_bytes(),
        "fragmented": film(folder / "c.mp4", options={"g": "6"}, movflags="frag_keyframe+empty_moov").read_bytes(),
        "webm": film(folder / "d.webm", codec="libvpx-vp9", options=SWIFT).read_bytes(),
        "mkv": film(folder / "e.mkv", fflags="+bitexact").read_bytes(),
        "avi": film(folder / "f.avi", codec="mpeg4").read_bytes(),
    }


SUFFIX = {"webm": "webm", "mkv": "mkv", "avi": "avi"}


FORMS = ["faststart", "moov-at-end", "fragmented", "webm", "mkv", "avi"]


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_file_is_read_whole(tmp_path, originals, form):
    path = tmp_path / f"whole.{SUFFIX.get(form, 'mp4')}"
    path.write_bytes(originals[form])
    assert read(path).frames.shape == CLIP.shape


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("form", FORMS)
def test_a_file_cut_anywhere_is_refused(tmp_path, originals, form, share):
    path = tmp_path / f"cut.{SUFFIX.get(form, 'mp4')}"
    path.write_bytes(originals[form][: int(len(originals[form]) * share)])
    if form == "avi" and share == 0.97:  # only the index is gone
        assert read(path).frames.shape == CLIP.shape
    else:
        assert "cut short" in refusal(path)


@pytest.mark.parametrize("form", ["webm", "mkv"])
def test_a_film_that_is_cut_to_its_first_frame_is_called_cut(tmp_path, originals, form):
    path, counts = tmp_path / f"cut.{form}", set()
    for end in range(300, len(originals[form]) // 2, 50):
        path.write_bytes(originals[form][:end])
        assert "cut short" in (why := refusal(path))
        counts.add(why.partition(" and holds ")[2][:2])
    assert "1)" in counts
    film(path, CLIP[:1], codec="libvpx-vp9" if form == "webm" else "libx264")
    assert "holds a single frame" in refusal(path)


def test_without_its_moov_atom_the_reason_says_so(tmp_path, originals):
    path = tmp_path / "half.mp4"
    path.write_bytes(originals["moov-at-end"][:3000])
    assert "moov atom" in refusal(path)


@pytest.mark.parametrize("lost", [1, 100, 1000])
def test_a_few_bytes_missing_are_noticed_even_by_a_partial_read(tmp_path, originals, lost):
    path = tmp_path / "tail.mp4"
    path.write_bytes(originals["faststart"][:-lost])
    assert "cut short" in refusal(path, frames=3)


@pytest.mark.parametrize("place", [0.4, 0.7])
def test_damage_in_the_middle_is_not_painted_over(tmp_path, originals, place):
    damaged = bytearray(originals["faststart"])
    start = int(len(damaged) * place)
    damaged[start : start + 60] = bytes(byte ^ 255 for byte in damaged[start : start + 60])
    path = tmp_path / "scratched.mp4"
    path.write_bytes(damaged)
    assert "damaged" in refusal(path)


def test_a_codec_that_is_not_known_is_refused(tmp_path, originals):
    path = tmp_path / "strange.mp4"
    path.write_bytes(originals["faststart"].replace(b"avc1", b"zzzz"))
    why = refusal(path)
    assert "codec" in why or "damaged" in why


# files that are whole, but not plain


def test_a_single_frame_is_refused(tmp_path):
    assert "single frame" in refusal(film(tmp_path / "still.mp4", CLIP[:1]))


@pytest.mark.parametrize("size", [(63, 64), (64, 65), (63, 65)])
def test_an_odd_size_is_refused_and_named(tmp_path, size):
    height, width = size
    path = film(tmp_path / "odd.mp4", demo_clip(0, 3, height, width), layout="yuv444p")
    why = refusal(path)
    assert "odd" in why and f"{width}x{height}" in why


@pytest.mark.parametrize(
    ("stamps", "gaps"),
    [
        ([i + (i > 10) for i in range(24)], "from 41.7 to 83.3 ms"),
        ([i * 2 + (i % 2) for i in range(24)], "from 41.7 to 125.0 ms"),
        ([*range(23), 40], "from 41.7 to 750.0 ms"),
    ],
    ids=["one lost", "uneven", "late end"],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_variable_frame_rate_is_refused_with_its_gaps(tmp_path, stamps, gaps, suffix):
    path = film(tmp_path / f"phone.{suffix}", stamps=stamps, codec="mpeg4")
    why = refusal(path)
    if suffix == "mkv":  # its clock counts milliseconds
        assert "variable frame rate" in why
    elif suffix == "mp4":
        assert "variable frame rate" in why and gaps in why
    else:  # an avi writes an empty frame where one is missing
        assert "variable frame rate" in why or "cut short" in why


def test_a_partial_read_judges_the_rate_of_what_it_reads(tmp_path):
    path = film(tmp_path / "late.mp4", stamps=[i + (i > 10) for i in range(24)])
    assert len(read(path, frames=9).frames) == 9
    assert "variable frame rate" in refusal(path, frames=13)


@pytest.mark.parametrize("turn", [{"degrees": 90}, {"degrees": 180}, {"degrees": 0, "hflip": True}])
def test_a_picture_on_its_side_is_refused(tmp_path, turn):
    path = film(tmp_path / "turned.mp4", setup=lambda stream: stream.set_display_rotation(**turn))
    assert "rotated" in refusal(path)


def test_a_film_that_begins_again_has_frames_without_a_time_of_their_own(tmp_path):
    once = film(tmp_path / "once.ts").read_bytes()
    (tmp_path / "twice.ts").write_bytes(once + once)
    assert "frames without a time of their own" in refusal(tmp_path / "twice.ts")


def test_an_avi_that_lost_the_order_of_its_frames_is_refused(tmp_path):
    "An avi numbers its frames as they were encoded, which is not the order they are shown in."
    assert "frames without a time of their own" in refusal(film(tmp_path / "order.avi", options={"bf": "2"}))


def test_a_size_that_changes_on_the_way_is_refused(tmp_path):
    small, wide = film(tmp_path / "small.ts"), film(tmp_path / "wide.ts", demo_clip(0, 24, 48, 96))
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + wide.read_bytes())
    assert "changes its size from 64x64 to 96x48" in refusal(tmp_path / "both.ts")


def test_pixels_that_are_not_square_are_refused(tmp_path):
    def wide(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    assert "not square (4/3)" in refusal(film(tmp_path / "wide.mp4", setup=wide))


def test_interlaced_film_is_refused(tmp_path):
    path = film(tmp_path / "tv.mp4", options={"x264-params": "tff=1"})
    assert "interlaced" in refusal(path)


def test_hdr_is_refused(tmp_path):
    def pq(stream):
        stream.codec_context.color_trc, stream.codec_context.color_primaries = 16, 9

    assert "HDR" in refusal(film(tmp_path / "hdr.mp4", layout="yuv420p10le", setup=pq))


def test_more_frames_than_there_are_cannot_be_had(tmp_path):
    path = film(tmp_path / "short.mp4")
    assert "has 24 frames, fewer than the 25 asked for" in refusal(path, frames=25)
    assert len(read(path, frames=24).frames) == 24


@pytest.mark.parametrize("frames", [0, 1, -3, 2.5, "9"])
def test_a_senseless_number_of_frames_is_refused(tmp_path, frames):
    with pytest.raises(Refused, match="whole number of at least 2"):
        read(film(tmp_path / "good.mp4", CLIP[:3]), frames=frames)


# reading what is fine


@pytest.mark.parametrize("name", ["ein schöner Film.mp4", "子犬 🐶.mp4", "take 1:2 %03d.mp4", "-i.mp4", "a'b\"c&d.mp4"])
def test_any_name_will_do(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(name, CLIP, 24)
    assert len(read(name).frames) == 24 and os.listdir() == [name]


@pytest.mark.parametrize(
    ("suffix", "codec", "layout", "floor"),
    [
        ("webm", "libvpx-vp9", "yuv420p", 28),
        ("mkv", "libx264", "yuv420p", 28),
        ("mov", "libx264", "yuv420p10le", 28),
        ("mp4", "libx264", "yuv444p", 30),
        ("mp4", "libx264", "yuvj420p", 28),
        ("mp4", "libx264rgb", "rgb24", 30),
        ("ts", "libx264", "yuv420p", 28),
        ("avi", "mpeg4", "yuv420p", 22),
        ("mp4", "libsvtav1", "yuv420p", 25),
    ],
)
def test_other_formats_read_right(tmp_path, suffix, codec, layout, floor):
    clip = read(film(tmp_path / f"clip.{suffix}", codec=codec, layout=layout))
    assert clip.frames.shape == CLIP.shape and clip.fps == pytest.approx(24, rel=1e-3)
    assert psnr(clip.frames, CLIP) > floor


@pytest.mark.parametrize("rate", [8, 24, 25, 30, 60, Fraction(24000, 1001), 7.5])
@pytest.mark.parametrize("count", [2, 24])
def test_the_rate_comes_back(tmp_path, rate, count):
    write(tmp_path / "a.mp4", CLIP[:count], rate)
    assert read(tmp_path / "a.mp4").fps == pytest.approx(float(rate), rel=1e-9)
    assert read(tmp_path / "a.mp4", frames=2).fps == pytest.approx(float(rate), rel=1e-9)


@pytest.mark.parametrize("rate", [24, 30, 60, 120])
def test_the_milliseconds_of_a_webm_are_not_taken_for_a_variable_rate(tmp_path, rate):
    path = film(tmp_path / "a.webm", codec="libvpx-vp9", rate=rate, options=SWIFT)
    assert read(path).fps == pytest.approx(rate, rel=0.01)


def test_sound_beside_the_pictures_does_no_harm(tmp_path):
    path = tmp_path / "both.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        packets = [
            p for image in CLIP for p in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
        ] + stream.encode()
        sound(container, seconds=3)  # longer than the film
        container.mux(packets)
    assert len(read(path).frames) == 24


def test_a_trimmed_film_is_not_taken_for_a_cut_one(tmp_path):
    "An edit list leaves frames out on purpose, as phones do when they trim."
    path = film(tmp_path / "trimmed.mp4", options={"bf": "2"})
    whole, data = read(path).frames, bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12
    length, start = struct.unpack(">Ii", data[entry : entry + 8])
    data[entry : entry + 8] = struct.pack(
        ">Ii", length - 5 * 1000 // 24, start + 5 * 512
    )  # five frames fewer, at the front
    path.write_bytes(data)
    assert np.array_equal(read(path).frames, whole[5:])


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_a_film_that_begins_late_is_not_taken_for_a_cut_one(tmp_path, suffix, codec):
    path = film(tmp_path / f"late.{suffix}", codec=codec, stamps=range(12, 36))
    clip = read(path)
    assert len(clip.frames) == 24 and clip.fps == pytest.approx(24, rel=1e-3)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    assert "cut short" in refusal(path)


def test_a_partial_read_leaves_the_rest_alone(tmp_path):
    path = film(tmp_path / "long.mp4", np.concatenate([CLIP] * 10), movflags="+faststart")
    whole = read(path).frames
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)
    path.write_bytes(data)
    assert np.array_equal(read(path, frames=9).frames, whole[:9])
    assert "damaged" in refusal(path)


# writing


def test_a_written_film_is_close_to_its_pixels(tmp_path):
    write(tmp_path / "a.mp4", CLIP, 24)
    write(tmp_path / "fine.mp4", CLIP, 24, crf=10)
    close, fine = read(tmp_path / "a.mp4").frames, read(tmp_path / "fine.mp4").frames
    assert psnr(close, CLIP) > 30 and psnr(fine, CLIP) > 32


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 40, 40), (30, 220, 250)])
def test_colours_are_not_shifted(tmp_path, colour):
    flat = np.broadcast_to(np.uint8(colour), (4, 32, 32, 3))
    write(tmp_path / "flat.mp4", flat, 8, crf=10)
    assert np.abs(read(tmp_path / "flat.mp4").frames.astype(int) - flat).max() <= 2


def test_the_lossless_file_returns_every_bit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (5, 34, 46, 3), dtype=np.uint8)
    for clip in (noise, CLIP):
        write_lossless(tmp_path / "exact.mp4", clip, 8)
        assert np.array_equal(read(tmp_path / "exact.mp4").frames, clip)


@pytest.mark.parametrize("size", [(2, 2), (32, 32), (64, 64), (66, 50), (96, 96), (128, 80)])
def test_the_same_frames_make_the_same_bytes(tmp_path, size):
    clip = demo_clip(1, 9, 128, 128)[:, : size[0], : size[1]]
    for kind in (write, write_lossless):
        written = set()
        for i in range(6):
            kind(tmp_path / f"{i}.mp4", clip, 8)
            written.add((tmp_path / f"{i}.mp4").read_bytes())
        assert len(written) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc fills fresh memory on demand")
def test_the_bytes_do_not_depend_on_what_was_in_memory(tmp_path):
    seen = []
    for fill in ("0", "200"):
        (folder := tmp_path / fill).mkdir()
        said("write_clips.py", folder, env={**os.environ, "MALLOC_PERTURB_": fill})
        seen.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert seen[0] == seen[1] and len(seen[0]) == 3


def test_views_and_strides_are_written_as_they_look(tmp_path):
    mirrored = np.concatenate([CLIP, CLIP], axis=2)[:, ::-1, ::-2]
    write_lossless(tmp_path / "a.mp4", mirrored, 8)
    assert np.array_equal(read(tmp_path / "a.mp4").frames, mirrored)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write(path, CLIP, 8)
    before = path.read_bytes()

    class Interrupted(np.ndarray):
        def __iter__(self):
            yield np.asarray(self[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, CLIP[::-1].view(Interrupted), 8)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (CLIP / 255, "float64 values from 0"),
        (CLIP.astype(np.int64) + 500, "int64 values from 5"),
        (np.zeros((0, 8, 8, 3)), "float64"),
        (CLIP > 3, "bool"),
        (list(CLIP), "from a list"),
        (None, "from a NoneType"),
        (CLIP[0], r"shape \(64, 64, 3\)"),
        (CLIP[..., :1], r"shape \(24, 64, 64, 1\)"),
        (CLIP.transpose(0, 3, 1, 2), r"shape \(24, 3, 64, 64\)"),
        (CLIP[:0], r"shape \(0, 64, 64, 3\)"),
        (CLIP[:1], "single frame"),
        (CLIP[:, :63], "odd size, 64x63.*\n.*64x64"),
        (CLIP[:, :, :61], "odd size, 61x64.*\n.*62x64"),
    ],
)
@pytest.mark.parametrize("kind", [write, write_lossless])
def test_frames_that_are_no_film_are_refused(tmp_path, frames, reason, kind):
    with pytest.raises(Refused, match=f"bad.mp4.*{reason}"):
        kind(tmp_path / "bad.mp4", frames, 8)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e9, 1e-9, "8", None])
def test_an_impossible_rate_is_refused(tmp_path, fps):
    with pytest.raises(Refused, match="bad.mp4.*fps="):
        write(tmp_path / "bad.mp4", CLIP, fps)


@pytest.mark.parametrize("crf", [-1, 52, float("nan"), "23", None])
def test_an_impossible_quality_is_refused(tmp_path, crf):
    with pytest.raises(Refused, match="bad.mp4.*crf="):
        write(tmp_path / "bad.mp4", CLIP, 8, crf)


@pytest.mark.parametrize("name", ["clip.webm", "clip.gif", "clip", "clip.mp4.part"])
def test_another_suffix_is_refused(tmp_path, name):
    with pytest.raises(Refused, match="suffix"):
        write(tmp_path / name, CLIP, 8)
    assert not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot be written"):
        write(tmp_path / "file" / "a.mp4", CLIP, 8)


def test_importing_the_modules_loads_no_heavy_library():
    loaded = set.union(*loaded_by("localdpo.media.sheets", "localdpo.media.video").values())
    assert not loaded & {"torch", "torchvision", "av", "PIL", "IPython"}


# -- memory, threads and file handles ---------------------------------------------------------------------------------


@pytest.mark.slow(2)
@pytest.mark.parametrize("kind, why", [("memory", "GiB to read"), ("files", "for want of file handles")])
def test_want_of_memory_or_file_handles_is_not_called_damage_and_passes(tmp_path, kind, why):
    path = tmp_path / "film.mp4"
    write(path, demo_clip(1, 40, 240, 320), 8)
    refusals = ast.literal_eval(said("starved.py", path, kind, timeout=120))
    assert refusals and {name for name, _ in refusals} == {"Starved"} and why in refusals[0][1], refusals


def test_reading_and_writing_start_no_thread_and_keep_no_file_open(tmp_path):
    path = tmp_path / "film.mp4"
    write(path, demo_clip(1, 30, 64, 64), 8)

    def held():
        threads = next(line for line in open("/proc/self/status") if line.startswith("Threads"))
        return int(threads.split()[1]), len(os.listdir("/proc/self/fd"))

    gc.collect()
    gc.disable()
    try:
        before = held()
        for _ in range(5):
            read(path)
            with pytest.raises(Refused):
                read(path, frames=31)
        assert held() == before
    finally:
        gc.enable()


def test_a_small_file_of_a_huge_film_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "film.mp4"
    write(path, np.zeros((20, 256, 256, 3), np.uint8), 8)
    monkeypatch.setattr(forms, "free_memory", lambda: 10 * 2**20)
    with pytest.raises(Starved, match=r"film.mp4: takes 0.01 GiB to read \(256x256, 20 frames\)") as refusal:
        read(path)
    assert "50%" in refusal.value.why and "scale the film down" in refusal.value.then
    assert read(path, 2).frames.shape == (2, 256, 256, 3)


def test_frames_are_made_smaller_as_they_come(tmp_path):
    path = tmp_path / "film.mp4"
    write(path, demo_clip(1, 12, 64, 64), 8)
    whole, small = read(path), read(path, each=lambda frame: frame[::2, ::2])
    assert np.array_equal(small.frames, whole.frames[:, ::2, ::2]) and small.fps == whole.fps
