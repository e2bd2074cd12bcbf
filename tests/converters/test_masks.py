"""Images with masks: which values are one, exact instances, pairs by name, windows, and what goes wrong."""

import argparse
import json
from pathlib import Path

from fusiondet.converters.masks import (
    NUMBERED,
    TOUCHING,
    add_arguments,
    components,
    holds_instances,
    instances,
    main,
    match,
    read_mask,
)
from fusiondet.converters.reports import Problems
from fusiondet.errors import InputError
from fusiondet.geometry.painting import polygon_to_mask
from fusiondet.io.coco import read_coco
from fusiondet.io.tile_rasters import read_tile
from tests.support.messages import raises_naming

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.enums import ColorInterp
from shapely.geometry import Polygon, box

GRID = {"crs": "EPSG:32631", "transform": Affine(0.3, 0, 600_000, 0, -0.3, 5_800_000)}


def write(path, image, colours=None, interpretation=None, driver="GTiff", **options):
    image = np.atleast_3d(image) if image.ndim == 3 else image[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": driver, "count": len(image), "height": image.shape[1], "width": image.shape[2]}
    with rasterio.open(path, "w", **profile, dtype=image.dtype, **options) as f:
        if colours:
            f.write_colormap(1, colours)
        f.write(image)
        if interpretation:
            f.colorinterp = interpretation
    return path


def town(height=96, width=128):
    """(h, w) bool: a block, an L, a ring with a yard, two that touch at a corner, one at the right edge."""
    mask = np.zeros((height, width), bool)
    mask[5:15, 8:30] = True
    mask[30:60, 10:20] = mask[50:60, 10:40] = True
    mask[20:44, 60:90] = True
    mask[28:36, 70:80] = False
    mask[70:76, 60:66] = mask[76:82, 66:72] = True
    mask[80:90, width - 9 :] = True
    return mask


OUTLINES = [
    box(8, 5, 30, 15),
    Polygon(box(60, 20, 90, 44).exterior, [box(70, 28, 80, 36).exterior]),
    Polygon([(10, 30), (20, 30), (20, 50), (40, 50), (40, 60), (10, 60)]),
    box(60, 70, 66, 76),
    box(66, 76, 72, 82),
    box(119, 80, 128, 90),
]


def picture(mask):
    """RGB in which a building is bright, and red tells the column."""
    columns = np.broadcast_to(np.arange(mask.shape[1]) % 100, mask.shape)
    return np.stack([columns + 100 * mask, 40 + 160 * mask, 30 + 0 * mask]).astype(np.uint8)


def archive(folder, masks, **options):
    """images/NAME.tif and gt/NAME.tif of name -> mask."""
    for name, mask in masks.items():
        write(folder / "images" / f"{name}.tif", picture(mask), **options)
        write(folder / "gt" / f"{name}.tif", 255 * mask.astype(np.uint8), **options)
    return folder


def prepare(folder, *words, images="images/*", masks="gt/*", out="out"):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = folder / out
    files = ["--images", f"{folder}/{images}", "--masks", f"{folder}/{masks}"]
    main(parser.parse_args([*files, "--out", str(out), *map(str, words)]))
    return out


def split(out, name="train"):
    return read_coco(out / "annotations" / f"{name}.json")


def assert_in_place(dataset):
    """Labels are the bright pixels, exactly, and no instance shares a pixel with another."""
    for tile in dataset.tiles:
        label = np.zeros((tile.height, tile.width), int)
        for building in tile.buildings:
            label += polygon_to_mask(building.polygon, tile.height, tile.width)
        np.testing.assert_array_equal(label, read_tile(dataset, tile)[1] > 100)


# ---- Masks -----------------------------------------------------------------------------------------------

RGBA = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
LAYOUTS = {
    "0 and 1": lambda m: {"image": m},
    "0 and 255": lambda m: {"image": 255 * m},
    "float": lambda m: {"image": m.astype(np.float32)},
    "16 bits": lambda m: {"image": (255 * m.astype(np.uint16))},
    "white": lambda m: {"image": np.stack([255 * m] * 3)},
    "red": lambda m: {"image": np.stack([255 * m, 0 * m, 0 * m])},
    "alpha": lambda m: {"image": np.stack([255 * m] * 3 + [255 + 0 * m]), "interpretation": RGBA},
    "fourth band": lambda m: {"image": np.stack([m] * 3 + [255 + 0 * m]), "photometric": "MINISBLACK"},
    "palette": lambda m: {"image": m, "colours": {0: (0, 0, 0), 1: (128, 0, 0)}},
    "palette from white to black": lambda m: {"image": 1 - m, "colours": {1: (0, 0, 0), 0: (255, 255, 255)}},
    "one bit": lambda m: {"image": m, "nbits": 1},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "mask", [town(), np.zeros((32, 40), bool), np.ones((32, 40), bool)], ids=["town", "none", "all"]
)
def test_masks_of_every_layout(tmp_path, layout, mask):
    path = write(tmp_path / "m.tif", **LAYOUTS[layout](mask.astype(np.uint8)))
    np.testing.assert_array_equal(read_mask(path), mask)
    np.testing.assert_array_equal(read_mask(path, (3, 4, 20, 10)), mask[4:14, 3:23])


@pytest.mark.parametrize(
    "image, found",
    [
        (np.array([[0, 7], [128, 255]], np.uint8), "0, 7, 128, 255"),
        (np.array([[0, 1], [255, 0]], np.uint8), "0, 1, 255"),
        (np.arange(20, dtype=np.uint8).reshape(4, 5), "0, 1, 2, 3, 4, 5 and 14 more values"),
        (np.array([[[255, 0]], [[0, 255]], [[0, 0]]], np.uint8), r"\(0, 255, 0\), \(255, 0, 0\)"),
        (np.array([[0, 0.5]], np.float32), "0, 0.5"),
    ],
    ids=["shades", "two kinds", "many", "two colours", "probabilities"],
)
def test_other_values_are_named(tmp_path, image, found):
    path = write(tmp_path / "m.tif", image)
    with pytest.raises(InputError, match=f"m.tif: is no mask of buildings; it holds {found}, expected"):
        read_mask(path)


def test_shades_are_cut_at_a_threshold(tmp_path):
    path = write(tmp_path / "m.tif", np.array([[0, 127], [128, 255]], np.uint8))
    assert read_mask(path, threshold=128).tolist() == [[False, False], [True, True]]
    with raises_naming("2 bands"):
        read_mask(
            write(tmp_path / "two.tif", np.zeros((2, 3, 3), np.uint8), photometric="MINISBLACK", alpha="NO")
        )


def test_components_have_the_outline_of_their_pixels():
    found = components(town())
    assert len(found) == len(OUTLINES), "touching at a corner is not touching"
    for outline in OUTLINES:
        assert any(polygon.equals(outline) for polygon in found)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_components_cover_any_mask_exactly_once(mask):
    found = components(mask)
    assert all(p.is_valid and p.geom_type == "Polygon" for p in found)
    painted = sum((polygon_to_mask(p, *mask.shape).astype(int) for p in found), np.zeros(mask.shape, int))
    np.testing.assert_array_equal(painted, mask)
    assert sum(p.area for p in found) == mask.sum()


# ---- Data sets -------------------------------------------------------------------------------------------


def test_instances_are_exact_and_heights_unknown(tmp_path, capsys):
    folder = archive(tmp_path, {"austin1": town(), "austin2": np.zeros((96, 128), bool)}, **GRID)
    dataset = split(prepare(folder, "--tile-size", 128))
    assert_in_place(dataset)
    first, empty = dataset.tiles
    assert len(first.buildings) == len(OUTLINES) and empty.buildings == []
    assert sum(b.polygon.area for b in first.buildings) == town().sum()
    assert {b.height_m for b in first.buildings} == {None}
    assert (first.gsd_m, first.crs) == (pytest.approx(0.3), "EPSG:32631")
    assert first.file_name == "rgb/austin1.tif", "nothing is copied"
    assert TOUCHING in dataset.info["notes"] and TOUCHING in dataset.info["outlines"]
    assert "6 kept" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["shifted", "flipped"])
