import copy
import dataclasses

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import Building, Tile
from fusiondet.data import catalog
from fusiondet.data.mapper import FusionDatasetMapper
from fusiondet.errors import InputError
from fusiondet.io.bands import BandSpec
from tests.support.tiny_city import (
    BANDS,
    SENSOR,
    courtyard,
    tiny_config,
    write_raster,
    write_split,
    write_tiles,
)

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, PolygonMasks
from shapely.geometry import box


def one_record(root, image, sar=None, buildings=(), bands=BANDS, **facts):
    """The record of a data set of one tile."""
    write_raster(root / "rgb.tif", image)
    if sar is not None:
        write_raster(root / "sar.tif", sar)
    height, width = image.shape[1:]
    name = None if sar is None else "sar.tif"
    tile = Tile("rgb.tif", width, height, 0.5, sar_file_name=name, sensor=SENSOR, buildings=list(buildings))
    return catalog.records(catalog.load_split(str(write_tiles(root, "train", [tile], bands, **facts))))[0]


def plain(is_train=False, **options):
    return FusionDatasetMapper(
        is_train, **{"optical_bands": BANDS.optical, "sar_bands": BANDS.sar, **options}
    )


def colours(size=16):
    return np.broadcast_to(np.array([120, 140, 160], np.uint8)[:, None, None], (3, size, size)).copy()


@pytest.fixture
def record(tmp_path):
    buildings = [Building(box(2, 3, 8, 7), height_m=7.5), Building(box(10, 10, 14, 12))]
    return one_record(tmp_path, colours(), np.full((1, 16, 16), -10, np.float32), buildings)


def test_one_tile_becomes_exactly_this(record):
    item = plain()(record)
    assert item["image"].dtype == torch.float32 and item["image"].shape == (4, 16, 16)
    assert item["image"][:, 5, 5].tolist() == [120, 140, 160, -10]
    assert (item["height"], item["width"], item["gsd_m"], item["image_id"]) == (16, 16, 0.5, 1)
    assert item["sensor"]["sun_azimuth_deg"] == 150 and np.isnan(item["sensor"]["view_off_nadir_deg"])
    truth = item["instances"]
    assert truth.gt_boxes.tensor.tolist() == [[2, 3, 8, 7], [10, 10, 14, 12]]
    assert truth.gt_classes.tolist() == [0, 0]
    assert truth.gt_heights[0] == 7.5 and torch.isnan(truth.gt_heights[1]), "unknown is NaN, never 0"
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[3:7, 2:8] = True
    assert torch.equal(truth.gt_masks.tensor[0], expected)


def test_eight_bit_rgb_and_sar_survive_scaling_where_sar_is_zero(tmp_path):
    bands = BandSpec(BANDS.optical, ("HH",), "stretched_uint8")
    sar = np.zeros((1, 16, 16), np.uint8)
    sar[:, :, 8:] = 1
    record = one_record(tmp_path, colours(), sar, bands=bands)
    item = plain(True, scale_range=(0.7, 0.7))(record)
    assert item["image"].shape == (4, 11, 11)
    np.testing.assert_allclose(item["image"][:3, 5, 1], [120, 140, 160], rtol=1e-5)
    np.testing.assert_allclose(item["image"][:3, 5, 9], [120, 140, 160], rtol=1e-5)


def test_sixteen_bit_values_stay_what_they_are(tmp_path):
    image = np.full((3, 16, 16), 5000, np.uint16)
    item = plain(sar_bands=())(one_record(tmp_path, image, bands=BandSpec()))
    assert item["image"].shape == (3, 16, 16) and (item["image"] == 5000).all()


def test_bands_come_by_name_in_the_order_asked_for(record):
    item = plain(optical_bands=("blue", "red"), sar_bands=())(record)
    assert item["image"][:, 0, 0].tolist() == [160, 120]
    with pytest.raises(InputError, match="infrared.*Known: blue, green, red"):
        plain(optical_bands=("infrared",))(record)


def test_a_tile_without_sar_has_nan_where_sar_would_be(tmp_path):
    item = plain()(one_record(tmp_path, colours()))
    assert torch.isnan(item["image"][3]).all() and torch.isfinite(item["image"][:3]).all()


