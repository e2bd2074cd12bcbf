"""Windows cover a scene, and their cores tile it."""

import math

from fusiondet.inference import scene_windows

from hypothesis import given, settings
from hypothesis import strategies as st


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(64, 700), st.integers(0, 60))
@settings(max_examples=30)
def test_windows_cover_everything_and_every_point_has_one_core(width, height, side, overlap):
    windows = list(scene_windows(width, height, side, overlap))
    assert max(x + w for (x, _, w, _), _ in windows) == width
    assert max(y + h for (_, y, _, h), _ in windows) == height
    for x, y in [
        (0.0, 0.0),
        (width - 1e-6, height - 1e-6),
        (width / 2, height / 3),
        (width * 0.77, height * 0.11),
    ]:
        owners = [w for w, (x0, y0, x1, y1) in windows if x0 <= x < x1 and y0 <= y < y1]
        assert len(owners) == 1
        (x0, y0, w, h) = owners[0]
        assert x0 <= x < x0 + w and y0 <= y < y0 + h


def test_a_core_keeps_half_the_overlap_from_an_inner_border():
    (window, core), *_ = scene_windows(1000, 100, 600, 200)
    assert window == (0, 0, 600, 100)
    assert core == (-math.inf, -math.inf, 500, math.inf)
