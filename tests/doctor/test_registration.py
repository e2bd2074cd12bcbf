"""Outlines that are turned, mirrored or shifted against the optical image are found."""

import itertools
from dataclasses import replace

from fusiondet.buildings import Building, Tile
from fusiondet.doctor.registration import LabelCheck, height_picture
from fusiondet.doctor.samples import Sample
from fusiondet.geometry.painting import paint_heights
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import Dataset
from tests.support.doctor_cases import looked, with_outlines
from tests.support.tiny_city import write_raster

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from shapely.geometry import box

MIRRORED = (-1, 0, 0, 1, 1, 0)


UPSIDE_DOWN = (1, 0, 0, -1, 0, 1)


TRANSPOSED = (0, 1, 1, 0, 0, 0)


TO_THE_LEFT = (0, 1, -1, 0, 0, 1)


@pytest.mark.parametrize(
    "matrix, back",
    [
        (MIRRORED, "mirrored left-right"),
        (UPSIDE_DOWN, "mirrored top-bottom"),
        (TRANSPOSED, "mirrored on the diagonal"),
        (TO_THE_LEFT, "turned by 90° to the right"),
    ],
)
def test_turned_and_mirrored_outlines(samples, matrix, back):
    found = looked(LabelCheck(), [with_outlines(s, matrix) for s in samples]).findings()[0]
    assert found.verdict == "FAIL" and f"train fits when {back}" in found.detail


def test_some_turned_tiles_among_many(samples):
    some = [with_outlines(s, UPSIDE_DOWN) if i in (2, 7, 11) else s for i, s in enumerate(samples)]
    found = looked(LabelCheck(), some).findings()[0]
    assert found.verdict == "FAIL" and found.numbers["turned_tiles"] == 3
    assert [case.image for case in found.cases] == [samples[i].tile.file_name for i in (2, 7, 11)]


@pytest.mark.parametrize(
    "shift_px, verdict", [((0, 0), "ok"), ((1, 0), "ok"), ((2, -1), "warn"), ((5, -3), "FAIL")]
)
def test_shifted_outlines(samples, shift_px, verdict):
    moved = [with_outlines(s, (1, 0, 0, 1, *np.divide(shift_px, s.tile.width))) for s in samples]
    found = looked(LabelCheck(), moved).findings()[1]
    assert found.verdict == verdict
    assert (found.numbers["train"]["right_px"], found.numbers["train"]["down_px"]) == (
        -shift_px[0],
        -shift_px[1],
    )


def test_outlines_of_other_tiles_tell_nothing(samples):
    others = [
        replace(s, tile=replace(s.tile, buildings=o.tile.buildings))
        for s, o in zip(samples, samples[6:] + samples[:6], strict=True)
    ]
    assert [finding.verdict for finding in looked(LabelCheck(), others).findings()] == ["n/a", "n/a"]


def test_tiles_need_not_be_square(samples):
    def cut(sample):
        tile = replace(
            sample.tile, height=120, buildings=[b for b in sample.tile.buildings if b.polygon.bounds[3] < 119]
        )
        return replace(sample, tile=tile, image=sample.image[:, :120])

    found = looked(LabelCheck(), map(cut, samples)).findings()
    assert [finding.verdict for finding in found] == ["ok", "ok"]
    assert found[0].to_dict()["numbers"]["train"]["fit"]["turned by 90° to the left"] is None


def with_pixels_moved(sample, right, down):
    return replace(sample, image=np.roll(sample.image, (down, right), (1, 2)))


@pytest.mark.parametrize("odd", [(4,), (1, 4, 7, 10, 13)])
def test_shifted_files_among_sound_ones_are_named(samples, odd):
    some = [with_pixels_moved(s, 18, -4) if i in odd else s for i, s in enumerate(samples)]
    found = looked(LabelCheck(), some).findings()[1]
    names = {samples[i].tile.file_name for i in odd}
    assert found.verdict == "FAIL" and found.numbers["files_off"] == len(odd)
    assert {case.image for case in found.cases} == names
    assert any(name in found.detail for name in names) and "+18 px right and -4 px down" in found.detail


