"""Parts of tiles that are scored apart: under cloud and in the clear."""

from fusiondet.buildings import Building
from fusiondet.evaluation.regions import Region, in_the_clear, under_cloud
from fusiondet.evaluation.resampling import (
    summarize,
    tile_scores,
)
from tests.support.messages import raises_naming
from tests.support.square_houses import LEFT, RIGHT, SIZE, city, found
from tests.support.tiny_city import write_raster

import numpy as np
from shapely.geometry import box


def with_clouds(tmp_path):
    """Clouds over the right half; the house in the middle is half covered."""
    cloud = np.zeros((1, SIZE, SIZE), np.uint8)
    cloud[:, :, SIZE // 2 :] = 128
    write_raster(tmp_path / "clouds" / "a.tif", cloud)
    dataset = city(Building(LEFT, 6.0), Building(box(19, 20, 29, 30), 6.0), Building(RIGHT, 9.0))
    dataset.tiles[0].cloud_file_name = "clouds/a.tif"
    return dataset


def test_a_building_is_under_cloud_when_half_of_it_is(tmp_path):
    dataset = with_clouds(tmp_path)
    hidden = summarize(tile_scores(dataset, [found(LEFT)], region=under_cloud(tmp_path)))
    assert (hidden["match/n_truth"], hidden["match/recall"], hidden["pixel/precision"]) == (2, 0, None)
    dataset.tiles[0].buildings[1].polygon = box(18, 20, 28, 30)
    clear = summarize(tile_scores(dataset, [found(LEFT)], region=in_the_clear(tmp_path)))
    assert (clear["match/n_truth"], clear["match/recall"], clear["match/precision"]) == (2, 0.5, 1)


def test_a_tile_without_cloud_raster_is_clear(tmp_path):
    dataset = city(Building(LEFT, 6.0))
    assert summarize(tile_scores(dataset, [], region=under_cloud(tmp_path)))["match/n_truth"] == 0
    assert summarize(tile_scores(dataset, [], region=in_the_clear(tmp_path)))["match/n_truth"] == 1


def test_a_missing_cloud_raster_is_named(tmp_path):
    dataset = with_clouds(tmp_path)
    (tmp_path / "clouds" / "a.tif").unlink()
    with raises_naming("a.tif"):
        tile_scores(dataset, [], region=under_cloud(tmp_path))


def test_a_region_of_another_size_is_refused():
    with raises_naming("(5, 4)", "(48, 48)"):
        tile_scores(city(), [], region=Region("odd", lambda _: np.ones((4, 5), bool)))