def test_nodata_becomes_nan_in_its_modality_and_stays_through_scaling(tmp_path):
    image = colours()
    image[:, :, :6] = 0
    record = one_record(tmp_path, image, np.full((1, 16, 16), -10, np.float32), nodata=0)
    item = plain()(record)
    assert torch.isnan(item["image"][:3, :, :6]).all() and torch.isfinite(item["image"][3]).all()
    scaled = plain(True, scale_range=(1.5, 1.5))(record)["image"]
    assert torch.isnan(scaled[:3, :, :9]).all()
    assert torch.isfinite(scaled[0, :, 9:]).all() and (scaled[0, :, 9:] - 120).abs().max() < 1e-3


def test_a_tile_without_buildings_has_empty_fields(tmp_path):
    for mask_format, kind in (("bitmask", BitMasks), ("polygon", PolygonMasks)):
        truth = plain(True, mask_format=mask_format)(one_record(tmp_path, colours()))["instances"]
        assert len(truth) == 0 and isinstance(truth.gt_masks, kind)
        assert truth.gt_boxes.tensor.shape == (0, 4) and truth.gt_heights.shape == (0,)


def test_a_courtyard_stays_open_in_both_formats(tmp_path):
    record = one_record(
        tmp_path, colours(32), buildings=[Building(courtyard(4, 4)), Building(box(26, 2, 30, 8))]
    )
    for mask_format in ("bitmask", "polygon"):
        masks = plain(True, mask_format=mask_format)(record)["instances"].gt_masks
        assert isinstance(masks, BitMasks) and masks.tensor.shape == (2, 32, 32)
        assert masks.tensor[0].sum() == 400 - 64 and not masks.tensor[0, 14, 14]


def test_polygons_stay_polygons_when_asked_for(record):
    masks = plain(True, mask_format="polygon")(record)["instances"].gt_masks
    assert isinstance(masks, PolygonMasks)
    assert sorted(masks.polygons[0][0].reshape(-1, 2).tolist()) == [[2, 3], [2, 7], [8, 3], [8, 7]]


def test_what_a_crop_leaves_of_a_building_counts_from_the_limit_on(tmp_path):
    record = one_record(tmp_path, colours(), buildings=[Building(box(0, 0, 2, 2)), Building(box(5, 5, 9, 9))])
    kept = plain(True, min_instance_area_px=5)(record)["instances"]
    assert kept.gt_boxes.tensor.tolist() == [[5, 5, 9, 9]]
    assert len(plain(False, min_instance_area_px=5)(record)["instances"]) == 2, "evaluation drops nothing"
    sliver = one_record(tmp_path, colours(), buildings=[Building(box(3.1, 3.1, 3.3, 3.3), height_m=5.0)])
    truth = plain(False)(sliver)["instances"]
    assert len(truth) == 1 and truth.gt_masks.tensor.sum() == 0, "not one pixel centre, but still in line"
    assert len(plain(True)(sliver)["instances"]) == 0


def test_a_random_crop_has_its_size_and_cuts_what_it_cuts(tmp_path):
    image = np.stack([np.broadcast_to(np.arange(64, dtype=np.uint8), (64, 64))] * 3)
    record = one_record(tmp_path, image, buildings=[Building(box(0, 0, 64, 64), height_m=3.0)])
    mapper = plain(True, crop=("absolute", (20, 24)))
    corners = set()
    for counter in range(8):
        item = mapper(record, counter)
        assert item["image"].shape == (4, 20, 24) and (item["height"], item["width"]) == (20, 24)
        assert item["instances"].gt_boxes.tensor.tolist() == [[0, 0, 24, 20]]
        corners.add(item["image"][0, 0, 0].item())
    assert len(corners) > 3
    scaled = plain(True, crop=("absolute", (20, 24)), scale_range=(0.5, 2.0))
    items = [scaled(record, counter) for counter in range(8)]
    assert {tuple(item["image"].shape) for item in items} == {(4, 20, 24)}, (
        "a crop keeps its size at any scale"
    )
    assert len({round(item["gsd_m"], 3) for item in items}) > 3
    assert all(0.24 < item["gsd_m"] < 1.01 for item in items)


def test_a_resize_changes_the_gsd_and_nothing_about_metres(tmp_path):
    record = one_record(tmp_path, colours(), buildings=[Building(box(4, 4, 12, 10), height_m=9.0)])
    item = plain(True, scale_range=(2.0, 2.0))(record)
    assert item["gsd_m"] == 0.25 and item["instances"].gt_boxes.tensor.tolist() == [[8, 8, 24, 20]]
    assert item["instances"].gt_heights.item() == 9.0


