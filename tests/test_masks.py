import hashlib

import numpy as np
import pytest
from conftest import loaded_by
from matplotlib.path import Path as Polygon

from localdpo import masks
from localdpo.ground.errors import Refused
from localdpo.ground.noise import generator
from localdpo.masks import MaskConfig, draw_mask, random_mask, to_latent

SMALL, FULL = (9, 32, 32), (49, 480, 720)


def bits(mask):
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16]


def shapes(seed, frames=9, height=32, width=32, **settings):
    rng = generator(seed=seed, id="shapes", purpose="test")
    return masks.draw_shapes(frames, height, width, rng, MaskConfig(**settings))


# -- the same for the same address ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, settings, expected",
    [
        (SMALL, dict(static=0), "3eee6b19afb7f777"),
        (SMALL, dict(static=1, contour="paper"), "a95cd93a4cc00cf0"),
        (FULL, dict(static=0), "bda467ca3cc3b8fc"),
        (FULL, dict(static=1, contour="paper"), "49ffdd32764dfea9"),
    ],
)
def test_the_bits_stay_what_they_are(size, settings, expected):
    # pairs are made with these masks, and remade on other hosts, so the bits are a promise
    assert bits(random_mask(*size, seed=3, id="clip 7", **settings)) == expected


@pytest.mark.parametrize("other", [dict(seed=1), dict(id="clip 1"), dict(visit=1)])
def test_each_part_of_the_address_gives_another_mask(other):
    address = dict(seed=0, id="clip 0", visit=0)
    assert not np.array_equal(random_mask(*SMALL, **address), random_mask(*SMALL, **address | other))


def test_a_narrow_band_only_picks_among_the_same_draws():
    wide = [draw_mask(*SMALL, seed=0, id=i) for i in range(60)]
    narrow = [draw_mask(*SMALL, seed=0, id=i, area=(0.2, 0.3)) for i in range(60)]
    kept = [(a, b) for a, b in zip(wide, narrow, strict=True) if b.tries == 1]
    assert 10 < len(kept) < 60 and all(np.array_equal(a.mask, b.mask) for a, b in kept)
    assert all(0.2 <= a.mask.mean() <= 0.3 for a, _ in kept)


# -- what a mask is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, (1, 40, 24), (5, 96, 160)])
def test_a_mask_is_an_array_of_its_own(size):
    mask = random_mask(*size, seed=0, static=1)
    assert mask.shape == size and mask.dtype == bool and mask.flags.c_contiguous
    before = mask[1:].copy()
    mask[0] = True  # a view that repeats one frame would change them all
    assert np.array_equal(mask[1:], before)


@pytest.mark.parametrize("band", [(0.05, 0.7), (0.3, 0.6), (0.0, 0.15)])
def test_the_area_is_in_the_band(band):
    shares = [random_mask(*SMALL, seed=5, id=i, area=band).mean() for i in range(25)]
    assert band[0] <= min(shares) and max(shares) <= band[1]


def test_a_band_that_is_never_met_is_refused_in_finite_time():
    with pytest.raises(Refused, match=r"90.0% to 100.0% of 9x32x32.*\n?.*7 tries.*\n.*widen `area`"):
        random_mask(*SMALL, seed=0, shapes=1, size=(0.1, 0.2), area=(0.9, 1), tries=7)


def test_the_number_of_shapes_is_drawn_evenly_from_its_range():
    numbers, found = np.unique([shapes(i).shape[2] for i in range(400)], return_counts=True)
    assert numbers.tolist() == [1, 2, 3, 4, 5] and found.min() > 50
    assert {shapes(i, shapes=(2, 3)).shape[2] for i in range(40)} == {2, 3}


def test_every_shape_is_in_the_union():
    x, y = shapes(0, 5, 64, 64, shapes=8, static=0)
    each = [masks.rasterise(x[:, p : p + 1], y[:, p : p + 1], 64, 64) for p in range(8)]
    assert all(one.any() for one in each)
    assert np.array_equal(masks.rasterise(x, y, 64, 64), np.any(each, 0))


