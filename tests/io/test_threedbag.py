"""3DBAG's names through the releases, its GeoPackages, and what it says against its own buildings."""

import datetime
import json
import warnings

from fusiondet.errors import InputError
from fusiondet.io import threedbag
from fusiondet.io.threedbag_filters import (
    Filters,
    point_cloud_years,
    roof_type,
    year_of,
)
from fusiondet.io.vectors import UNKNOWN_HEIGHT, read_layer
from tests.support.messages import raises_naming
from tests.support.vector_cases import frame, houses

import pandas
import pytest
from shapely.geometry import box

FAMILIES = {
    "2025": ("b3_h_{}", "b3_h_maaiveld"),
    "2023": ("b3_h_dak_{}", "b3_h_maaiveld"),
    "21.09": ("h_dak_{}", "h_maaiveld"),
    "Kadaster": ("dd_h_dak_{}", "h_maaiveld"),
    "Kadaster, its own ground": ("dd_h_dak_{}", "dd_h_maaiveld"),
}


def save_shapefile(gdf, path):
    with warnings.catch_warnings():  # that names are cut is what is tested
        warnings.simplefilter("ignore")
        gdf.to_file(path)


class TestHeightFields:
    @pytest.mark.parametrize("statistic", threedbag.STATISTICS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_release_under_every_spelling(self, family, statistic):
        roof, ground = FAMILIES[family]
        columns = ["identificatie", *(roof.format(s) for s in threedbag.STATISTICS), ground]
        assert threedbag.height_fields(columns, statistic) == (roof.format(statistic), ground)
        capitals = [c.upper() for c in columns]
        assert threedbag.height_fields(capitals, statistic) == (
            roof.format(statistic).upper(),
            ground.upper(),
        )
        assert threedbag.ground_field(roof.format(statistic), columns) == ground
        assert threedbag.statistic_of(roof.format(statistic)) in (f"p{statistic[:2]}", statistic)
        assert sorted(threedbag.roof_fields(columns)) == sorted(columns[1:-1])

    def test_newer_names_win_and_an_elevation_without_ground_is_no_height(self):
        columns = ["b3_h_dak_70p", "b3_h_70p", "h_dak_70p", "h_maaiveld", "b3_h_maaiveld"]
        assert threedbag.height_fields(columns) == ("b3_h_70p", "b3_h_maaiveld")
        assert threedbag.height_fields(["b3_h_70p", "h_maaiveld"]) is None
        assert threedbag.height_fields(["b3_h_maaiveld"]) is None
        assert threedbag.ground_field("height", ["height", "h_maaiveld"]) is None
        assert threedbag.statistic_of("height") is None

    @pytest.mark.parametrize("spelling", ["{}-0.{}", "{}-0_{}", "{}_0_{}", "{}_0.{}", "{}-{}"])
    def test_version_1_has_quantiles_and_several_grounds(self, spelling):
        roofs = [spelling.format("roof", q) for q in ("25", "50", "75", "90", "95", "99")]
        grounds = [spelling.format("ground", q) for q in ("00", "10", "20", "50")]
        columns = ["gid", "roof_flat", spelling.format("rmse", "75"), *roofs, *grounds]
        assert threedbag.height_fields(columns) == (roofs[2], grounds[1])
        assert threedbag.height_fields(columns, "max") == (roofs[5], grounds[1])
        assert threedbag.height_fields(columns, "min") is None  # roof-0.25 is not the lowest
        assert threedbag.ground_field(roofs[3], columns) == grounds[1]
        assert [threedbag.statistic_of(r) for r in roofs] == ["p25", "p50", "p75", "p90", "p95", "p99"]
        assert threedbag.height_fields([roofs[2], grounds[0]]) == (roofs[2], grounds[0])

    def test_a_mean_of_spacenet_is_no_quantile(self):
        assert threedbag.roof_fields(["roof_075mean", "roof_flat", "roofing", "ground"]) == []

    def test_unknown_statistic(self):
        with raises_naming("3DBAG", "'80p'"):
            threedbag.height_fields([], "80p")

    @pytest.mark.parametrize("family", ["2025", "2023", "21.09", "Kadaster"])
    def test_a_shapefile_cuts_names(self, tmp_path, family):
        roof, ground = FAMILIES[family]
        columns = {
            roof.format(s): [v] for s, v in zip(threedbag.STATISTICS, (3.0, 5.0, 6.0, 9.0), strict=True)
        }
        path = tmp_path / "a.shp"
        save_shapefile(frame(houses(1), identificatie=["x"], **columns, **{ground: [-1.0]}), path)
        (building,) = read_layer(path).buildings
        assert (building.height_m, building.height_stat, building.id) == (7.0, "p70", "x")
        assert read_layer(path, statistic="50p").buildings[0].height_m == 6.0
        if len(roof.format("max")) <= 10:
            assert read_layer(path, statistic="max").buildings[0].height_m == 10.0
            return
        cut = roof.format("m")[:10]
        with pytest.raises(
            InputError, match=rf"a\.shp: .*{cut[:-1]}1, {cut}\. Name .*`height_field=.{cut[:-1]}1.`"
        ):
            read_layer(path, statistic="max")
        (building,) = read_layer(path, cut[:-1] + "1").buildings  # the ground is known all the same
        assert (building.height_m, building.height_stat) == (10.0, None)

    def test_version_1_in_a_shapefile(self, tmp_path):
        path = tmp_path / "a.shp"
        save_shapefile(
            frame(houses(1), **{"ground-0.00": [-2.0], "ground-0.10": [-1.0], "roof-0.75": [4.0]}), path
        )
        (building,) = read_layer(path).buildings
        assert (building.height_m, building.height_source) == (5.0, "roof-0.75 - ground-0.1")

    def test_cut_names_have_one_meaning_in_the_official_list(self, shared_data):
        names = json.loads((shared_data("3dbag-specs") / "attributes.json").read_text())
        for key, spellings in threedbag.ATTRIBUTES.items():
            for name in spellings:
                alike = {n for n in names if n != name and n[:10] == name[:10]}
                if name in names and name[:10] not in threedbag.AMBIGUOUS:
                    assert key == "mutated" or not alike
        for name in ("b3_h_70p", "b3_h_maaiveld"):
            fact = names[name]
            assert (fact["semanticType"], fact["unit"]["en"], fact["type"]) == ("elevation", "metre", "float")
        # Roofs of GeoPackages are in the layers of parts only, the ground in that of buildings only.
        assert set(names["b3_h_70p"]["appliesTo"]["gpkg"]["locations"]) == set(threedbag.ROOF_PARTS)
        assert names["b3_h_maaiveld"]["appliesTo"]["gpkg"]["locations"] == [threedbag.WHOLE_BUILDINGS]

    def test_without_the_statistic_heights_are_unknown_and_it_is_said(self, tmp_path):
        frame(houses(1), b3_h_70p=[7.0]).to_file(tmp_path / "a.gpkg")
        layer = read_layer(tmp_path / "a.gpkg")
        assert layer.buildings[0].height_m is None
        assert "b3_h_70p are elevations" in layer.notes[0] and "`ground_field`" in layer.notes[0]


class TestElevations:
    def test_sentinels_are_not_elevations(self, tmp_path):
        path = tmp_path / "a.gpkg"
        roofs, grounds = [7.0, -99.0, 6.0, None, 6.0, 9999.0], [-3.0, 1.0, -99.99, 1.0, None, 2.0]
        frame(houses(6), b3_h_70p=roofs, b3_h_maaiveld=grounds).to_file(path)
        layer = read_layer(path)
        assert [b.height_m for b in layer.buildings] == [10.0] + [None] * 5
        assert layer.reasons == {"outside the range of NAP": 3, "missing": 1, "no ground": 1}

    def test_text_in_a_column_of_numbers(self, tmp_path):
        path = tmp_path / "a.gpkg"
        frame(houses(3), h_dak_70p=["7.5", "7,5 m", ""], h_maaiveld=["-1.5", "0", "0"]).to_file(path)
        layer = read_layer(path)
        assert [b.height_m for b in layer.buildings] == [9.0, None, None]
        assert layer.reasons == {"not a number": 1, "missing": 1}

    def test_kadaster_writes_heights_where_it_has_no_roof(self, tmp_path):
        path = tmp_path / "a.gpkg"
        columns = {"dd_h_dak_50p": [12.0, None], "dd_h_dak_max": [14.0, 9.5], "h_maaiveld": [8.0, 8.0]}
        frame(houses(2), **columns).to_file(path)
        layer = read_layer(path, statistic="max")
        assert [b.height_m for b in layer.buildings] == [6.0, None]
        assert layer.buildings[1].attributes == {UNKNOWN_HEIGHT: "no roof planes"}

    def test_kadaster_in_wageningen(self, shared_data):
        path = shared_data("3dbag-wageningen-heights") / "downtown_clipped_buildings_real.shp"
        layer = read_layer(path)
        assert (layer.height_field, layer.ground_field, layer.id_field) == (
            "dd_h_dak_7",
            "h_maaiveld",
            "identifica",
        )
        assert layer.reasons == {"missing": 127, "negative": 1}
        # 127 of the maxima are heights themselves: subtracting the ground again would give 107 below 0 and 20 wrong.
        assert read_layer(path, "dd_h_dak_1").reasons["no roof planes"] == 127
        with raises_naming("dd_h_dak_1", "dd_h_dak_m"):
            read_layer(path, statistic="max")


def geopackage(path, pand=(), **parts):
    """3DBAG's layers: `pand` rows (identifier, outline, ground), parts rows (identifier, outline, roof)."""
    ids, outlines, grounds = zip(*pand, strict=True)
    frame(outlines, identificatie=ids, b3_h_maaiveld=grounds, b3_kas_warenhuis=[False] * len(ids)).to_file(
        path, layer="pand"
    )
    for layer, rows in parts.items():
        ids, outlines, roofs = zip(*rows, strict=True)
        columns = {"b3_h_70p": roofs, "b3_h_max": [None if r is None else r + 1 for r in roofs]}
        frame(outlines, identificatie=ids, **columns).to_file(path, layer=layer)
    return path


class TestGeoPackage:
    PAND = [("a", box(0, 0, 30, 10), 1.0), ("b", box(50, 0, 60, 10), -2.0), ("c", box(70, 0, 80, 10), 0.0)]
    PARTS = [
        ("a", box(0, 0, 20, 10), 7.0),
        ("b", box(50, 0, 60, 10), 4.0),
        ("a", box(20, 0, 30, 10), 10.0),
        ("gone", box(90, 0, 95, 5), 3.0),
    ]

    def test_whole_buildings_get_the_roofs_of_their_parts(self, tmp_path):
        path = geopackage(
            tmp_path / "a.gpkg", self.PAND, lod12_2d=self.PARTS, lod22_2d=[("a", box(0, 0, 5, 5), 99.0)]
        )
        layer = read_layer(path)
        assert [b.id for b in layer.buildings] == ["a", "b", "c"]
        assert [b.height_m for b in layer.buildings] == [7.0, 6.0, None]  # (2 * 7 + 10) / 3 - 1
        assert layer.buildings[0].height_source == "b3_h_70p - b3_h_maaiveld" and layer.reasons == {
            "missing": 1
        }
        assert layer.notes == [
            "a.gpkg: b3_h_70p of the layer pand comes from lod12_2d, its parts weighted by area."
        ]
        assert [b.height_m for b in read_layer(path, statistic="max").buildings] == [10.0, 7.0, None]
        assert read_layer(path, "b3_h_max").buildings[0].height_m == 10.0

    def test_parts_get_the_ground_of_their_buildings(self, tmp_path):
        path = geopackage(tmp_path / "a.gpkg", self.PAND, lod12_2d=self.PARTS)
        layer = read_layer(path, layer="lod12_2d")
        assert [(b.id, b.height_m) for b in layer.buildings] == [
            ("a", 6.0),
            ("b", 6.0),
            ("a", 9.0),
            ("gone", None),
        ]
        assert layer.reasons == {"no ground": 1} and layer.counts == {"identifiers of several rows": 1}
        assert "e.g. a (2)" in layer.notes[0] and "`join_parts=True`" in layer.notes[0]
        joined = read_layer(path, layer="lod12_2d", join_parts=True)
        assert [(b.id, b.height_m) for b in joined.buildings] == [("a", 7.0), ("b", 6.0), ("gone", None)]
        assert joined.buildings[0].polygon.equals(box(0, 0, 30, 10)) and joined.notes == []
        # What "pand" knows serves filters on the parts as well.
        filters = Filters({"greenhouse": "drop"})
        assert len(read_layer(path, layer="lod12_2d", filters=filters).buildings) == 4

    def test_mostly_unknown_roofs_are_unknown(self, tmp_path):
        parts = [
            ("a", box(0, 0, 20, 10), None),
            ("a", box(20, 0, 30, 10), 10.0),
            ("b", box(50, 0, 60, 10), 4.0),
        ]
        layer = read_layer(geopackage(tmp_path / "a.gpkg", self.PAND, lod12_2d=parts))
        assert [b.height_m for b in layer.buildings] == [None, 6.0, None]

    def test_what_an_extent_leaves_of_a_building_is_all_of_it(self, tmp_path):
        path = geopackage(tmp_path / "a.gpkg", self.PAND, lod12_2d=self.PARTS)
        layer = read_layer(path, extent=((0, 0, 5, 5), "EPSG:28992"))
        assert [(b.id, b.height_m) for b in layer.buildings] == [("a", 7.0)]

    def test_the_only_layer_of_roof_parts_is_chosen(self, tmp_path):
        columns = {"dd_h_dak_70p": [9.0], "h_maaiveld": [2.0]}
        frame(houses(1), **columns).to_file(tmp_path / "a.gpkg", layer="lod13_2d")
        frame(houses(1), h_maaiveld=[2.0]).to_file(tmp_path / "a.gpkg", layer="lod13_3d")
        assert read_layer(tmp_path / "a.gpkg").buildings[0].height_m == 7.0

    def test_flatgeobuf(self, tmp_path):
        frame(houses(1), b3_h_dak_70p=[9.0], b3_h_maaiveld=[2.0], b3_bag_bag_overlap=[0.0]).to_file(
            tmp_path / "a.fgb"
        )
        layer = read_layer(tmp_path / "a.fgb")
        assert layer.buildings[0].height_m == 7.0 and layer.notes == []


class TestReleases:
    def save(self, folder, **more):
        folder.mkdir(parents=True)
        columns = {"b3_h_dak_70p": [22.0], "b3_h_maaiveld": [2.0], **more}
        frame(houses(1), **columns).to_file(folder / "9-444-728.gpkg", layer="pand")
        return folder / "9-444-728.gpkg"

    def test_the_one_that_is_15_m_off_is_refused_where_it_is_told(self, tmp_path):
        path = self.save(tmp_path / "v20230622" / "tiles")
        with raises_naming("728.gpkg", "3DBAG", "2023.06.22", "2023.08.09"):
            read_layer(path)
        (building,) = read_layer(path, "b3_h_dak_70p", "b3_h_maaiveld").buildings  # on the user's own word
        assert building.height_m == 20.0

    def test_it_is_doubted_where_nothing_tells(self, tmp_path):
        assert "may be 3DBAG's release 2023.06.22" in read_layer(self.save(tmp_path / "x")).notes[0]
        later = read_layer(self.save(tmp_path / "y", b3_bag_bag_overlap=[0.0]))
        assert later.notes == [] and later.release is None
        known = read_layer(self.save(tmp_path / "v20240420"))
        assert known.notes == [] and known.release == "2024.04.20"

    @pytest.mark.parametrize(
        ("text", "release"),
        [
            ("v2024.04.20", "2024.04.20"), ("/data/v20230622/tiles/9.gpkg", "2023.06.22"),
            ("3dbag_v20231008.gpkg.zip", "2023.10.08"), ("2023.06.22", "2023.06.22"),
            ("downloaded 20230622", None), ("2023-06-22", None), ("", None), (None, None),
        ],
    )  # fmt: skip
    def test_other_dates_are_not_releases(self, text, release):
        assert threedbag.release_of(text) == release

    def test_cityjson_tells_its_own(self, shared_data):
        assert read_layer(shared_data("3dbag-b3-small") / "small.city.jsonl").release == "2024.04.20"


class TestValues:
    @pytest.mark.parametrize(
        ("value", "year"),
        [
            (2020, 2020), (2020.0, 2020), ("2017-12-01", 2017), ("20171201", 2017), (20171201, 2017), ("2017", 2017),
            (datetime.date(2019, 1, 1), 2019), (pandas.Timestamp("2018-05-01"), 2018), (1005, None), (9999, None),
            ("", None), ("ahn3", None), (None, None), ("12345", None), (1883.0, 1883),
        ],
    )  # fmt: skip
    def test_year_of(self, value, year):
        assert year_of(value) == year

    def test_point_cloud_years(self):
        assert point_cloud_years({"cloud_date": "2018-01-01", "cloud": "AHN4"}) == (2018, 2018)
        assert point_cloud_years({"cloud": "AHN4"}) == (2020, 2022)
        assert point_cloud_years({"cloud": 3.0}) == point_cloud_years({"cloud": "ahn3"}) == (2014, 2019)
        assert point_cloud_years({"cloud": "PointCloudKadaster"}) is None and point_cloud_years({}) is None

    @pytest.mark.parametrize(
        ("value", "today"),
        [
            ("could not detect", "no planes"), ("no planes", "no planes"), (-2.0, "no planes"), (-1, "no points"),
            ("single horizontal", "horizontal"), ("horizontal", "horizontal"), (0.0, "horizontal"), ("2", "slanted"),
            ("unknown", "unknown"),
        ],
    )  # fmt: skip
    def test_roof_types_of_all_releases(self, value, today):
        assert roof_type(value) == today

    def test_roof_types_are_the_official_ones(self, shared_data):
        names = json.loads((shared_data("3dbag-specs") / "attributes.json").read_text())
        assert {roof_type(v) for v in ("could not detect", "single horizontal", -1, 1, 2)} <= set(
            names["b3_dak_type"]["values"]
        )