def test_randomness_follows_from_seed_and_counter_alone(tmp_path):
    write_split(tmp_path)
    records = catalog.records(catalog.load_split(str(tmp_path / "annotations" / "train.json")))
    options = {
        "dihedral": True,
        "scale_range": (0.8, 1.25),
        "optical_brightness": 0.2,
        "sar_gain_db": 1.0,
        "seed": 4,
    }
    mapper = plain(True, **options)
    first = mapper(records[0], 17)
    mapper(records[1], 3)
    again = plain(True, **options)(records[0], 17)
    assert torch.equal(first["image"], again["image"]) and str(first["sensor"]) == str(again["sensor"])
    assert torch.equal(first["instances"].gt_masks.tensor, again["instances"].gt_masks.tensor)
    assert mapper(records[0], 18)["gsd_m"] != first["gsd_m"]


def test_flips_are_drawn_only_within_the_azimuth_range(record):
    free = {plain(True, dihedral=True)(record, i)["sensor"]["sar_look_azimuth_deg"] for i in range(40)}
    assert free == {0.0, 90.0, 180.0, 270.0}
    halves = plain(True, dihedral=True, quarter_turns=False)
    turned = {halves(record, i)["sensor"]["sar_look_azimuth_deg"] % 180 for i in range(40)}
    assert len(free) > 2 and turned == {record["sensor"]["sar_look_azimuth_deg"] % 180}
    kept = plain(True, dihedral=True, sar_look_range_deg=(85, 95))
    assert {kept(record, i)["sensor"]["sar_look_azimuth_deg"] for i in range(20)} == {90.0}


def test_evaluation_changes_nothing(record):
    options = {
        "dihedral": True,
        "scale_range": (0.5, 0.6),
        "optical_brightness": 0.5,
        "crop": ("absolute", (4, 4)),
    }
    item, again = plain(False, **options)(record, 1), plain(False, **options)(record, 2)
    assert item["image"].shape == (4, 16, 16) and torch.equal(item["image"], again["image"])


def test_bad_options_and_files_name_what_is_wrong(record, tmp_path):
    with pytest.raises(InputError, match="INPUT.MASK_FORMAT.*bitmask, polygon"):
        plain(mask_format="rle")
    with pytest.raises(InputError, match="INPUT.CROP.TYPE"):
        plain(crop=("square", (4, 4)))
    with pytest.raises(InputError, match="INPUT.SCALE_RANGE"):
        plain(scale_range=(0.0, 1.0))
    with pytest.raises(InputError, match=r"16 x 16 px, but its annotations are for 20 x 16 px"):
        plain()({**record, "width": 20})
    (tmp_path / "rgb.tif").unlink()
    with pytest.raises(InputError, match="rgb.tif: no such file"):
        plain()(record)


def test_it_is_built_from_the_config(tmp_path):
    cfg = tiny_config(tmp_path, "INPUT.OPTICAL_BANDS", "['red']", "INPUT.SAR_BANDS", "['HH']", "SEED", "9")
    cfg.INPUT.MODALITIES = ["optical"]
    mapper = FusionDatasetMapper(cfg, True)
    assert (mapper.optical_bands, mapper.sar_bands, mapper.seed) == (("red",), (), 9)
    assert mapper.mask_format == "bitmask" and mapper.crop is None


# ---- labels per pixel ----

TALL, LOW, TINY = (
    Building(box(2, 3, 8, 7), height_m=7.5),
    Building(box(10, 10, 14, 12)),
    Building(box(0, 14, 1, 15)),
)


def labelled_record(root, buildings=(TALL, LOW, TINY), image=None, sar=None, **rasters):
    """A record of a tile of 16 x 16 px whose rasters of heights are `rasters`, kind -> (16, 16)."""
    record = one_record(root, colours() if image is None else image, sar, buildings)
    for kind, values in rasters.items():
        write_raster(root / f"{kind}.tif", np.float32(values)[None])
        record[f"{kind}_file_name"] = str(root / f"{kind}.tif")
    return record


def labels_of(record, counter=0, **options):
    item = plain(True, height_labels="auto", footprint_labels=True, **options)(record, counter)
    return item["building_height_m"], item["footprint"], item


def steps():
    """Heights that tell each pixel from every other."""
    return 1 + np.arange(256, dtype=np.float32).reshape(16, 16) / 100