def test_what_is_out_of_place_would_be_seen(tmp_path, fault):
    folder = archive(tmp_path, {"a": town()})
    mask = 255 * town().astype(np.uint8)
    write(folder / "gt" / "a.tif", np.roll(mask, 1, axis=1) if fault == "shifted" else mask[::-1])
    with pytest.raises(AssertionError):
        assert_in_place(split(prepare(folder)))


@pytest.mark.parametrize("words", [(), ("--cut",)], ids=["windows", "cut"])
@pytest.mark.parametrize("overlap", [0, 10])
def test_large_images_are_windows(tmp_path, words, overlap, capsys):
    mask = np.tile(town(), (2, 2))
    folder = archive(tmp_path, {"vienna1": mask}, **GRID)
    dataset = split(prepare(folder, "--tile-size", 80, "--overlap", overlap, *words))
    assert_in_place(dataset)
    covered = np.zeros(mask.shape, int)
    for tile in dataset.tiles:
        column, row = ~GRID["transform"] * (tile.transform[2], tile.transform[5])
        x0, y0 = round(column), round(row)
        assert tile.window == (None if words else (x0, y0, 80, 80))
        covered[y0 : y0 + 80, x0 : x0 + 80] += 1
        assert sum(b.polygon.area for b in tile.buildings) == mask[y0 : y0 + 80, x0 : x0 + 80].sum()
    assert covered.min() == 1
    assert bool(list((tmp_path / "out" / "rgb").glob("*_x*.tif"))) == bool(words)
    assert "cut by a tile's edge" in capsys.readouterr().out


