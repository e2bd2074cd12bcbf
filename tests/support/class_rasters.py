"""Rasters with a class per pixel, and images in which a shift against them shows."""

import numpy as np
import rasterio


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(image), "height": image.shape[1], "width": image.shape[2]}
    with rasterio.open(path, "w", driver="GTiff", dtype=image.dtype, **shape, **options) as f:
        f.write(image)
    return path


def area(number, height=72, width=96, classes=6):
    """(h, w) classes: blocks of 8 px that differ with `number`."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, classes, (height // 8, width // 8))
    return np.kron(blocks, np.ones((8, 8), int))


def image_of(numbers):
    """(3, h, w) uint8; the second band is 40 times the class, so that a shift shows."""
    return np.stack([30 + 0 * numbers, 40 * numbers, 90 + 0 * numbers]).astype(np.uint8)