@pytest.mark.parametrize("kind", ["instances", "building_height", "ndsm"])
def test_labels_per_pixel_of_one_tile(tmp_path, kind):
    rasters = {} if kind == "instances" else {kind: steps()}
    height_m, footprint, item = labels_of(labelled_record(tmp_path, **rasters), min_instance_area_px=9)
    expected = np.zeros((16, 16), np.float32)
    expected[3:7, 2:8] = expected[10:12, 10:14] = expected[14, 0] = 1
    assert height_m.dtype == footprint.dtype == torch.float32
    np.testing.assert_array_equal(footprint, expected)
    assert len(item["instances"]) == 1, "too small for an instance is still a footprint"
    if kind == "instances":
        expected[3:7, 2:8], expected[10:12, 10:14], expected[14, 0] = 7.5, np.nan, np.nan
    else:
        expected = steps() * expected if kind == "ndsm" else steps()
    np.testing.assert_array_equal(height_m, expected)


def test_labels_move_with_the_image(tmp_path):
    image = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3)
    record = labelled_record(tmp_path, image=image, building_height=steps())
    options = {"dihedral": True, "crop": ("absolute", (9, 11))}
    seen = set()
    for counter in range(12):
        height_m, footprint, item = labels_of(record, counter, **options)
        assert height_m.shape == footprint.shape == item["image"].shape[1:]
        np.testing.assert_allclose(100 * (height_m - 1), item["image"][0], atol=1e-3)
        union = item["instances"].gt_masks.tensor.any(dim=0)
        np.testing.assert_array_equal(footprint.bool(), union)
        seen.add(tuple(height_m[0, :2].tolist()))
    assert len(seen) > 8


def test_twice_the_pixels_are_each_pixel_four_times(tmp_path):
    for kind in ("building_height", "ndsm"):
        height_m, footprint, item = labels_of(
            labelled_record(tmp_path, **{kind: steps()}), scale_range=(2.0, 2.0)
        )
        twice = np.kron(steps(), np.ones((2, 2), np.float32))
        assert item["gsd_m"] == 0.25 and footprint.sum() == 4 * (24 + 8 + 1)
        np.testing.assert_array_equal(height_m, twice * footprint.numpy() if kind == "ndsm" else twice)


def test_no_height_is_made_up_between_roof_and_ground_at_any_scale(tmp_path):
    values = np.zeros((16, 16))
    values[3:7, 2:8] = 7.5
    record = labelled_record(tmp_path, building_height=values)
    for factor in (0.4, 0.75, 1.3):
        height_m, _, _ = labels_of(record, scale_range=(factor, factor))
        assert set(height_m.unique().tolist()) == {0.0, 7.5}
    painted, footprint, _ = labels_of(labelled_record(tmp_path, (TALL,)), scale_range=(1.3, 1.3))
    np.testing.assert_array_equal(painted, 7.5 * footprint)


def test_photometry_never_touches_labels(tmp_path):
    record = labelled_record(tmp_path, building_height=steps(), sar=np.full((1, 16, 16), -10, np.float32))
    options = {"optical_brightness": 0.5, "optical_contrast": 0.5, "sar_gain_db": 3.0, "sar_speckle_looks": 2}
    height_m, _, item = labels_of(record, **options)
    np.testing.assert_array_equal(height_m, steps())
    assert not torch.equal(item["image"][:3], torch.from_numpy(colours()).float())


def test_labels_are_unknown_where_no_band_has_data(tmp_path):
    image = np.float32(colours())
    image[:, :, :5] = np.nan
    sar = np.full((1, 16, 16), -10, np.float32)
    record = labelled_record(tmp_path, image=image, building_height=steps())
    for label in labels_of(record)[:2]:
        assert torch.isnan(label[:, :5]).all() and torch.isfinite(label[:, 5:]).all(), (
            "there is no SAR at all"
        )
    seen = labels_of(labelled_record(tmp_path, image=image, sar=sar, building_height=steps()))
    assert torch.isfinite(seen[0]).all() and torch.isfinite(seen[1]).all(), "the radar saw it"


def test_labels_per_pixel_change_nothing_else(tmp_path):
    record = labelled_record(tmp_path, ndsm=steps())
    options = {
        "dihedral": True,
        "scale_range": (0.7, 1.4),
        "crop": ("relative", (0.8, 0.8)),
        "sar_gain_db": 1.0,
    }
    for counter in range(4):
        without = plain(True, **options)(record, counter)
        _, _, item = labels_of(record, counter, **options)
        assert item.keys() - without.keys() == {"building_height_m", "footprint"}
        assert torch.equal(without["image"].nan_to_num(), item["image"].nan_to_num())
        assert torch.equal(without["instances"].gt_boxes.tensor, item["instances"].gt_boxes.tensor)
    item = plain(False, height_labels="auto", footprint_labels=True)(record)
    assert item.keys() == without.keys(), "evaluation needs none"