def test_what_touches_an_inner_edge_is_counted_as_cut(tmp_path, capsys):
    mask = np.zeros((64, 128), bool)
    mask[10:20, 50:80] = mask[30:40, 120:128] = True
    prepare(archive(tmp_path, {"a": mask}), "--tile-size", 64)
    assert "2 cut by a tile's edge, 3 kept" in capsys.readouterr().out


def test_pixel_sizes_and_missing_crs(tmp_path, capsys):
    folder = archive(tmp_path, {"1": town(), "2": town()})
    unknown, known = split(prepare(folder)), split(prepare(folder, "--gsd", 0.3, out="b"))
    assert np.isnan(unknown.tiles[0].gsd_m) and known.tiles[0].gsd_m == 0.3
    assert unknown.tiles[0].crs is None and unknown.tiles[0].transform is None
    text = capsys.readouterr().out
    assert text.count("pixel size of images without a CRS is unknown") == 1


def test_no_data_of_the_image(tmp_path, capsys):
    folder = archive(tmp_path, {"a": town()}, **GRID)
    image = picture(town())
    image[:, :, :20] = 0
    write(folder / "images" / "a.tif", image, nodata=0, **GRID)
    tile = split(prepare(folder, "--tile-size", 128)).tiles[0]
    label = sum(polygon_to_mask(b.polygon, 96, 128).astype(int) for b in tile.buildings)
    assert not label[:, :20].any() and label[5:15, 22:30].all()
    assert "clipped at no data" in capsys.readouterr().out
    write(folder / "images" / "a.tif", 0 * image, nodata=0, **GRID)
    with pytest.raises(InputError, match="left out as no data"):
        prepare(folder, out="b")


def test_splits_of_images_without_a_place_keep_images_whole(tmp_path):
    folder = archive(tmp_path, {f"t{i}": town() for i in range(6)})
    out = prepare(folder, "--tile-size", 64, "--split", "train=2", "val=1")
    names = [{t.file_name for t in split(out, name).tiles} for name in ("train", "val")]
    assert names[0].isdisjoint(names[1]) and len(names[0]) == 4 and len(names[1]) == 2


def test_splits_of_cities_in_several_crs(tmp_path, capsys):
    folder = tmp_path
    for name, crs, x, y in (
        ("austin1", "EPSG:26914", 620_000, 3_350_000),
        ("vienna1", "EPSG:31256", 3_000, 340_000),
    ):
        archive(folder, {name: np.tile(town(), (2, 2))}, crs=crs, transform=Affine(0.3, 0, x, 0, -0.3, y))
    out = prepare(folder, "--tile-size", 64, "--split", "train=1", "val=1")
    assert "ground in two splits: 0.0 m2" in capsys.readouterr().out
    for name in ("train", "val"):
        assert_in_place(split(out, name))


# ---- Pairs -----------------------------------------------------------------------------------------------


def paths(folder, *names):
    return [Path(folder) / name for name in names]


@pytest.mark.parametrize(
    "images, masks",
    [
        (("austin1.tif", "austin10.tif"), ("austin1.tif", "austin10.tif")),
        (("22678915_15.tiff", "22678930_15.tiff"), ("22678915_15.tif", "22678930_15.tif")),
        (("b_image.png", "a_image.png"), ("b_mask.png", "a_mask.png")),
        (("1.tif",), ("label.tif",)),
    ],
)
def test_pairs_by_name(images, masks):
    problems = Problems()
    found = match(paths("images", *images), paths("gt", *reversed(masks)), problems)
    assert [(p.image.name, p.mask.name) for p in found] == list(zip(images, masks, strict=True))
    assert not problems.counts


def test_names_that_do_not_tell_are_refused():
    with raises_naming("x1.tif", "y7.tif"):
        match(paths("i", "x1.tif", "x2.tif"), paths("m", "y7.tif", "y8.tif"), Problems())
    images, masks = (paths(f"train/{kind}", "0.tif") + paths(f"val/{kind}", "0.tif") for kind in "im")
    with raises_naming("train/i/0.tif", "val/i/0.tif"):
        match(images, masks, Problems())


