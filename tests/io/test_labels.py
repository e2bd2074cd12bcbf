"""Labels per pixel: what each source says of one drawn tile, grids that differ, and numbers that are no heights."""

import dataclasses
import logging

from fusiondet.buildings import Building, Tile
from fusiondet.errors import InputError
from fusiondet.geometry.painting import footprint_label
from fusiondet.io.coco import Dataset
from fusiondet.io.labels import check_height_labels, choose_source, read_heights, tile_height_label
from tests.support.messages import raises_naming
from tests.support.tiny_city import BANDS, GSD_M, courtyard, tiny_config, write_raster, write_split

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from shapely.geometry import box

NAN = np.nan
GRID = Affine(GSD_M, 0, 600000, 0, -GSD_M, 5800000)
KNOWN, UNKNOWN = Building(box(1, 1, 3, 3), height_m=5.0), Building(box(4, 1, 6, 3))


@pytest.fixture
def town(tmp_path):
    """`town(tiles...)`: a data set of them; `town.tile(kind=array, ...)`: a tile of 8 x 5 px with two buildings."""
    return Town(tmp_path)


class Town:
    def __init__(self, root):
        self.root = root

    def __call__(self, *tiles, **facts) -> Dataset:
        return Dataset(list(tiles), BANDS, root=self.root, **facts)

    def tile(self, buildings=(KNOWN, UNKNOWN), name="a", options=None, **rasters) -> Tile:
        files = {}
        for kind, values in rasters.items():
            files[f"{kind}_file_name"] = f"{kind}/{name}.tif"
            write_raster(self.root / kind / f"{name}.tif", np.float32(values)[None], **(options or {}))
        places = {"crs": "EPSG:32631", "transform": tuple(GRID)[:6]}
        return Tile("rgb.tif", 8, 5, GSD_M, buildings=list(buildings), **places, **files)


def flat(value=0.0, shape=(5, 8)):
    return np.full(shape, value, np.float32)


# ---- one tile, each source ----


def test_instances_paint_each_height_into_its_outline(town):
    tile = town.tile()
    expected = flat()
    expected[1:3, 1:3], expected[1:3, 4:6] = 5, NAN
    label = tile_height_label(town(tile), tile, "instances")
    assert label.dtype == np.float32
    np.testing.assert_array_equal(label, expected)
    assert footprint_label(tile).dtype == bool and footprint_label(tile).sum() == 8


def test_a_raster_of_buildings_is_taken_as_it_is(town):
    values = flat()
    values[1:3, 1:4], values[4, 7], values[0, 0] = 6, -9999, -0.5
    tile = town.tile(building_height=values, options={"nodata": -9999})
    expected = values.copy()
    expected[4, 7], expected[0, 0] = NAN, 0
    np.testing.assert_array_equal(tile_height_label(town(tile), tile, "building_height"), expected)


def test_an_ndsm_counts_under_footprints_alone(town):
    values = flat()
    values[1:3, 1:3] = [[5, 7], [-2.5, -30]]
    values[1:3, 4:6] = [[NAN, 4], [1200, 3]]
    values[3, :], values[4, 0] = 12, NAN  # trees, and a hole beside the buildings
    tile = town.tile(ndsm=values)
    expected = flat()
    expected[1:3, 1:3] = [[5, 7], [0, NAN]]
    expected[1:3, 4:6] = [[NAN, 4], [NAN, 3]]
    np.testing.assert_array_equal(tile_height_label(town(tile), tile, "ndsm"), expected)


def test_auto_takes_the_first_source_that_the_tile_has(town):
    for rasters, expected in (
        ({"building_height": flat(1), "ndsm": flat(2)}, 1),
        ({"ndsm": flat(2)}, 2),
        ({}, 5),
    ):
        tile = town.tile(**rasters)
        assert tile_height_label(town(tile), tile)[1, 1] == expected


@pytest.mark.parametrize("source", ["building_height", "ndsm"])
def test_without_the_raster_asked_for_buildings_have_no_height_and_the_ground_is_0(town, source):
    tile = town.tile()
    label = tile_height_label(town(tile), tile, source)
    np.testing.assert_array_equal(np.isnan(label), footprint_label(tile))
    assert (label[~footprint_label(tile)] == 0).all()


