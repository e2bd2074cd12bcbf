import math

import fusiondet.compat  # noqa: F401
from fusiondet.buildings import Building, Tile
from fusiondet.data import catalog
from fusiondet.errors import InputError
from fusiondet.files import write_json
from fusiondet.io.bands import BandSpec
from fusiondet.io.coco import polygon_from_segmentation
from tests.support.messages import raises_naming
from tests.support.tiny_city import BANDS, SENSOR, courtyard, write_split, write_tiles

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from shapely.geometry import box


@pytest.fixture
def root(tmp_path):
    return tmp_path / "datasets"


def test_a_name_is_source_and_split_wherever_the_underscore_is(root):
    first = write_tiles(root / "dfc2023_track2", "train", [Tile("a.tif", 8, 8, 0.5)])
    second = write_tiles(root / "dfc2023", "track1_val", [Tile("a.tif", 8, 8, 0.5)])
    assert catalog.annotation_file("dfc2023_track2_train") == first.resolve()
    assert catalog.annotation_file("dfc2023_track1_val") == second.resolve()
    assert catalog.known_names() == ["dfc2023_track1_val", "dfc2023_track2_train"]


def test_a_path_is_a_name(root):
    path = str(write_tiles(root / "town", "val", [Tile("a.tif", 8, 8, 0.5)]))
    assert catalog.ensure_registered(path) == path
    assert DatasetCatalog.get(path)[0]["image_id"] == 1
    assert catalog.folder_name(path) == catalog.folder_name("town_val") == "town_val"


def test_an_unknown_name_lists_the_known_ones_and_says_where_it_looked(root):
    write_tiles(root / "synthcity", "train", [])
    with pytest.raises(
        InputError, match=r"synthcity_trian.*Did you mean 'synthcity_train'.*DETECTRON2_DATASETS"
    ):
        catalog.ensure_registered("synthcity_trian")
    with pytest.raises(InputError, match="nowhere.json: no such annotation file"):
        catalog.ensure_registered(str(root / "nowhere.json"))


def test_registered_twice_is_registered_once_and_follows_the_root(tmp_path, root, monkeypatch):
    write_tiles(root / "synthcity", "train", [Tile("a.tif", 8, 8, 0.5)])
    catalog.ensure_registered("synthcity_train")
    assert catalog.ensure_registered("synthcity_train") == "synthcity_train"
    assert len(DatasetCatalog.get("synthcity_train")) == 1
    other = tmp_path / "elsewhere"
    write_tiles(other / "synthcity", "train", [Tile("a.tif", 8, 8, 0.5), Tile("b.tif", 8, 8, 0.5)])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(other))
    catalog.ensure_registered("synthcity_train")
    assert len(DatasetCatalog.get("synthcity_train")) == 2, "the name now means the file under the new root"


def test_nothing_is_read_before_it_is_asked_for(root, monkeypatch):
    write_tiles(root / "synthcity", "train", [Tile("a.tif", 8, 8, 0.5)])
    reads = []
    read = catalog.read_coco
    monkeypatch.setattr(catalog, "read_coco", lambda path, *args: reads.append(path) or read(path, *args))
    catalog.ensure_registered("synthcity_train")
    assert reads == []
    DatasetCatalog.get("synthcity_train"), catalog.load_split("synthcity_train")
    assert len(reads) == 1, "and then once"
    assert BandSpec.from_dict(MetadataCatalog.get("synthcity_train").bands) == BANDS


def test_a_changed_file_is_read_again(root):
    path = write_tiles(root / "synthcity", "train", [Tile("a.tif", 8, 8, 0.5)])
    assert len(catalog.load_split("synthcity_train").tiles) == 1
    write_tiles(root / "synthcity", "train", [Tile("a.tif", 8, 8, 0.5)] * 2)
    import os

    os.utime(path, ns=(1, 1))
    assert len(catalog.load_split("synthcity_train").tiles) == 2


