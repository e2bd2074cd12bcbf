"""Masks of many outlines at once are those of each outline alone."""

from fusiondet.buildings import clean_polygon
from fusiondet.geometry.painting import polygon_to_mask, polygons_to_masks

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Polygon, box

HEIGHT, WIDTH = 24, 20


def one_by_one(outlines):
    empty = np.zeros((HEIGHT, WIDTH), bool)
    return [empty if outline is None else polygon_to_mask(outline, HEIGHT, WIDTH) for outline in outlines]


# Pixel centres and borders, where the last bit decides, beside any other number; some outside the raster.
coordinates = st.one_of(
    st.integers(-6, 56).map(lambda n: n / 2),
    st.integers(-3000, 27000).map(lambda n: n / 1000),
    st.floats(-3, 27, allow_nan=False),
)


@st.composite
def outlines(draw):
    kind = draw(st.sampled_from(["ring", "box", "courtyard", "parts", "none"]))
    if kind == "none":
        return None
    if kind == "ring":
        return clean_polygon(
            Polygon(draw(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=7)))
        )
    x, y, width, height = (
        draw(coordinates),
        draw(coordinates),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 12)),
    )
    outer = box(x, y, x + width, y + height)
    if kind == "courtyard":
        return clean_polygon(
            outer.difference(shapely.box(x + 0.5, y + 0.5, x + width - 0.5, y + height - 0.5))
        )
    if kind == "parts":
        return MultiPolygon([outer, box(x + width + 1, y, x + width + 4, y + height / 2)])
    return outer if draw(st.booleans()) else outer.reverse()


@given(st.lists(outlines(), max_size=12))
def test_masks_are_those_of_each_outline_alone(drawn):
    masks = polygons_to_masks(drawn, HEIGHT, WIDTH)
    assert masks.shape == (len(drawn), HEIGHT, WIDTH) and masks.dtype == bool
    for mask, expected in zip(masks, one_by_one(drawn), strict=True):
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "moved",
    [
        lambda outline: shapely.affinity.scale(outline, 1.37, 0.83, origin=(0, 0)),
        lambda outline: shapely.affinity.rotate(outline, 31, origin=(10, 12)),
    ],
)
@given(drawn=st.lists(outlines(), max_size=6))
def test_moved_outlines_too(moved, drawn):
    drawn = [None if outline is None else moved(outline) for outline in drawn]
    for mask, expected in zip(polygons_to_masks(drawn, HEIGHT, WIDTH), one_by_one(drawn), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_outlines_that_do_not_meet_are_rasterised_in_one_call(monkeypatch):
    calls = []
    rasterize = rasterio.features.rasterize
    monkeypatch.setattr(
        "fusiondet.geometry.painting.rasterize", lambda *args, **kw: calls.append(1) or rasterize(*args, **kw)
    )
    apart = [box(4 * i, 4 * j, 4 * i + 3, 4 * j + 3) for i in range(5) for j in range(6)]
    assert polygons_to_masks(apart, HEIGHT, WIDTH).sum() == 9 * 30 and len(calls) == 1
    polygons_to_masks([*apart, box(0, 0, 20, 24)], HEIGHT, WIDTH)
    assert len(calls) == 3, "one that overlaps others needs a raster of its own"
    assert polygons_to_masks([], HEIGHT, WIDTH).shape == (0, HEIGHT, WIDTH)
    assert not polygons_to_masks([None, box(30, 30, 40, 40)], HEIGHT, WIDTH).any()
