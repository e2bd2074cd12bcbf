"""Pixel sizes, and the way from one grid to another, on grids one can draw."""

import math

from fusiondet.io.grids import (
    axis_gsd_m,
    footprint_px,
    gsd_m_of,
    metric_crs,
    north_up,
    pixel_ratio,
    warp_valid,
    whole_pixel_offset,
)
from tests.support.messages import raises_naming

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.crs import CRS

UTM = CRS.from_epsg(32631)
HALF_METRE = Affine(0.5, 0, 600_000, 0, -0.5, 5_800_000)


class Part:
    """A file of a mosaic as far as its place counts."""

    def __init__(self, transform, crs=UTM):
        self.transform, self.crs = transform, crs


@pytest.mark.parametrize(
    ("crs", "x", "y", "expected"),
    [
        ("EPSG:32631", 600_000, 5_800_000, "EPSG:32631"),
        ("EPSG:4326", 4.5, 52.0, "EPSG:32631"),
        ("EPSG:4326", 151.2, -33.9, "EPSG:32756"),
        ("EPSG:3857", 500_000, 6_800_000, "EPSG:32631"),  # metres that are none on the ground
        ("EPSG:2263", 1_000_000, 200_000, "EPSG:32618"),  # feet
        ("EPSG:4326", 180.0, 10.0, "EPSG:32660"),
    ],
)
def test_a_crs_in_which_a_metre_is_a_metre(crs, x, y, expected):
    assert metric_crs(crs, x, y) == expected


def test_places_that_are_not_on_earth():
    with raises_naming("EPSG:0"):
        metric_crs("EPSG:0", 0, 0)
    with raises_naming("inf", "UTM zone 31N"):
        metric_crs("EPSG:32631", math.inf, 0)


@pytest.mark.parametrize(
    ("transform", "crs", "expected"),
    [
        (HALF_METRE, "EPSG:32631", (0.5, 0.5)),
        (Affine(0.3, 0.4, 0, 0.4, -0.3, 0), None, (0.5, 0.5)),  # rotated
        (Affine(2, 0, 0, 0, -3, 0), None, (2, 3)),
        (Affine(1, 0, 1_000_000, 0, -1, 200_000), "EPSG:2263", (0.3048, 0.3048)),
    ],
)
def test_ground_distance_of_a_pixel(transform, crs, expected):
    assert axis_gsd_m(transform, crs, 100, 80) == pytest.approx(expected, rel=1e-3)
    assert gsd_m_of(transform, crs, 100, 80) == pytest.approx(math.sqrt(math.prod(expected)), rel=1e-3)


def test_pixels_without_any_place_have_no_size():
    with raises_naming("CRS", "gdal_translate"):
        gsd_m_of(Affine.identity(), None, 10, 10)


@given(
    st.sampled_from([(1, -1), (-1, -1), (1, 1), (-1, 1)]),
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_north_up_turns_a_raster_and_never_mirrors_it(signs, quarter, width, height):
    transform = Affine.rotation(90 * quarter) * Affine.scale(*signs)
    (flip_x, flip_y), turned = north_up(transform, width, height)
    assert turned.determinant < 0
    x, y = (width - 0.25 if flip_x else 0.25), (height - 0.75 if flip_y else 0.75)
    assert turned * (0.25, 0.75) == pytest.approx(transform * (x, y), abs=1e-9)


def test_a_whole_pixel_offset_is_found_and_a_half_is_not():
    moved = HALF_METRE * Affine.translation(-3, 7)
    assert whole_pixel_offset(Part(moved), HALF_METRE, UTM, (10, 10)) == (3, -7)
    half = HALF_METRE * Affine.translation(0.5, 0)
    assert whole_pixel_offset(Part(half), HALF_METRE, UTM, (10, 10)) is None
    assert whole_pixel_offset(Part(moved, CRS.from_epsg(32632)), HALF_METRE, UTM, (10, 10)) is None
    assert whole_pixel_offset(Part(HALF_METRE * Affine.scale(1.001)), HALF_METRE, UTM, (1000, 1000)) is None


def test_the_part_of_a_grid_that_a_file_covers():
    moved = HALF_METRE * Affine.translation(5, -2)
    covered = footprint_px((10, 10), moved, UTM, HALF_METRE, UTM, (10, 10))
    assert covered.bounds == pytest.approx((5, 0, 10, 8))
    away = HALF_METRE * Affine.translation(500, 0)
    assert footprint_px((10, 10), away, UTM, HALF_METRE, UTM, (10, 10)).is_empty
    degrees = Affine(1e-3, 0, 4.4, 0, -1e-3, 52.4)  # a much larger file in another CRS
    assert footprint_px(
        (400, 400), degrees, CRS.from_epsg(4326), HALF_METRE, UTM, (10, 10)
    ).area == pytest.approx(100)


@pytest.mark.parametrize("scale", [(1, 1), (2, 3), (0.5, 0.25)])
def test_pixels_of_the_source_in_one_of_the_target(scale):
    assert pixel_ratio(HALF_METRE, UTM, HALF_METRE * Affine.scale(*scale), UTM, (8, 8)) == pytest.approx(
        scale
    )


def test_invalid_pixels_do_not_bleed_into_valid_ones():
    values = np.full((1, 8, 8), 10.0, np.float32)
    valid = np.ones((8, 8), bool)
    valid[:, 4:] = False
    values[:, ~valid] = 1e6
    warped, inside = warp_valid(values, valid, HALF_METRE, UTM, HALF_METRE * Affine.scale(2), UTM, (4, 4))
    assert inside.tolist() == [[True, True, False, False]] * 4
    assert warped[0][inside] == pytest.approx(10.0)


def test_warping_onto_the_same_grid_changes_nothing():
    values = np.random.default_rng(0).normal(size=(2, 6, 7)).astype(np.float32)
    warped, inside = warp_valid(values, np.ones((6, 7), bool), HALF_METRE, None, HALF_METRE, None, (6, 7))
    assert inside.all() and np.allclose(warped, values, atol=1e-6)
