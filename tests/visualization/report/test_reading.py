"""Layers to report: own ones with their scores and metadata, others by the columns that hold heights."""

from fusiondet.buildings import Building
from fusiondet.io.layer_writer import write_buildings
from fusiondet.visualization.report.reading import read_reported
from tests.support.messages import raises_naming

import geopandas
import pytest
from shapely.geometry import box

SQUARE = box(600000, 5800000, 600010, 5800010)


def test_an_own_layer_comes_with_scores_and_metadata(tmp_path):
    path = tmp_path / "own.gpkg"
    write_buildings([Building(SQUARE, 7.5, score=0.9)], "EPSG:32631", path, {"weights": "model.pth"})
    (building,), crs, metadata = read_reported(path)
    assert (building.height_m, building.score, crs) == (7.5, pytest.approx(0.9), "EPSG:32631")
    assert metadata["weights"] == "model.pth"


def test_any_layer_is_read_by_its_columns(tmp_path):
    path = tmp_path / "other.gpkg"
    frame = geopandas.GeoDataFrame({"roof": [9.0], "soil": [2.0]}, geometry=[SQUARE], crs="EPSG:32631")
    frame.to_file(path)
    (building,), crs, metadata = read_reported(path, "roof", "soil")
    assert (building.height_m, building.score, crs, metadata) == (7.0, None, "EPSG:32631", {})


def test_a_file_of_another_kind_is_refused_by_name(tmp_path):
    (tmp_path / "a.gpkg").write_text("no layer")
    with raises_naming("a.gpkg"):
        read_reported(tmp_path / "a.gpkg")