def test_one_shifted_file_of_many_is_a_warning(samples):
    many = [
        replace(s, tile=replace(s.tile, file_name=f"{n}{s.tile.file_name}")) for n in "abc" for s in samples
    ]
    found = looked(LabelCheck(), [with_pixels_moved(many[3], 18, -4), *many[:3], *many[4:]]).findings()[1]
    assert found.verdict == "warn" and [case.image for case in found.cases] == [many[3].tile.file_name]


def test_tiles_of_one_file_are_pooled(samples):
    one = [
        replace(with_pixels_moved(s, 12, 5), tile=replace(s.tile, file_name="mosaic.tif"))
        for s in samples[:2]
    ]
    found = looked(LabelCheck(), [*one, *samples[2:]]).findings()[1]
    assert found.numbers["files_off"] == 1 and "mosaic.tif" in found.detail


@pytest.mark.parametrize("rows, verdict", [(0, "ok"), (18, "FAIL")])
def test_of_three_height_rasters_the_one_that_is_off_is_named(samples, rows, verdict):
    def heights(sample):
        tile = sample.tile
        down = rows if tile.file_name == samples[1].tile.file_name else 0
        return np.roll(np.nan_to_num(paint_heights(tile.buildings, (tile.height, tile.width))), down, 0)[None]

    found = looked(LabelCheck("heights", heights), samples[:3]).shift_finding()
    assert found.verdict == verdict
    if rows:
        assert (
            f"in {samples[1].tile.file_name}: what is seen lies +0 px right and +18 px down" in found.detail
        )


def test_heights_of_a_sample_come_from_its_raster(samples, tmp_path):
    bare = replace(samples[0].tile, ndsm_file_name=None, building_height_file_name=None)
    assert height_picture(replace(samples[0], tile=bare)) is None
    tile = replace(samples[0].tile, ndsm_file_name="h.tif", transform=None, crs=None)
    values = np.arange(tile.height * tile.width, dtype=np.float32).reshape(1, tile.height, tile.width)
    write_raster(tmp_path / "h.tif", values)
    sample = replace(samples[0], tile=tile, dataset=replace(samples[0].dataset, root=tmp_path))
    np.testing.assert_array_equal(height_picture(sample), values)


def test_some_shifted_tiles_of_a_real_town_are_found(shared_data):
    folder, size = shared_data("isprs-vaihingen-05m"), 256
    outlines = geopandas.read_file(folder / "train_footprints.gpkg").geometry
    samples = []
    with rasterio.open(folder / "train_img.tif") as file:
        to_pixels = ~file.transform
        outlines = outlines.affine_transform(to_pixels.to_shapely())
        for y, x in itertools.product(
            range(0, file.height - size + 1, size), range(0, file.width - size + 1, size)
        ):
            frame = box(x, y, x + size, y + size)
            inside = outlines[outlines.intersects(frame)].buffer(0).intersection(frame).translate(-x, -y)
            houses = [Building(shape) for shape in inside if shape.geom_type == "Polygon"]
            tile = Tile(f"{x}_{y}.tif", size, size, 0.5, buildings=houses)
            image = file.read(window=Window(x, y, size, size)).astype(np.float32)
            samples.append(Sample("train", Dataset([tile], BandSpec()), tile, image))
    samples = samples[:41]
    some = [with_pixels_moved(s, 18, -4) if i % 3 == 1 else s for i, s in enumerate(samples)]
    assert looked(LabelCheck(), samples).findings()[1].verdict == "ok"
    found = looked(LabelCheck(), some).findings()[1]
    assert found.verdict == "FAIL" and found.numbers["files_off"] >= 8
    moved = {s.tile.file_name for i, s in enumerate(samples) if i % 3 == 1}
    assert {case.image for case in found.cases} <= moved and "px right and -4 px down" in found.detail