def test_a_tile_without_buildings_is_flat(town):
    tile = town.tile(buildings=())
    for source in ("auto", "ndsm", "instances"):
        np.testing.assert_array_equal(tile_height_label(town(tile), tile, source), flat())
    assert not footprint_label(tile).any()


def test_courtyards_stay_open_and_outlines_overlap():
    buildings = [Building(courtyard(0, 0, 10, 4), height_m=9.0), Building(box(6, 0, 12, 3))]
    tile = Tile("rgb.tif", 12, 12, GSD_M, buildings=buildings)
    mask, label = footprint_label(tile), tile_height_label(Dataset([tile], BANDS), tile)
    assert mask.sum() == 100 - 16 + 2 * 3 and not mask[5, 5] and mask[1, 11]
    assert (label == 9).sum() == 84 and np.isnan(label).sum() == 6, "a known height wins"


def test_no_data_of_the_images_is_no_number_of_heights(town):
    tile = town.tile(building_height=flat())
    assert (tile_height_label(town(tile, nodata=0), tile) == 0).all()


def test_an_unknown_source_lists_the_known_ones(town):
    with raises_naming("INPUT.HEIGHT_LABELS", "'dsm'", "auto", "building_height", "instances", "ndsm"):
        choose_source("dsm", None, None)


# ---- other grids ----


def ramp(shape=(5, 8)):
    rows, columns = np.indices(shape)
    return (10 * rows + columns).astype(np.float32)


def test_a_raster_that_is_one_pixel_off_is_moved(town):
    moved = GRID * Affine.translation(1, 0)
    tile = town.tile([Building(box(0, 0, 8, 5))], ndsm=ramp(), options={"transform": moved})
    expected = np.concatenate([flat(NAN, (5, 1)), ramp()[:, :-1]], axis=1)
    np.testing.assert_array_equal(tile_height_label(town(tile), tile), expected)


def test_a_coarser_and_larger_raster_is_warped(town):
    coarse = GRID * Affine.translation(-4, -4) * Affine.scale(2)
    values = flat(3, (10, 12))
    values[:, 6:] = 9  # from the tile's column 8 on: beside it
    values[:, 4:6] = 7  # the tile's columns 4 to 7
    tile = town.tile([Building(box(0, 0, 8, 5))], ndsm=values, options={"transform": coarse})
    label = tile_height_label(town(tile), tile)
    np.testing.assert_allclose(label, np.tile([3, 3, 3, 4, 6, 7, 7, 7.5], (5, 1)))


def test_a_raster_in_another_crs_is_warped(town):
    x, y = Transformer.from_crs("EPSG:32631", "EPSG:28992", always_xy=True).transform(600002, 5799998.75)
    wide = Affine(0.1, 0, x - 10, 0, -0.1, y + 10)
    values = np.zeros((200, 200), np.float32)
    values[:100] = 8  # the northern half, up to the middle of the tile
    tile = town.tile(
        [Building(box(0, 0, 8, 5))], ndsm=values, options={"transform": wide, "crs": "EPSG:28992"}
    )
    label = tile_height_label(town(tile), tile)
    np.testing.assert_allclose(label[:2], 8, atol=0.01)
    np.testing.assert_allclose(label[3:], 0, atol=0.01)


