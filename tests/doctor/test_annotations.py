"""What annotation files alone tell: counts, density, sizes, outlines, heights, places."""

import json
import shutil

from fusiondet.buildings import Building, Tile
from fusiondet.doctor.annotations import check_annotations
from fusiondet.doctor.copies import check_copies
from fusiondet.doctor.edges import correlation, edge_points, peak_px, splat
from fusiondet.doctor.findings import Finding, counted, percent, text
from fusiondet.doctor.height_values import check_heights
from fusiondet.doctor.pixel_values import check_files
from fusiondet.doctor.samples import chosen_tiles
from fusiondet.doctor.shared_ground import check_ground
from fusiondet.doctor.split_source import read_splits
from fusiondet.files import write_json
from fusiondet.io.coco import encode_rle
from tests.support.tiny_city import courtyard, write_split, write_tiles

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from shapely.geometry import box

UTM = "EPSG:32631"


def tile(name="a.tif", at=(600000.0, 5800000.0), buildings=(), size=100, gsd_m=0.5, crs=UTM, transform=None):
    if transform is None and at is not None:
        transform = tuple(from_origin(*at, gsd_m, gsd_m))[:6]
    return Tile(name, size, size, gsd_m, crs=crs, transform=transform, buildings=list(buildings))


def squares(n, height_m=None, side=8):
    places = [(x, y) for y in range(2, 92, 9) for x in range(2, 92, 9)]
    return [Building(box(x, y, x + side, y + side), height_m) for x, y in places[:n]]


def found(checker, root, *args) -> dict[str, Finding]:
    findings = checker(read_splits(root), *args)
    return {finding.name: finding for finding in (findings if isinstance(findings, list) else [findings])}


# ---- counts, density, sizes


