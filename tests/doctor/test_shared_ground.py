"""CRS, orientation, GSD and the ground that splits share, on tiles whose places are drawn on paper."""

from fusiondet.doctor.shared_ground import check_ground
from tests.support.doctor_cases import UTM, found, tile
from tests.support.tiny_city import write_tiles

import pytest
import rasterio


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


def test_one_split_and_tiles_without_a_place_share_nothing(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif"), tile("b.tif")])
    assert found(check_ground, tmp_path)["ground shared between splits"].verdict == "n/a"
    write_tiles(tmp_path, "val", [tile("c.tif", crs=None, at=None)])
    finding = found(check_ground, tmp_path)["ground shared between splits"]
    assert finding.verdict == "ok" and finding.numbers["tiles_looked_at"] == 2


def test_a_crs_that_does_not_exist_fails_and_is_quoted(tmp_path):
    path = write_tiles(tmp_path, "train", [tile("a.tif")])
    path.write_text(path.read_text().replace(UTM, "EPSG:999999"))
    finding = found(check_ground, tmp_path)["CRS"]
    assert finding.verdict == "FAIL" and "EPSG:999999" in finding.detail


def test_a_clean_split_raises_nothing(tmp_path):
    write_tiles(tmp_path, "train", [tile("a.tif"), tile("b.tif", at=(600050.0, 5800000.0))])
    write_tiles(tmp_path, "val", [tile("c.tif", at=(600050.0, 5800050.0))])
    assert {finding.verdict for finding in found(check_ground, tmp_path).values()} == {"ok"}
