"""Where tiles are on the ground, and links to the rasters of others."""

import errno
from pathlib import Path

from fusiondet.converters.source import Place, link
from tests.support.messages import raises_naming

import pytest
from hypothesis import given
from hypothesis import strategies as st


class TestPlace:
    def test_ground_is_where_the_window_is(self):
        place = Place("t", 0, (10, 20, 30, 40), (0.5, 0, 1000.0, 0, -0.5, 2000.0), "EPSG:32631")
        assert place.ground(None).bounds == (1005, 1970, 1020, 1990)
        assert place.ground("EPSG:32631").equals(place.ground(None))

    def test_edges_are_bent_in_another_crs(self):
        place = Place("t", 0, (0, 0, 1000, 1000), (1e-3, 0, 4.0, 0, -1e-3, 52.0), "EPSG:4326")
        outline = place.ground("EPSG:32631")
        assert len(outline.exterior.coords) == 41 and outline.is_valid
        assert outline.area == pytest.approx(68_200 * 111_200, rel=0.02)

    @given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 900), st.integers(1, 900))
    def test_area_follows_from_pixels(self, x0, y0, width, height):
        place = Place("t", 0, (x0, y0, width, height), (0.3, 0.4, 7.0, 0.4, -0.3, 9.0), None)
        assert place.ground(None).area == pytest.approx(width * height * 0.25)

    def test_nowhere(self):
        with pytest.raises(ValueError, match="nowhere on the map"):
            Place("t", 0, (0, 0, 1, 1)).ground(None)


def test_a_link_is_made_once_and_needs_no_second_name(tmp_path):
    target = tmp_path / "archive"
    target.mkdir()
    (target / "a.tif").write_text("pixels")
    for _ in range(2):
        assert link(tmp_path / "out", "images", target) == "images"
    assert (tmp_path / "out" / "images" / "a.tif").read_text() == "pixels"


def test_a_file_system_without_links_is_an_input_error_that_names_both_and_the_way_out(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with raises_naming(str(tmp_path / "out" / "images"), "archive", "Operation not permitted", "cut"):
        link(tmp_path / "out", "images", tmp_path / "archive")
