"""Arrows, scale bars and legends."""

from fusiondet.visualization.marks import image_direction

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("azimuth", "transform", "expected"),
    [
        (0, None, (0, -1)),
        (90, (0.5, 0, 1000, 0, -0.5, 2000), (1, 0)),
        (0, (0.5, 0, 1000, 0, 0.5, 2000), (0, 1)),  # south up
        (0, (0, -0.5, 0, 0.5, 0, 0), (1, 0)),  # turned: columns run north, rows run west
        (45, (4.48e-6, 0, -43.0, 0, -4.0e-6, -22.0), (0.5**0.5, -(0.5**0.5))),  # degrees
    ],
)
def test_direction_in_the_image(azimuth, transform, expected):
    np.testing.assert_allclose(image_direction(azimuth, transform), expected, atol=1e-9)