def test_more_shapes_do_not_mean_more_area_when_compensated():
    def area(count, compensate):
        drawn = [random_mask(1, 48, 48, 0, i, shapes=count, compensate=compensate, area=(0, 1)) for i in range(90)]
        return np.mean(drawn)

    assert 0.75 < area(5, True) / area(1, True) < 1.1
    assert area(5, False) / area(1, False) > 1.8


def test_presets_cover_less_and_less_of_the_clip():
    # measured from a thousand masks in the page: 47, 20 and 7%
    middles = [
        np.median([random_mask(*SMALL, seed=0, id=i, preset=name).mean() for i in range(60)]) for name in masks.PRESETS
    ]
    assert dict(zip(masks.PRESETS, middles, strict=True)) == pytest.approx(
        dict(ours=0.2, paper=0.46, release=0.08), rel=0.2
    )
    assert np.array_equal(random_mask(*SMALL, seed=0), random_mask(*SMALL, seed=0, preset="ours"))
    assert masks.configured(dict(preset="release", static=0.2)) == MaskConfig(**masks.PRESETS["release"], static=0.2)


@pytest.mark.parametrize("wrong", ["papers", None, ["paper"]])
def test_an_unknown_preset_is_refused_by_name(wrong):
    with pytest.raises(
        Refused, match="mask preset .*papers|None|paper.*: is not known\n.*there are ours, paper, release"
    ):
        random_mask(*SMALL, seed=0, preset=wrong)


# -- contours -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 480])
def test_the_papers_contour_is_the_polygon_of_its_anchors(size):
    for seed in range(30):
        segments = masks.control_points("paper", 6 + seed % 3, 0.7, 0.35, np.random.default_rng(seed))
        curve, polygon = masks.outline(segments, 17), segments[:, 0].T
        pixels = [masks.rasterise(*(size * (line / 4 + 0.5))[:, None, None], size, size) for line in (curve, polygon)]
        assert np.array_equal(*pixels) and pixels[0].any()


def test_the_bezier_scale_changes_nothing_on_the_chords():
    for seed in range(10):
        a, b = (random_mask(*SMALL, seed, contour="paper", bezier_scale=scale) for scale in (0.2, 0.4))
        assert np.array_equal(a, b)


def test_the_curved_contour_is_no_polygon():
    segments = masks.control_points("curved", 7, 0.7, 0.3, np.random.default_rng(0))
    curve = masks.outline(segments, 16).T.reshape(7, 16, 2)
    chord, way = segments[:, 3] - segments[:, 0], curve[:, 8] - segments[:, 0]
    off = (chord[:, 0] * way[:, 1] - chord[:, 1] * way[:, 0]) / np.hypot(*chord.T)
    assert (np.abs(off) > 0.01).all()


@pytest.mark.parametrize("contour", ["curved", "paper"])
def test_a_contour_runs_around_its_origin_once_and_never_back(contour):
    for seed in range(50):
        jitter = 0.6 + 0.3 * (seed % 2)
        x, y = masks.outline(masks.control_points(contour, 3 + seed % 6, jitter, 0.3, np.random.default_rng(seed)), 12)
        steps = np.diff(np.unwrap(np.arctan2([*y, y[0]], [*x, x[0]])))
        assert (steps > 0).all() and np.isclose(steps.sum(), 2 * np.pi)


@pytest.mark.parametrize("contour", ["curved", "paper"])
@pytest.mark.parametrize("height, width", [(32, 32), (21, 50)])
def test_the_raster_agrees_with_asking_each_pixel(contour, height, width):
    centres = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2) + 0.5
    for seed in range(8):
        points = np.stack(shapes(seed, 3, height, width, contour=contour), -1)
        slow = [np.any([Polygon(shape).contains_points(centres) for shape in frame], 0) for frame in points]
        fast = masks.rasterise(*np.moveaxis(points, -1, 0), height, width)
        assert np.array_equal(fast.reshape(len(points), -1), slow)


