"""A small replica of the published layout of ISPRS Vaihingen."""

from fusiondet.projects.u_rec.vaihingen import CLASSES
from tests.support.class_rasters import area, image_of, write

import numpy as np

COLOURS = np.array(CLASSES.values, np.uint8)


def coloured(numbers):
    return np.moveaxis(COLOURS[numbers], -1, 0)


def replica(root, areas=(1, 15, 2), labels="gts_for_participants", suffix=""):
    """The published layout with small areas."""
    for number in areas:
        name = f"top_mosaic_09cm_area{number}"
        write(root / "top" / f"{name}.tif", image_of(area(number)))
        write(root / labels / f"{name}{suffix}.tif", coloured(area(number)))
    return root
