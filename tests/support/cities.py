"""Invented cities in memory."""

from fusiondet.synthetic.presets import preset
from fusiondet.synthetic.procedural import make_city

import numpy as np

BOUNDS = (0.0, 0.0, 400.0, 300.0)


def city_of(name, layout_seed=1, height_seed=2, bounds=BOUNDS):
    return make_city(
        preset(name), bounds, np.random.default_rng(layout_seed), np.random.default_rng(height_seed)
    )