def test_the_record_says_all_that_the_mapper_needs(root):
    known = Building(box(2, 3, 6, 5), height_m=7.5)
    tile = Tile("rgb.tif", 32, 16, 0.5, sar_file_name="sar.tif", sensor=SENSOR, buildings=[known])
    tile.buildings.append(Building(courtyard(5, 5, 10, 4)))
    write_tiles(root / "town", "val", [tile], nodata=0.0)
    catalog.ensure_registered("town_val")
    (record,) = DatasetCatalog.get("town_val")
    assert (
        record["file_name"]
        == str(record["optical_raster"].path)
        == str((root / "town" / "rgb.tif").resolve())
    )
    assert record["sar_file_name"].endswith("sar.tif")
    assert (record["height"], record["width"], record["gsd_m"], record["nodata"]) == (16, 32, 0.5, 0.0)
    assert record["sensor"]["sar_look_azimuth_deg"] == 90 and record["bands"] == BANDS
    simple, holed = record["annotations"]
    assert simple["bbox"] == [2, 3, 4, 2] and simple["bbox_mode"] == BoxMode.XYWH_ABS
    assert simple["height_m"] == 7.5 and holed["height_m"] is None
    assert polygon_from_segmentation(holed["segmentation"], 16, 32).area == 100 - 16


def test_the_record_says_where_the_heights_are(root):
    places = {"crs": "EPSG:32631", "transform": (0.5, 0, 6e5, 0, -0.5, 5.8e6)}
    tiles = [
        Tile(
            "a.tif",
            8,
            8,
            0.5,
            building_height_file_name="height/a.tif",
            ndsm_file_name="ndsm/a.tif",
            **places,
        ),
        Tile("b.tif", 8, 8, 0.5),
    ]
    write_tiles(root / "town", "val", tiles)
    full, bare = catalog.records(catalog.load_split("town_val"))
    assert full["building_height_file_name"] == str((root / "town" / "height" / "a.tif").resolve())
    assert full["ndsm_file_name"] == str((root / "town" / "ndsm" / "a.tif").resolve())
    assert (full["crs"], tuple(full["transform"])) == (places["crs"], places["transform"])
    keys = ("building_height_file_name", "ndsm_file_name", "crs", "transform")
    assert [bare[key] for key in keys] == [None] * 4


def test_a_sar_only_data_set_has_no_optical_file(root):
    write_split(root / "radar", "val", (1,), bands=BandSpec((), ("VV", "VH"), "linear_power"))
    record = catalog.records(catalog.load_split("radar_val"))[0]
    assert record["optical_raster"] is None and record["sar_file_name"] == record["file_name"]


def test_a_plain_coco_file_has_unknown_heights_and_gsd(root):
    from fusiondet.files import write_json

    image = {"id": 7, "file_name": "x.png", "width": 9, "height": 9}
    square = {
        "id": 1,
        "image_id": 7,
        "category_id": 3,
        "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]],
        "iscrowd": 0,
    }
    document = {"images": [image], "annotations": [square], "categories": [{"id": 3, "name": "roof"}]}
    write_json(document, root / "plain.json")
    path = catalog.ensure_registered(str(root / "plain.json"))
    (record,) = DatasetCatalog.get(path)
    assert math.isnan(record["gsd_m"]) and record["annotations"][0]["height_m"] is None
    assert record["annotations"][0]["category_id"] == 0, "there is one class, whatever its number in the file"


def test_chosen_classes_hold_until_others_are_chosen(tmp_path):
    square = [[0, 0, 4, 0, 4, 4, 0, 4]]
    document = {
        "images": [{"id": 1, "file_name": "a.tif", "width": 20, "height": 20}],
        "categories": [{"id": 1, "name": "building"}, {"id": 2, "name": "tree"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": c, "segmentation": square}
            for i, c in enumerate((1, 2, 2))
        ],
    }
    path = tmp_path / "several.json"
    write_json(document, path)
    name = str(path)
    catalog.ensure_registered(name)
    with raises_naming("INPUT.CLASSES"):
        catalog.load_split(name)
    for classes, n in ((("building",), 1), (None, 1), (("tree",), 2)):
        catalog.ensure_registered(name, classes)
        assert len(catalog.load_split(name).tiles[0].buildings) == n
        assert len(DatasetCatalog.get(name)[0]["annotations"]) == n
