"""A detector that fusiondet 0.5 trained: it loads, and finds the buildings and heights that 0.5 found with it.

`tests/support/version_0_5` holds the checkpoint (a narrow R-50 with early fusion, 60 steps on `tiny_city`, without the
optimizer's state) and the layer that 0.5 wrote for the scene below.
"""

import json
from pathlib import Path

from fusiondet.buildings import Tile
from fusiondet.inference import predict_to_file
from tests.support import tiny_city

import numpy as np
import pytest
from shapely.geometry import shape

FOLDER = Path(__file__).parent / "support" / "version_0_5"
NUMBERS = ("score", "height_m", "height_p16_m", "height_p84_m", "area_m2")
# Convolutions differ in the last bits from one processor to the next; the layer has seven decimals, about a centimetre.
LAST_DIGITS_DEG = 2e-7


@pytest.fixture(scope="module")
def layers(tmp_path_factory) -> tuple[dict, dict]:
    """(the layer of 0.5, the layer of today), parsed."""
    folder = tmp_path_factory.mktemp("scene")
    rng = np.random.default_rng(7)
    scene = Tile("scene", 160, 96, tiny_city.GSD_M, buildings=tiny_city.buildings(rng, 12, 96))
    tiny_city.write_raster(folder / "rgb.tif", tiny_city.paint(scene, rng, sar=False))
    tiny_city.write_raster(folder / "sar.tif", tiny_city.paint(scene, rng, sar=True))
    predict_to_file(
        FOLDER / "early_r50.pth",
        folder / "rgb.tif",
        folder / "sar.tif",
        folder / "buildings.geojson",
        score_threshold=0.02,
        window_px=96,
        overlap_px=32,
    )
    then, now = FOLDER / "buildings.geojson", folder / "buildings.geojson"
    return tuple(json.loads(path.read_text(encoding="utf-8")) for path in (then, now))


def test_the_same_buildings_with_the_same_numbers(layers):
    then, now = (layer["features"] for layer in layers)
    assert len(now) == len(then) == 6
    for old, new in zip(then, now, strict=True):
        assert shape(new["geometry"]).equals_exact(shape(old["geometry"]), LAST_DIGITS_DEG)
        assert new["properties"].keys() == old["properties"].keys()
        for name in NUMBERS:
            assert new["properties"][name] == pytest.approx(old["properties"][name], rel=1e-4), name


def test_the_provenance_names_the_same_weights_and_config(layers):
    then, now = (json.loads(layer["description"]) for layer in layers)
    assert now.keys() == then.keys()
    for key in then.keys() - {"fusiondet", "versions", "created"}:
        assert now[key] == then[key], key