def _lonely_image(folder):
    write(folder / "images" / "c.tif", picture(town()))


def _lonely_mask(folder):
    write(folder / "gt" / "c.tif", town().astype(np.uint8))


def _small_mask(folder):
    write(folder / "gt" / "b.tif", town()[:, :100].astype(np.uint8))


def _grey_mask(folder):
    write(folder / "gt" / "b.tif", np.arange(96 * 128, dtype=np.uint16).reshape(96, 128))


def _moved_mask(folder):
    moved = {**GRID, "transform": GRID["transform"] * Affine.translation(3, 4)}
    write(folder / "images" / "b.tif", picture(town()), **GRID)
    write(folder / "gt" / "b.tif", town().astype(np.uint8), **moved)


def _cut_off_mask(folder):
    path = folder / "gt" / "b.tif"
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    "fault, kind, message, tiles",
    [
        (_lonely_image, "images without labels", "images/c.tif: has no mask", 2),
        (_lonely_mask, "labels without an image", "gt/c.tif: has no image", 2),
        (_small_mask, "unusable images", "b.tif: 128 x 96 px, but its mask .*gt/b.tif has 100 x 96 px", 1),
        (_grey_mask, "unusable images", "gt/b.tif: is no mask of buildings; it holds 0, 1, 2", 1),
        (_moved_mask, "unusable images", "gt/b.tif: its georeference is 5.0 px off", 1),
        (_cut_off_mask, "unusable images", "gt/b.tif: damaged", 1),
    ],
)
def test_faults_are_counted_and_named_and_stop_a_strict_run(tmp_path, fault, kind, message, tiles, capsys):
    folder = archive(tmp_path, {"a": town(), "b": town()})
    fault(folder)
    dataset = split(prepare(folder))
    assert len(dataset.tiles) == tiles
    assert f"problem: 1 {kind}" in capsys.readouterr().out
    with pytest.raises(InputError, match=message):
        prepare(folder, "--strict", out="strict")
    assert not (folder / "strict").exists()


def test_words_that_mean_nothing(tmp_path):
    folder = archive(tmp_path, {"a": town()})
    for words, message in (
        (("--tile-size", 8), "`tile_size=8`: expected 32"),
        (("--overlap", 512), "`overlap=512`: expected 0 to 511"),
        (("--gsd", 0), "`gsd_m=0`: expected"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(folder, *words)
    with pytest.raises(InputError, match=r"`masks=.*nothing/\*`: no such file"):
        prepare(folder, masks="nothing/*")
    with raises_naming("a.tif", "images", "masks"):
        prepare(folder, images="images", masks="images/*.tif")


# ---- COCO instead of masks -------------------------------------------------------------------------------


def test_outlines_of_coco_are_taken_as_they_are(tmp_path, capsys):
    """crowdAI: images of 300 px as JPEG or PNG, and one annotation.json for all."""
    mask = town()
    for i in range(3):
        write(tmp_path / "images" / f"{i:012d}.png", picture(mask), driver="PNG")
    images = [{"id": 7 - i, "file_name": f"{i:012d}.png", "width": 128, "height": 96} for i in (0, 1, 9)]
    rings = [[v for xy in list(o.exterior.coords)[:-1] for v in xy] for o in OUTLINES if not o.interiors]
    annotations = [
        {
            "id": k,
            "image_id": 7,
            "category_id": 100,
            "iscrowd": 0,
            "segmentation": [ring],
            "area": 1,
            "bbox": [],
        }
        for k, ring in enumerate(rings)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 100, "name": "building"}]}
    (tmp_path / "annotation.json").write_text(json.dumps(content))
    dataset = split(prepare(tmp_path, "--gsd", 0.3, images="images", masks="annotation.json"))
    assert [t.file_name for t in dataset.tiles] == ["rgb/000000000000.png", "rgb/000000000001.png"]
    expected = [o for o in OUTLINES if not o.interiors]
    assert all(b.polygon.equals(o) for b, o in zip(dataset.tiles[0].buildings, expected, strict=True))
    assert dataset.tiles[1].buildings == [] and dataset.info["outlines"] == "of annotation.json"
    text = capsys.readouterr().out
    assert "problem: 1 labels without an image" in text and "lists 000000000009.png" in text
    assert (
        "problem: 1 images without labels" in text
        and "000000000002.png: annotation.json does not list it" in text
    )


# ---- Instance numbers ------------------------------------------------------------------------------------


