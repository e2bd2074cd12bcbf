"""Signs of the order of red and blue turn with it."""

from fusiondet.io.colour_signs import colour_signs, logs_of, without_clouds

import numpy as np


def pixels():
    """Grey ground, bluish shadows, red roofs, plants with more red than blue."""
    rng = np.random.default_rng(0)
    colours = np.array([[100, 100, 100], [20, 24, 32], [170, 90, 70], [80, 110, 50]], float)
    kinds = rng.choice(4, 4000, p=(0.5, 0.2, 0.15, 0.15))
    return (colours[kinds] * rng.normal(1, 0.02, (4000, 1))).T


def test_an_exchange_of_red_and_blue_turns_the_signs():
    right, exchanged = (colour_signs(logs_of(p)).sum() for p in (pixels(), pixels()[::-1]))
    assert right > 1.5 and exchanged < -1.5


def test_bright_pixels_without_colour_are_left_out_as_clouds():
    clouds = np.full((3, 400), 250.0)
    assert without_clouds(np.concatenate([pixels(), clouds], axis=1)).shape == pixels().shape