def test_counts_and_density(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif", buildings=squares(90)), tile("b.tif")])
    write_tiles(tmp_path, "val", [tile("c.tif", buildings=squares(3))])
    result = found(check_annotations, tmp_path, 50)
    assert result["images and buildings"].numbers == {
        "train": {"images": 2, "buildings": 90, "empty_images": 1},
        "val": {"images": 1, "buildings": 3, "empty_images": 0},
    }
    density = result["density"]
    assert (
        density.verdict == "warn" and density.numbers["suggested_max_detections"] == 150
    )  # 1.25 * 90, in fifties
    assert density.numbers["images_above_max_detections"] == 1 and density.cases[0].image == "a.tif"
    assert found(check_annotations, tmp_path, 100)["density"].verdict == "ok"


def test_a_split_without_buildings_fails(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif")])
    assert found(check_annotations, tmp_path)["images and buildings"].verdict == "FAIL"


def test_classes_of_pixels_are_labels_without_any_building(tmp_path):
    labelled, more = tile("a.tif"), tile("b.tif")
    labelled.class_file_name = "a_classes.tif"
    write_tiles(tmp_path, "train", [labelled, more])
    finding = found(check_annotations, tmp_path)["images and buildings"]
    assert finding.verdict == "ok" and finding.numbers["train"]["images_with_classes"] == 1
    assert "0 buildings, 2 empty, 1 with a class of each pixel" in finding.detail
    write_tiles(tmp_path, "val", [tile("c.tif")])
    finding = found(check_annotations, tmp_path)["images and buildings"]
    assert finding.verdict == "FAIL" and finding.remedy.startswith("val has no building")


def test_small_buildings(tmp_path):
    write_tiles(tmp_path, "train", [tile(buildings=squares(10) + squares(30, side=1.5)[10:])])
    sizes = found(check_annotations, tmp_path)["sizes of buildings"]
    assert sizes.verdict == "warn" and sizes.numbers["tiny"] == 20
    assert sizes.cases[0].note == "20 below 4 px²"


# ---- outlines


def write_document(root, images, annotations, split="train"):
    (root / "annotations").mkdir(exist_ok=True)
    categories = [{"id": 1, "name": "building"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_json(document, root / "annotations" / f"{split}.json")


def annotation(number, segmentation, image_id=1, **more):
    return {"id": number, "image_id": image_id, "category_id": 1, "segmentation": segmentation, **more}


IMAGE = {"id": 1, "file_name": "a.tif", "width": 100, "height": 100}
SQUARE = [10, 10, 20, 10, 20, 20, 10, 20]


def test_faults_of_outlines_are_counted_as_they_stand_in_the_file(tmp_path):
    bow_tie = [30, 30, 40, 40, 40, 30, 30, 40]
    outside = [90, 90, 120, 90, 120, 95, 90, 95]
    rings = [[SQUARE], [SQUARE], [bow_tie], [outside], [[50, 50, 60, 60, 70, 70]], [[1, 1, 2, 2]], []]
    write_document(tmp_path, [IMAGE], [annotation(i, ring) for i, ring in enumerate(rings)])
    outlines = found(check_annotations, tmp_path)["outlines"]
    assert outlines.verdict == "FAIL"
    assert outlines.numbers["faults"] == {
        "drawn twice": 1,
        "crossing themselves": 2,  # a line back and forth is no valid ring either
        "outside the image": 1,
        "with fewer than 3 corners": 1,
        "without a ring": 1,
    }


def test_polygons_beside_rle_and_crowds(tmp_path):
    mask = np.zeros((100, 100), bool)
    mask[50:60, 50:60] = True
    both = [annotation(1, [SQUARE]), annotation(2, encode_rle(mask))]
    write_document(tmp_path, [IMAGE], both)
    kinds = found(check_annotations, tmp_path)["kinds of outlines"]
    assert kinds.verdict == "warn" and "bitmask" in kinds.remedy
    write_document(tmp_path, [IMAGE], [annotation(1, [SQUARE]), annotation(2, [SQUARE], iscrowd=1)])
    kinds = found(check_annotations, tmp_path)["kinds of outlines"]
    assert kinds.numbers["crowd"] == 1 and "iscrowd" in kinds.remedy


def test_courtyards_as_rle_are_no_mixture(tmp_path):
    write_tiles(tmp_path, "train", [tile(buildings=[*squares(3), Building(courtyard(60, 60))])])
    kinds = found(check_annotations, tmp_path)["kinds of outlines"]
    assert kinds.verdict == "ok" and kinds.numbers["RLE"] == 1


def test_windows_of_one_raster_are_different_images(tmp_path):
    left, right = tile("big.tif"), tile("big.tif", at=(600050.0, 5800000.0))
    left.window, right.window = (0, 0, 100, 100), (100, 0, 100, 100)
    write_tiles(tmp_path, "train", [left])
    write_tiles(tmp_path, "val", [right])
    assert found(check_annotations, tmp_path)["file names"].verdict == "ok"
    write_tiles(tmp_path, "val", [left])
    assert found(check_annotations, tmp_path)["file names"].verdict == "FAIL"


# ---- heights


def city_of_heights(root, heights_m):
    """Ten buildings per tile with these heights, row by row."""
    rows = np.reshape(heights_m, (-1, 10))
    tiles = []
    for i, row in enumerate(rows):
        own = squares(10)
        for building, height_m in zip(own, row, strict=True):
            building.height_m, building.height_datum = float(height_m), "ground"
        tiles.append(tile(f"{i}.tif", buildings=own))
    write_tiles(root, "train", tiles)
    return found(check_heights, root)


def log_normal(n=100):
    return np.clip(9 * np.exp(0.55 * np.random.default_rng(0).normal(size=n)), 2.5, 60)


@pytest.mark.parametrize(
    "ground_m, verdict",
    [(0.0, "ok"), (10.0, "FAIL"), (60.0, "FAIL"), (np.repeat(np.arange(10) * 20.0, 10), "FAIL")],
)
def test_elevations_are_told_by_the_low_buildings_that_are_missing(tmp_path, ground_m, verdict):
    heights_m = log_normal() + ground_m
    assert city_of_heights(tmp_path, heights_m)["heights, not elevations"].verdict == verdict


def test_towers_alone_are_looked_at_and_not_refused(tmp_path):
    towers_m = np.random.default_rng(1).uniform(15, 150, 100)
    assert city_of_heights(tmp_path, towers_m)["heights, not elevations"].verdict == "warn"


def test_other_units_unknown_and_unverified_heights(tmp_path):
    assert (
        city_of_heights(tmp_path, np.minimum(log_normal() * 30.48, 900))["heights of buildings"].verdict
        == "FAIL"
    )
    write_tiles(tmp_path, "train", [tile(buildings=squares(5, 6.0) + squares(20)[5:])])
    result = found(check_heights, tmp_path)
    assert result["heights of buildings"].numbers["unknown_share"] == 0.75
    assert result["heights of buildings"].verdict == result["datum of heights"].verdict == "warn"


# ---- places


def test_shared_ground_is_measured_across_crs(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif"), tile("b.tif", at=(600050.0, 5800000.0))])
    # 10 m into b from the east, and named in another CRS for the same zone.
    crs = rasterio.crs.CRS.from_epsg(32631).to_wkt()
    write_tiles(tmp_path, "val", [tile("c.tif", at=(600090.0, 5800000.0), crs=crs)])
    leak = found(check_ground, tmp_path)["ground shared between splits"]
    assert leak.verdict == "FAIL" and leak.numbers["shared_m2"] == pytest.approx(10 * 50, rel=1e-3)
    assert leak.cases[0].image == "b.tif" and "val: c.tif" in leak.cases[0].note
    write_tiles(tmp_path, "val", [tile("c.tif", at=(600100.0, 5800000.0))])  # neighbours touch
    assert found(check_ground, tmp_path)["ground shared between splits"].verdict == "ok"


def test_degrees_south_up_mixed_gsd_and_no_crs(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif", crs=None, at=None), tile("b.tif", crs=None, at=None)])
    result = found(check_ground, tmp_path)
    assert result["CRS"].verdict == "warn" and result["ground shared between splits"].verdict == "n/a"
    south_up = tile("b.tif", transform=(0.5, 0, 600000, 0, 0.5, 5800000))
    turned = tile("c.tif", transform=(0.3, 0.4, 600000, 0.4, -0.3, 5900000))
    write_tiles(tmp_path, "train", [tile("a.tif"), south_up, turned, tile("d.tif", gsd_m=1.0)])
    result = found(check_ground, tmp_path)
    assert result["orientation"].verdict == "warn"
    assert result["orientation"].numbers == {"south_up_or_mirrored": 1, "rotated": 1, "not_square": 0}
    assert result["GSD"].verdict == "warn" and result["GSD"].numbers["max_m"] == 1.0
    degrees = tile("a.tif", crs="EPSG:4326", transform=(5e-6, 0, 4.5, 0, -5e-6, 52.0))
    write_tiles(tmp_path, "train", [degrees])
    assert found(check_ground, tmp_path)["CRS"].numbers["geographic"] == ["EPSG:4326"]


# ---- files


def test_missing_damaged_moved_and_wrongly_sized_files(tmp_path):
    write_split(tmp_path, "train", (3, 2, 1, 4, 2))
    names = [tmp_path / f"images/train_{i}_rgb.tif" for i in range(5)]
    assert {f.verdict for f in found(check_files, tmp_path).values()} == {"ok"}
    names[0].unlink()
    names[1].write_bytes(b"no raster")
    with rasterio.open(names[2], "w", driver="GTiff", width=63, height=64, count=3, dtype="uint16") as f:
        f.write(np.ones((3, 64, 63), np.uint16))
    result = found(check_files, tmp_path)
    files = result["raster files"]
    assert files.verdict == "FAIL" and files.numbers["files"] == 10
    assert (files.numbers["missing"], files.numbers["unreadable"], files.numbers["other_size"]) == (1, 1, 1)
    assert result["data types"].verdict == "FAIL"


def test_annotations_that_place_a_tile_elsewhere_than_its_file(tmp_path):
    path = write_split(tmp_path, "train", (3, 2))
    document = json.loads(path.read_text())
    for image in document["images"]:
        image["crs"], image["transform"] = UTM, [0.5, 0, 600000, 0, -0.5, 5800000]
    write_json(document, path)
    assert found(check_files, tmp_path)["georeference of the files"].verdict == "ok"
    document["images"][0]["transform"][4] = 0.5  # y grows upwards
    write_json(document, path)
    place = found(check_files, tmp_path)["georeference of the files"]
    assert place.verdict == "FAIL" and place.numbers == {"other_transform": 2}  # optical and SAR


def test_copies_are_found_after_lossy_compression_and_brightening(tmp_path):
    write_split(tmp_path, "train", (3, 4, 2), seed=1)
    write_split(tmp_path, "val", (2, 3), seed=2)
    assert found(check_copies, tmp_path)["copies of tiles"].verdict == "ok"
    with rasterio.open(tmp_path / "images/train_1_rgb.tif") as source:
        image = np.clip(source.read() * 1.2 + 10, 0, 255).astype(np.uint8)
    options = {"driver": "JPEG", "width": 64, "height": 64, "count": 3, "dtype": "uint8", "QUALITY": 80}
    with rasterio.open(tmp_path / "copy.jpg", "w", **options) as target:
        target.write(image)
    shutil.move(tmp_path / "copy.jpg", tmp_path / "images/val_0_rgb.tif")
    copies = found(check_copies, tmp_path)["copies of tiles"]
    assert copies.verdict == "FAIL" and copies.numbers["pairs"] == 1
    assert copies.cases[0].image == "images/train_1_rgb.tif"


# ---- parts


def test_samples_are_spread_and_tiles_with_buildings_go_first(tmp_path):
    tiles = [tile(f"{i}.tif", buildings=squares(2 if i % 4 == 0 else 0)) for i in range(80)]
    write_tiles(tmp_path, "train", tiles)
    write_tiles(tmp_path, "val", [tile("v.tif", buildings=squares(2))])
    chosen = [t.file_name for _, t in chosen_tiles(read_splits(tmp_path), 10)]
    assert chosen[-1] == "v.tif" and len(chosen) == 11
    assert all(int(name[:-4]) % 4 == 0 for name in chosen[:-1])
    assert chosen[0] == "0.tif" and chosen[9] == "76.tif"


def test_normals_point_out_of_buildings_and_into_courtyards():
    edges = edge_points([courtyard(20, 20, size=40, hole=20)], 100, 100)
    inside = edges.xy - 0.25 * edges.outward
    rim = (np.abs(inside - 40).max(axis=1) < 20) & (np.abs(inside - 40).max(axis=1) > 10)
    assert len(edges.xy) == 2 * 4 * (40 + 20) and rim.all()
    assert edges.length.sum() == pytest.approx(4 * (40 + 20))


def test_edges_on_the_border_are_cuts_and_no_walls():
    edges = edge_points([box(0, 10, 30, 20)], 100, 100)
    assert (edges.xy[:, 0] > 1).all() and (edges.outward[:, 0] >= 0).all()


def test_splat_keeps_sums_and_centres():
    array = splat(np.array([[3.25, 7.5]]), np.array([2.0]), 20, 10)
    rows, columns = np.indices(array.shape) + 0.5
    assert array.sum() == pytest.approx(2)
    assert ((array * columns).sum() / 2, (array * rows).sum() / 2) == pytest.approx((3.25, 7.5))


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-9, 9)])
def test_correlation_finds_the_shift_of_the_picture(shift):
    template = np.random.default_rng(0).normal(size=(60, 50))
    picture = np.roll(template, shift[::-1], axis=(0, 1))
    (surface,) = correlation(picture, [template], 10)
    assert peak_px(surface) == shift


def test_words_and_numbers():
    findings = [
        Finding("b", "ok", "fine", numbers={"x": np.float32("nan"), "y": (np.int64(3), 0.5)}),
        Finding("a", "FAIL", "bad", "Mend it."),
    ]
    assert text(findings).splitlines() == [
        "FAIL  a: bad",
        "      -> Mend it.",
        "ok    b: fine",
        "2 checks: 1 failed, 0 to look at, 0 not possible, 1 ok.",
    ]
    assert findings[0].to_dict()["numbers"] == {"x": None, "y": [3, 0.5]}
    assert (counted(1, "pair"), counted(2, "copy"), percent(0.5), percent(0.999)) == (
        "1 pair",
        "2 copies",
        "50 %",
        "99.9 %",
    )
