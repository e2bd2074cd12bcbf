"""The page of a layer in a file; without its image where that cannot be read."""

from fusiondet.buildings import Building
from fusiondet.io.layer_writer import write_buildings
from fusiondet.visualization.report import write_layer_report
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine


@pytest.fixture
def image(tmp_path):
    place = {"crs": "EPSG:32631", "transform": Affine(0.5, 0, 600_000, 0, -0.5, 5_750_000)}
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", 80, 60, 3, dtype="uint8", **place) as file:
        file.write(np.full((3, 60, 80), 90, np.uint8))
    return tmp_path / "a.tif"


def layer(tmp_path, **metadata):
    house = Building(shapely.box(600_005, 5_749_980, 600_015, 5_749_990), height_m=7.0, score=0.9)
    write_buildings([house], "EPSG:32631", tmp_path / "b.gpkg", metadata)
    return tmp_path / "b.gpkg"


def test_it_shows_the_buildings_over_the_image(image, tmp_path):
    write_layer_report(layer(tmp_path), tmp_path / "b.html", image=image)
    page = (tmp_path / "b.html").read_text()
    assert "<b>1</b><span>buildings</span>" in page and 'id="picture"' in page
    with raises_naming("b.html", "overwrite"):
        write_layer_report(tmp_path / "b.gpkg", tmp_path / "b.html", image=image)
    write_layer_report(tmp_path / "b.gpkg", tmp_path / "b.html", image=image, overwrite=True)


def test_only_a_layer_of_a_damaged_image_does_without_it(image, tmp_path):
    image.write_bytes(image.read_bytes()[:100])
    with raises_naming("a.tif"):
        write_layer_report(layer(tmp_path), tmp_path / "b.html", image=image)
    (tmp_path / "b.gpkg").unlink()
    write_layer_report(layer(tmp_path, unreadable_px=9), tmp_path / "b.html", image=image)
    assert 'id="picture"' not in (tmp_path / "b.html").read_text()