@given(st.integers(0, 7), st.integers(0, 4), st.data())
def test_a_window_is_that_part_of_the_whole(tmp_path, x0, y0, data):
    width, height = data.draw(st.integers(1, 8 - x0)), data.draw(st.integers(1, 5 - y0))
    for name, transform in (("same", GRID), ("finer", GRID * Affine.translation(-3, -3) * Affine.scale(0.7))):
        path = tmp_path / f"{name}.tif"
        if not path.exists():
            write_raster(path, ramp((5, 8) if name == "same" else (16, 20))[None], transform=transform)
        place = ((5, 8), tuple(GRID)[:6], "EPSG:32631")
        part = read_heights(path, *place, window=(x0, y0, width, height))
        whole = read_heights(path, *place)[y0 : y0 + height, x0 : x0 + width]
        np.testing.assert_allclose(part, whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("tile_facts", "options"),
    [
        ({}, {"crs": None, "transform": None}),
        ({"crs": None, "transform": None}, {}),
        ({"crs": None}, {}),
        ({}, {"crs": None}),
    ],
)
def test_a_raster_of_the_tiles_size_lies_on_it_where_nothing_says_otherwise(town, tile_facts, options):
    tile = town.tile([Building(box(0, 0, 8, 5))], ndsm=ramp(), options=options)
    tile = dataclasses.replace(tile, **tile_facts)
    np.testing.assert_array_equal(tile_height_label(town(tile), tile), ramp())


@pytest.mark.parametrize(
    ("tile_facts", "options", "which"),
    [
        ({}, {"crs": None, "transform": None}, "this raster is not"),
        ({"crs": None, "transform": None}, {}, "the tile is not"),
    ],
)
def test_another_size_needs_georeference_on_both_sides(town, tile_facts, options, which):
    tile = dataclasses.replace(town.tile(ndsm=ramp((6, 8)), options=options), **tile_facts)
    with pytest.raises(
        InputError, match=f"ndsm/a.tif: 8 x 6 px, but its tile has 8 x 5 px, and {which} georef"
    ):
        tile_height_label(town(tile), tile)


def test_one_crs_alone_places_nothing(town):
    moved = {"crs": None, "transform": GRID * Affine.translation(1, 0)}
    tile = town.tile(ndsm=ramp(), options=moved)
    with raises_naming("ndsm/a.tif", "CRS None", "EPSG:32631"):
        tile_height_label(town(tile), tile)
    with raises_naming("CRS", "'Atlantis'"):
        tile_height_label(town(tile), dataclasses.replace(tile, crs="Atlantis"))


def test_a_data_set_may_not_open_other_files_through_a_vrt(town):
    tile = dataclasses.replace(town.tile(), ndsm_file_name="a.vrt")
    (town.root / "a.vrt").write_text("<VRTDataset rasterXSize='8' rasterYSize='5'></VRTDataset>")
    with raises_naming("a.vrt", "not a raster"):
        tile_height_label(town(tile), tile)


# ---- are these heights? ----


def heights(ground=0.0, roof=6.0):
    values = flat(ground)
    values[1:3, 1:3] = values[1:3, 4:6] = roof
    return values


def checked(town, values, source="auto", kind="ndsm", buildings=(KNOWN, UNKNOWN), **options):
    tiles = [
        town.tile(buildings, f"t{i}", options, **{kind: v}) for i, v in enumerate(np.atleast_3d([*values]))
    ]
    return check_height_labels({"town": town(*tiles)}, source)


def test_heights_pass_without_a_word(town):
    noisy = heights() + np.random.default_rng(0).normal(0, 0.5, (5, 8)).astype(np.float32)
    wooded = heights()
    wooded[2:] = np.maximum(wooded[2:], 15)  # trees on more than half of the tile
    for kind in ("ndsm", "building_height"):
        assert checked(town, [heights(), noisy, wooded], kind=kind) == []
    assert check_height_labels({"town": town(town.tile())}, "instances") == []
    assert check_height_labels({}) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (heights(52, 58), r"t0.tif: the ground beside its buildings is at 52.0 m.*3 of 3.*`dsm` and `dtm`"),
        (heights(-6, 1), r"t0.tif: the ground beside its buildings is at -6.0 m.*looks like elevations"),
        (heights(1700, 1710) + ramp() / 50, r"at 1700.*looks like elevations: subtract the ground"),
        (heights(0, -9), r"100 % of the pixels of buildings are negative in 3 tiles"),
        (heights(-9999, 5), r"t0.tif: 32 of its pixels are -9999.*gdal_edit.py -a_nodata -9999"),
        (
            heights(0, 1001) + ramp() * (heights() > 0),
            r"100 % of the pixels of buildings are above 1000.*centimetres",
        ),
        (flat(NAN), r"t0.tif: no number under any footprint of 3 tiles"),
    ],
)
def test_what_is_no_height_is_refused_with_advice(town, values, message):
    with pytest.raises(InputError, match=message):
        checked(town, [values] * 3)


