"""Which file goes with which, told by names."""

from pathlib import Path

from fusiondet.converters.pairing import (
    expand,
    first_band_count,
    group_by_band,
    pair,
    pair_by_name,
    unique_stems,
)
from fusiondet.errors import InputError
from tests.support.messages import raises_naming

import pytest


def paths(*names):
    return [Path("d", name) for name in names]


class TestPairs:
    def test_by_the_parts_that_differ(self):
        base = paths("RGB_img1.tif", "RGB_img10.tif")
        assert pair_by_name(base, paths("s_img10_SAR.tif", "s_img1_SAR.tif")) == paths(
            "s_img1_SAR.tif", "s_img10_SAR.tif"
        )
        assert pair_by_name(base, paths("a.tif", "b.tif")) is None
        assert pair_by_name(base, paths("s_img1.tif")) is None and pair_by_name([], []) == []

    def test_one_for_all_and_order_as_the_last_resort(self):
        base, notes = paths("x1.tif", "x2.tif"), []
        assert pair(base, paths("all.tif"), "SAR raster", notes) == paths("all.tif", "all.tif")
        assert pair(base, [], "SAR raster", notes) == [None, None] and notes == []
        assert pair(base, paths("north.tif", "south.tif"), "SAR raster", notes) == paths(
            "north.tif", "south.tif"
        )
        assert notes == [
            "SAR rasters are paired with the images in the order given: their names do not tell."
        ]
        with raises_naming("3 SAR", "2 images"):
            pair(base, paths("a", "b", "c"), "SAR raster", notes)


class TestBands:
    def test_a_file_for_each_polarisation(self):
        files = paths("t1_VV.tif", "t1_VH.tif", "t2_VH.tif", "t2_VV.tif")
        assert group_by_band(files, ("VV", "VH")) == [
            paths("t1_VV.tif", "t1_VH.tif"),
            paths("t2_VV.tif", "t2_VH.tif"),
        ]
        assert group_by_band(paths("B4.tif", "B3.tif", "B2.tif"), ("B2", "B3", "B4")) == [
            paths("B2.tif", "B3.tif", "B4.tif")
        ]

    def test_names_of_bands_are_whole_words(self):
        assert group_by_band(paths("B8.tif", "B8A.tif"), ("B8", "B8A")) == [paths("B8.tif", "B8A.tif")]

    def test_equal_names_in_two_folders_are_two_images(self):
        files = [Path(d, f"{p}.tif") for d in "ab" for p in ("VV", "VH")]
        assert group_by_band(files, ("VV", "VH")) == [files[:2], files[2:]]

    @pytest.mark.parametrize(
        ("names", "bands"),
        [
            (("a.tif", "b.tif"), ("HH", "HV")),
            (("a_HH.tif", "b.tif"), ("HH", "HV")),
            (("a_HH_HV.tif", "b_HH.tif"), ("HH", "HV")),
            (("a_HH.tif", "b_HH.tif"), ("HH",)),
            (("HH.tif",), ("HH", "HV")),
        ],
    )
    def test_else_every_file_is_an_image(self, names, bands):
        assert group_by_band(paths(*names), bands) == [[path] for path in paths(*names)]

    def test_missing_and_doubled_bands(self):
        with raises_naming("VH", "d/t2_VV.tif"):
            group_by_band(paths("t1_VV.tif", "t1_VH.tif", "t2_VV.tif"), ("VV", "VH"))
        with raises_naming("band VV"):
            group_by_band(paths("t1_VV.tif", "VV_t1.tif", "t1_VH.tif"), ("VV", "VH"))


def test_stems_are_unique_and_need_no_quoting():
    assert unique_stems(paths("a b.tif", "c&d.tif")) == ["a_b", "c_d"]
    assert unique_stems([Path("x/a.tif"), Path("y/a.tif")]) == ["0000_a", "0001_a"]


def test_words_are_files_folders_and_patterns(tmp_path):
    for name in ("b.tif", "a.TIF", "._a.tif", "a.txt"):
        (tmp_path / name).touch()
    a, b = tmp_path / "a.TIF", tmp_path / "b.tif"
    assert expand([str(tmp_path)], (".tif",), "images") == [a, b]
    assert expand([str(b), str(tmp_path / "*.[tT]*[fF]")], (".tif",), "images") == [b, a]
    with pytest.raises(InputError, match=r"`masks=.*`: no such file, and no .png file is found there"):
        expand([str(tmp_path)], (".png",), "masks")
    with pytest.raises(InputError, match="a.TIF"):
        first_band_count([a])
