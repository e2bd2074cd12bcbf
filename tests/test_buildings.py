"""The record: cleaning of heights and outlines, pixels and map, geometry of sun and sensors."""

import math

from fusiondet.buildings import (
    Building,
    SensorGeometry,
    building_to_map,
    building_to_pixels,
    clean_height_m,
    clean_polygon,
    is_tangled,
    map_to_pixel,
    pixel_to_map,
    validate,
)
from fusiondet.errors import InputError

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7.5, (7.5, None)), (" 7.5 ", (7.5, None)), (1000, (1000.0, None)), (None, (None, "missing")),
        ("", (None, "missing")), ("  ", (None, "missing")), (math.nan, (None, "missing")), ("nan", (None, "missing")),
        ("7.5 m", (None, "not a number")), ("7,5", (None, "not a number")), (True, (None, "not a number")),
        ([7.5], (None, "not a number")), (0, (None, "zero")), ("0.0", (None, "zero")), (-1, (None, "negative")),
        (-9999, (None, "negative")), (9999, (None, "absurd")), (math.inf, (None, "absurd")), (1000.1, (None, "absurd")),
    ],
)  # fmt: skip
def test_heights(value, expected):
    assert clean_height_m(value) == expected


BOWTIE = Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])


class TestCleanPolygon:
    @pytest.mark.parametrize(
        "nothing",
        [None, Polygon(), MultiPolygon(), Point(1, 1), LineString([(0, 0), (1, 1)]), Polygon([(0, 0), (1, 1), (2, 2)]),
         GeometryCollection([Point(0, 0)]), Polygon([(0, 0), (1, math.nan), (1, 1)]),
         Polygon([(0, 0), (1, math.inf), (1, 1)])],
        ids=lambda g: str(g)[:30],
    )  # fmt: skip
    def test_no_area(self, nothing):
        assert clean_polygon(nothing) is None

    def test_valid_stays(self):
        courtyard = Polygon(box(0, 0, 9, 9).exterior, [box(3, 3, 6, 6).exterior])
        assert clean_polygon(courtyard).equals(courtyard)
        assert clean_polygon(MultiPolygon([box(0, 0, 1, 1), box(2, 0, 3, 1)])).geom_type == "MultiPolygon"

    def test_self_intersection_keeps_its_area(self):
        repaired = clean_polygon(BOWTIE)
        assert repaired.is_valid and repaired.area == 2

    def test_third_dimension_goes(self):
        flat = clean_polygon(Polygon([(0, 0, 5), (1, 0, math.nan), (1, 1, 7)]))
        assert not flat.has_z and flat.area == 0.5

    def test_only_areas_are_kept(self):
        mixed = GeometryCollection(
            [box(0, 0, 1, 1), LineString([(0, 0), (5, 5)]), GeometryCollection([box(1, 0, 2, 1)])]
        )
        assert clean_polygon(mixed).area == 2

    @given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=9))
    def test_always_valid_or_nothing(self, points):
        result = clean_polygon(Polygon(points))
        assert result is None or (
            result.is_valid and result.area > 0 and result.geom_type.endswith("Polygon")
        )


def test_pixel_and_map_share_the_outer_corner():
    transform = Affine(0.5, 0, 1000, 0, -0.5, 2000)
    assert pixel_to_map(box(0, 0, 2, 4), transform).equals(box(1000, 1998, 1001, 2000))
    assert map_to_pixel(box(1000, 1998, 1001, 2000), tuple(transform)[:6]).equals(box(0, 0, 2, 4))


@given(
    angle=st.floats(0, 360), size=st.floats(0.1, 10), x=st.floats(-1e6, 1e6), y=st.floats(-1e6, 1e6), flip=st.booleans()
)  # fmt: skip
def test_pixel_and_map_are_inverse(angle, size, x, y, flip):
    transform = (
        Affine.translation(x, y) * Affine.rotation(angle) * Affine.scale(size, size if flip else -size)
    )
    building = Building(box(1, 2, 7, 5), height_m=3.0, id="a")
    there = building_to_map(building, transform)
    back = building_to_pixels(there, transform)
    assert there.polygon.area == pytest.approx(18 * size**2, rel=1e-4) and (there.id, there.height_m) == (
        "a",
        3.0,
    )
    assert shapely.hausdorff_distance(back.polygon, building.polygon) < 1e-4


