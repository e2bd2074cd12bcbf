"""Invented cities: what stands in them keeps its distance, its shape and its distribution."""

from fusiondet.synthetic.presets import PRESETS
from tests.support.cities import city_of

import numpy as np
import pytest
import shapely
from shapely import STRtree


@pytest.fixture(scope="module", params=sorted(PRESETS))
def city(request):
    return city_of(request.param)


@pytest.fixture(scope="module")
def realistic():
    return city_of("realistic")


def test_buildings_never_overlap(city):
    outlines = [b.footprint for b in city.buildings]
    a, b = STRtree(outlines).query(outlines, predicate="intersects")
    shared = [outlines[i].intersection(outlines[j]).area for i, j in zip(a, b, strict=True) if i < j]
    assert max(shared, default=0) < 0.05
    assert all(o.is_valid and o.area > 15 for o in outlines)


def test_roofs_cover_their_footprints(city):
    for b in city.buildings[:80]:
        roof = shapely.union_all([p.polygon for p in b.roof], grid_size=1e-3)
        assert roof.symmetric_difference(b.footprint).area < 0.01 * b.footprint.area


def test_trees_stand_neither_in_buildings_nor_on_roads(realistic):
    trees = shapely.points(realistic.trees[:, :2])
    inside = STRtree([b.footprint for b in realistic.buildings]).query(trees, predicate="within")[0]
    assert len(realistic.trees) > 100 and len(inside) < 0.02 * len(trees)


def test_realistic_has_shared_walls_courtyards_water_and_tilted_roofs(realistic):
    outlines = [b.footprint for b in realistic.buildings]
    a, b = STRtree(outlines).query(outlines, predicate="touches")
    walls = [outlines[i].intersection(outlines[j]).length for i, j in zip(a, b, strict=True)]
    assert sum(w > 4 for w in walls) > 0.5 * len(outlines)
    assert any(o.interiors for o in outlines if o.geom_type == "Polygon")
    assert {kind for _, kind in realistic.ground} >= {0, 1, 2, 3}
    tilted = [any(abs(p.plane[0]) + abs(p.plane[1]) > 0.1 for p in b.roof) for b in realistic.buildings]
    assert 0.2 < np.mean(tilted) < 0.9


def test_easy_buildings_stand_apart():
    outlines = [b.footprint for b in city_of("easy").buildings]
    a, b = STRtree(outlines).query(outlines, predicate="dwithin", distance=2.9)
    assert (a == b).all() and len(outlines) > 50


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_heights_say_nothing_about_area_or_material_and_stay_in_range(name):
    cities = [city_of(name, seed, seed + 100, (0, 0, 500, 500)).buildings for seed in range(3)]
    buildings = [b for c in cities for b in c]
    log_height = np.log([b.height_m for b in buildings])
    area, brightness, sigma0 = (
        np.array(v)
        for v in zip(
            *[(b.footprint.area, np.mean(b.albedo), b.roof_sigma0_db) for b in buildings], strict=True
        )
    )
    limit = 4 / np.sqrt(len(buildings)) + 0.03
    for other in (np.log(area), brightness, sigma0):
        assert abs(np.corrcoef(log_height, other)[0, 1]) < limit
    assert 0.4 < log_height.std() < 0.75 and np.exp(log_height).min() > 1.5 and np.exp(log_height).max() <= 47


def test_another_height_seed_changes_nothing_but_heights():
    one, other = city_of("realistic", 5, 1), city_of("realistic", 5, 2)
    assert [b.footprint.wkb for b in one.buildings] == [b.footprint.wkb for b in other.buildings]
    assert [b.albedo for b in one.buildings] == [b.albedo for b in other.buildings]
    assert np.array_equal(one.trees, other.trees) and np.array_equal(one.cars, other.cars)
    assert sum(
        a.height_m != b.height_m for a, b in zip(one.buildings, other.buildings, strict=True)
    ) > 0.95 * len(one.buildings)