def test_flat_roofs_in_centimetres_are_not_taken_for_no_data(town):
    # One number again and again in every tile, but another one in each.
    with raises_naming("1000", "centimetres"):
        checked(town, [heights(0, 1200), heights(0, 1300), heights(0, 1520)])


def test_a_single_odd_tile_or_pixel_is_no_reason_to_refuse(town):
    odd = heights()
    odd[0, 0], odd[0, 7] = 4000, -300
    assert checked(town, [heights(), heights(), heights(20), odd], buildings=(UNKNOWN,)) == []


def test_ground_declared_as_no_data_is_refused_where_it_has_to_be_0(town):
    with raises_naming("t0.tif", "-unsetnodata"):
        checked(town, [heights()] * 2, kind="building_height", nodata=0)
    assert checked(town, [heights()] * 2, kind="ndsm", nodata=0) == [], "an nDSM is masked anyway"


def test_holes_under_footprints_are_counted(town):
    holed = heights()
    holed[1, 1:3] = NAN
    (note,) = checked(town, [heights(), holed], buildings=(UNKNOWN, Building(box(1, 1, 3, 3))))
    assert note.startswith("town: no height under 12 % of the footprints' pixels, in 1 of 2 tiles looked at")


def test_rasters_that_disagree_with_the_buildings_are_told(town):
    (note,) = checked(town, [heights(0, 48)] * 2, kind="building_height")
    assert "off its buildings' heights by 43.0 m in the middle, where these are 5.0 m" in note


def test_tiles_without_any_height_are_counted(town):
    bare, empty = town.tile([UNKNOWN]), town.tile([])
    (note,) = check_height_labels({"town": town(town.tile(), bare, empty)})
    assert note.startswith("town: 1 of 3 tiles have buildings and no height of any")
    notes = check_height_labels({"town": town(town.tile()), "village": town(bare)})
    assert len(notes) == 1 and notes[0].startswith("village: 1 of 1"), "another data set may have them"


def test_no_height_at_all_says_what_to_add(town):
    bare = town.tile([UNKNOWN])
    with raises_naming("town", "height_field"):
        check_height_labels({"town": town(bare)})
    with raises_naming("ndsm_file_name", "INPUT.HEIGHT_LABELS", "instances"):
        check_height_labels({"town": town(town.tile())}, "ndsm")
    with raises_naming("INPUT.HEIGHT_LABELS", "'roof'"):
        check_height_labels({"town": town(bare)}, "roof")


def test_a_missing_raster_is_named_even_where_no_sample_falls(town):
    tiles = [town.tile(name=f"t{i}", ndsm=heights(0, 5)) for i in range(5)]
    (town.root / "ndsm" / "t3.tif").unlink()
    with raises_naming("t3.tif", "1 of 5", "town"):
        check_height_labels({"town": town(*tiles)}, samples=2)
    assert check_height_labels({"town": town(*tiles)}, "instances") == [], "it is not asked for"


def test_training_looks_before_it_starts(tmp_path, caplog):
    from fusiondet.engine.complete_config import complete_config

    write_split(tmp_path)
    cfg = tiny_config(tmp_path, "MODEL.DENSE_HEADS.NAMES", "['DenseHeight']", test="")
    complete_config(cfg)
    cfg = tiny_config(
        tmp_path, "MODEL.DENSE_HEADS.NAMES", "['DenseHeight']", "INPUT.HEIGHT_LABELS", "ndsm", test=""
    )
    with raises_naming("train.json", "ndsm_file_name"):
        complete_config(cfg)
    cfg.MODEL.DENSE_HEADS.NAMES = ["Footprint"]
    with caplog.at_level(logging.WARNING):
        complete_config(cfg)
    assert "height" not in caplog.text