def test_what_is_outside_the_frame_is_cut_off():
    x, y = np.array([-3.0, 5, 5, -3]), np.array([-2.0, -2, 20, 20])
    mask = masks.rasterise(x[None, None], y[None, None], 6, 8)
    assert mask[0, :, :5].all() and not mask[0, :, 5:].any()


# -- motion -------------------------------------------------------------------------------------------------------------


def test_about_half_of_the_masks_do_not_move():
    drawn = [draw_mask(2, 16, 16, seed=0, id=i) for i in range(300)]
    assert 0.42 < np.mean([not one.moving for one in drawn]) < 0.58
    assert all((one.mask == one.mask[0]).all() for one in drawn if not one.moving)
    assert np.mean([(one.mask != one.mask[0]).any() for one in drawn if one.moving]) > 0.95


@pytest.mark.parametrize("settings", [{}, dict(drift=(2, 4)), dict(size=1, shapes=1, rescale=(2, 3), turn=180)])
def test_a_shape_bounces_and_never_leaves_the_frame(settings):
    for seed in range(40):
        (x, y), (height, width) = shapes(seed, 17, 20, 44, static=0, **settings), (20, 44)
        assert min(x.min(), y.min()) > -1e-6 and x.max() < width + 1e-6 and y.max() < height + 1e-6


def test_motion_is_smooth_where_nothing_bounces():
    config = MaskConfig()
    for seed in range(40):
        moves = masks.course(33, 100, np.random.default_rng(seed), config)
        steps = np.hypot(*np.diff(moves.shift))
        assert 100 * 0.05 <= 1.01 * steps.sum() and 0.99 * steps.sum() <= 100 * 0.3
        assert steps.max() < 1.02 * steps.min()


def test_frames_are_moments_of_one_motion():
    for seed in range(20):
        few, many = shapes(seed, 9, static=0), shapes(seed, 17, static=0)
        assert np.allclose(few, many[:, ::2], atol=1e-9)


def test_each_shape_turns_about_its_own_centre():
    x, y = shapes(0, 9, 200, 200, static=0, shapes=3, size=(0.2, 0.3), drift=0, rescale=1, turn=90)
    middle = np.stack([x.max(-1) + x.min(-1), y.max(-1) + y.min(-1)]) / 2
    # the middle of the box wanders a little as the shape turns; a turn of the whole canvas would throw it much farther
    assert np.abs(middle - middle[:, :1]).max() < 12
    assert not np.allclose(x[0], x[-1])


# -- latents --------------------------------------------------------------------------------------------------------------


