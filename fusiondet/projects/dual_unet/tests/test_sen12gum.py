"""SEN12 Global Urban Mapping on a replica of its layout: splits, bands, decibels, labels bit by bit, refusals."""

import argparse
import json

from fusiondet.buildings import Building, Tile
from fusiondet.converters.masks import components
from fusiondet.converters.prepare import StrictParser, prepare
from fusiondet.errors import InputError
from fusiondet.geometry.painting import footprint_label
from fusiondet.io.coco import read_coco
from fusiondet.io.tile_rasters import read_tile
from fusiondet.projects.dual_unet.sen12gum import OPTICAL_NAMES, SITES, add_arguments, main

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.transform import from_origin

SIZE = 24
PRODUCTS = ("sentinel1", "sentinel2", "buildings")


def write(path, image, crs="EPSG:32611", transform=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = transform or from_origin(380_000, 3_770_000, 10, 10)
    profile = {"count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": image.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **profile) as f:
        f.write(image)


def label(seed):
    """(1, SIZE, SIZE) float32: blobs, single pixels, corners that touch, a yard; values are shares of a pixel."""
    rng = np.random.default_rng(seed)
    mask = rng.random((SIZE, SIZE)) < 0.3
    mask[4:12, 4:12], mask[6:9, 6:9] = True, False
    return (mask * rng.uniform(0.1, 1.0, mask.shape)).astype(np.float32)[None]


def write_patch(root, site, ending, seed, **grid):
    rng = np.random.default_rng(seed)
    write(
        root / site / "sentinel1" / f"sentinel1_{ending}.tif", rng.random((2, SIZE, SIZE), np.float32), **grid
    )
    write(
        root / site / "sentinel2" / f"sentinel2_{ending}.tif",
        rng.random((10, SIZE, SIZE), np.float32),
        **grid,
    )
    write(root / site / "buildings" / f"buildings_{ending}.tif", label(seed), **grid)


def write_list(root, site, samples, **facts):
    path = root / site / "samples.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"samples": samples, **facts}))


@pytest.fixture
def archive(tmp_path):
    """Two sites to train, one to validate, two places to test, one site without labels."""
    root = tmp_path / "SEN12_GUM"
    patches = ["0000000000-0000000000", "0000000000-0000000256"]
    for i, (site, crs) in enumerate(
        (("losangeles", "EPSG:32611"), ("sydney", "EPSG:32756"), ("calgary", "EPSG:32611"))
    ):
        write_list(
            root, site, [{"patch_id": p, "site": site, "is_labeled": True, "img_weight": 1} for p in patches]
        )
        for j, patch in enumerate(patches):
            write_patch(root, site, f"{site}_{patch}", 10 * i + j, crs=crs)
    write_list(
        root, "spacenet7", [{"aoi_id": a, "country": "Chad"} for a in ("L15-0331E-1257N", "L15-0357E-1223N")]
    )
    for j, name in enumerate(("L15-0331E-1257N", "L15-0357E-1223N")):
        write_patch(root, "spacenet7", name, 90 + j, crs="EPSG:32633")
    write_list(root, "kigali", [{"patch_id": patches[0], "is_labeled": False}])
    return root


def convert(root, out, *words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    main(parser.parse_args(["--root", str(root), "--out", str(out), *words]))
    return {path.stem: read_coco(path) for path in (out / "annotations").iterdir()}


def test_published_sites_have_their_splits():
    assert [len(SITES[split]) for split in ("train", "val")] == [26, 4]
    assert len({site for sites in SITES.values() for site in sites}) == 31


def test_every_labelled_patch_is_a_tile_of_its_sites_split(archive, tmp_path, capsys):
    splits = convert(archive, tmp_path / "out")
    assert {name: len(dataset.tiles) for name, dataset in splits.items()} == {"train": 4, "val": 2, "test": 2}
    printed = capsys.readouterr().out
    assert "1 left out at sites of no split" in printed and "not buildings: score maps" in printed
    tile = splits["train"].tiles[0]
    assert (tile.width, tile.height, tile.crs) == (SIZE, SIZE, "EPSG:32611")
    assert tile.gsd_m == pytest.approx(10, abs=0.02)
    assert splits["train"].bands.optical == tuple(OPTICAL_NAMES.values())
    assert (splits["train"].bands.sar, splits["train"].bands.sar_scale) == (("VV", "VH"), "db")
    assert all(b.height_m is None for dataset in splits.values() for t in dataset.tiles for b in t.buildings)


def test_footprint_labels_are_the_raster_bit_by_bit(archive, tmp_path):
    splits = convert(archive, tmp_path / "out")
    seeds = {"train": (0, 1, 10, 11), "val": (20, 21), "test": (90, 91)}
    for name, dataset in splits.items():
        for seed, tile in zip(seeds[name], dataset.tiles, strict=True):
            np.testing.assert_array_equal(footprint_label(tile), label(seed)[0] > 0)
            assert len(tile.buildings) > 5


def test_a_threshold_says_from_where_on_it_is_built_up(archive, tmp_path):
    tile = convert(archive, tmp_path / "out", "--threshold", "0.5")["test"].tiles[0]
    np.testing.assert_array_equal(footprint_label(tile), label(90)[0] > 0.5)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outlines_of_any_mask_are_its_pixels(mask):
    tile = Tile(
        "a.tif", mask.shape[1], mask.shape[0], 10.0, buildings=[Building(p) for p in components(mask)]
    )
    np.testing.assert_array_equal(footprint_label(tile), mask)


def test_pixels_without_a_value_are_not_built_up(archive, tmp_path):
    values = label(0)
    values[0, 4] = np.nan
    write(archive / "losangeles" / "buildings" / "buildings_losangeles_0000000000-0000000000.tif", values)
    tile = convert(archive, tmp_path / "out")["train"].tiles[0]
    assert not footprint_label(tile)[4].any() and footprint_label(tile)[5].any()


def test_pixels_are_reflectances_and_decibels(archive, tmp_path):
    dataset = convert(archive, tmp_path / "out")["train"]
    image = read_tile(dataset, dataset.tiles[0], dataset.bands)
    rng = np.random.default_rng(0)
    unit, optical = rng.random((2, SIZE, SIZE), np.float32), rng.random((10, SIZE, SIZE), np.float32)
    np.testing.assert_array_equal(image[:10], optical)
    np.testing.assert_allclose(image[10:], -25 + 30 * unit, atol=1e-5)


def test_decibels_are_taken_as_they_are(archive, tmp_path):
    for path in archive.glob("*/sentinel1/*.tif"):
        with rasterio.open(path, "r+") as f:
            f.write(f.read() * 30 - 25)
    with pytest.raises(
        InputError, match="numbers from -2.* expected 0 to 1 for -25 to 5 dB.* `sar_scale=.db.`"
    ):
        convert(archive, tmp_path / "out", "--strict")
    dataset = convert(archive, tmp_path / "out", "--sar-scale", "db")["val"]
    assert dataset.tiles[0].sar_file_name.startswith("images/")
    assert read_tile(dataset, dataset.tiles[0], dataset.bands)[10:].min() < -20


def test_numbers_from_0_to_1_are_no_decibels(archive, tmp_path):
    with pytest.raises(InputError, match="no tile is left|Leave out `sar_scale=.db.`"):
        convert(archive, tmp_path / "out", "--sar-scale", "db")


def test_bands_are_those_that_the_list_names(archive, tmp_path):
    for site in ("losangeles", "sydney", "calgary", "spacenet7"):
        path = archive / site / "samples.json"
        document = json.loads(path.read_text()) | {
            "sentinel2_features": ["B4", "B8"],
            "sentinel1_features": ["VV"],
        }
        path.write_text(json.dumps(document))
        for product, n in (("sentinel1", 1), ("sentinel2", 2)):
            for file in (archive / site / product).iterdir():
                with rasterio.open(file) as f:
                    image, grid = f.read()[:n], {"crs": f.crs, "transform": f.transform}
                write(file, image, **grid)
    bands = convert(archive, tmp_path / "out")["val"].bands
    assert (bands.optical, bands.sar) == (("red", "nir"), ("VV",))


# ---- What is refused -------------------------------------------------------------------------------------

FIRST = "losangeles_0000000000-0000000000.tif"


def damage_image(path, change):
    with rasterio.open(path) as f:
        image, grid = f.read(), {"crs": f.crs, "transform": f.transform}
    write(path, *change(image, grid))


@pytest.mark.parametrize(
    ("product", "change", "message"),
    [
        ("sentinel2", lambda p: p.unlink(), "sentinel2_losangeles_0.*tif: no such file"),
        ("sentinel1", lambda p: p.write_text("not a raster"), "sentinel1_losangeles_0.*: not a raster"),
        ("sentinel2", lambda p: p.write_bytes(p.read_bytes()[:3000]), "sentinel2_losangeles_0.*: damaged"),
        ("sentinel1", lambda p: write(p, np.zeros((1, SIZE, SIZE), np.float32)), "1 bands, expected 2"),
        (
            "buildings",
            lambda p: write(p, np.zeros((1, 9, 8), np.float32)),
            "8 x 9 px, but its Sentinel-2 image has 24",
        ),
        (
            "sentinel1",
            lambda p: write(
                p, np.zeros((2, SIZE, SIZE), np.float32), transform=from_origin(380_010, 3_770_000, 10, 10)
            ),
            "lies elsewhere than its Sentinel-2 image",
        ),
    ],
)
def test_unusable_patches_are_named_and_left_out(archive, tmp_path, capsys, product, change, message):
    change(archive / "losangeles" / product / f"{product}_{FIRST}")
    with pytest.raises(InputError, match=message):
        convert(archive, tmp_path / "strict", "--strict")
    assert not (tmp_path / "strict").exists()
    assert len(convert(archive, tmp_path / "out")["train"].tiles) == 3
    assert "1 unusable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "samples.json: not valid JSON"),
        ("[]", 'samples.json: expected {"samples"'),
        ('{"samples": [{"patch": 3}]}', 'samples.json: expected {"samples": .{"patch_id"'),
        ('{"samples": [{"patch_id": "../../x"}]}', "points outside its folder"),
        (
            '{"samples": [{"patch_id": "a"}], "sentinel2_features": ["B1"]}',
            "sentinel2_features is ..B1.., expected names",
        ),
        ('{"samples": [{"patch_id": "a"}], "sentinel2_features": ["B4"]}', "sites have different bands"),
    ],
)
def test_lists_that_are_none(archive, tmp_path, text, message):
    (archive / "losangeles" / "samples.json").write_text(text)
    with pytest.raises(InputError, match=message):
        convert(archive, tmp_path / "out")


def test_other_folders_are_no_archive(archive, tmp_path):
    with pytest.raises(InputError, match=f"none of the data set's sites is there. Is it {archive}"):
        convert(archive.parent, tmp_path / "out")
    with pytest.raises(InputError, match="gone`: is no folder"):
        convert(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(InputError, match="these data prescribe their splits"):
        convert(archive, tmp_path / "out", "--split", "train=50", "val=50")


def test_an_archive_without_labels_is_refused(tmp_path):
    write_list(tmp_path, "losangeles", [{"patch_id": "a", "is_labeled": False}])
    with pytest.raises(InputError, match="no sample with labels"):
        convert(tmp_path, tmp_path / "out")


def test_the_command_is_refused_in_its_own_words():
    with pytest.raises(InputError, match="^--root nowhere: is no folder"):
        prepare("sen12gum --root nowhere --out b".split(), parser=StrictParser)