def test_a_tile_without_labels_is_its_image_alone(tmp_path):
    record = labelled_record(tmp_path, ndsm=steps())
    (tmp_path / "ndsm.tif").unlink()
    mapper = plain(True, height_labels="auto", footprint_labels=True, dihedral=True)
    item = mapper({**record, "labelled": False}, 3)
    assert item["labelled"] is False and len(item["instances"]) == 0
    assert "building_height_m" not in item and "footprint" not in item
    assert item["instances"].gt_heights.shape == (0,) and item["instances"].gt_masks.tensor.shape == (
        0,
        16,
        16,
    )
    bare = plain(True, dihedral=True)(record, 3)
    assert torch.equal(item["image"].nan_to_num(), bare["image"].nan_to_num()) and "labelled" not in bare
    assert mapper({**record, "labelled": True, "ndsm_file_name": None})["labelled"] is True
    with pytest.raises(InputError, match="ndsm.tif: no such file"):
        mapper(record)


def test_dense_heads_decide_which_labels_are_read(tmp_path):
    for names, heights, footprints in (
        ("[]", "", False),
        ("['Reconstruction']", "", False),
        ("['Footprint']", "", True),
        ("['Footprint', 'DenseHeight']", "ndsm", True),
        ("['DenseHeight']", "ndsm", True),
    ):
        cfg = tiny_config(tmp_path, "MODEL.DENSE_HEADS.NAMES", names, "INPUT.HEIGHT_LABELS", "ndsm")
        mapper = FusionDatasetMapper(cfg, True)
        assert (mapper.height_labels, mapper.footprint_labels) == (heights, footprints)
    with pytest.raises(InputError, match="INPUT.HEIGHT_LABELS 'lidar'"):
        plain(height_labels="lidar")


def test_records_are_not_changed(record):
    before = copy.deepcopy(record)
    plain(True, dihedral=True, scale_range=(2.0, 2.0))(record, 3)
    assert record == before and dataclasses.is_dataclass(record["bands"])


def test_a_plain_record_and_one_of_detectron2_give_the_same(tmp_path):
    path = str(write_split(tmp_path, "train", (2, 1)))
    catalog.ensure_registered(path)
    own, others = catalog.records(catalog.load_split(path)), DatasetCatalog.get(path)
    for ours, theirs in zip(own, others, strict=True):
        assert theirs.keys() - ours.keys() == {"annotations"}
        a, b = plain()(ours)["instances"], plain()(theirs)["instances"]
        assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor) and torch.equal(a.gt_heights, b.gt_heights)


def test_a_file_of_more_decimals_trains_as_its_copy_in_our_form(tmp_path):
    """Also where outlines are of several parts, or vanish when they are rounded."""
    image = np.ones((3, 16, 16), np.float32)
    buildings = [
        Building(box(1.23456, 2, 5.49999, 6.5000004), height_m=3.141592),
        Building(box(1, 8, 3, 10).union(box(4, 8, 6, 10.00071))),
        Building(box(8.0001, 8, 8.0002, 12), height_m=5),
        Building(courtyard(8.00004, 2.0000001, 6, 2), height_m=4),
    ]
    record = one_record(tmp_path, image)
    fine = {**record, "tile": dataclasses.replace(record["tile"], buildings=buildings)}
    written = write_tiles(tmp_path / "copy", "train", [fine["tile"]])
    kept = catalog.load_split(str(written)).tiles[0].buildings
    coarse = {**record, "tile": dataclasses.replace(record["tile"], buildings=kept)}
    fine, coarse = plain()(fine)["instances"], plain()(coarse)["instances"]
    assert len(fine) == 4 and not fine.gt_masks.tensor[2].any() and len(coarse) == 3
    rest = fine[[0, 1, 3]]
    assert torch.equal(rest.gt_masks.tensor, coarse.gt_masks.tensor)
    assert torch.equal(rest.gt_boxes.tensor, coarse.gt_boxes.tensor)
    np.testing.assert_array_equal(rest.gt_heights.numpy(), coarse.gt_heights.numpy())