def slow_latent(mask, temporal, spatial):
    latents = []
    for j in range((len(mask) - 1) // temporal + 1):
        frames = mask[:1] if j == 0 else mask[temporal * (j - 1) + 1 : temporal * j + 1]
        seen = frames.any(0)
        cells = [
            [seen[r : r + spatial, c : c + spatial].mean() >= 0.5 for c in range(0, seen.shape[1], spatial)]
            for r in range(0, seen.shape[0], spatial)
        ]
        latents.append(cells)
    return np.array(latents)


@pytest.mark.parametrize("size, temporal, spatial", [(SMALL, 4, 4), ((13, 16, 24), 4, 8), ((7, 8, 8), 2, 4)])
def test_a_latent_is_in_the_mask_by_the_causal_rule(size, temporal, spatial):
    for seed, share in enumerate((0.3, 0.5, 0.7)):
        mask = np.random.default_rng(seed).random(size) < share
        expected = slow_latent(mask, temporal, spatial)
        assert expected.any() and np.array_equal(to_latent(mask, temporal, spatial), expected)


@pytest.mark.parametrize("frame, latent", [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_each_frame_has_its_latent(frame, latent):
    mask = np.zeros(SMALL, bool)
    mask[frame] = True
    assert to_latent(mask, spatial=4).any((1, 2)).nonzero()[0].tolist() == [latent]


def test_both_sizes_give_the_latents_of_their_models():
    assert to_latent(random_mask(*SMALL, 0), spatial=4).shape == (3, 8, 8)
    assert to_latent(random_mask(*FULL, 0)).shape == (13, 60, 90)


def test_true_means_corrupt_on_both_sides():
    assert to_latent(np.ones(SMALL, bool)).all() and not to_latent(np.zeros(SMALL, bool)).any()
    left = np.zeros(SMALL, bool)
    left[:, :, :16] = True
    latents = to_latent(left, spatial=4)
    assert latents[:, :, :4].all() and not latents[:, :, 4:].any()


def test_half_a_cell_is_enough_and_less_is_not():
    mask = np.zeros((1, 16, 8), bool)
    mask[0, 0:4], mask[0, 8:12] = True, True
    mask[0, 8, 0] = False
    assert to_latent(mask)[0].tolist() == [[True], [False]]
    assert to_latent(mask, area=0.48)[0].tolist() == [[True], [True]]


def test_a_mask_of_specks_keeps_the_latent_with_the_most():
    mask = np.zeros((1, 16, 16), bool)
    mask[0, 2, 2], mask[0, 9, 9], mask[0, 10, 9] = True, True, True
    assert to_latent(mask).nonzero() == (0, 1, 1)


def test_snapped_latents_fill_whole_patches():
    for seed in range(20):
        mask = random_mask(9, 32, 48, seed, static=0)
        latents = to_latent(mask, spatial=4, patch=2)
        assert latents.shape == (3, 8, 12)
        patches = latents.reshape(3, 4, 2, 6, 2)
        assert np.array_equal(patches.any((2, 4)), patches.all((2, 4)))
        assert np.array_equal(latents[:, ::2, ::2], to_latent(mask, spatial=8))


# -- what is refused ------------------------------------------------------------------------------------------------------


def test_an_unknown_setting_is_refused_with_the_known_ones():
    with pytest.raises(Refused, match="speed, vertices: .*\n.*known are contour, n_vertices"):
        random_mask(*SMALL, seed=0, vertices=7, speed=2)


@pytest.mark.parametrize(
    "settings",
    [
        dict(contour="bezier"),
        dict(compensate="no"),
        dict(n_vertices=2),
        dict(n_vertices=6.5),
        dict(shapes=(5, 1)),
        dict(shapes=9),
        dict(radius_jitter=(0.6, 1.0)),
        dict(static=1.5),
        dict(static=(0, 1)),
        dict(area=(0.1, 0.2, 0.3)),
        dict(area=("low", "high")),
        dict(drift=float("nan")),
        dict(tries=0),
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused_by_name(settings):
    with pytest.raises(Refused, match=f"^{next(iter(settings))}="):
        MaskConfig(**settings)


@pytest.mark.parametrize("size", [(0, 32, 32), (9, 32.0, 32), (9, 32, -1), (True, 32, 32)])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(Refused, match="is not a number of pixels or frames"):
        random_mask(*size, seed=0)


@pytest.mark.parametrize(
    "mask, said",
    [
        (np.ones((9, 32, 32), np.uint8), "pass bool"),
        (np.ones((32, 32), bool), "pass bool"),
        (np.ones((8, 32, 32), bool), r"4k\+1 frames"),
        (np.ones((9, 36, 32), bool), "multiples of 8"),
    ],
)
def test_what_has_no_latents_is_refused(mask, said):
    with pytest.raises(Refused, match=said):
        to_latent(mask)


def test_masks_need_neither_torch_nor_matplotlib():
    # outlines are drawn by the thousand in worker processes that should start at once
    assert not loaded_by("localdpo.masks")["localdpo.masks"] & {"torch", "matplotlib", "PIL"}
