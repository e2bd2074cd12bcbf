"""Parts of one building, and tiles that share buildings: areas, heights and counts that one can draw."""

import dataclasses
from collections import Counter

from fusiondet.buildings import Building
from fusiondet.converters.merging import merge_layers
from fusiondet.errors import InputError
from fusiondet.io.vectors import UNKNOWN_HEIGHT, Layer, read_layer
from tests.support.vector_cases import house

import geopandas
import pytest
from shapely.geometry import box


def layer(*buildings, crs="EPSG:28992", id_field="identificatie", **more):
    reasons = Counter(b.attributes[UNKNOWN_HEIGHT] for b in buildings if b.attributes)
    return Layer(list(buildings), crs, reasons=reasons, id_field=id_field, **more)


def ids(merged):
    return [b.id for b in merged.buildings]


class TestMerge:
    def test_a_building_on_the_border_counts_once(self):
        west = layer(house("a", 0, 10, 5.0), house("b", 95, 105, 6.0))
        east = layer(house("b", 95, 105, 6.0), house("c", 120, 130))
        merged = merge_layers([west, east])
        assert ids(merged) == ["a", "b", "c"] and merged.reasons == {"missing": 1}
        assert merged.counts == {"in several files, counted once": 1}
        assert (merged.crs, merged.id_field) == ("EPSG:28992", "identificatie")

    def test_the_copy_with_a_height_wins_then_the_larger_one(self):
        known = merge_layers([layer(house("a", 0, 10)), layer(house("a", 0, 9, 5.0))])
        assert known.buildings[0].height_m == 5.0 and known.reasons == Counter()
        larger = merge_layers([layer(house("a", 0, 9, 5.0)), layer(house("a", 0, 10, 6.0))])
        assert larger.buildings[0].height_m == 6.0

    def test_a_corner_of_four_tiles(self):
        merged = merge_layers([layer(house("a", 0, 10, 5.0))] * 4)
        assert len(merged.buildings) == 1 and merged.counts == {"in several files, counted once": 3}

    def test_what_a_tile_cut_in_two_is_joined(self):
        merged = merge_layers([layer(house("a", 0, 20, 6.0)), layer(house("a", 20.004, 30.004, 9.0))])
        (building,) = merged.buildings
        assert building.height_m == pytest.approx(7.0) and building.polygon.area == pytest.approx(300)
        assert merged.counts == {"joined across files": 1}

    def test_parts_in_both_tiles_find_their_own_copies(self):
        parts = house("a", 0, 10, 6.0), house("a", 10, 20, 9.0)
        merged = merge_layers([layer(*parts), layer(*reversed(parts))])
        assert [b.height_m for b in merged.buildings] == [6.0, 9.0]
        assert merged.counts == {"in several files, counted once": 2}

    def test_numbers_that_start_anew_are_not_identifiers(self):
        neighbours = layer(house(1, 0, 10, 5.0), id_field="id"), layer(house(1, 10, 20, 6.0), id_field="id")
        assert len(merge_layers(neighbours).buildings) == 2
        far = layer(house("a", 0, 10, 5.0)), layer(house("a", 500, 510, 5.0))
        assert len(merge_layers(far).buildings) == 2
        unnamed = [dataclasses.replace(one, id_field=None) for one in (layer(house(0, 0, 10, 5.0)),) * 2]
        assert len(merge_layers(unnamed).buildings) == 2
        same = [layer(house(1, 0, 10, 5.0), id_field="id") for _ in range(2)]
        assert len(merge_layers(same).buildings) == 1

    def test_rows_of_one_file_stay_apart(self):
        merged = merge_layers(
            [layer(house("a", 0, 10, 5.0), house("a", 0, 10, 5.0)), layer(house("b", 0, 10))]
        )
        assert ids(merged) == ["a", "a", "b"] and merged.counts == Counter()

    def test_counts_and_notes_of_all_files(self):
        one = layer(
            house("a", 0, 9), checks=Counter(sparse=1), counts=Counter(x=1), notes=["n"], height_field="h"
        )
        two = layer(house("b", 0, 9), checks=Counter(sparse=2), notes=["n", "m"], height_field="g")
        merged = merge_layers([one, two])
        assert (merged.checks, merged.counts, merged.notes) == ({"sparse": 3}, {"x": 1}, ["n", "m"])
        assert merged.height_field is None and merge_layers([one]) is one

    def test_other_crs(self):
        near = geopandas.GeoSeries([box(190_000, 343_000, 190_010, 343_010)], crs="EPSG:28992")
        first = Layer([Building(near[0], 5.0, id="a")], "EPSG:28992", id_field="identificatie")
        second = Layer([Building(near.to_crs(4326)[0], 5.0, id="a")], "EPSG:4326", id_field="identificatie")
        merged = merge_layers([first, second])
        assert merged.counts == {"in several files, counted once": 1}
        with pytest.raises(InputError, match="some of the footprints have a CRS, others have none"):
            merge_layers([first, layer(crs=None)])
        with pytest.raises(InputError, match="no layer"):
            merge_layers([])

    def test_limburg_in_two_overlapping_halves(self, shared_data):
        whole = read_layer(shared_data("3dbag-b3-limburg") / "limburg.city.json")
        west, east = (
            dataclasses.replace(whole, buildings=part)
            for part in (whole.buildings[:500], whole.buildings[300:])
        )
        merged = merge_layers([west, east])
        assert ids(merged) == ids(whole) and merged.counts == {"in several files, counted once": 200}


class TestRowsOfOneFile:
    def save(self, path, names):
        outlines = [box(10 * i, 0, 10 * i + 10, 10) for i in range(len(names))]
        heights = [float(i + 1) for i in range(len(names))]
        geopandas.GeoDataFrame({"id": names, "h": heights}, geometry=outlines, crs="EPSG:28992").to_file(path)
        return path

    def test_rows_without_an_identifier_are_buildings_of_their_own(self, tmp_path):
        path = self.save(tmp_path / "a.gpkg", ["x", None, "x", "", None])
        found = read_layer(path, "h", join_parts=True)
        assert [(b.id, b.height_m) for b in found.buildings] == [("x", 2.0), (1, 2.0), (3, 4.0), (4, 5.0)]
        assert found.counts == {"identifiers of several rows": 1, "rows joined to others": 1}

    def test_repeated_identifiers_are_named(self, tmp_path):
        found = read_layer(self.save(tmp_path / "a.gpkg", ["x", "x", "y"]), "h")
        assert len(found.buildings) == 3 and "e.g. x (2)" in found.notes[0]

    def test_wageningen(self, shared_data):
        path = shared_data("3dbag-wageningen-heights") / "downtown_clipped_buildings_real.shp"
        parts, whole = read_layer(path), read_layer(path, join_parts=True)
        assert (len(parts.buildings), len(whole.buildings)) == (2462, 1535)
        assert whole.counts == {"identifiers of several rows": 605, "rows joined to others": 927}
        area = sum(b.polygon.area for b in parts.buildings)
        assert sum(b.polygon.area for b in whole.buildings) == pytest.approx(area, rel=1e-4)

        def volume(one):
            return sum(b.polygon.area * b.height_m for b in one.buildings if b.height_m)

        assert volume(whole) == pytest.approx(volume(parts), rel=5e-3)