class TestSensorGeometry:
    known = SensorGeometry(90.0, 40.0, 10.0, 35.0, None, 5.0)

    def test_round_trip_and_unknown(self):
        assert SensorGeometry.from_dict(self.known.to_dict()) == self.known
        assert SensorGeometry.from_dict(None) == SensorGeometry.from_dict({"later": 1}) == SensorGeometry()

    def test_mirror_and_turn_act_on_azimuths_only(self):
        assert self.known.flipped_horizontally() == SensorGeometry(270.0, 40.0, 350.0, 35.0, None, 5.0)
        assert self.known.rotated(90) == SensorGeometry(180.0, 40.0, 100.0, 35.0, None, 5.0)
        assert self.known.rotated(270).rotated(90) == self.known


class TestValidate:
    def test_good(self):
        building = Building(box(0, 0, 1, 1), 5.0, 4.0, 7.0, 0.5)
        assert validate(building) is building
        assert validate(Building(box(0, 0, 1, 1))).height_m is None

    @pytest.mark.parametrize(
        ("building", "message"),
        [
            (Building(None), "expected a Polygon"),
            (Building(Point(0, 0)), "found Point"),
            (Building(BOWTIE), "Self-intersection.*clean_polygon"),
            (Building(box(0, 0, 1, 1), height_m=-1.0), "height_m is -1.0"),
            (Building(box(0, 0, 1, 1), height_m=math.nan), "height_m is nan"),
            (Building(box(0, 0, 1, 1), 5.0, 6.0, 7.0), "does not enclose the median"),
            (Building(box(0, 0, 1, 1), score=1.5), "score is 1.5"),
            (Building(box(0, 0, 1, 1), outline="eaves"), "footprint, roof"),
        ],
    )
    def test_bad(self, building, message):
        with pytest.raises(InputError, match=message):
            validate(building)


@pytest.mark.parametrize(
    ("transform", "expected_deg"),
    [
        (None, 30.0),
        ((0.5, 0, 600000, 0, -0.5, 5800000), 30.0),
        (
            tuple(Affine.rotation(90) * Affine.scale(0.5, -0.5))[:6],
            120.0,
        ),  # right is north: the upper edge faces west
        ((0.5, 0, 0, 0, 0.5, 0), 150.0),  # south-up: mirrored
    ],
)
def test_azimuths_in_image_axes(transform, expected_deg):
    turned = SensorGeometry(sun_azimuth_deg=30.0, sun_elevation_deg=45.0).in_image_axes(transform)
    assert turned.sun_azimuth_deg == pytest.approx(expected_deg)
    assert (turned.sun_elevation_deg, turned.sar_look_azimuth_deg) == (45.0, None)


def star(points: int) -> Polygon:
    """A star polygon {points / k} whose every side crosses about every other one."""
    turns = np.arange(points) * (points // 2) / points * 2 * np.pi
    return Polygon(np.column_stack([np.cos(turns), np.sin(turns)]))


@pytest.mark.parametrize(("outline", "tangled"), [(star(101), False), (star(201), False), (star(2001), True)])
def test_outline_whose_sides_cross_tens_of_thousands_of_times_is_none(outline, tangled):
    assert is_tangled(outline) == tangled and (clean_polygon(outline) is None) == tangled


def test_long_outline_with_one_crossing_is_repaired():
    turns = np.linspace(0, 2 * np.pi, 20_001)[:-1]
    xy = 100 * np.column_stack([np.cos(turns), np.sin(turns)])
    xy[[5, 6]] = xy[[6, 5]]
    assert clean_polygon(Polygon(xy)).area == pytest.approx(np.pi * 1e4, rel=1e-3)
