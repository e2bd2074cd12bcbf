"""Figures are saved whole, and round numbers are round."""

from fusiondet.visualization import (
    save_figure,
)
from fusiondet.visualization.canvas import new_figure, round_down, round_up

import pytest
from PIL import Image


def test_saved_pictures_are_whole_png_files_of_the_figure_s_size_and_repeat_to_the_byte(tmp_path):
    for name in ("a.png", "b.png"):
        save_figure(new_figure(2, 1), tmp_path / name)
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (240, 120))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_round_numbers():
    assert [round_up(v) for v in (0.0, 3.0, 3.1, 12.0, 30.0, 99.0, 101.0)] == [3, 3, 4, 15, 30, 100, 150]
    assert [round_down(v) for v in (0.3, 1.0, 7.0, 42.0, 500.0)] == pytest.approx([0.2, 1, 5, 20, 500])