def rows_of_houses(first: int = 1, dtype="uint16") -> np.ndarray:
    """(96, 128) numbers of 12 houses that touch their neighbours, 10 x 20 px each, the last one in two parts."""
    numbers = np.zeros((96, 128), dtype)
    for i in range(12):
        y, x = 10 + 30 * (i // 6), 4 + 20 * (i % 6)
        numbers[y : y + 10, x : x + 20] = first + i
    numbers[40:50, 112:114] = 0
    return numbers


def convert(tmp_path, mask, *words):
    write(tmp_path / "images" / "a.tif", np.full((3, *mask.shape), 90, np.uint8), **GRID)
    write(tmp_path / "masks" / "a.tif", mask, **GRID)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    folders = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    main(parser.parse_args([*folders, "--out", str(tmp_path / "out"), *words]))
    return read_coco(tmp_path / "out" / "annotations" / "train.json").tiles


@pytest.mark.parametrize(
    ("first", "dtype"), [(1, "uint8"), (700, "uint16"), (70_000, "uint32"), (3, "int32")]
)
def test_each_instance_number_is_a_building(tmp_path, capsys, first, dtype):
    (tile,) = convert(tmp_path, rows_of_houses(first, dtype))
    assert sorted(b.polygon.area for b in tile.buildings) == [180, *[200] * 11]
    assert sum(b.polygon.geom_type == "MultiPolygon" for b in tile.buildings) == 1
    assert NUMBERED in capsys.readouterr().out


def test_windows_of_instance_masks_hold_few_numbers(tmp_path):
    tiles = convert(tmp_path, rows_of_houses(), "--tile-size", "32")
    assert sum(b.polygon.area for t in tiles for b in t.buildings) == 12 * 200 - 20
    assert len([b for t in tiles for b in t.buildings]) > 12


def test_what_holds_no_instances(tmp_path):
    rng = np.random.default_rng(0)
    classes = np.kron(rng.integers(0, 5, (24, 32)), np.ones((4, 4), int)).astype(np.uint8)
    shades = rng.integers(0, 256, (96, 128)).astype(np.uint8)
    for name, values in (("town", town().astype(np.uint8)), ("classes", classes), ("shades", shades)):
        assert not holds_instances(write(tmp_path / f"{name}.tif", values, **GRID))
    assert holds_instances(write(tmp_path / "ids.tif", rows_of_houses(), **GRID))
    assert instances(np.zeros((4, 4), np.uint8)) == []


def test_ignored_pixels_are_named_with_what_to_do(tmp_path):
    mask = town().astype(np.uint8)
    mask[:3] = 255
    with raises_naming("masks/a.tif", "it holds 0, 1, 255", "not labelled", "A==1", "`threshold=1`"):
        convert(tmp_path, mask)
    mask[mask == 255] = 0  # as the advice has it
    (tile,) = convert(tmp_path, mask, "--overwrite")
    assert len(tile.buildings) == len(OUTLINES)


# ---- Edges -----------------------------------------------------------------------------------------------


def test_ground_is_in_one_tile_where_edges_are_cropped(tmp_path, capsys):
    mask = np.zeros((300, 300), np.uint8)
    for i in range(17):
        mask[10 + 70 * (i // 4) : 30 + 70 * (i // 4), 10 + 70 * (i % 4) : 30 + 70 * (i % 4)] = 1
    whole = int(mask.sum())
    tiles = convert(tmp_path, mask, "--tile-size", "256")
    assert sum(b.polygon.area for t in tiles for b in t.buildings) > 2 * whole
    assert "191.3% of the ground is in the tiles once more" in capsys.readouterr().out
    tiles = convert(tmp_path, mask, "--tile-size", "256", "--edge", "crop", "--overwrite")
    assert [(t.width, t.height) for t in tiles] == [(256, 256), (44, 256), (256, 44), (44, 44)]
    assert sum(b.polygon.area for t in tiles for b in t.buildings) == whole
    assert "once more" not in capsys.readouterr().out


def test_split_of_one_image_without_georeference_names_what_works(tmp_path):
    write(tmp_path / "images" / "a.png", np.full((3, 96, 128), 90, np.uint8), driver="PNG")
    write(tmp_path / "masks" / "a.png", town().astype(np.uint8), driver="PNG")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    folders = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    words = [*folders, "--out", str(tmp_path / "out"), "--tile-size", "32"]
    with raises_naming("without a georeference", "`split`", "gdal_translate"):
        main(parser.parse_args([*words, "--split", "train=50", "val=50"]))
    main(parser.parse_args(words))
    assert len(read_coco(tmp_path / "out" / "annotations" / "train.json").tiles) == 12
