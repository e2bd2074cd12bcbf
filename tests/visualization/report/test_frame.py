"""The page's plane: a metre on the ground is a metre in it, whatever the CRS."""

from fusiondet.visualization.report.frame import bounds_of, frame_at, in_crs, move

import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import CRS, Geod, Transformer
from shapely.geometry import box


@pytest.mark.parametrize(
    ("crs", "tolerance"),
    [
        ("EPSG:32631", 1e-3),  # UTM
        ("EPSG:28992", 1e-3),  # the Dutch grid
        ("EPSG:4326", 1e-3),  # degrees
        ("EPSG:3857", 1e-3),  # Web Mercator, 1.6 times too large here
        ("EPSG:2263", 1e-3),  # feet, in New York
    ],
)
def test_100_metres_on_the_ground_are_100_metres_in_the_frame(crs, tolerance):
    lon, lat = (-73.98, 40.75) if crs == "EPSG:2263" else (5.1, 52.1)
    geod, crs = Geod(ellps="WGS84"), CRS(crs)
    to_crs = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform
    centre = to_crs(lon, lat)
    frame = frame_at(crs, (*centre, *centre))
    for azimuth in (0, 90, 222):
        end = to_crs(*geod.fwd(lon, lat, azimuth, 100)[:2])
        assert np.hypot(*frame.to_metres(np.array([end]))[0]) == pytest.approx(100, rel=tolerance)


def test_picture_and_outlines_meet_in_the_frame():
    frame = frame_at(CRS("EPSG:4326"), (5, 52, 5.2, 52.2))
    transform = Affine(1e-4, 0, 5, 0, -1e-4, 52.2)
    at = frame.transform(transform) * (300, 500)
    assert at == pytest.approx(tuple(frame.to_metres(np.array([transform * (300, 500)]))[0]))
    assert frame.to_metres(np.array([[5.1, 52.1]]))[0] == pytest.approx((0, 0), abs=1e-6)


def test_unknown_crs_is_taken_to_be_metres():
    frame = frame_at(None, (0, 0, 10, 20))
    assert frame.to_metres(np.array([[6, 12]])).tolist() == [[1, 2]]


def test_what_a_crs_cannot_express_has_no_place():
    outlines = np.array([box(5, 52, 5.1, 52.1), box(0, 90, 1, 95)], dtype=object)
    moved = in_crs(outlines, CRS("EPSG:4326"), CRS("EPSG:32631"))
    assert moved[0].area > 0 and moved[1] is None
    assert bounds_of(moved) == pytest.approx(shapely.bounds(moved[0]))
    assert bounds_of(np.array([None], dtype=object)) is None and bounds_of(np.array([], dtype=object)) is None
    assert move(moved, frame_at(CRS("EPSG:32631"), bounds_of(moved)))[1] is None


def test_pole_has_a_frame_all_the_same():
    frame = frame_at(CRS("EPSG:4326"), (0, 90, 0, 90))
    assert np.isfinite(frame.scale).all() and min(frame.scale) > 0
